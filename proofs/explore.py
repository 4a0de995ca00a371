"""Go through every state that a model can reach, breadth first: the first thing that goes wrong is the shortest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

REPORT = 50_000  # states
State = TypeVar("State", bound=Hashable)


class Step(NamedTuple, Generic[State]):
    """What can happen next, where it leads, and which promise it breaks, in words; "" if none."""

    event: tuple[object, ...]
    state: State
    wrong: str = ""


@dataclass
class Explored(Generic[State]):
    """All that was reached, and the way to the first broken promise, if there is one."""

    states: Collection[State]
    steps: int
    way: list[Step[State]]

    @property
    def wrong(self) -> str:
        return self.way[-1].wrong if self.way else ""


def explore(
    start: State,
    steps: Callable[[State], Iterable[Step[State]]],
    report: Callable[[int], object] = lambda _: None,
) -> Explored[State]:
    """Stop at the first broken promise, else when every reachable state has been seen. Reports how many, on the way."""
    reached_from: dict[State, State] = {start: start}
    count, left = 0, deque([start])
    while left:
        state = left.popleft()
        for step in steps(state):
            count += 1
            if step.wrong:
                return Explored(reached_from.keys(), count, [*way_to(state, reached_from, steps), step])
            if step.state not in reached_from:
                reached_from[step.state] = state
                left.append(step.state)
                if len(reached_from) % REPORT == 0:
                    report(len(reached_from))
    return Explored(reached_from.keys(), count, [])


def way_to(
    state: State, reached_from: dict[State, State], steps: Callable[[State], Iterable[Step[State]]]
) -> list[Step[State]]:
    """Return the steps from the start. Each is found again, so that the search need not remember it."""
    way: list[Step[State]] = []
    while (before := reached_from[state]) != state:
        way.append(next(step for step in steps(before) if step.state == state))
        state = before
    return way[::-1]

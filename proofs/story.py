"""Tell a counterexample as two psql sessions and a producer, side by side on one time line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from proofs.explore import Step
from proofs.protocol import Page, Position, Snapshot, State
from proofs.wrong import Wrong

FIRST_TXID = 741
WIDTHS = (34, 34, 38)
PRODUCER = 2  # the column
Cells = tuple[list[str], list[str], list[str]]  # the lines of one step, by column


def to_txid(number: int) -> int:
    return FIRST_TXID - 1 + number


def show(snapshot: Snapshot) -> str:
    return str(Snapshot(to_txid(snapshot.xmax), tuple(map(to_txid, snapshot.xip))))


def name(ids: tuple[int, ...]) -> str:
    return f"cdc_id {' and '.join(map(str, ids))}"


@dataclass
class Teller:
    """Says what each side does at a step."""

    saves_early: bool
    employees: dict[int, int] = field(default_factory=dict)  # by cdc_id

    def tell(self, step: Step[State]) -> tuple[int, list[str]]:
        """Return the column, and the lines that stand there."""
        match step.event:
            case ("begin", int(number)):
                return number - 1, ["BEGIN;", f"SELECT pg_current_xact_id(); → {to_txid(number)}"]
            case ("draw", int(number), int(cdc_id), after):
                return number - 1, self.change(cdc_id, after)
            case ("committed", int(number)):
                return number - 1, ["COMMIT;"]
            case ("aborted", int(number)):
                return number - 1, ["ROLLBACK;"]
            case ("read", Page() as page):
                saved = [self.save(page.position)] if self.saves_early else []
                return PRODUCER, [f"poll finds {name(page.ids) if page.ids else 'nothing'}", *saved]
            case ("publish", Page() as page):
                saved = [] if self.saves_early else [self.save(page.position)]
                return PRODUCER, [f"publishes {name(page.ids)}", *saved]
            case ("crash", _):
                return PRODUCER, ["crash; starts again"]
            case ("stay" | "skip" | "save", Position() as position):
                return PRODUCER, [self.save(position)]
            case ("too many", _):
                return PRODUCER, ["poll finds more late rows than a page"]
        raise AssertionError(f"no words for {step.event}")

    def change(self, cdc_id: int, after: object) -> list[str]:
        if isinstance(after, int):
            self.employees[cdc_id] = employee = self.employees[after]
            return [f"UPDATE employees SET salary = {cdc_id}", f"WHERE emp_id = {employee}; → cdc_id {cdc_id}"]
        self.employees[cdc_id] = employee = 1 + max(self.employees.values(), default=0)
        return ["INSERT INTO employees (emp_id)", f"VALUES ({employee}); → cdc_id {cdc_id}"]

    def save(self, position: Position) -> str:
        return f"position: {position.last_offset}, {show(position.snapshot)}"


def tell(wrong: Wrong, way: list[Step[State]]) -> Iterator[str]:
    """Yield the lines of the story."""
    teller = Teller(saves_early=not wrong.protocol.save_last)
    yield from (wrong.name, "")
    yield from timeline(("psql, session A", "psql, session B", "producer"), (at(*teller.tell(step)) for step in way))
    last, position = way[-1], way[-1].state.position
    values = {"offset": position.last_offset, "snapshot": show(position.snapshot)}
    yield from ("", f"    → {last.wrong}")
    if "lost" in last.wrong:
        yield "      it is committed, and no poll finds it:"
        yield f"      {wrong.reads.format(**values)}"
    yield f"      ours {wrong.ours.format(**values)}"


def at(column: int, lines: list[str]) -> Cells:
    """What stands in one column only."""
    first, second, third = (lines if place == column else [] for place in range(len(WIDTHS)))
    return first, second, third


def timeline(names: tuple[str, str, str], steps: Iterable[Cells]) -> Iterator[str]:
    """Yield a column for each name, and the steps numbered and below each other."""
    yield line("", *names)
    yield line("", *("─" * width for width in WIDTHS))
    for number, cells in enumerate(steps, 1):
        for label, *texts in zip_longest([str(number)], *cells, fillvalue=""):
            yield line(label, *texts)


def line(label: str, *cells: str) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    return f"{label:>3} {' '.join(padded)}".rstrip()

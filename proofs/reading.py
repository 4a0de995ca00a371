"""The reading protocol as a model: docs/design.md, "Reading it without losing a row".

Writers take a txid, draw offsets, and commit or abort, in any order. The producer reads a page, publishes it, saves its
position, and crashes anywhere.

Who changes an employee holds its row until the end. So a change is drawn after every older one of that employee has
committed or is gone. `Row.after` names the last of them while it is unpublished; None is another employee.

A run has no end. What is published and covered by the saved position is forgotten, and what is left is numbered from 1
again. Only what is alive at a time is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from proofs.explore import Step
from proofs.protocol import ABORTED, COMMITTED, NOTHING, OPEN, Page, Position, Protocol, Row, Snapshot, State

START = State((), 1, (), NOTHING, NOTHING)


@dataclass(frozen=True)
class Bounds:
    """How much there can be at a time: open, unpublished, or not covered by the saved position."""

    transactions: int = 3
    ids: int = 2  # of one transaction
    log: int = 3  # ids of all of them
    page: int = 1
    forget: bool = True  # if not, this is all that there ever is, and it keeps its numbers
    all_orders: bool = False  # writers go on also while a page is in hand: see steps()

    def __str__(self) -> str:
        each = "1 id" if self.ids == 1 else f"{self.ids} ids"
        orders = ", all orders" if self.all_orders else ""
        return f"{self.transactions} transactions, {each} each, {self.log} in all, pages of {self.page}{orders}"


# In make test and make prove; in make prove only; with --deep only.
QUICK = (Bounds(), Bounds(transactions=2, log=4, page=2), Bounds(transactions=2, log=4, all_orders=True))
LONGER = (Bounds(ids=1, all_orders=True), Bounds(page=2), Bounds(transactions=4))
DEEP = (Bounds(log=4), Bounds(log=4, page=2), Bounds(transactions=4, ids=1, log=4))


def steps(state: State, protocol: Protocol, bounds: Bounds) -> Iterator[Step[State]]:
    """Return all that can happen next.

    A writer changes nothing in the page that the producer has in hand. So unless bounds.all_orders, writers wait while
    there is one: it is enough that they go on before it and after it.
    """
    for step in producer_steps(state, protocol, bounds):
        yield judged(step, protocol, bounds)
    if state.page is None or bounds.all_orders:
        for step in writer_steps(state, bounds):
            harmless = step.event[0] in ("begin", "draw")  # nobody sees it yet
            yield step if harmless else judged(step, protocol, bounds)


def judged(step: Step[State], protocol: Protocol, bounds: Bounds) -> Step[State]:
    """The promise: no committed row that the position has passed is left unpublished.

    The saved position needs no judgement of its own, because after any step there can be a crash.
    """
    state, position = step.state, step.state.position
    for i, row in enumerate(state.log[: position.last_offset], 1):
        unpublished = not row.published and state.transactions[row.txid - 1] == COMMITTED
        if unpublished and not protocol.is_late(i, row.txid, position):
            return step._replace(wrong=step.wrong or f"cdc_id {i} is lost")
    return Step(step.event, forget(state), step.wrong) if bounds.forget else step


# The writers


def writer_steps(state: State, bounds: Bounds) -> Iterator[Step[State]]:
    transactions, log = state.transactions, state.log
    if len(transactions) < bounds.transactions:
        yield Step(("begin", len(transactions) + 1), state._replace(transactions=(*transactions, OPEN)))
    for txid, status in enumerate(transactions, 1):
        if status != OPEN:
            continue
        if len(log) < bounds.log and sum(row.txid == txid for row in log) < bounds.ids:
            for after in (None, *can_follow(state, txid)):
                event = ("draw", txid, len(log) + 1, after)
                yield Step(event, state._replace(log=(*log, Row(txid, after))))
        for end in (COMMITTED, ABORTED):
            ended = (*transactions[: txid - 1], end, *transactions[txid:])
            yield Step((end, txid), state._replace(transactions=ended, xmax=max(state.xmax, txid + 1)))


def can_follow(state: State, txid: int) -> Iterator[int]:
    """The unpublished changes whose employee this transaction may change: the newest of it, and nobody's else row."""
    status = [state.transactions[row.txid - 1] for row in state.log]
    followed = {row.after for row, its in zip(state.log, status, strict=True) if its != ABORTED}
    for i, row in enumerate(state.log, 1):
        if not row.published and i not in followed and (row.txid == txid or status[i - 1] == COMMITTED):
            yield i


# The producer


def producer_steps(state: State, protocol: Protocol, bounds: Bounds) -> Iterator[Step[State]]:
    if state.page is not None:
        yield from [publish(state, state.page)] if state.page.ids else go_on(state, state.page, protocol)
        for part in parts(state, state.page):
            yield Step(("crash", part), crashed(mark_published(state, part)))
        return
    page = protocol.read(state.poll(), bounds.page)
    if page is None:
        yield Step(("too many", state.now()), state._replace(too_many_late=True))
    else:
        saved = state.saved if protocol.save_last else page.position
        yield Step(("read", page), state._replace(page=page, saved=saved, too_many_late=False))
    if state.position != state.saved:
        yield Step(("save", state.position), state._replace(saved=state.position))
        yield Step(("crash", ()), crashed(state))


def go_on(state: State, page: Page, protocol: Protocol) -> Iterator[Step[State]]:
    """Nothing was found. The offset may skip what open transactions have drawn, even since the snapshot."""
    yield Step(("stay", page.position), state._replace(position=page.position, page=None))
    if protocol.skips != "never":
        newest = page.position._replace(last_offset=len(state.log))
        yield Step(("skip", newest), state._replace(position=newest, page=None))


def crashed(state: State) -> State:
    return state._replace(position=state.saved, page=None, too_many_late=False)


def publish(state: State, page: Page) -> Step[State]:
    """All of the page, acknowledged. The position moves; it is saved at once, later, or not before a crash."""
    wrong, done = "", set[int]()
    for i in page.ids:
        row = state.log[i - 1]
        if not row.published and row.after and row.after not in done and not state.log[row.after - 1].published:
            wrong = f"cdc_id {i} is published before cdc_id {row.after}, an older change of the same employee"
        done.add(i)
    if any(not page.position.covers(i, state.log[i - 1].txid) for i in page.ids):
        wrong = wrong or "what is published is read again without end"
    published = mark_published(state, page.ids)._replace(position=page.position, page=None)
    return Step(("publish", page), published, wrong)


def parts(state: State, page: Page) -> Iterator[tuple[int, ...]]:
    """What Kafka may have taken of a page before a crash: of each employee the older changes before the newer ones."""
    for size in range(len(page.ids) + 1):
        for part in combinations(page.ids, size):
            if all((after := state.log[i - 1].after) in part or after not in page.ids for i in part):
                yield part


def mark_published(state: State, ids: tuple[int, ...]) -> State:
    if not ids:
        return state
    log = [row._replace(published=row.published or i in ids) for i, row in enumerate(state.log, 1)]
    log = [row._replace(after=None) if row.after and log[row.after - 1].published else row for row in log]
    return state._replace(log=tuple(log))


# Forgetting


def forget(state: State) -> State:
    """Leave out the transactions that no poll can meet again, and number the others and their rows from 1 again."""
    if state.page is not None:
        return state
    met = {
        row.txid
        for i, row in enumerate(state.log, 1)
        if not (row.published and state.position.covers(i, row.txid) and state.saved.covers(i, row.txid))
    }
    statuses = enumerate(state.transactions, 1)
    kept = tuple(txid for txid, status in statuses if status == OPEN or (status == COMMITTED and txid in met))
    if len(kept) == len(state.transactions):
        return state
    ids = tuple(i for i, row in enumerate(state.log, 1) if row.txid in kept)

    def row(old: Row) -> Row:
        after = 1 + ids.index(old.after) if old.after in ids else None
        return Row(1 + kept.index(old.txid), after, old.published)

    def position(old: Position) -> Position:
        return Position(sum(i <= old.last_offset for i in ids), renumbered(old.snapshot, kept))

    return State(
        transactions=tuple(state.transactions[txid - 1] for txid in kept),
        xmax=renumbered(state.now(), kept).xmax,
        log=tuple(row(state.log[i - 1]) for i in ids),
        position=position(state.position),
        saved=position(state.saved),
        too_many_late=state.too_many_late,
    )


@cache
def renumbered(old: Snapshot, kept: tuple[int, ...]) -> Snapshot:
    xip = tuple(number for number, txid in enumerate(kept, 1) if txid in old.xip)
    return Snapshot(1 + sum(txid < old.xmax for txid in kept), xip)

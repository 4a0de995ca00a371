"""The gate and two consumers as a model: docs/design.md, "Applying", cdc/apply.py and cdc/bulk.py.

A large batch does what the statement does, but for what it takes for known: LARGE. Where it looks up first, it takes
the parts of the statement one after the other, as in one of the orders of WHOLE. After a refusal by the gate's key it
does that; here, where any stretch may be taken again after a crash, it goes to AGAIN.

Two consumers apply the same messages, as after a rebalance. Each takes any stretch of them that begins no later than
the first one that nobody has applied, folds it, and may crash and begin again anywhere. What PostgreSQL does under READ
COMMITTED is modelled step by step:

- A statement sees what is committed when it begins, and what its own transaction has written.
- Who writes a row waits until whoever else has written it ends. An UPDATE then compares again, with the newest row.
- A plain INSERT of a key that is there by then fails. All is undone, and tried again after REGISTER_KEYS.
- The parts of one statement (WITH …) run in any order, as far as none reads another.

A run has no end: consumers go on, repeat and crash for as long as they like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

from proofs.explore import Step

INSERT, UPDATE, DELETE = "INSERT", "UPDATE", "DELETE"
WHOLE, AGAIN, EACH = "all at once", "again, its keys registered", "one by one"
LARGE = "all at once, an INSERT and what does not pass being new to the gate"
OLD = 0  # the state of an employee that was at the destination before the pipeline
Value = int | None | str  # of a row: None where there is none
UNWRITTEN = "unwritten"


class Record(NamedTuple):
    cdc_id: int
    employee: int
    action: str


class Session(NamedTuple):
    """A consumer's transaction: what it has done, and what is left to do."""

    end: int  # of its batch: the last message
    path: str
    statements: tuple[tuple[Record, ...], ...]  # the records of each that is left; the first one is running
    keys: tuple[Record, ...]  # yet to be registered
    parts: tuple[tuple[str, Record], ...] | None = None  # of the running statement; None: it has yet to begin
    deletes: tuple[Record, ...] = ()
    shown: tuple[Value, ...] = ()  # employees when the statement began, where the DELETE is a part of it
    gate: tuple[Value, ...] = ()  # written and not committed, by employee
    rows: tuple[Value, ...] = ()


class State(NamedTuple):
    gate: tuple[Value, ...]  # cdc_applied, by employee
    rows: tuple[Value, ...]  # employees: the change that made the row
    applied: int = 0  # the messages up to here have all been in a committed batch
    sessions: tuple[Session | None, ...] = (None, None)


@dataclass(frozen=True)
class Case:
    """A history of changes, and what is at the destination before it."""

    history: tuple[Record, ...]
    before: tuple[Value, ...]
    own_snapshot: bool = True  # the DELETE is a statement of its own; if not, a part of the first
    compares_again: bool = True  # the UPDATE of the gate, after it has waited
    registers_keys: bool = True  # before the second try

    @property
    def start(self) -> State:
        return State((None,) * len(self.before), self.before)

    def state_at(self, employee: int, gate: Value) -> Value:
        """What the source had after this change."""
        if not isinstance(gate, int) or gate == 0:
            return self.before[employee]
        return None if self.history[gate - 1].action == DELETE else gate


def histories(employees: int, changes: int) -> Iterator[tuple[Record, ...]]:
    """All histories of so many changes."""
    for choices in product(product(range(employees), (UPDATE, DELETE)), repeat=changes):
        there, history = set[int](), list[Record]()
        for cdc_id, (employee, action) in enumerate(choices, 1):
            if action == DELETE and employee not in there:
                break
            history.append(Record(cdc_id, employee, action if employee in there else INSERT))
            (there.discard if action == DELETE else there.add)(employee)
        else:
            yield tuple(history)


@dataclass(frozen=True)
class Bounds:
    """All histories of so many changes; of each employee a row may be there before, or not."""

    employees: int
    changes: int

    def __str__(self) -> str:
        return f"{self.changes} changes of " + ("1 employee" if self.employees == 1 else f"{self.employees} employees")

    def cases(self) -> Iterator[Case]:
        for history in histories(self.employees, self.changes):
            for before in product((None, OLD), repeat=self.employees):
                yield Case(history, before)


QUICK = (Bounds(employees=1, changes=3), Bounds(employees=2, changes=2))
LONGER = (Bounds(employees=1, changes=4), Bounds(employees=2, changes=3))


def steps(state: State, case: Case) -> Iterator[Step[State]]:
    for who, session in enumerate(state.sessions):
        if session is None:
            yield from take(state, who, case)
            continue
        yield Step(("crash", who), put(state, who, None))
        yield from go_on(state, who, session, case)


def put(state: State, who: int, session: Session | None) -> State:
    first, second = state.sessions
    return state._replace(sessions=(session, second) if who == 0 else (first, session))


def take(state: State, who: int, case: Case) -> Iterator[Step[State]]:
    """A batch: the newest record of each employee, in the order of employees; one by one: all, as they come."""
    last = len(case.history)
    for start in range(1, min(state.applied + 1, last) + 1):
        for end in range(start, last + 1):
            records = case.history[start - 1 : end]
            folded = tuple(sorted({record.employee: record for record in records}.values(), key=lambda r: r.employee))
            nothing = (UNWRITTEN,) * len(case.before)
            each = tuple((record,) for record in records)
            for path, statements in ((WHOLE, (folded,)), (LARGE, (folded,)), (EACH, each)):
                keys = statements[0] if path == EACH else ()
                session = Session(end, path, statements, keys, gate=nothing, rows=nothing)
                yield Step(("take", who, start, session), put(state, who, session))


def go_on(state: State, who: int, session: Session, case: Case) -> Iterator[Step[State]]:
    """The next step of a transaction; nothing while it waits for the other one."""
    other = state.sessions[1 - who]
    if session.keys:
        yield from register(state, who, session, other)
    elif not session.statements:
        yield commit(state, who, session, case)
    elif session.parts is None:
        yield Step(("look up", who), put(state, who, look_up(state, session, case)))
    elif session.parts:
        firsts = {kind: (kind, record) for kind, record in reversed(session.parts)}
        for part in [firsts["compare"]] if "compare" in firsts else firsts.values():
            yield from write(state, who, session, other, part, case)
    else:
        yield from delete(state, who, session, other, case)


def seen(committed: tuple[Value, ...], written: tuple[Value, ...], employee: int) -> Value:
    return committed[employee] if written[employee] == UNWRITTEN else written[employee]


def locked(written: tuple[Value, ...] | None, employee: int) -> bool:
    return written is not None and written[employee] != UNWRITTEN


def replaced(values: tuple[Value, ...], employee: int, value: Value) -> tuple[Value, ...]:
    return (*values[:employee], value, *values[employee + 1 :])


def register(state: State, who: int, session: Session, other: Session | None) -> Iterator[Step[State]]:
    """INSERT … (emp_id, 0) ON CONFLICT DO NOTHING: waits for another one's INSERT of the key."""
    record, *left = session.keys
    employee = record.employee
    gate = session.gate
    if seen(state.gate, gate, employee) is None:
        if other and locked(other.gate, employee):
            return
        gate = replaced(gate, employee, 0)
    yield Step(("register", who, record), put(state, who, session._replace(keys=tuple(left), gate=gate)))


def look_up(state: State, session: Session, case: Case) -> Session:
    """The snapshot of the statement: what was applied before to each employee."""
    parts, deletes = list[tuple[str, Record]](), list[Record]()
    for record in session.statements[0]:
        before = seen(state.gate, session.gate, record.employee)
        large, older = session.path == LARGE, isinstance(before, int) and before < record.cdc_id
        if before is None or (large and (record.action == INSERT or not older)):
            row = "upsert" if large and record.action == UPDATE else "insert"
            parts += [("key", record)] if record.action == DELETE else [("key", record), (row, record)]
            deletes += [record] if record.action == DELETE else []
        elif older:
            parts.append(("compare", record))
    shown = () if case.own_snapshot else tuple(map(partial(seen, state.rows, session.rows), range(len(state.rows))))
    return session._replace(parts=tuple(parts), deletes=tuple(deletes), shown=shown)


def write(
    state: State, who: int, session: Session, other: Session | None, part: tuple[str, Record], case: Case
) -> Iterator[Step[State]]:
    """One row of one part of the statement."""
    kind, record = part
    employee = record.employee
    table = "rows" if kind in ("insert", "upsert") else "gate"
    if other and locked(getattr(other, table), employee):
        return
    left = tuple(one for one in session.parts or () if one != part)
    before = seen(getattr(state, table), getattr(session, table), employee)
    after = session._replace(parts=left)
    if kind in ("key", "insert") and before is not None:
        wrong = (
            "" if session.path in (WHOLE, LARGE) else f"change {record.cdc_id} is refused, and becomes a dead letter"
        )
        yield Step(("taken", who, record), put(state, who, again(session, case)), wrong)
        return
    if kind == "compare" and case.compares_again and isinstance(before, int) and before >= record.cdc_id:
        # A large batch takes it for new. Its key is there, so all is undone.
        after = after._replace(parts=(*left, ("key", record))) if session.path == LARGE else after
        yield Step(("stale", who, record), put(state, who, after))
        return
    written = replaced(getattr(session, table), employee, record.cdc_id)
    after = after._replace(gate=written) if table == "gate" else after._replace(rows=written)
    if kind == "compare" and record.action == DELETE:
        after = after._replace(deletes=(*after.deletes, record))
    elif kind == "compare":
        after = after._replace(parts=(*left, ("upsert", record)))
    yield Step((kind, who, record), put(state, who, after))


def again(session: Session, case: Case) -> Session:
    """The key was there: all is undone, and tried again with the keys registered first."""
    nothing = (UNWRITTEN,) * len(session.gate)
    statement = session.statements[0]
    keys = statement if case.registers_keys else ()
    return Session(session.end, AGAIN, (statement,), keys, gate=nothing, rows=nothing)


def delete(state: State, who: int, session: Session, other: Session | None, case: Case) -> Iterator[Step[State]]:
    """DELETE … WHERE emp_id = ANY (deleted), then the next statement."""
    rows = session.rows
    for record in session.deletes:
        now = seen(state.rows, rows, record.employee)
        if now is None or not (case.own_snapshot or session.shown[record.employee] is not None):
            continue
        if other and locked(other.rows, record.employee):
            return
        rows = replaced(rows, record.employee, None)
    left = session.statements[1:]
    after = session._replace(rows=rows, statements=left, parts=None, deletes=(), shown=())
    if session.path == EACH and left:
        after = after._replace(keys=left[0])
    yield Step(("delete" if session.deletes else "done", who, session.deletes), put(state, who, after))


def commit(state: State, who: int, session: Session, case: Case) -> Step[State]:
    employees = range(len(case.before))
    gate = tuple(seen(state.gate, session.gate, employee) for employee in employees)
    rows = tuple(seen(state.rows, session.rows, employee) for employee in employees)
    applied = max(state.applied, session.end)
    after = put(State(gate, rows, applied, state.sessions), who, None)
    return Step(("commit", who, session), after, "; ".join(broken(state, after, case)))


def broken(before: State, after: State, case: Case) -> Iterator[str]:
    """Each employee is as one change left it, and that is the newest that has been applied."""
    for employee, (was, gate, row) in enumerate(zip(before.gate, after.gate, after.rows, strict=True)):
        newest = max((r.cdc_id for r in case.history[: after.applied] if r.employee == employee), default=0)
        if isinstance(was, int) and isinstance(gate, int) and gate < was:
            yield f"employee {employee + 1} went back from change {was} to change {gate}"
        elif newest > (gate if isinstance(gate, int) else 0):
            yield f"change {newest} of employee {employee + 1} is lost"
        elif row != case.state_at(employee, gate):
            yield f"employee {employee + 1} is not as change {gate} left it"

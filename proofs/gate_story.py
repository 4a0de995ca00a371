"""Ways to apply changes that look right, and the interleaving of two consumers that breaks each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from proofs.explore import Explored, Step, explore
from proofs.gate import DELETE, INSERT, OLD, UPDATE, Case, Record, Session, State, seen, steps
from proofs.story import Cells, timeline


@dataclass(frozen=True)
class Wrong:
    name: str
    ours: str  # what ours does instead
    case: Case

    def explore(self) -> Explored[State]:
        return explore(self.case.start, partial(steps, case=self.case))


def history(*actions: str) -> tuple[Record, ...]:
    """Changes of one employee."""
    return tuple(Record(cdc_id, 0, action) for cdc_id, action in enumerate(actions, 1))


WRONG = (
    Wrong(
        "The DELETE inside the statement that compares, so in its snapshot",
        "deletes in a statement of its own: its snapshot is taken when the gate's locks are held",
        Case(history(INSERT, DELETE, INSERT, DELETE), (None,), own_snapshot=False),
    ),
    Wrong(
        "A gate that is compared only when it is looked up",
        "compares in the UPDATE too: PostgreSQL does it again with the newest row, after the wait for its lock",
        Case(history(INSERT, UPDATE, UPDATE), (None,), compares_again=False),
    ),
    Wrong(
        "A second try that does not register its keys first",
        "registers the keys: all are known then, and a row that was there before is updated",
        Case(history(INSERT), (OLD,), registers_keys=False),
    ),
)


def tell(wrong: Wrong, way: list[Step[State]]) -> Iterator[str]:
    """Yield the lines of the story."""
    yield from (wrong.name, "")
    rows = (cells(step) for step in way if step.event[0] != "done")
    yield from timeline(("consumer A", "consumer B", "the destination, committed"), rows)
    yield from ("", f"    → {way[-1].wrong}", f"      ours {wrong.ours}")


def cells(step: Step[State]) -> Cells:
    _, who, *_ = step.event
    said = words(step)
    there = committed(step.state) if step.event[0] == "commit" else []
    return (said, [], there) if who == 0 else ([], said, there)


def committed(state: State) -> list[str]:
    row = state.rows[0]
    made = "no row" if row is None else "the row from before" if row == OLD else f"the row of change {row}"
    return [f"gate {state.gate[0] or 'empty'}, {made}"]


def words(step: Step[State]) -> list[str]:
    """What a consumer does at a step, in its own column."""
    match step.event:
        case ("take", _, _, Session() as session):
            (record,) = session.statements[0]
            return [f"takes {record.action} {record.cdc_id}; BEGIN"]
        case ("look up", int(who)):
            return look_up(step.state, who)
        case ("register", *_):
            return ["registers the key"]
        case ("key", _, Record() as record):
            return [f"INSERT INTO cdc_applied: {record.cdc_id}"]
        case ("compare", _, Record() as record):
            return [f"UPDATE cdc_applied: passes, {record.cdc_id}"]
        case ("stale", *_):
            return ["UPDATE cdc_applied: too old"]
        case ("insert", *_):
            return ["INSERT INTO employees"]
        case ("upsert", *_):
            return ["INSERT INTO employees", "  ON CONFLICT DO UPDATE"]
        case ("taken", *_):
            return ["the row is there: undone, and again"]
        case ("delete", int(who), _):
            deleting = step.state.sessions[who]
            gone = deleting is not None and deleting.rows[0] is None
            return [f"DELETE FROM employees: {'1 row' if gone else 'no row'}"]
        case ("commit", *_):
            return ["COMMIT"]
        case ("crash", *_):
            return ["crash: ROLLBACK"]
    raise AssertionError(f"no words for {step.event}")


def look_up(state: State, who: int) -> list[str]:
    session, other = state.sessions[who], state.sessions[1 - who]
    assert session is not None
    known = seen(state.gate, session.gate, 0)
    lines = ["looks up the gate: " + ("unknown" if known is None else f"{known}")]
    waits = any(kind == "compare" for kind, _ in session.parts or ()) and other and other.gate[0] != "unwritten"
    return [*lines, "UPDATE cdc_applied waits …"] if waits else lines

"""Ask PostgreSQL what the product's own statements return at each poll of the model, and compare.

A snapshot is a value, so nothing has to run at the same time: the statements of cdc/emp_cdc.py get the literal snapshot
in place of pg_current_snapshot(), and the rows that it shows in place of the table. All polls go in one statement.
"""

from __future__ import annotations

from collections.abc import Iterable

from cdc import emp_cdc
from config import SCHEMA
from proofs.protocol import OURS, State
from proofs.reading import Bounds

from psycopg2.extensions import connection as Connection

POLL = emp_cdc.SESSION.split("PREPARE poll (bigint, pg_snapshot, bigint) AS")[1]
LATE = f"SELECT cdc_id {emp_cdc.LATE} ORDER BY cdc_id"
# The log at a poll, as MVCC shows it. The model has no employees: the other columns of the log are NULL.
LOG = """(
    SELECT cdc_id, txid, NULL::int AS emp_id, NULL AS first_name, NULL AS last_name, NULL::date AS dob, NULL AS city,
           NULL::int AS salary, NULL AS action, NULL::timestamptz AS changed_at
    FROM unnest(txids::xid8[]) WITH ORDINALITY AS log (txid, cdc_id)
    WHERE pg_visible_in_snapshot(txid, now)) AS emp_cdc"""
ASK = """
SELECT (SELECT array_agg(cdc_id) FROM ({poll}) AS answer WHERE cdc_id IS NOT NULL),
       (SELECT array_agg(cdc_id) FROM ({late}) AS answer)
FROM unnest(%(logs)s::text[], %(offsets)s::bigint[], %(saved)s::pg_snapshot[], %(now)s::pg_snapshot[])
     WITH ORDINALITY AS question (txids, last_offset, saved, now, number)
ORDER BY number
"""


def ask(page: int) -> str:
    poll, late = (literal(statement, page) for statement in (POLL, LATE))
    return ASK.format(poll=poll, late=late)


def literal(statement: str, page: int) -> str:
    """Return a statement of the product, with the columns of a question in place of its parameters and the server."""
    for ours, its in (
        (f"pg_sequence_last_value('{SCHEMA}.emp_cdc_cdc_id_seq')", "cardinality(txids::xid8[])"),
        (f"{SCHEMA}.emp_cdc", LOG),
        ("pg_current_snapshot()", "now"),
        ("$1", "last_offset"),
        ("$2", "saved"),
        ("$3", str(page)),
    ):
        statement = statement.replace(ours, its)
    return statement


def compare(source: Connection, states: Iterable[State], bounds: Bounds) -> tuple[int, list[str]]:
    """Return how many polls were asked, and those that PostgreSQL answers differently, in words."""
    polls = {}  # many states differ only in what has been published, or in what is saved
    for state in states:
        if state.page is None:
            polls[tuple(row.txid for row in state.log), state.position, state.now()] = state
    values = {
        "logs": ["{" + ",".join(map(str, txids)) + "}" for txids, _, _ in polls],
        "offsets": [position.last_offset for _, position, _ in polls],
        "saved": [str(position.snapshot) for _, position, _ in polls],
        "now": [str(now) for _, _, now in polls],
    }
    with source.cursor() as cursor:
        cursor.execute(ask(bounds.page), values)
        answers = cursor.fetchall()
    different = []
    for ((txids, position, now), state), (poll, late) in zip(polls.items(), answers, strict=True):
        expected = OURS.read(state.poll()._replace(late_only=False), bounds.page)
        page = to_page(poll or [], position.last_offset, bounds.page)
        all_late = OURS.read(state.poll()._replace(late_only=True), bounds.page)
        if page != (expected and expected.ids) or tuple(late or ()) != (all_late and all_late.ids):
            different.append(f"log of {txids}, position {position}, now {now}: PostgreSQL finds {poll}, late {late}")
    return len(polls), different


def to_page(found: list[int], last_offset: int, size: int) -> tuple[int, ...] | None:
    """Return what read_page() makes of the statement's rows: None if there are more late rows than a page."""
    ids = tuple(sorted(found))
    return None if len(ids) > size and ids[size] <= last_offset else ids

"""Large batches by COPY: the same end as by the statement, whatever a text holds and whoever else writes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date

from cdc import bulk
from cdc.apply import incoming, newest, pass_settings, to_arrays
from cdc.message import Change, Record
from cdc.postgres import connect
from employee import CDC_COLUMNS, EMPLOYEE_COLUMNS, CDCRecord
from harness.database import WAITING, query
from harness.destination import alter_destination, ids, log_of_the_server
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection

TEXTS = [
    None,
    "",
    "null",
    "Ada",
    "O'Hara",
    'a "quoted" one',
    "back\\slash",
    "\\",
    '\\"',
    "\\.",
    "a,b",
    "a\nb\r\tc",
    "\\n",
]
TEXTS += ["\x01\x1f\x7f", "Zoë 😀 ﷽", " ", "x" * 100, "]\n[", "{}", "\\N", "'; --", "%s %(ids)s", "\n\\.\n"]
DATES = [None, date(1970, 1, 1), date(1, 1, 1), date(9999, 12, 31)]
OLD_DATES = ["0044-03-15 BC", "5874897-12-31", "infinity", "-infinity"]


def record(cdc_id: int, emp_id: int, action: str = "INSERT", city: str | None = None) -> Record:
    return Change(cdc_id, emp_id, None, None, None, city, None, action)  # type: ignore[arg-type]


def random_record(chance: random.Random, cdc_id: int) -> Record:
    action = chance.choice(["INSERT", "UPDATE", "UPDATE", "DELETE"])
    first_name, last_name, city = (chance.choice(TEXTS) for _ in range(3))
    salary = chance.choice([None, 0, -(2**31), 2**31 - 1])
    emp_id = chance.choice([-(2**31), -1, 0, 2**31 - 1, *range(1, 60)])
    if chance.random() < 0.1:  # as the slow path reads it
        return CDCRecord(cdc_id, emp_id, first_name, last_name, chance.choice(OLD_DATES), city, salary, action)
    born = chance.choice(DATES)
    return Change(cdc_id, emp_id, first_name, last_name, born, city, salary, action)  # type: ignore[arg-type]


def rows(records: dict[int, Record]) -> list[tuple[object, ...]]:
    """What employees must hold, its dates as text."""
    return sorted(
        (r.emp_id, r.first_name, r.last_name, None if r.dob is None else str(r.dob), r.city, r.salary)
        for r in records.values()
        if r.action != "DELETE"
    )


def test_random_batches_leave_the_newest_state_whatever_a_text_holds(
    destination: Connection, session: Connection, run_seed: int
) -> None:
    chance, state = random.Random(run_seed), dict[int, Record]()
    history = [random_record(chance, cdc_id) for cdc_id in range(1, 4_001)]
    for _ in range(150):
        bulk.look_ups.left = chance.choice([0, 1])
        sample = chance.sample(history, 30)
        latest = {one.emp_id: one for one in sorted(sample, key=lambda one: one.cdc_id)}
        passed = {i: one for i, one in latest.items() if i not in state or state[i].cdc_id < one.cdc_id}
        state |= passed
        batch = newest(sample)
        actions = [one.action for one in batch if one.emp_id in passed]
        counts = [actions.count(action) for action in ("INSERT", "UPDATE", "DELETE")]
        assert bulk.try_bulk(session, batch) == counts
        found = query(destination, "SELECT emp_id, first_name, last_name, dob::text, city, salary FROM employees")
        assert sorted(found) == rows(state)
    gate = sorted((one.emp_id, one.cdc_id) for one in state.values())
    assert query(destination, "SELECT emp_id, cdc_id FROM cdc_applied ORDER BY emp_id") == gate


def test_texts_arrive_where_backslashes_are_escapes_in_strings(
    shared: Pipeline, destination: Connection, run_seed: int
) -> None:
    alter_destination(shared, "SET standard_conforming_strings = off")
    chance = random.Random(run_seed)
    batch = {one.emp_id: one for one in (random_record(chance, cdc_id) for cdc_id in range(1, 200))}
    try:
        with closing(connect("destination", shared.destination_url, bulk.SESSION)) as session:
            assert bulk.try_bulk(session, batch.values()) is not None
    finally:
        alter_destination(shared, "RESET standard_conforming_strings")
    found = query(destination, "SELECT emp_id, first_name, last_name, dob::text, city, salary FROM employees")
    assert sorted(found) == rows(batch)


OTHER_TABLES = {
    "a constraint": ("ADD CONSTRAINT positive CHECK (emp_id > 0)", "DROP CONSTRAINT positive"),
    "a unique column": ("ADD CONSTRAINT one UNIQUE (city)", "DROP CONSTRAINT one"),
    "a column that must be there": ("ALTER city SET NOT NULL", "ALTER city DROP NOT NULL"),
    "a shorter text": ("ALTER city TYPE VARCHAR(99)", "ALTER city TYPE VARCHAR(100)"),
    "a smaller number": ("ALTER salary TYPE SMALLINT", "ALTER salary TYPE INT"),
    "one column more": ("ADD email TEXT", "DROP email"),
    "another key": (
        "DROP CONSTRAINT employees_pkey, ADD UNIQUE (city)",
        "DROP CONSTRAINT employees_city_key, ADD PRIMARY KEY (emp_id)",
    ),
    "one index more": ("ADD CONSTRAINT apart EXCLUDE (city WITH =)", "DROP CONSTRAINT apart"),
}


@pytest.mark.parametrize("what", OTHER_TABLES)
def test_a_table_that_may_refuse_a_row_for_what_is_in_it_takes_no_copy(
    destination: Connection, session: Connection, what: str
) -> None:
    """PostgreSQL would log the row."""
    change, back = OTHER_TABLES[what]
    assert bulk.try_bulk(session, [record(1, 1, city="Rome")]) == [1, 0, 0]
    query(destination, f"ALTER TABLE employees {change}")
    try:
        assert bulk.try_bulk(session, [record(2, 2, city="Oslo")]) is None
    finally:
        query(destination, f"ALTER TABLE employees {back}")
    assert bulk.try_bulk(session, [record(2, 2, city="Oslo")]) == [1, 0, 0]
    assert ids(destination) == [1, 2]


@pytest.mark.parametrize("rows", [0, 20_000])
def test_known_employees_are_found_by_one_scan_of_the_key_whatever_the_statistics_said(
    destination: Connection, session: Connection, rows: int
) -> None:
    """With a scan of a whole table, or one for each record, the plan would last as long as the session."""
    query(destination, "INSERT INTO cdc_applied SELECT generate_series(1, %(rows)s), 1", {"rows": rows})
    query(destination, "INSERT INTO employees (emp_id) SELECT generate_series(1, %(rows)s)", {"rows": rows})
    query(destination, "ANALYZE cdc_applied, employees")
    batch = [record(30_000 + n, n) for n in range(1, 10)]
    assert bulk.try_bulk(session, batch) == [9, 0, 0]
    query(
        session, f"BEGIN; {bulk.ONE_SCAN}; {pass_settings(CDC_COLUMNS)}; SET LOCAL work_mem = '64kB'", to_arrays(batch)
    )
    for statement, table in (
        (bulk.LOOK_UP, "cdc_applied"),
        (f"EXECUTE pass_gate ({incoming(['cdc_id', 'emp_id'])})", "cdc_applied"),
        (f"EXECUTE put_rows ({incoming(EMPLOYEE_COLUMNS)})", "employees"),
        (bulk.DELETE, "employees"),
    ):
        plan = [line.strip(" ->") for (line,) in query(session, f"EXPLAIN (COSTS off) {statement}")]
        scans = [line for line in plan if "Scan" in line and table in line]
        assert [line.partition(" on ")[0] for line in scans] == [f"Index Scan using {table}_pkey"], plan
        assert any(line.startswith("Index Cond: (emp_id = ANY") for line in plan), plan
        assert not any("Nested Loop" in line for line in plan), plan
    query(session, "ROLLBACK")


def test_a_row_that_is_updated_stays_in_its_block(destination: Connection, session: Connection) -> None:
    """In another block it would cost an entry in the index, too."""
    blocks = "SELECT array_agg((ctid::text::point)[0] ORDER BY emp_id) FROM "
    assert bulk.try_bulk(session, [record(n, n, city="Rome") for n in range(1, 2_001)]) == [2_000, 0, 0]
    before = [query(destination, blocks + table) for table in ("cdc_applied", "employees")]
    for start, apply in ((10_000, bulk.apply), (20_000, bulk.try_bulk)):
        assert apply(session, [record(start + n, n, "UPDATE", city="Oslo") for n in range(start // 1_000, 2_000, 50)])
        assert [query(destination, blocks + table) for table in ("cdc_applied", "employees")] == before


def test_a_table_with_a_trigger_takes_no_copy(destination: Connection, session: Connection) -> None:
    function = "suppress_redundant_updates_trigger()"
    query(destination, f"CREATE TRIGGER t BEFORE UPDATE ON employees FOR EACH ROW EXECUTE FUNCTION {function}")
    try:
        assert bulk.try_bulk(session, [record(1, 1)]) is None
    finally:
        query(destination, "DROP TRIGGER t ON employees")
    assert bulk.try_bulk(session, [record(1, 1)]) == [1, 0, 0]


@pytest.mark.parametrize(
    ("actions", "folded"),
    [
        ("INSERT UPDATE UPDATE", "INSERT"),
        ("DELETE INSERT UPDATE", "INSERT"),
        ("INSERT DELETE", "DELETE"),
        ("INSERT DELETE UPDATE", "UPDATE"),
        ("UPDATE UPDATE", "UPDATE"),
    ],
)
def test_an_employee_is_new_who_was_inserted_in_the_same_batch(actions: str, folded: str) -> None:
    records = [record(n, 7, action, city=f"city {n}") for n, action in enumerate(actions.split(), 1)]
    last = len(records)
    assert list(newest(records)) == [record(last, 7, folded, city=f"city {last}")]
    assert records[-1].action == actions.split()[-1]  # it may yet be applied alone


def test_rows_from_before_the_pipeline_are_updated_by_a_large_batch(
    destination: Connection, session: Connection
) -> None:
    """After both tables were filled from a dump, each change but an INSERT is of such a row."""
    query(destination, "INSERT INTO employees (emp_id, city) SELECT n, 'before' FROM generate_series(1, 4) AS n")
    batch = [record(1, 2, "UPDATE", city="new"), record(2, 3, "DELETE"), record(3, 5, "UPDATE", city="new")]
    assert bulk.try_bulk(session, [*batch, record(4, 6, city="new")]) == [1, 2, 1]
    cities = [(1, "before"), (2, "new"), (4, "before"), (5, "new"), (6, "new")]
    assert query(destination, "SELECT emp_id, city FROM employees ORDER BY emp_id") == cities
    gate = [(2, 1), (3, 2), (5, 3), (6, 4)]
    assert query(destination, "SELECT emp_id, cdc_id FROM cdc_applied ORDER BY emp_id") == gate


def test_changes_that_are_read_again_are_refused_once_and_looked_up_from_then_on(
    destination: Connection, session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each batch would leave an error in the server's log, and take longer."""
    log, ours = log_of_the_server(destination), f"[{session.info.backend_pid}] ERROR:  duplicate key"
    monkeypatch.setattr(bulk, "look_ups", bulk.LookUps())
    first, again = ([record(start + n, n) for n in range(1, 100)] for start in (0, 1_000))
    assert bulk.try_bulk(session, first) == [99, 0, 0]
    assert bulk.look_ups.left == 0
    query(destination, "INSERT INTO employees (emp_id) VALUES (300)")
    for batch, passed in ((first, [0, 0, 0]), (again, [99, 0, 0]), ([record(1, 300)], None), (first, [0, 0, 0])):
        assert bulk.try_bulk(session, batch) == passed
        assert bulk.look_ups.left == bulk.LOOK_UPS
    for number in range(1, bulk.LOOK_UPS + 1):
        batch = [record(number, 1_000 + number), record(2_000 + number, 1, "UPDATE"), record(1, -number, "DELETE")]
        assert bulk.try_bulk(session, batch) == [1, 1, 1]
        assert bulk.look_ups.left == bulk.LOOK_UPS - number
    assert log.read_text(encoding="utf-8").count(f'{ours} value violates unique constraint "cdc_applied') == 1


def test_a_row_that_is_inserted_though_it_was_there_before_is_the_statements(
    destination: Connection, session: Connection
) -> None:
    """COPY finds the key there."""
    query(destination, "INSERT INTO employees (emp_id, city) VALUES (5, 'before'), (2000000, 'before')")
    assert bulk.apply(session, [record(n, n, city="new") for n in range(1, 1_501)]) == 1_500
    assert query(destination, "SELECT city FROM employees WHERE emp_id IN (5, 6)") == [("new",), ("new",)]
    assert len(ids(destination)) == 1_501
    assert bulk.apply(session, [record(2_000 + n, n, "DELETE") for n in range(1, 1_501)]) == 1_500
    assert ids(destination) == [2_000_000]


def test_a_large_batch_and_one_that_came_first_leave_the_newest_of_both(
    shared: Pipeline, destination: Connection, session: Connection
) -> None:
    """Each waits for the other's keys: by COPY for one that is new to both, by the UPDATE for one that is known."""
    other = shared.destination()
    assert bulk.try_bulk(session, [record(1, 1)]) == [1, 0, 0]
    query(other, "BEGIN")
    query(other, "UPDATE cdc_applied SET cdc_id = 5; UPDATE employees SET city = 'other' WHERE emp_id = 1")
    query(other, "INSERT INTO cdc_applied VALUES (7, 6); INSERT INTO employees (emp_id, city) VALUES (7, 'other')")
    for key, ours, expected in ((1, 4, "other"), (1, 8, "ours"), (7, 3, "other"), (7, 9, "ours")):
        batch = [record(ours, key, "UPDATE", city="ours")]
        batch += [record(10_000 * ours + n, 10_000 * ours + n) for n in range(1_000)]
        with ThreadPoolExecutor() as pool:
            applied = pool.submit(bulk.apply, session, batch)
            if ours == 4:
                wait_until(lambda: query(destination, WAITING) == [(1,)], what="it waits for the other one")
                query(other, "COMMIT")
            assert applied.result(20) == 1_000 + (expected == "ours")
        assert query(destination, "SELECT city FROM employees WHERE emp_id = %s", (key,)) == [(expected,)]


def test_a_delete_that_waits_for_an_insert_deletes_it_in_a_large_batch(
    shared: Pipeline, destination: Connection, session: Connection
) -> None:
    inserting = shared.destination()
    assert bulk.try_bulk(session, [record(1, 7)]) == [1, 0, 0]
    assert bulk.try_bulk(session, [record(2, 7, "DELETE")]) == [0, 0, 1]
    query(inserting, "BEGIN; UPDATE cdc_applied SET cdc_id = 3; INSERT INTO employees (emp_id) VALUES (7)")
    with ThreadPoolExecutor() as pool:
        deletion = pool.submit(bulk.try_bulk, session, [record(4, 7, "DELETE")])
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the DELETE waits for the gate")
        query(inserting, "COMMIT")
        assert deletion.result(20) == [0, 0, 1]
    assert ids(destination) == []

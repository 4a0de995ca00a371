"""consumer.py: whatever arrives twice, late, malformed or while a server is away, the destination equals the source."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

import apply as applying
import config
import consumer
import graves
from connection import Kafka, connect, kafka_client
from employee import CDCRecord, read
from harness.database import BACKWARDS, ROWS, WAITING, WATCH, administer, query
from harness.kafka import client_settings
from harness.pipeline import Pipeline, new_pipeline
from harness.script import Script
from harness.waiting import wait_until

Row = tuple[Any, ...]

IDS = "SELECT emp_id FROM employees ORDER BY emp_id"


def change(cdc_id: int, emp_id: int, action: str = "INSERT", **columns: Any) -> str:
    """A message's value as the producer writes it."""
    return CDCRecord(cdc_id, emp_id, **columns, action=action).to_json()


def ids(connection: Connection) -> list[int]:
    return [emp_id for (emp_id,) in query(connection, IDS)]


def wait_until_read(pipeline: Pipeline, group: str = "", seconds: float = 20.0) -> None:
    """Return when the group has committed the end of each partition."""
    with closing(Consumer({**client_settings(), "group.id": group or pipeline.name})) as reader:
        topic = reader.list_topics(pipeline.topic, timeout=10).topics[pipeline.topic]
        partitions = [TopicPartition(pipeline.topic, number) for number in topic.partitions]

        def left() -> int:
            committed = {part.partition: part.offset for part in reader.committed(partitions, timeout=10)}
            ends = {part.partition: reader.get_watermark_offsets(part, timeout=10)[1] for part in partitions}
            return sum(ends[number] - max(committed[number], 0) for number in ends)

        wait_until(lambda: left() == 0, seconds, lambda: f"the group has read everything\n{outputs(pipeline)}")


def outputs(pipeline: Pipeline) -> str:
    return "\n".join(f"{script.log.name}:\n{script.output()[-2000:]}" for script in pipeline.scripts)


def wait_for_rows(pipeline: Pipeline, expected: list[int], seconds: float = 20.0) -> None:
    """Return when the destination holds just these employees."""
    with closing(psycopg2.connect(pipeline.destination_url)) as destination:
        destination.autocommit = True
        try:
            wait_until(lambda: ids(destination) == expected, seconds)
        except AssertionError:
            raise AssertionError(f"{ids(destination)} instead of {expected}\n{outputs(pipeline)}") from None


def start_consumer(pipeline: Pipeline, **environment: str) -> Script:
    """A consumer that has its partitions."""
    script = pipeline.start("consumer.py", **environment)
    script.wait_for("partitions assigned")
    return script


def shut_out(pipeline: Pipeline) -> None:
    """Take the destination away: no new sessions, and those that are there end."""
    database = f"{pipeline.name}_copy"
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    terminate(pipeline)


def terminate(pipeline: Pipeline) -> None:
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{pipeline.name}_copy'"
    administer(config.DESTINATION_DATABASE_URL, end)


def let_in(pipeline: Pipeline) -> None:
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {pipeline.name}_copy ALLOW_CONNECTIONS true")


def alter_destination(pipeline: Pipeline, what: str) -> None:
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {pipeline.name}_copy {what}")


# Values of all kinds, from psql on the source to the destination: one running pipeline for all of them


@pytest.fixture(scope="module")
def shared(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path_factory.mktemp("shared")) as pipeline:
        pipeline.set_up()
        pipeline.start("producer.py")
        pipeline.start("consumer.py")
        yield pipeline
        for script in pipeline.scripts:
            assert script.stop() == 0, script.output()
            assert "ERROR" not in script.output()
            assert "Traceback" not in script.output()


VALUES: dict[str, Row] = {
    "nothing but NULLs": (None, None, None, None, None),
    "empty texts": ("", "", None, "", 0),
    "spaces": (" ", "  trailing  ", None, "\u00a0\u2003", 1),
    "unicode": ("Zoë", "漢字かな", "2000-02-29", "Ελλάς עברית العربية", 1),
    "combined and astral characters": ("👩‍👩‍👧‍👦", "e\u0301", "2000-02-29", "\U0010ffff\ufeff\ufffe", 1),
    "quotes": ("O'Neill", '"double"', "2000-02-29", "$$dollar$$ `back`", 1),
    "backslashes": ("\\", "\\\\n \\u0041 \\x41", "2000-02-29", "C:\\temp\\", 1),
    "line ends and control characters": ("a\nb\r\nc\td", "\x01\x1f\x7f\x80", None, "\u2028\u2029", 1),
    "text that looks like JSON": ('{"cdc_id":1}', '},{"emp_id":2,"action":"DELETE"}', None, "[null,true]", 1),
    "text that looks like SQL": ("%s %(deleted)s %%", "'); DROP TABLE employees; --", None, "COMMIT", 1),
    "text that looks like NULL": ("null", "NULL", None, "\\N", 1),
    "100 letters": ("x" * 100, "y" * 100, None, "z" * 100, 1),
    "100 astral characters": ("😀" * 100, "😀" * 100, None, "😀" * 100, 1),
    "the lowest salary": ("a", "b", None, "c", -(2**31)),
    "the highest salary": ("a", "b", None, "c", 2**31 - 1),
    "a date before Christ": ("Gaius", "Caesar", "0044-03-15 BC", "Roma", 1),
    "the first date": ("a", "b", "4714-11-24 BC", "c", 1),
    "the last date": ("a", "b", "5874897-12-31", "c", 1),
    "infinity": ("a", "b", "infinity", "c", 1),
    "minus infinity": ("a", "b", "-infinity", "c", 1),
}
ROW = "SELECT first_name, last_name, dob::text, city, salary FROM employees WHERE emp_id = %s"


@pytest.fixture(scope="module")
def both_ends(shared: Pipeline) -> tuple[Connection, Connection]:
    return shared.source(), shared.destination()


@pytest.mark.parametrize("what", VALUES)
def test_a_row_arrives_as_it_is(both_ends: tuple[Connection, Connection], what: str) -> None:
    source, destination = both_ends
    query(source, "SET datestyle = 'SQL, DMY'")  # nobody's way of writing dates may matter
    ((emp_id,),) = query(source, "INSERT INTO employees (city) VALUES ('plain') RETURNING emp_id")
    update = "UPDATE employees SET (first_name, last_name, dob, city, salary) = %s WHERE emp_id = %s"
    query(source, update, (VALUES[what], emp_id))
    wait_until(lambda: query(destination, ROW, (emp_id,)) == [VALUES[what]], what="UPDATE arrived")
    query(source, "DELETE FROM employees WHERE emp_id = %s", (emp_id,))
    wait_until(lambda: query(destination, ROW, (emp_id,)) == [], what="DELETE arrived")
    insert = "INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary) VALUES %s"
    query(source, insert, ((emp_id, *VALUES[what]),))
    wait_until(lambda: query(destination, ROW, (emp_id,)) == [VALUES[what]], what="INSERT arrived")


def test_the_limits_of_emp_id_arrive(shared: Pipeline) -> None:
    limits = (-(2**31), 0, 2**31 - 1)
    query(shared.source(), "INSERT INTO employees (emp_id) SELECT unnest(%s)", (list(limits),))
    shared.wait_until_equal()
    assert set(limits) <= set(ids(shared.destination()))


STATEMENTS: dict[str, list[str]] = {
    "a row deleted and inserted again in one transaction": [
        "INSERT INTO employees VALUES (10001, 'first')",
        "BEGIN; DELETE FROM employees WHERE emp_id = 10001; INSERT INTO employees VALUES (10001, 'again'); COMMIT",
    ],
    "a row deleted and inserted again in many transactions": [
        "INSERT INTO employees VALUES (10002, 'first')",
        *["DELETE FROM employees WHERE emp_id = 10002", "INSERT INTO employees VALUES (10002, 'again')"] * 20,
    ],
    "a row updated many times in one transaction": [
        "INSERT INTO employees VALUES (10003, 'first')",
        "BEGIN;" + "UPDATE employees SET salary = coalesce(salary, 0) + 1 WHERE emp_id = 10003;" * 50 + "COMMIT",
    ],
    "a changed key": [
        "INSERT INTO employees VALUES (10004, 'moves')",
        "UPDATE employees SET emp_id = 10005, city = 'moved' WHERE emp_id = 10004",
    ],
    "two keys exchanged": [
        "INSERT INTO employees VALUES (10006, 'one'), (10007, 'other')",
        "BEGIN; UPDATE employees SET emp_id = 10008 WHERE emp_id = 10006;"
        "UPDATE employees SET emp_id = 10006 WHERE emp_id = 10007;"
        "UPDATE employees SET emp_id = 10007 WHERE emp_id = 10008; COMMIT",
    ],
    "all keys moved up by one": [
        "INSERT INTO employees SELECT n, 'row ' || n FROM generate_series(10100, 10199) AS n",
        "UPDATE employees SET emp_id = emp_id + 1000 WHERE emp_id BETWEEN 10100 AND 10199",
        "UPDATE employees SET emp_id = emp_id - 1000 WHERE emp_id BETWEEN 11100 AND 11199",
    ],
    "a savepoint rolled back": [
        "BEGIN; INSERT INTO employees VALUES (10009, 'kept'); SAVEPOINT a;"
        "INSERT INTO employees VALUES (10010, 'lost');"
        "UPDATE employees SET city = 'lost' WHERE emp_id = 10009; ROLLBACK TO a;"
        "UPDATE employees SET city = 'kept' WHERE emp_id = 10009; COMMIT",
    ],
    "a transaction rolled back": [
        "INSERT INTO employees VALUES (10011, 'kept')",
        "BEGIN; DELETE FROM employees; INSERT INTO employees VALUES (10012, 'lost'); ROLLBACK",
    ],
    "an upsert and a MERGE": [
        "INSERT INTO employees VALUES (10013, 'first')",
        "INSERT INTO employees VALUES (10013, 'second') ON CONFLICT (emp_id) DO UPDATE SET last_name = 'upserted'",
        "MERGE INTO employees USING (VALUES (10013), (10014)) AS v (id) ON emp_id = id "
        "WHEN MATCHED THEN UPDATE SET city = 'merged' WHEN NOT MATCHED THEN INSERT (emp_id, city) VALUES (id, 'new')",
    ],
}


@pytest.mark.parametrize("what", STATEMENTS)
def test_what_statements_leave_behind_arrives(
    shared: Pipeline, both_ends: tuple[Connection, Connection], what: str
) -> None:
    source, destination = both_ends
    if "MERGE" in what and source.server_version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    for statement in STATEMENTS[what]:
        query(source, statement)
    shared.wait_until_equal()
    assert not any("lost" in row for row in query(destination, ROWS))


def test_rows_of_copy_arrive(shared: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("".join(f"{n}\tname {n}\t\\N\t1999-12-31\ta\\tb\\\\\t{n}\n" for n in range(20_000, 25_000)))
    with shared.source().cursor() as cursor, file.open() as rows:
        cursor.copy_expert("COPY employees FROM STDIN", rows)
    shared.wait_until_equal()
    assert query(shared.destination(), ROW, (24_999,)) == [("name 24999", None, "1999-12-31", "a\tb\\", 24_999)]


def test_truncate_empties_the_destination_whatever_partition_a_row_is_on(shared: Pipeline) -> None:
    source = shared.source()
    query(source, "INSERT INTO employees SELECT n, 'row ' || n FROM generate_series(30001, 42000) AS n")
    query(source, "TRUNCATE employees")
    query(source, "INSERT INTO employees (emp_id, city) VALUES (1, 'again')")
    shared.wait_until_equal()
    assert query(shared.destination(), ROWS) == [(1, None, None, None, "again", None)]
    query(source, "TRUNCATE employees")
    shared.wait_until_equal()
    assert ids(shared.destination()) == []
    partitions = {message.partition() for message in shared.messages()}
    assert len(partitions) == 3


def test_a_single_change_is_named_and_many_are_summed_up(shared: Pipeline) -> None:
    source, script = shared.source(), shared.scripts[1]

    def told_by_name() -> bool:
        ((emp_id,),) = query(source, "INSERT INTO employees (city) VALUES ('told') RETURNING emp_id")
        time.sleep(0.3)  # right after a load a single change is still summed up with the rest
        return f"INSERT employee {emp_id} → applied, offset " in script.output()

    wait_until(told_by_name, what=script.output)
    told = script.output()
    query(source, "INSERT INTO employees (city) SELECT 'told' FROM generate_series(1, 1000)")
    wait_until(lambda: " changes up to offset " in script.output().removeprefix(told), what=script.output)


# Applying, in this process, on real connections


@pytest.fixture(scope="module")
def quiet(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline that is set up, and whose scripts a test starts itself; each test leaves none running."""
    with new_pipeline(tmp_path_factory.mktemp("quiet")) as pipeline:
        pipeline.set_up()
        yield pipeline


@pytest.fixture
def destination(quiet: Pipeline) -> Iterator[Connection]:
    """An empty destination; whoever an earlier test left in a transaction is gone."""
    terminate(quiet)
    with closing(quiet.destination()) as connection:
        query(connection, "TRUNCATE employees, cdc_applied")
        yield connection


def apply(destination: Connection, *values: str) -> int:
    if not query(destination, "SELECT 1 FROM pg_prepared_statements WHERE name = 'apply'"):
        query(destination, applying.SESSION)
    return applying.apply(destination, applying.newest(read(value.encode()) for value in values))


def test_a_duplicate_is_applied_once(destination: Connection) -> None:
    batch = [change(1, 1, city="Rome"), change(2, 1, "UPDATE", city="Oslo"), change(3, 2), change(4, 2, "DELETE")]
    assert apply(destination, *batch, *batch) == 2
    assert apply(destination, *batch) == 0
    for value in batch:
        assert apply(destination, value) == 0
    assert query(destination, ROWS) == [(1, None, None, None, "Oslo", None)]


def test_in_reversed_order_the_newest_state_stays(destination: Connection) -> None:
    history = [change(1, 1, city="a"), change(2, 1, "DELETE"), change(3, 1, city="b"), change(4, 1, "UPDATE", city="c")]
    assert [apply(destination, value) for value in reversed(history)] == [1, 0, 0, 0]
    assert query(destination, ROWS) == [(1, None, None, None, "c", None)]


def test_an_old_insert_does_not_bring_a_deleted_employee_back(destination: Connection) -> None:
    apply(destination, change(1, 1))
    apply(destination, change(3, 1, "DELETE"))
    assert apply(destination, change(2, 1, "UPDATE", city="old")) == 0
    assert ids(destination) == []
    assert apply(destination, change(4, 1, city="new")) == 1
    assert ids(destination) == [1]


def test_a_delete_of_an_employee_never_seen_still_stops_its_older_insert(destination: Connection) -> None:
    assert apply(destination, change(2, 1, "DELETE")) == 1
    assert apply(destination, change(1, 1)) == 0
    assert ids(destination) == []


def test_a_refused_batch_leaves_no_trace_and_the_connection_usable(destination: Connection) -> None:
    query(destination, "ALTER TABLE employees ADD CONSTRAINT positive CHECK (emp_id > 0)")
    try:
        for action in ("INSERT", "DELETE"):
            with pytest.raises(psycopg2.IntegrityError):
                apply(destination, change(8, 1, action), change(9, -2))
            assert query(destination, "SELECT count(*) FROM cdc_applied") == [(0,)]
    finally:
        query(destination, "ALTER TABLE employees DROP CONSTRAINT positive")
    assert apply(destination, change(1, 1), change(2, 2, "DELETE")) == 2


def test_rows_that_were_there_before_the_pipeline_are_taken_over(destination: Connection) -> None:
    query(destination, "INSERT INTO employees (emp_id, city) VALUES (1, 'old'), (2, 'old'), (3, 'old')")
    assert apply(destination, change(1, 1, city="new"), change(2, 2, "DELETE"), change(3, 4, city="new")) == 3
    assert [(row[0], row[4]) for row in query(destination, ROWS)] == [(1, "new"), (3, "old"), (4, "new")]


def test_dates_do_not_depend_on_the_way_the_destination_writes_them(destination: Connection) -> None:
    dates = ["2001-02-03", "0044-03-15 BC", "0001-02-03", "12345-06-07", "infinity"]
    for style in ("SQL, DMY", "Postgres, MDY", "German", "ISO, YMD"):
        query(destination, f"TRUNCATE employees, cdc_applied; SET datestyle = '{style}'")
        apply(destination, *(change(n, n, dob=date) for n, date in enumerate(dates, 1)))
        query(destination, "SET datestyle = 'ISO'")
        assert query(destination, "SELECT dob::text FROM employees ORDER BY emp_id") == [(date,) for date in dates]


def scans(destination: Connection) -> list[tuple[str, bool]]:
    """How the plan of the prepared statement reads tables, and whether each time by the key."""
    columns = applying.arrays([read(change(1, 1).encode())])
    plan = [line.strip(" ->") for (line,) in query(destination, f"EXPLAIN (COSTS off) {applying.APPLY}", columns)]
    return [
        (line, below.startswith("Index Cond: (emp_id"))
        for line, below in pairwise(plan)
        if "Scan" in line and "cdc_" in line
    ]


@pytest.mark.parametrize("rows", [0, 20_000])
def test_the_gate_is_looked_up_by_key_whatever_the_statistics_said(quiet: Pipeline, rows: int) -> None:
    """The plan is made once. Made while the gate was known to be empty, one that reads all of it for each batch, or for
    each record, looks as cheap as any: 300,000 changes then took 140 s instead of 3, until the next ANALYZE."""
    with closing(quiet.destination()) as destination:
        query(destination, "TRUNCATE employees, cdc_applied")
        query(destination, "INSERT INTO cdc_applied SELECT generate_series(1, %(rows)s), 1", {"rows": rows})
        query(destination, "ANALYZE cdc_applied")
        apply(destination, change(1, 1))
        lookup = "Index Scan using cdc_applied_pkey on cdc_applied applied"
        assert scans(destination) == [(lookup, True), (f"{lookup}_1", True)]


DELETE_INSIDE = applying.SESSION.replace(
    "), upserted AS (",
    """), deleted AS (
    DELETE FROM employees WHERE emp_id IN (SELECT emp_id FROM newer WHERE action = 'DELETE')
), upserted AS (""",
)
assert DELETE_INSIDE != applying.SESSION


@pytest.mark.parametrize("delete", ["after the gate", "inside the first statement"])
def test_a_delete_that_waits_for_an_insert_deletes_it(
    quiet: Pipeline, destination: Connection, monkeypatch: pytest.MonkeyPatch, delete: str
) -> None:
    """Inside the first statement it would look with a snapshot from before it waited: the row stays for good."""
    if delete == "inside the first statement":
        assert "deleted AS" in DELETE_INSIDE
        monkeypatch.setattr(applying, "SESSION", DELETE_INSIDE)
        monkeypatch.setattr(applying, "DELETE", "SELECT %(deleted)s")
    inserting, deleting = quiet.destination(), quiet.destination()
    apply(destination, change(1, 7))
    apply(destination, change(2, 7, "DELETE"))
    query(inserting, "BEGIN")
    apply(inserting, change(3, 7, city="Rome"))
    with ThreadPoolExecutor() as other:
        deletion = other.submit(apply, deleting, change(4, 7, "DELETE"))
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the DELETE waits for the gate")
        query(inserting, "COMMIT")
        assert deletion.result(20) == 1
    assert ids(destination) == ([] if delete == "after the gate" else [7])


def test_an_upsert_that_waits_for_an_insert_finds_its_row(quiet: Pipeline, destination: Connection) -> None:
    inserting, updating = quiet.destination(), quiet.destination()
    query(inserting, "BEGIN")
    apply(inserting, change(1, 7, city="Rome"))
    with ThreadPoolExecutor() as other:
        update = other.submit(apply, updating, change(2, 7, "UPDATE", city="Oslo"))
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the UPDATE waits for the gate")
        query(inserting, "COMMIT")
        assert update.result(20) == 1
    assert query(destination, ROWS) == [(7, None, None, None, "Oslo", None)]


def history(employees: int, changes: int) -> tuple[list[str], list[int]]:
    """A random history in the order of its cdc_ids, each row's salary its cdc_id, and the employees that are left."""
    there: set[int] = set()
    values = []
    for cdc_id in range(1, employees * changes + 1):
        emp_id = random.randint(1, employees)
        action = random.choice(["UPDATE", "UPDATE", "DELETE"]) if emp_id in there else "INSERT"
        (there.discard if action == "DELETE" else there.add)(emp_id)
        values.append(change(cdc_id, emp_id, action, salary=cdc_id))
    return values, sorted(there)


def last_states(values: list[str]) -> list[tuple[int, int]]:
    newest: dict[int, CDCRecord] = {}
    for value in values:
        record = CDCRecord.from_json(value)
        newest[record.emp_id] = record
    return sorted((r.emp_id, r.cdc_id) for r in newest.values() if r.action != "DELETE")


def test_consumers_side_by_side_never_replace_a_newer_state(quiet: Pipeline, destination: Connection) -> None:
    """Three sessions apply all of one history at once, each in an order of its own, again after a deadlock."""
    values, _ = history(employees=40, changes=25)
    query(destination, WATCH)
    try:

        def apply_all(number: int) -> None:
            shuffled = random.sample(values, len(values))
            with closing(connect("destination", quiet.destination_url, applying.SESSION)) as session:
                while shuffled:
                    count = random.randint(1, 30)
                    try:
                        apply(session, *shuffled[:count])
                        del shuffled[:count]
                    except psycopg2.errors.DeadlockDetected:
                        query(session, "ROLLBACK")

        with ThreadPoolExecutor() as pool:
            list(pool.map(apply_all, range(3), timeout=60))
        assert query(destination, BACKWARDS) == [(0,)]
        assert query(destination, "SELECT emp_id, salary FROM employees ORDER BY emp_id") == last_states(values)
        assert query(destination, "SELECT count(*) > 40 FROM seen") == [(True,)]
    finally:
        query(destination, "DROP TRIGGER watch ON employees; DROP FUNCTION watch; DROP TABLE seen")


def test_consumers_that_deadlock_over_the_same_employees_end_right(quiet: Pipeline, destination: Connection) -> None:
    """Known keys are locked before new ones. Here employee 3 is new to the first and known to the second, employee 5
    known to both: PostgreSQL ends one of them, and its second try finds what the other has done."""
    apply(destination, change(1, 5))
    query(destination, "INSERT INTO cdc_applied SELECT generate_series(1001, 20000), 1; ANALYZE cdc_applied")
    holder, first, second, third = (quiet.destination() for _ in range(4))
    query(holder, "BEGIN; SELECT FROM cdc_applied WHERE emp_id = 5 FOR UPDATE")

    def apply_persistently(session: Connection, *values: str) -> None:
        while True:
            try:
                apply(session, *values)
                return
            except psycopg2.errors.DeadlockDetected:  # a few times, perhaps: the third one is in it, too
                query(session, "ROLLBACK")

    with ThreadPoolExecutor() as pool:
        parts = [pool.submit(apply_persistently, first, change(12, 3, city="first"), change(15, 5, city="first"))]
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the first waits for employee 5")
        parts.append(pool.submit(apply_persistently, third, change(2, 3, "DELETE")))
        wait_until(lambda: parts[1].done() or query(destination, WAITING) == [(2,)], what="employee 3 becomes known")
        parts.append(
            pool.submit(apply_persistently, second, change(22, 3, city="second"), change(25, 5, city="second"))
        )
        wait_until(lambda: query(destination, WAITING) >= [(2,)], what="the second waits for employee 5")
        query(holder, "COMMIT")
        for part in parts:
            part.result(20)
    assert query(destination, "SELECT * FROM cdc_applied WHERE emp_id < 10 ORDER BY 1") == [(3, 22), (5, 25)]
    assert query(destination, "SELECT emp_id, city FROM employees ORDER BY 1") == [(3, "second"), (5, "second")]


# Memory


def wide(cdc_id: int, employees: int, letters: str) -> str:
    """A change of one of so many employees, with texts as long as they may be."""
    text = dict.fromkeys(("first_name", "last_name", "city"), letters)
    return change(cdc_id, 1 + cdc_id % employees, "UPDATE", **text, dob="2000-01-01", salary=1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak from Linux' /proc")
@pytest.mark.parametrize(
    ("employees", "letters", "most"),
    [
        pytest.param(5_000, "Ж" * 100, 150, id="few wide employees"),
        pytest.param(150_000, "Ж" * 100, 150, id="many wide employees"),
        pytest.param(150_000, "😀" + "a" * 99, 165, id="four bytes a letter, in Python only"),
        pytest.param(0, "", 150, id="large messages that are no change"),
    ],
)
def test_a_backlog_of_any_kind_stays_within_bounded_memory(
    pipeline: Pipeline, employees: int, letters: str, most: int
) -> None:
    if employees:
        for start in range(1, 150_000, 30_000):
            values = (wide(start + n, employees, letters) for n in range(30_000))
            pipeline.send(*values, partition=start // 30_000 % 3)
    else:
        for partition in range(3):
            pipeline.send(*("x" * 500_000 for _ in range(100)), partition=partition)
    megabytes = pipeline.peak_memory("consumer.py")
    print(f"peak of the consumer: {megabytes:.0f} MB")
    assert megabytes < most


# Several consumers


def test_two_groups_that_apply_everything_at_once_end_equal_and_never_go_backwards(pipeline: Pipeline) -> None:
    """Each change twice, in any order, on any partition, and read by two groups at once."""
    values, left = history(employees=50, changes=20)
    destination = pipeline.destination()
    query(destination, WATCH)
    doubled = random.sample(values * 2, len(values) * 2)
    for partition in range(3):
        pipeline.send(*doubled[partition::3], partition=partition)
    groups = [f"{pipeline.name}-{number}" for number in range(2)]
    scripts = [pipeline.start("consumer.py", KAFKA_GROUP_ID=group) for group in groups]
    for group in groups:
        wait_until_read(pipeline, group)
    assert query(destination, "SELECT emp_id, salary FROM employees ORDER BY emp_id") == last_states(values)
    assert ids(destination) == left
    assert query(destination, BACKWARDS) == [(0,)]
    for script in scripts:
        assert script.stop() == 0
        assert "applied 2,000 changes in all" in script.output()


WRITES = [
    "INSERT INTO employees VALUES (%(emp_id)s, 'new') ON CONFLICT DO NOTHING",
    "UPDATE employees SET salary = coalesce(salary, 0) + 1 WHERE emp_id = %(emp_id)s",
    "DELETE FROM employees WHERE emp_id = %(emp_id)s",
]


def test_two_consumers_share_the_load_and_one_takes_over_when_the_other_is_killed(running: Pipeline) -> None:
    first, second = running.scripts[1], start_consumer(running)
    first.wait_for("partitions given up")
    end = time.monotonic() + 2.5

    def write(seed: int) -> int:
        chance, count = random.Random(seed), 0
        with closing(psycopg2.connect(running.source_url)) as source, source.cursor() as cursor:
            while time.monotonic() < end:
                for emp_id in sorted(chance.sample(range(40), chance.randint(1, 4))):  # sorted: no deadlocks here
                    cursor.execute(chance.choice(WRITES), {"emp_id": emp_id})
                    count += cursor.rowcount
                (source.rollback if chance.random() < 0.15 else source.commit)()
        return count

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, seed) for seed in range(4)]
        time.sleep(1.2)  # in the middle of the load
        first.kill()
        assert sum(writer.result(30) for writer in writers) > 100
    running.wait_until_equal()
    assert second.stop() == 0
    for script in (first, second):
        assert "changes up to offset" in script.output() or "→ applied" in script.output()


# Killed at each point of the loop

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
DIE = f"lambda *_, **__: {KILL}"
KILLED: dict[str, list[str]] = {
    "between the gate and the commit": [
        "import psycopg2.extensions",
        "class Cursor(psycopg2.extensions.cursor):",
        "    def execute(self, query, values=None):",
        f"        {KILL} if query.startswith(applying.DELETE) else super().execute(query, values)",
        "connect = consumer.connect",
        "def connect_to_die(*arguments):",
        "    connection = connect(*arguments)",
        "    connection.cursor_factory = Cursor",
        "    return connection",
        "consumer.connect = connect_to_die",
    ],
    "after the destination's commit, before Kafka's": [f"consumer.Offsets.commit = {DIE}"],
    "after the offsets were handed to Kafka": [f"consumer.tell = {DIE}"],
    "after Kafka's commit": [
        "commit = consumer.Offsets.on_commit",
        f"consumer.Offsets.on_commit = lambda *arguments: (commit(*arguments), {KILL})",
    ],
    "after a dead letter was acknowledged": [
        "bury = consumer.Graves.bury",
        f"consumer.Graves.bury = lambda *arguments: (bury(*arguments), {KILL})",
    ],
}


SAME_PLACE = {"KAFKA_GROUP_INSTANCE_ID": "the one"}  # else a killed one's partitions wait for session.timeout.ms


@pytest.fixture(scope="module")
def crashing(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline that is set up; its scripts are started, and killed, by the test."""
    with new_pipeline(tmp_path_factory.mktemp("crashing")) as pipeline:
        pipeline.set_up()
        yield pipeline


@pytest.mark.parametrize("point", KILLED)
def test_a_consumer_killed_at_any_point_loses_nothing(crashing: Pipeline, point: str) -> None:
    source, bad = crashing.source(), f"no change: {point}"
    query(source, "INSERT INTO employees (city) SELECT 'new' FROM generate_series(1, 60)")
    query(source, "UPDATE employees SET city = 'updated' WHERE emp_id % 3 = 1")
    query(source, "DELETE FROM employees WHERE emp_id % 3 = 2")
    crashing.send(bad)
    published = crashing.run("producer.py", "--once")
    assert published.returncode == 0, published.stdout + published.stderr
    sabotaged = crashing.start(crashing.sabotaged("import apply as applying, consumer", *KILLED[point]), **SAME_PLACE)
    assert sabotaged.process.wait(30) == -signal.SIGKILL, sabotaged.output()
    restarted = crashing.start("consumer.py", **SAME_PLACE)
    restarted.wait_for("partitions assigned")  # before that it does not mind signals yet
    wait_until_read(crashing)
    assert crashing.equal()
    assert restarted.stop() == 0
    assert bad.encode() in [letter.value() for letter in crashing.dead_letters()]
    assert "Traceback" not in sabotaged.output() + restarted.output()


def test_a_consumer_killed_while_the_server_works_for_it_loses_nothing(
    quiet: Pipeline, destination: Connection
) -> None:
    """The server finishes the statement without us, after the next consumer has begun on the same messages."""
    holder = quiet.destination()
    query(holder, "BEGIN; INSERT INTO employees (emp_id) VALUES (3)")
    changes = [change(1_000_000 + n, n, city="new") for n in range(1, 6)]
    quiet.send(*changes, change(1_000_006, 3, "UPDATE", city="newest"), partition=0)
    killed = quiet.start("consumer.py", **SAME_PLACE)
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for employee 3")
    killed.kill()
    restarted = quiet.start("consumer.py", **SAME_PLACE)
    wait_until(lambda: query(destination, WAITING) == [(2,)], what="so does the next one")
    query(holder, "ROLLBACK")
    wait_until_read(quiet)
    cities = [(n, "newest" if n == 3 else "new") for n in range(1, 6)]
    assert query(destination, "SELECT emp_id, city FROM employees ORDER BY emp_id") == cities
    assert restarted.stop() == 0


def test_a_stop_finishes_the_batch_in_hand_and_commits_its_offsets(quiet: Pipeline, destination: Connection) -> None:
    script = quiet.start("consumer.py", **SAME_PLACE)
    script.wait_for("partitions assigned")
    holder = quiet.destination()
    query(holder, "BEGIN; LOCK TABLE employees")
    quiet.send(*(change(2_000_000 + n, n) for n in range(1, 4)), partition=0)
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for the table")
    script.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert script.process.poll() is None, script.output()
    query(holder, "COMMIT")
    assert script.process.wait(20) == 0
    assert ids(destination) == [1, 2, 3]
    assert "applied 3 changes in all" in script.output()
    wait_until_read(quiet, seconds=5)  # nothing runs: it was committed


@contextmanager
def reading_from_the_end(pipeline: Pipeline) -> Iterator[Consumer]:
    with closing(kafka_client(Consumer, consumer.KAFKA_SETTINGS, Kafka())) as reading:
        place = TopicPartition(pipeline.topic, 0)
        place.offset = reading.get_watermark_offsets(place, timeout=10)[1]
        reading.assign([place])
        yield reading


@pytest.mark.parametrize("patient", [False, True])
def test_a_backlog_that_is_read_does_not_wait_for_what_trickles_in_behind_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    for name in ("FILL_AT_MOST", "READ_AT_MOST"):
        monkeypatch.setattr(consumer, name, 30.0)
    values = [change(n, n) for n in range(1, consumer.CHUNK * 3 // 2)]
    with reading_from_the_end(pipeline) as reading, ThreadPoolExecutor(1) as pool:
        pipeline.send(*values, partition=0)
        trickling = True

        def trickle() -> None:
            producer = Producer({**client_settings(), "linger.ms": 0})
            while trickling:
                producer.produce(pipeline.topic, values[0], partition=0)
                assert producer.flush(10) == 0
                time.sleep(0.01)

        trickle_done = pool.submit(trickle)
        try:
            intake = consumer.Intake(reading, patient=patient)
            started = time.monotonic()
            while len(intake.batch.messages) < len(values):
                intake.fill()
            assert time.monotonic() - started < 10
        finally:
            trickling = False
        trickle_done.result()


@pytest.mark.parametrize("employees", [2000, 500])
def test_a_batch_waits_for_more_only_where_that_leaves_fewer_records(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, employees: int
) -> None:
    monkeypatch.setattr(graves, "EMPLOYEES", 2000)
    for name in ("FILL", "FILL_AT_MOST"):
        monkeypatch.setattr(consumer, name, 3.0)
    with reading_from_the_end(pipeline) as reading:
        intake = consumer.Intake(reading)

        def fill(count: int) -> float:
            pipeline.send(*(change(n, n % employees) for n in range(1, count + 1)), partition=0)
            started = time.monotonic()
            while len(intake.batch.messages) < count:
                intake.fill()
            intake.hand_out()
            return time.monotonic() - started

        assert fill(2000) < 2  # nothing is known yet
        assert (fill(1500) > 2) == (employees < 2000)
        assert fill(1500) > 2  # the batch before was not full: it shows nothing
        assert fill(500) < 2
        assert fill(1500) < 2  # after less than a chunk


# Bad messages


CITY = '"city":"here"'
GOOD = change(50, 666, first_name="a", city="here", salary=7)  # what the bad ones are made from; never sent itself


def spoiled(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


BAD: dict[str, bytes | None] = {
    "a tombstone": None,
    "an empty value": b"",
    "a space": b" ",
    "not JSON": b"hello",
    "truncated JSON": GOOD[:-1].encode(),
    "invalid UTF-8": spoiled("here", "here").replace(b"here", b"h\xffre"),
    "a surrogate in UTF-8": spoiled("here", "here").replace(b"here", b"h\xed\xa0\x80re"),
    "null": b"null",
    "a number": b"1",
    "an array": f"[{GOOD}]".encode(),
    "an empty array": b"[]",
    "two objects": f"{GOOD}{GOOD}".encode(),
    "two objects with a comma": f"{GOOD},{GOOD}".encode(),
    "a comma in front": f",{GOOD}".encode(),
    "an object and the array's end": f"{GOOD}],[{GOOD}".encode(),
    "an object that is not closed and one not opened": b"{},{}",
    "an unknown action": spoiled("INSERT", "MERGE"),
    "an action in lower case": spoiled("INSERT", "insert"),
    "an action that is null": spoiled('"INSERT"', "null"),
    "no action": spoiled(',"action":"INSERT"', ""),
    "no cdc_id": spoiled('"cdc_id":50,', ""),
    "no emp_id": spoiled('"emp_id":666,', ""),
    "an emp_id that is null": spoiled('"emp_id":666', '"emp_id":null'),
    "a cdc_id as text": spoiled(":50,", ':"50",'),
    "an emp_id as text": spoiled(":666,", ':"666",'),
    "an emp_id as a float": spoiled(":666,", ":666.0,"),
    "an emp_id in exponents": spoiled(":666,", ":666e0,"),
    "an emp_id that is true": spoiled(":666,", ":true,"),
    "an emp_id with a leading zero": spoiled(":666,", ":0666,"),
    "an emp_id out of range": spoiled(":666,", ":2147483648,"),
    "cdc_id 0": spoiled(":50,", ":0,"),
    "a negative cdc_id": spoiled(":50,", ":-50,"),
    "a cdc_id out of range": spoiled(":50,", ":9223372036854775808,"),
    "a cdc_id of 30 digits": spoiled(":50,", f":{10**29},"),
    "a salary out of range": spoiled(":7,", ":-2147483649,"),
    "a salary as text": spoiled(":7,", ':"7",'),
    "a salary that is NaN": spoiled(":7,", ":NaN,"),
    "a city that is a number": spoiled('"here"', "17"),
    "a city that is an object": spoiled('"here"', '{"a":"b"}'),
    "101 letters": spoiled("here", "x" * 101),
    "100 letters and a space": spoiled("here", "x" * 100 + " "),
    "101 astral characters": spoiled("here", "😀" * 101),
    "a NUL": spoiled("here", "he\\u0000re"),
    "a raw NUL": spoiled("here", "he\0re"),
    "a lone surrogate": spoiled("here", "he\\ud800re"),
    "a raw line end": spoiled("here", "he\nre"),
    "30 February": spoiled('"dob":null', '"dob":"2001-02-30"'),
    "month 13": spoiled('"dob":null', '"dob":"2001-13-01"'),
    "the year 0": spoiled('"dob":null', '"dob":"0000-01-01"'),
    "a date that is nonsense": spoiled('"dob":null', '"dob":"soon"'),
    "a date that PostgreSQL would reckon": spoiled('"dob":null', '"dob":"today"'),
    "a date before the first": spoiled('"dob":null', '"dob":"4714-11-23 BC"'),
    "a row that a CHECK refuses": spoiled(":7,", ":13,"),
    "a row that a UNIQUE index refuses": spoiled("here", "taken"),
    "a row that a trigger refuses": spoiled("here", "forbidden"),
}
USERS_OWN = """
ALTER TABLE employees ADD CHECK (salary <> 13);
CREATE UNIQUE INDEX ON employees (city);
INSERT INTO employees (emp_id, city) VALUES (-1, 'taken');
CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$;
CREATE TRIGGER forbid BEFORE INSERT ON employees FOR EACH ROW WHEN (NEW.city = 'forbidden') EXECUTE FUNCTION forbid();
"""
UNUSUAL: dict[str, tuple[str, Row]] = {
    "spaces and line ends": (
        '\n{ "cdc_id" : 1 ,\t"emp_id" : 5001 , "city" : " a " , "action" : "INSERT" }\r\n',
        (None, None, None, " a ", None),
    ),
    "another order": (
        '{"action":"INSERT","salary":1,"city":"b","dob":null,"last_name":null,"first_name":null,"emp_id":5002,"cdc_id":1}',
        (None, None, None, "b", 1),
    ),
    "fields that are no columns": (
        '{"cdc_id":1,"emp_id":5003,"city":"c","action":"INSERT","txid":17,"more":{"a":[1.5,null,"\\u0000"]}}',
        (None, None, None, "c", None),
    ),
    "missing columns": ('{"cdc_id":1,"emp_id":5004,"action":"UPDATE"}', (None, None, None, None, None)),
    "escapes": (
        '{"cdc_id":1,"emp_id":5005,"first_name":"\\u0041\\u00e9\\ud83d\\ude00\\/\\"\\\\","action":"\\u0049NSERT"}',
        ('Aé😀/"\\', None, None, None, None),
    ),
    "a field given twice: the last one counts": (
        '{"cdc_id":1,"emp_id":666,"city":"x","emp_id":5006,"city":"d","action":"DELETE","action":"INSERT"}',
        (None, None, None, "d", None),
    ),
    "100 astral characters": (change(1, 5007, last_name="😀" * 100), (None, "😀" * 100, None, None, None)),
    "a negative zero": (change(1, 5008, salary=0).replace('"salary":0', '"salary":-0'), (None, None, None, None, 0)),
    "all limits": (
        change(2**63 - 1, -(2**31), dob="4714-11-24 BC", salary=-(2**31)),
        (None, None, "4714-11-24 BC", None, -(2**31)),
    ),
}


@dataclass
class Buried:
    pipeline: Pipeline
    among: dict[str, Message]  # the dead letters of BAD, sent in the middle of good ones in one batch
    alone: dict[str, Message]  # the same, each sent when all before was done
    output: str


@pytest.fixture(scope="module")
def buried(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buried]:
    """All bad messages in the middle of good ones in one batch, and then each of them alone."""
    with new_pipeline(tmp_path_factory.mktemp("buried")) as pipeline:
        pipeline.set_up()
        query(pipeline.destination(), USERS_OWN)
        good = list(range(1000, 1000 + len(BAD)))
        with closing(Producer(client_settings())) as stranger:
            for emp_id, (what, bad) in zip(good, BAD.items(), strict=True):
                stranger.produce(pipeline.topic, change(1, emp_id), partition=0)
                stranger.produce(pipeline.topic, bad, what, partition=0)
            for unusual, _ in UNUSUAL.values():
                stranger.produce(pipeline.topic, unusual, partition=0)
            assert stranger.flush(10) == 0
            script = pipeline.start("consumer.py")
            expected = sorted([-1, *good, *(5001 + n for n in range(8)), -(2**31)])
            wait_for_rows(pipeline, expected)
            for number, (what, bad) in enumerate(BAD.items(), len(BAD) + 1):
                stranger.produce(pipeline.topic, bad, what, partition=1)
                wait_for_letters(script, number)
            stranger.produce(pipeline.topic, change(1, 9000), partition=1)
            assert stranger.flush(10) == 0
            wait_for_rows(pipeline, sorted([*expected, 9000]))
        assert script.stop() == 0, script.output()
        letters = pipeline.dead_letters()
        assert len(letters) == 2 * len(BAD)
        by_partition: dict[bytes, dict[str, Message]] = {b"0": {}, b"1": {}}
        for letter in letters:
            by_partition[headers(letter)["partition"]][(letter.key() or b"").decode()] = letter
        yield Buried(pipeline, by_partition[b"0"], by_partition[b"1"], script.output())


def wait_for_letters(script: Script, count: int) -> None:
    wait_until(
        lambda: script.output().count(" → dead letter: ") >= count,
        what=lambda: f"{count} dead letters:\n{script.output()}",
    )


def headers(message: Message) -> dict[str, bytes]:
    return dict(message.headers() or [])  # type: ignore[arg-type]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_becomes_a_dead_letter_alone_and_in_the_middle_of_good_ones(buried: Buried, what: str) -> None:
    numbers = {b"0": 2 * list(BAD).index(what) + 1, b"1": list(BAD).index(what)}
    for letter in (buried.among[what], buried.alone[what]):
        origin = headers(letter)
        assert letter.key() == what.encode()
        assert letter.value() == BAD[what]
        assert origin["topic"].decode() == buried.pipeline.topic
        assert int(origin["offset"]) == numbers[origin["partition"]]
        assert "\n" not in origin["error"].decode()
    assert headers(buried.among[what])["error"] == headers(buried.alone[what])["error"]


def test_nothing_of_the_bad_messages_is_applied_and_all_good_ones_are(buried: Buried) -> None:
    destination = buried.pipeline.destination()
    assert query(destination, "SELECT count(*) FROM employees WHERE emp_id = 666") == [(0,)]
    assert query(destination, "SELECT count(*) FROM cdc_applied WHERE emp_id = 666") == [(0,)]
    assert query(destination, "SELECT count(*) FROM employees") == [(1 + len(BAD) + len(UNUSUAL) + 1,)]
    assert "Traceback" not in buried.output


@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_but_valid_message_is_applied(buried: Buried, what: str) -> None:
    value, row = UNUSUAL[what]
    assert query(buried.pipeline.destination(), ROW, (CDCRecord.from_json(value).emp_id,)) == [row]


def test_a_dead_letter_is_not_told_as_applied(buried: Buried) -> None:
    assert "a message that is no change → " not in buried.output


def test_a_bad_message_as_large_as_a_broker_takes_becomes_a_dead_letter(pipeline: Pipeline) -> None:
    large = b"x" * 1_048_000
    with closing(Producer({**client_settings(), "message.max.bytes": 2_000_000})) as stranger:
        stranger.produce(pipeline.topic, large, partition=0)
        stranger.produce(pipeline.topic, change(1, 1), partition=0)
        assert stranger.flush(10) == 0
    script = pipeline.start("consumer.py")
    script.wait_for("partition 0 offset 0 → ", 8)
    wait_for_rows(pipeline, [1])
    assert [letter.value() for letter in pipeline.dead_letters()] == [large]


def test_without_the_dead_letter_topic_a_bad_message_waits_for_it(pipeline: Pipeline) -> None:
    letters, admin = f"{pipeline.topic}_dlq", AdminClient(client_settings())
    admin.delete_topics([letters])[letters].result(10)
    pipeline.send("no change", change(1, 1), partition=0)
    # else Kafka's client says nothing about a missing topic for 30 s
    script = pipeline.start("consumer.py", KAFKA_TOPIC_METADATA_PROPAGATION_MAX_MS="1000")
    script.wait_for(f"topic {pipeline.topic}_dlq: ")
    assert "run python admin.py" in script.output()
    assert ids(pipeline.destination()) == []
    assert pipeline.run("admin.py").returncode == 0
    wait_for_rows(pipeline, [1])
    assert [letter.value() for letter in pipeline.dead_letters()] == [b"no change"]
    assert script.output().count("; waiting") == 1
    assert script.stop() == 0


# Outages of the destination


def consuming(pipeline: Pipeline, driver: str = "consumer.py", **environment: str) -> AbstractContextManager[Script]:
    return pipeline.running(driver, **{**SAME_PLACE, **environment})


def test_a_long_outage_is_said_once_waited_out_and_costs_no_membership(pipeline: Pipeline) -> None:
    with consuming(pipeline, KAFKA_MAX_POLL_INTERVAL_MS="6000") as script:
        pipeline.send(change(1, 1), partition=0)
        wait_for_rows(pipeline, [1])
        terminate(pipeline)  # only the session: back at once
        pipeline.send(change(2, 2), partition=1)
        wait_for_rows(pipeline, [1, 2])
        script.wait_for("answers again")
        shut_out(pipeline)
        pipeline.send(change(3, 3), partition=0)
        wait_until(lambda: script.output().count("; waiting") == 2)
        before = script.output()
        time.sleep(6.5)  # longer than the group waits for a poll
        assert script.output() == before
        let_in(pipeline)
        pipeline.send(change(4, 4), partition=2)
        wait_for_rows(pipeline, [1, 2, 3, 4])
        wait_until_read(pipeline)
        assert pipeline.destination_url.rpartition("@")[2].partition("/")[0] in before  # the address
        assert script.output().count("partitions assigned") == 1
        assert "partitions given up" not in script.output()
    assert pipeline.dead_letters() == []


def test_partitions_may_change_hands_while_consumers_wait_for_the_destination(pipeline: Pipeline) -> None:
    first = start_consumer(pipeline)
    pipeline.send(*(change(n, n) for n in range(1, 4)), partition=0)
    wait_for_rows(pipeline, [1, 2, 3])
    shut_out(pipeline)
    for partition in range(3):
        pipeline.send(change(10 + partition, 10 + partition), partition=partition)
    first.wait_for("; waiting")
    second = start_consumer(pipeline)
    first.wait_for("partitions given up")
    second.wait_for("; waiting")
    for partition in range(3):
        pipeline.send(change(20 + partition, 20 + partition), partition=partition)
    let_in(pipeline)
    wait_for_rows(pipeline, [1, 2, 3, 10, 11, 12, 20, 21, 22])
    for script in (first, second):
        assert script.stop() == 0, script.output()


def test_a_partition_given_up_while_the_destination_was_away_is_read_when_it_comes_back(pipeline: Pipeline) -> None:
    first = start_consumer(pipeline)
    shut_out(pipeline)
    for partition in range(3):
        pipeline.send(change(10 + partition, 10 + partition), partition=partition)
    first.wait_for("; waiting")
    second = start_consumer(pipeline)
    first.wait_for("partitions given up")
    let_in(pipeline)
    wait_for_rows(pipeline, [10, 11, 12])
    assert second.stop() == 0
    for partition in range(3):
        pipeline.send(change(20 + partition, 20 + partition), partition=partition)
    wait_for_rows(pipeline, [10, 11, 12, 20, 21, 22], seconds=8)
    assert first.stop() == 0


def test_partitions_added_while_the_destination_is_away_are_read(pipeline: Pipeline) -> None:
    with consuming(pipeline) as script:
        pipeline.send(change(1, 1), partition=0)
        wait_for_rows(pipeline, [1])
        shut_out(pipeline)
        pipeline.send(change(2, 2), partition=0)
        script.wait_for("; waiting")
        assert pipeline.run("admin.py", "create", "--partitions", "5").returncode == 0
        script.wait_for("partitions assigned: 3, 4")
        for partition in range(5):
            pipeline.send(change(10 + partition, 10 + partition), partition=partition)
        time.sleep(1)  # some polls, each of which may meet an event of the new ones
        let_in(pipeline)
        wait_for_rows(pipeline, [1, 2, 10, 11, 12, 13, 14], seconds=6)


def test_a_stop_while_the_destination_is_away_ends_soon_and_loses_nothing(quiet: Pipeline) -> None:
    query(quiet.destination(), "TRUNCATE employees, cdc_applied")
    shut_out(quiet)
    try:
        quiet.send(change(1, 1), partition=0)
        with consuming(quiet) as script:
            script.wait_for("; waiting")
            started = time.monotonic()
            assert script.stop() == 0
            assert time.monotonic() - started < 5
    finally:
        let_in(quiet)
    with consuming(quiet):
        wait_for_rows(quiet, [1])


def test_a_table_missing_at_the_destination_is_said_and_waited_for(pipeline: Pipeline) -> None:
    with consuming(pipeline) as script:
        query(pipeline.destination(), "DROP TABLE cdc_applied")
        pipeline.send(change(1, 1), partition=0)
        script.wait_for("run python db_setup.py; waiting")
        assert pipeline.run("db_setup.py").returncode == 0
        wait_for_rows(pipeline, [1])
        assert script.output().count("; waiting") == 1
    assert pipeline.dead_letters() == []


def test_a_destination_that_is_read_only_is_waited_for(quiet: Pipeline, destination: Connection) -> None:
    alter_destination(quiet, "SET default_transaction_read_only = on")
    try:
        quiet.send(change(1, 1), change(2, 2, "DELETE"), partition=0)
        with consuming(quiet) as script:
            script.wait_for("read-only; waiting")
            alter_destination(quiet, "RESET default_transaction_read_only")
            wait_for_rows(quiet, [1])
            wait_until_read(quiet)
            assert script.output().count("; waiting") == 1
            assert "dead letter" not in script.output()
    finally:
        alter_destination(quiet, "RESET default_transaction_read_only")


def test_a_bad_message_is_buried_once_however_long_the_good_ones_wait(quiet: Pipeline, destination: Connection) -> None:
    query(destination, "ALTER TABLE cdc_applied RENAME TO away")
    quiet.send("bad beside good ones that wait", change(1, 1), partition=0)
    with consuming(quiet) as script:
        script.wait_for("; waiting")
        time.sleep(2)  # some more tries
        query(destination, "ALTER TABLE away RENAME TO cdc_applied")
        wait_for_rows(quiet, [1])
        wait_until_read(quiet)
    letters = [letter for letter in quiet.dead_letters() if letter.value() == b"bad beside good ones that wait"]
    assert len(letters) == 1


def test_a_deadlock_is_no_dead_letter(quiet: Pipeline, destination: Connection) -> None:
    apply(destination, change(1, 1), change(2, 2))
    stranger = quiet.destination()
    query(stranger, "BEGIN; UPDATE cdc_applied SET cdc_id = cdc_id WHERE emp_id = 2")
    quiet.send(change(11, 1, "UPDATE", city="new"), change(12, 2, "UPDATE", city="new"), partition=0)
    with consuming(quiet) as script:
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for employee 2")
        query(stranger, "UPDATE cdc_applied SET cdc_id = cdc_id WHERE emp_id = 1; COMMIT")
        script.wait_for("deadlock detected; waiting")
        wait_until_read(quiet)
        assert query(destination, "SELECT emp_id, city FROM employees ORDER BY 1") == [(1, "new"), (2, "new")]
        assert "dead letter" not in script.output()


def test_a_serialization_failure_is_no_dead_letter(quiet: Pipeline, destination: Connection) -> None:
    apply(destination, change(1, 1))
    alter_destination(quiet, "SET default_transaction_isolation = 'repeatable read'")
    try:
        stranger = quiet.destination()
        query(stranger, "BEGIN; UPDATE cdc_applied SET cdc_id = 2 WHERE emp_id = 1")
        quiet.send(change(11, 1, "UPDATE", city="new"), partition=0)
        with consuming(quiet) as script:
            wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for employee 1")
            query(stranger, "COMMIT")
            script.wait_for("could not serialize access due to concurrent update; waiting")
            wait_until_read(quiet)
            assert query(destination, "SELECT city FROM employees") == [("new",)]
            assert "dead letter" not in script.output()
    finally:
        alter_destination(quiet, "RESET default_transaction_isolation")


def test_a_destination_without_an_encoding_takes_every_text(bare_pipeline: Pipeline) -> None:
    administer(config.DESTINATION_DATABASE_URL, f"DROP DATABASE {bare_pipeline.name}_copy")
    create = f"CREATE DATABASE {bare_pipeline.name}_copy ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    administer(config.DESTINATION_DATABASE_URL, create)
    bare_pipeline.set_up()
    bare_pipeline.send(change(1, 1, city="Zürich"), partition=0)
    with consuming(bare_pipeline) as script:
        wait_for_rows(bare_pipeline, [1], seconds=5)
        assert "dead letter" not in script.output()


# Offsets


def test_a_new_group_reads_from_the_first_message_in_silence(quiet: Pipeline, destination: Connection) -> None:
    for partition in range(3):
        quiet.send(change(3_000_000 + partition, 31 + partition), partition=partition)
    with consuming(quiet, KAFKA_GROUP_ID=f"{quiet.name}-new") as script:
        wait_until_read(quiet, f"{quiet.name}-new")
        assert {31, 32, 33} <= set(ids(destination))
    assert "ERROR" not in script.output().replace("→ dead letter", "").replace("ERROR   message at", "")
    with consuming(quiet):
        wait_until_read(quiet)


def remove_before(pipeline: Pipeline, **offsets: int) -> None:
    """Remove the messages before these offsets (p0=5: of partition 0 before 5), as retention does."""
    parts = [TopicPartition(pipeline.topic, int(part[1:]), offset) for part, offset in offsets.items()]
    admin = AdminClient(client_settings())
    for future in admin.delete_records(parts).values():
        future.result(10)


def test_messages_removed_before_they_were_read_are_said_loudly_and_the_rest_is_read(pipeline: Pipeline) -> None:
    with consuming(pipeline):
        for partition in range(3):
            pipeline.send(change(1, partition), change(2, partition + 10), partition=partition)
        wait_until_read(pipeline)
    for partition in range(2):
        pipeline.send(*(change(100 + n, 100 + 10 * partition + n) for n in range(5)), partition=partition)
    remove_before(pipeline, p0=5, p1=7)
    pipeline.send(change(200, 200), partition=1)
    with consuming(pipeline) as script:
        rows = [0, 1, 2, 10, 11, 12, 103, 104, 200]
        wait_for_rows(pipeline, rows)
        wait_until_read(pipeline)
        lines = [line for line in script.output().splitlines() if "ERROR" in line]
        assert len(lines) == 2
        for partition, first in ((0, 5), (1, 7)):
            (line,) = (line for line in lines if f"partition {partition} was read up to offset 2" in line)
            assert "MESSAGES ARE GONE" in line
            assert f"from {first} to" in line
            assert "run python verify.py --repair" in line
        # and while it runs, but waits for the destination
        shut_out(pipeline)
        pipeline.send(change(300, 300), partition=2)
        script.wait_for("; waiting")
        pipeline.send(*(change(301 + n, 301 + n) for n in range(4)), partition=2)
        remove_before(pipeline, p2=6)
        let_in(pipeline)
        wait_for_rows(pipeline, [*rows, 300, 304])
        wait_until_read(pipeline)
        assert "partition 2 was read up to offset" in script.output()


def test_kafka_failing_while_the_first_message_is_looked_for_is_waited_out(quiet: Pipeline) -> None:
    flaky = quiet.sabotaged(
        "import consumer",
        "from confluent_kafka import KafkaError, KafkaException",
        "asked = []",
        "class Flaky(consumer.Consumer):",
        "    def get_watermark_offsets(self, *arguments, **keywords):",
        "        asked.append(arguments)",
        "        if len(asked) <= 4: raise KafkaException(KafkaError(KafkaError._TIMED_OUT))",
        "        return super().get_watermark_offsets(*arguments, **keywords)",
        "consumer.Consumer = Flaky",
    )
    quiet.send(change(1, 1), partition=0)
    with consuming(quiet, flaky, KAFKA_GROUP_ID=f"{quiet.name}-flaky"):
        wait_until_read(quiet, f"{quiet.name}-flaky")
    with consuming(quiet):
        wait_until_read(quiet)


def test_an_offset_that_kafka_did_not_take_is_committed_again(quiet: Pipeline, destination: Connection) -> None:
    """A commit in the midst of a rebalance fails. Left so, an idle partition looks unread, and once retention has
    removed its messages, as if they had been lost."""
    forgetful = quiet.sabotaged(
        "import consumer",
        "commits = []",
        "class Forgetful(consumer.Consumer):",
        "    def commit(self, *arguments, **keywords):",
        "        commits.append(keywords)",
        "        return super().commit(*arguments, **keywords) if len(commits) > 1 else None",
        "consumer.Consumer = Forgetful",
    )
    quiet.send(change(1, 1), partition=0)
    with consuming(quiet, forgetful):
        wait_for_rows(quiet, [1])
        wait_until_read(quiet, seconds=5)


def offset_events(reader: Consumer, count: int) -> list[Message]:
    """The events for partitions that have no committed offset."""
    events: list[Message] = []

    def all_there() -> bool:
        event = reader.poll(0.1)
        error = event.error() if event else None
        if event and error and error.code() == KafkaError._AUTO_OFFSET_RESET:
            events.append(event)
        return len(events) == count

    wait_until(all_there)
    return sorted(events, key=lambda event: event.partition() or 0)


@pytest.mark.parametrize(
    "given_up",
    [
        pytest.param([], id="none"),
        pytest.param([1], id="one"),
        pytest.param([0, 1, 2], id="all"),
    ],
)
def test_an_offset_event_of_a_partition_given_up_meanwhile_is_left_alone(quiet: Pipeline, given_up: list[int]) -> None:
    """poll() gives the event, and consume() after it, in the same batch, lets the group take the partition away."""
    for partition in range(3):
        quiet.send(change(1, 1), partition=partition)
    settings = {**consumer.KAFKA_SETTINGS, "group.id": f"{quiet.name}-{len(given_up)}"}
    with closing(kafka_client(Consumer, settings, Kafka())) as reader:
        reader.subscribe([quiet.topic])
        events = offset_events(reader, 3)
        if given_up:
            reader.incremental_unassign([TopicPartition(quiet.topic, number) for number in given_up])
        for event in events:
            consumer.handle(event, reader, set(), Kafka())
        kept = {0, 1, 2} - set(given_up)
        assert {part.partition for part in reader.assignment()} == kept
        read: set[int | None] = set()

        def all_read() -> bool:
            message = reader.poll(0.1)
            if message is not None and message.error() is None:
                read.add(message.partition())
            return read == kept

        wait_until(all_read)
    with consuming(quiet):
        wait_until_read(quiet)


# The topic is not there yet


@pytest.fixture(scope="module")
def without_topic(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a consumer says that was started before admin.py, and whose first change then arrives."""
    with new_pipeline(tmp_path_factory.mktemp("without_topic")) as pipeline:
        assert pipeline.run("db_setup.py").returncode == 0
        with consuming(pipeline) as script:
            script.wait_for("; waiting")
            assert pipeline.run("admin.py").returncode == 0
            pipeline.send(change(1, 1))
            wait_for_rows(pipeline, [1], seconds=10)
            wait_until_read(pipeline)
        yield script.output()


def test_a_missing_topic_is_said_once_and_waited_for(without_topic: str) -> None:
    (line,) = (line for line in without_topic.splitlines() if "; waiting" in line)
    assert "does not exist; run python admin.py; waiting" in line


def test_a_topic_that_is_there_at_last_is_said_in_plain_words(without_topic: str) -> None:
    assert "run python admin.py answers again" not in without_topic


def test_a_topic_made_anew_under_a_running_consumer_is_read_from_its_first_message(pipeline: Pipeline) -> None:
    with consuming(pipeline) as script:
        for partition in range(3):
            pipeline.send(change(1, partition), change(2, partition), partition=partition)
        wait_until_read(pipeline)
        assert pipeline.run("admin.py", "delete", "--yes").returncode == 0
        script.wait_for("does not exist; run python admin.py; waiting")
        assert pipeline.run("admin.py").returncode == 0
        for partition in range(3):
            pipeline.send(change(3, 10 + partition), partition=partition)
        wait_for_rows(pipeline, [0, 1, 2, 10, 11, 12])


# --once, and wrong use


def test_once_reads_what_is_there_and_exits_0_also_where_partitions_are_empty(pipeline: Pipeline) -> None:
    hasty = pipeline.sabotaged("import consumer", "consumer.POLL_SECONDS = 0.001")  # finds nothing there more often
    for messages, applied in (([], 0), ([change(1, 1), change(2, 2)], 2), ([], 0)):
        pipeline.send(*messages, partition=1)
        result = pipeline.run(hasty, "--once", seconds=20)
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"applied {applied} changes in all" in result.stdout
    assert ids(pipeline.destination()) == [1, 2]


def test_once_ends_also_when_messages_and_the_end_of_their_partition_come_in_one_batch(pipeline: Pipeline) -> None:
    holder, destination = pipeline.destination(), pipeline.destination()
    query(holder, "BEGIN; LOCK TABLE employees")
    for partition in range(3):
        pipeline.send(change(1 + partition, 1 + partition), partition=partition)
    script = pipeline.start("consumer.py", "--once")
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the first batch waits")
    time.sleep(1.5)  # the other partitions are read to their ends meanwhile
    query(holder, "COMMIT")
    assert script.process.wait(6) == 0


GIVES_UP = {
    "the destination is away": {"DESTINATION_DATABASE_URL": "postgresql://postgres@localhost:1/none"},
    "the topic is missing": {"KAFKA_TOPIC": "cdc_test_no_such_topic"},
    "Kafka is away": {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"},
}


@pytest.mark.parametrize(
    "what",
    [
        "the destination is away",
        pytest.param("the topic is missing"),
        pytest.param("Kafka is away"),
    ],
)
def test_once_gives_up_with_one_line_and_exit_1(quiet: Pipeline, what: str) -> None:
    """After 60 s; here after 2."""
    quiet.send(change(1, 1), partition=0)
    impatient = quiet.sabotaged(
        "import consumer",
        "from connection import Outage",
        "consumer.Outage = lambda stop, give_up_after=60: Outage(stop, min(give_up_after, 2))",
        "consumer.GIVE_UP = 2",
    )
    script = quiet.start(impatient, "--once", KAFKA_GROUP_ID=f"{quiet.name}-once", **GIVES_UP[what])
    try:
        assert script.process.wait(8) == 1, script.output()
        assert "gave up after 2 s" in script.output()
        assert "Traceback" not in script.output()
    finally:
        script.kill()


def test_a_consumer_whose_place_another_one_took_says_so_and_ends(quiet: Pipeline) -> None:
    first = quiet.start("consumer.py", **SAME_PLACE)
    first.wait_for("partitions assigned")
    with consuming(quiet):
        quiet.send(change(1, 1), partition=0)
        wait_until_read(quiet)
        try:
            assert first.process.wait(6) == 1, first.output()
            assert "group.instance.id" in first.output()
            assert "Traceback" not in first.output()
        finally:
            first.kill()


def wrong_password(url: str) -> str:
    login, _, server = url.rpartition("@")
    return f"{login.rpartition(':')[0]}:wrong@{server}"


def test_a_wrong_password_ends_with_one_line_and_exit_2(quiet: Pipeline) -> None:
    quiet.send(change(1, 1), partition=0)
    url = wrong_password(quiet.destination_url)
    result = quiet.run("consumer.py", KAFKA_GROUP_ID=f"{quiet.name}-stranger", DESTINATION_DATABASE_URL=url)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "librdkafka" not in line)
    assert "password" in line
    assert "check DESTINATION_DATABASE_URL" in line
    with consuming(quiet):
        wait_until_read(quiet)


def test_a_wrong_password_is_found_before_the_first_message(quiet: Pipeline) -> None:
    url = wrong_password(quiet.destination_url)
    script = quiet.start("consumer.py", **SAME_PLACE, DESTINATION_DATABASE_URL=url)
    try:
        assert script.process.wait(5) == 2
    finally:
        script.kill()


def test_a_consumer_that_ends_with_an_error_ends_at_once(quiet: Pipeline) -> None:
    """Also when the group has just given it partitions that it has not taken: left to the end of the interpreter,
    Kafka's client would wait for that without end, deaf to signals."""
    slow = quiet.sabotaged(
        "import consumer",
        "import cli, time",
        "def look(self):",
        "    time.sleep(2)",
        "    cli.fail('a password refused slowly', 2)",
        "consumer.Destination.look = look",
    )
    script = quiet.start(slow, **SAME_PLACE)
    try:
        assert script.process.wait(8) == 2
    finally:
        script.kill()


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--all"], {}, "--all"),
        (["twice"], {}, "twice"),
        ([], {"KAFKA_SESSION_TIMEOUT_MS": "soon"}, "session.timeout.ms"),
        ([], {"KAFKA_NO_SUCH_THING": "1"}, "no.such.thing"),
    ],
)
def test_wrong_use_ends_with_exit_2_and_names_it(
    quiet: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    named: str,
) -> None:
    for name, setting in environment.items():
        monkeypatch.setenv(name, setting)
    result = quiet.run("consumer.py", *arguments)
    assert result.returncode == 2
    assert named in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_help_shows_the_purpose_and_an_example(quiet: Pipeline) -> None:
    result = quiet.run("consumer.py", "--help")
    assert result.returncode == 0
    assert "Apply the changes from Kafka to the destination" in result.stdout
    assert "python consumer.py --once" in result.stdout

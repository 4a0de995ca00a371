"""Is the log that the producer reads the one that it published from? What is noticed, mended, and no false alarm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import config
from employee import CDCRecord
from harness.database import administer, database_url, query
from harness.log_reader import INSERT, Reader
from harness.pipeline import Pipeline
from harness.producing import KILL, create_topic, published, wait_until_published

import pytest
from psycopg2.extensions import connection as Connection

BACKUP = """
CREATE SCHEMA backup;
CREATE TABLE backup.position AS SELECT * FROM cdc_position;
CREATE TABLE backup.employees AS SELECT * FROM employees;
"""
# The tables as they were. What the sequence says then is the test's.
RESTORE = """
ALTER TABLE employees DISABLE TRIGGER ALL;
DELETE FROM employees;
INSERT INTO employees SELECT * FROM backup.employees;
ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger;
ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_truncate_trigger;
DELETE FROM emp_cdc WHERE cdc_id > (SELECT last_offset FROM backup.position);
UPDATE cdc_position SET last_offset = backup.last_offset, snapshot = backup.snapshot FROM backup.position AS backup;
"""
SEQUENCE_BACK = "SELECT setval('emp_cdc_cdc_id_seq', last_offset) FROM backup.position"
KILLED_AT_SAVE = f"from cdc import position; position.save = lambda *_: {KILL}"
ALARMS = ("BACK IN TIME", "ANOTHER LOG", "ANOTHER SERVER")


def publish(pipeline: Pipeline) -> str:
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    return str(result.stdout)


def raise_salaries(source: Connection, times: int) -> None:
    for _ in range(times):
        query(source, "UPDATE employees SET salary = coalesce(salary, 0) + 1")


@pytest.fixture
def source(pipeline: Pipeline) -> Connection:
    """Two employees have been published and backed up; then four changes of each have, and are applied."""
    source = pipeline.source()
    query(source, f"{INSERT}; {INSERT}")
    assert "published 2 changes" in publish(pipeline)
    query(source, BACKUP)
    raise_salaries(source, 4)
    pipeline.drain()
    return source


@pytest.mark.parametrize(
    ("sequence", "times"),
    [
        pytest.param(SEQUENCE_BACK, 1, id="fewer than were published"),
        pytest.param(SEQUENCE_BACK, 4, id="as many as were published"),
        pytest.param(SEQUENCE_BACK, 9, id="more than were published"),
        pytest.param("", 1, id="and the sequence is ahead, as after a crash with synchronous_commit off"),
    ],
)
def test_changes_made_by_a_source_that_went_back_in_time_arrive(
    pipeline: Pipeline, source: Connection, sequence: str, times: int
) -> None:
    query(source, RESTORE + sequence)
    query(source, "UPDATE employees SET city = 'Oslo'")
    raise_salaries(source, times - 1)
    first, second = publish(pipeline), publish(pipeline)
    assert "THE SOURCE WENT BACK IN TIME: " in first
    assert "run python verify.py --repair" in first
    assert not any(alarm in second for alarm in ALARMS)
    assert "published 0 changes" in second
    pipeline.drain()
    assert pipeline.equal()
    query(source, "DELETE FROM employees")
    pipeline.drain()
    assert pipeline.equal()


def test_a_loss_is_noticed_before_anybody_writes_again(pipeline: Pipeline, source: Connection) -> None:
    query(source, RESTORE)
    assert "THE SOURCE WENT BACK IN TIME: the topic holds UPDATE employee" in publish(pipeline)
    query(source, "UPDATE employees SET city = 'Oslo'")
    assert "BACK IN TIME" not in publish(pipeline)
    pipeline.drain()
    assert pipeline.equal()


def test_offsets_used_again_from_the_first_one_on_are_noticed(pipeline: Pipeline, source: Connection) -> None:
    query(source, "TRUNCATE emp_cdc RESTART IDENTITY")
    query(source, "UPDATE employees SET city = 'Oslo'")
    raise_salaries(source, 9)
    assert "THE SOURCE WENT BACK IN TIME: " in publish(pipeline)
    pipeline.drain()
    assert pipeline.equal()


def test_a_change_that_commits_while_the_log_is_mended_arrives(pipeline: Pipeline, source: Connection) -> None:
    query(source, RESTORE + SEQUENCE_BACK)
    query(source, "BEGIN; UPDATE employees SET city = 'Oslo'")
    producer = pipeline.start("producer.py")
    producer.wait_for("a long transaction holds emp_cdc; waiting until it ends")
    query(source, "COMMIT")
    producer.wait_for("THE SOURCE WENT BACK IN TIME: ")
    pipeline.start("consumer.py")
    pipeline.wait_until_equal()


def test_a_strangers_message_does_not_hide_that_the_source_went_back_in_time(
    pipeline: Pipeline, source: Connection
) -> None:
    for partition in range(3):
        pipeline.send(CDCRecord(9 * 10**18, 1, action="DELETE").to_json(), partition=partition)
    query(source, RESTORE + SEQUENCE_BACK)
    assert "THE SOURCE WENT BACK IN TIME: " in publish(pipeline)
    query(source, INSERT)
    assert query(source, "SELECT max(cdc_id) < 1000 FROM emp_cdc") == [(True,)]


OTHER_SERVERS = """
INSERT INTO emp_cdc (cdc_id, emp_id, city, action, txid)
SELECT id, id, 'Bern', 'INSERT', (10 ^ 12)::bigint::text::xid8 FROM generate_series(1, 3) AS id
"""


def test_log_rows_of_another_server_are_published_once(pipeline: Pipeline) -> None:
    """Even if they are above the sequence: pg_dump -t may leave it where it was."""
    query(pipeline.source(), OTHER_SERVERS)
    assert "THE LOG HOLDS ROWS OF ANOTHER SERVER: 3 rows" in publish(pipeline)
    query(pipeline.source(), INSERT)
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)
    assert sorted(record.city or "" for record in published(pipeline)) == ["Bern", "Bern", "Bern", "Rome"]


def test_log_rows_of_another_server_that_come_while_the_producer_runs_end(pipeline: Pipeline) -> None:
    script = pipeline.start(pipeline.sabotaged("import producer", "from cdc import upkeep", "upkeep.EVERY = 0.2"))
    script.wait_for("publishing from")
    query(pipeline.source(), f"SELECT setval('emp_cdc_cdc_id_seq', 3); {OTHER_SERVERS}")
    script.wait_for("THE LOG HOLDS ROWS OF ANOTHER SERVER")
    time.sleep(1)
    assert script.stop() == 0
    assert "published 0 changes" in publish(pipeline)


@pytest.mark.parametrize("offset", [9, 500], ids=["an offset of ours", "an offset beyond ours"])
def test_a_second_log_in_the_topic_is_noticed_while_the_producer_runs(
    pipeline: Pipeline, source: Connection, offset: int
) -> None:
    """As of a clone of the source's disk with a producer of its own."""
    script = pipeline.start(
        pipeline.sabotaged(
            "import producer", "from cdc import history, upkeep", "history.TOPIC_EVERY = upkeep.EVERY = 0.2"
        )
    )
    script.wait_for("publishing from")
    pipeline.send(CDCRecord(offset, 1, city="Bern", action="UPDATE").to_json())
    script.wait_for("THE TOPIC HOLDS CHANGES OF ANOTHER LOG: the topic holds UPDATE employee 1 at log offset")
    raise_salaries(source, 10)
    pipeline.start("consumer.py")
    pipeline.wait_until_equal()
    assert script.output().count("ANOTHER LOG") == 1


@pytest.mark.parametrize("removal", ["TRUNCATE emp_cdc", "DELETE FROM emp_cdc WHERE cdc_id BETWEEN 12 AND 14"])
def test_changes_removed_from_the_log_before_they_were_published_are_noticed(
    pipeline: Pipeline, source: Connection, removal: str
) -> None:
    raise_salaries(source, 2)
    query(source, removal)
    assert "CHANGES WERE REMOVED FROM THE LOG" in publish(pipeline)
    assert "REMOVED" not in publish(pipeline)


@pytest.mark.parametrize("removal", ["TRUNCATE emp_cdc", "DELETE FROM emp_cdc WHERE cdc_id = 11"])
def test_late_rows_that_are_removed_are_noticed(pipeline: Pipeline, source: Connection, removal: str) -> None:
    late = pipeline.source()
    query(late, f"BEGIN; {INSERT}")
    query(source, INSERT)
    publish(pipeline)
    query(late, "COMMIT")
    query(source, removal)
    assert "CHANGES WERE REMOVED FROM THE LOG" in publish(pipeline)
    assert "REMOVED" not in publish(pipeline)


@pytest.mark.parametrize("removal", ["TRUNCATE emp_cdc", "DELETE FROM emp_cdc"])
def test_a_removal_that_is_taken_back_or_of_published_rows_is_no_loss(
    pipeline: Pipeline, source: Connection, removal: str
) -> None:
    query(source, removal)
    raise_salaries(source, 1)
    query(source, f"BEGIN; {removal}; ROLLBACK")
    query(source, f"BEGIN; {INSERT}; ROLLBACK")
    first = publish(pipeline)
    assert "REMOVED" not in first
    assert "published 2 changes" in first


@pytest.fixture
def copy(pipeline: Pipeline, source: Connection) -> Iterator[str]:
    """The URL of a TEMPLATE copy of the source."""
    for connection in pipeline.connections:
        connection.close()
    name = f"{pipeline.name}_template"
    administer(config.SOURCE_DATABASE_URL, f"CREATE DATABASE {name} TEMPLATE {pipeline.name}")
    yield database_url(config.SOURCE_DATABASE_URL, name)
    administer(config.SOURCE_DATABASE_URL, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def test_a_copy_of_the_database_does_not_publish_to_the_originals_topic(pipeline: Pipeline, copy: str) -> None:
    publish(pipeline)
    refused = pipeline.run("producer.py", "--once", SOURCE_DATABASE_URL=copy)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"this database is a copy of {pipeline.name}, which publishes to topic {pipeline.topic}" in line
    create_topic(pipeline, f"{pipeline.topic}_dlq")
    own_topic = pipeline.run("producer.py", "--once", SOURCE_DATABASE_URL=copy, KAFKA_TOPIC=f"{pipeline.topic}_dlq")
    assert own_topic.returncode == 0, own_topic.stderr


def test_a_copy_that_replaces_the_original_goes_on(pipeline: Pipeline, copy: str) -> None:
    administer(config.SOURCE_DATABASE_URL, f"DROP DATABASE {pipeline.name} WITH (FORCE)")
    pipeline.source_url = pipeline.environment["SOURCE_DATABASE_URL"] = copy
    query(pipeline.source(), "UPDATE employees SET city = 'Oslo'")
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)
    pipeline.drain()
    assert pipeline.equal()


# No false alarm


@pytest.mark.parametrize(
    "killed",
    [KILLED_AT_SAVE, f"producer.publish = lambda *_: {KILL}"],
    ids=["before the position is saved", "before the page is published"],
)
def test_a_killed_producer_is_no_other_history(pipeline: Pipeline, source: Connection, killed: str) -> None:
    raise_salaries(source, 3)
    pipeline.run(pipeline.sabotaged("import producer", killed), "--once")
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)
    assert {record.cdc_id for record in published(pipeline)} == set(range(1, 17))


def test_a_producer_that_runs_under_load_sees_no_other_log(pipeline: Pipeline, source: Connection) -> None:
    script = pipeline.start(
        pipeline.sabotaged(
            "import producer", "from cdc import history, upkeep", "history.TOPIC_EVERY = upkeep.EVERY = 0.1"
        )
    )
    script.wait_for("publishing from")
    others = [pipeline.source() for _ in range(3)]
    for number in range(60):
        query(others[0], f"BEGIN; {INSERT}")
        query(others[1], ";".join([INSERT] * (1 + number % 7)))
        query(others[2], f"BEGIN; {INSERT}; ROLLBACK")
        query(others[0], "COMMIT")
    raise_salaries(source, 20)
    wait_until_published(source, 30)
    time.sleep(0.5)
    assert not any(alarm in script.output() for alarm in ALARMS)


def test_values_of_all_kinds_are_known_again(pipeline: Pipeline, source: Connection) -> None:
    query(source, "INSERT INTO employees (first_name, dob) VALUES (E'\\\\ \"ü', 'infinity'), (NULL, '0044-03-15 BC')")
    pipeline.run(pipeline.sabotaged("import producer", KILLED_AT_SAVE), "--once")
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)


def test_a_late_row_a_pruned_log_and_rolled_back_changes_are_no_other_history(
    pipeline: Pipeline, source: Connection, read: Callable[[], Reader]
) -> None:
    late, undone = pipeline.source(), pipeline.source()
    query(late, f"BEGIN; {INSERT}")
    query(undone, f"BEGIN; {INSERT}; ROLLBACK")
    query(source, INSERT)
    read().drain()
    query(late, "COMMIT")
    pipeline.run(pipeline.sabotaged("import producer", KILLED_AT_SAVE), "--once")
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)
    query(undone, f"BEGIN; {INSERT}; ROLLBACK")
    query(source, "DELETE FROM emp_cdc")
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)


def test_what_a_stranger_sent_at_or_below_the_offset_is_no_other_history(
    pipeline: Pipeline, source: Connection
) -> None:
    pipeline.send(CDCRecord(3, 1, city="Bern", action="UPDATE").to_json(), "no change", "", None)
    raise_salaries(source, 1)
    assert not any(alarm in publish(pipeline) for alarm in ALARMS)

"""Restores, as docs/operations.md describes them: what is seen, what is done, and that nothing is lost by it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import config
from harness import ROOT
from harness.database import BACKWARDS, WATCH, administer, database_url, query
from harness.kafka import remove_messages
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

TABLES = ("employees", "emp_cdc", "cdc_position")


def change(connection: Connection, city: str) -> None:
    """Some of everything; an employee's salary only rises."""
    query(
        connection,
        "INSERT INTO employees (city, salary) SELECT %(city)s, 0 FROM generate_series(1, 20)",
        {"city": city},
    )
    query(connection, "UPDATE employees SET city = %(city)s, salary = salary + 1 WHERE emp_id %% 2 = 0", {"city": city})
    query(connection, "DELETE FROM employees WHERE emp_id %% 10 = 5 AND city <> %(city)s", {"city": city})


def publish_unread(pipeline: Pipeline, city: str) -> Connection:
    """Carry some changes over, and leave others in the topic; returns a connection to the source."""
    source = pipeline.source()
    change(source, "before")
    pipeline.drain()
    change(source, city)
    assert pipeline.run("producer.py", "--once").returncode == 0
    return source


@contextmanager
def restored(url: str, database: str) -> Iterator[None]:
    """Back the database up, which nobody may use then, and put the backup in its place afterwards."""
    backup = f"{database}_backup"
    administer(url, f"CREATE DATABASE {backup} TEMPLATE {database}")
    yield
    administer(url, f"DROP DATABASE {database} WITH (FORCE)")
    administer(url, f"ALTER DATABASE {backup} RENAME TO {database}")


def test_the_source_restored_from_an_older_backup(pipeline: Pipeline) -> None:
    source = pipeline.source()
    change(source, "before")
    pipeline.drain()
    source.close()
    with restored(config.SOURCE_DATABASE_URL, pipeline.name):
        source = pipeline.source()
        change(source, "lost with the disk")
        pipeline.drain()
    producer, _ = pipeline.start("producer.py"), pipeline.start("consumer.py")
    producer.wait_for("THE SOURCE WENT BACK IN TIME")
    change(pipeline.source(), "after")
    result = pipeline.run("verify.py", "--repair", "--wait", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert pipeline.equal()


def test_the_source_moved_to_another_server(pipeline: Pipeline) -> None:
    """With changes that were not published yet, one of them below the offset."""
    source, late = pipeline.source(), pipeline.source()
    change(source, "before")
    query(late, "BEGIN; INSERT INTO employees (city) VALUES ('late')")
    change(source, "after it")
    pipeline.drain()
    query(late, "COMMIT")
    change(source, "not yet published")
    new_server, name = config.DESTINATION_DATABASE_URL, f"{pipeline.name}_moved"
    administer(new_server, f"CREATE DATABASE {name}")
    try:
        with psycopg2.connect(database_url(new_server, name)) as moved:
            dump_and_restore(source, moved)
        moved.close()
        pipeline.environment["SOURCE_DATABASE_URL"] = pipeline.source_url = database_url(new_server, name)
        assert pipeline.run("db_setup.py").returncode == 0
        producer, _ = pipeline.start("producer.py"), pipeline.start("consumer.py")
        producer.wait_for("the log was restored from another server: position rebased")
        change(pipeline.source(), "after")
        pipeline.wait_until_equal()
    finally:
        for script in pipeline.scripts:
            script.stop()
        administer(new_server, f"DROP DATABASE {name} WITH (FORCE)")


def dump_and_restore(old: Connection, new: Connection) -> None:
    """What pg_dump and psql do with the whole database."""
    query(new, (ROOT / "sql" / "source.sql").read_text(encoding="utf-8"))
    query(new, "ALTER TABLE employees DISABLE TRIGGER ALL; TRUNCATE emp_cdc, cdc_position")
    for table in TABLES:
        data = io.StringIO()
        with old.cursor() as reading, new.cursor() as writing:
            reading.copy_expert(f"COPY {table} TO STDOUT", data)
            data.seek(0)
            writing.copy_expert(f"COPY {table} FROM STDIN", data)
    for sequence in ("employees_emp_id_seq", "emp_cdc_cdc_id_seq"):
        ((last,),) = query(old, f"SELECT last_value FROM {sequence}")
        query(new, "SELECT setval(%(sequence)s, %(last)s)", {"sequence": sequence, "last": last})
    query(new, "ALTER TABLE employees ENABLE TRIGGER ALL")


@pytest.mark.parametrize("since", [True, False], ids=["read again since the backup", "read again from the start"])
def test_the_destination_restored_from_an_older_backup(pipeline: Pipeline, since: bool) -> None:
    source, destination = pipeline.source(), pipeline.destination()
    query(destination, WATCH)
    change(source, "before")
    pipeline.drain()
    destination.close()
    taken = datetime.now().isoformat(timespec="milliseconds")
    with restored(config.DESTINATION_DATABASE_URL, f"{pipeline.name}_copy"):
        change(source, "since")
        pipeline.drain()
    pipeline.drain()
    assert not pipeline.equal()
    in_all = len(pipeline.messages())
    with pipeline.running("consumer.py") as consumer:
        consumer.wait_for("partitions assigned")
        result = pipeline.run("admin.py", "rewind")
        assert (result.returncode, "stop them first" in result.stderr) == (1, True), result.stderr
    result = pipeline.run("admin.py", "rewind", *(["--since", taken] if since else []))
    assert result.returncode == 0, result.stderr
    again = int(result.stdout.split(" reads ")[1].split()[0])
    assert (0 < again < in_all) if since else (again == in_all)
    pipeline.drain()
    assert pipeline.equal()
    assert query(pipeline.destination(), BACKWARDS) == [(0,)]


def test_a_rewind_to_a_time_without_messages_reads_nothing_again(pipeline: Pipeline) -> None:
    change(pipeline.source(), "before")
    pipeline.drain()
    result = pipeline.run("admin.py", "rewind", "--since", datetime.now().isoformat())
    assert "reads 0 messages" in result.stdout
    assert "applied 0 changes in all" in pipeline.run("consumer.py", "--once").stdout


def test_the_topic_lost_with_messages_that_were_not_read(pipeline: Pipeline) -> None:
    source = publish_unread(pipeline, "lost with the topic")
    assert pipeline.run("admin.py", "delete", "--yes").returncode == 0
    producer, consumer = pipeline.start("producer.py"), pipeline.start("consumer.py")
    for script in (producer, consumer):
        script.wait_for("run python admin.py; waiting")
    assert pipeline.run("admin.py").returncode == 0
    change(source, "after")
    result = pipeline.run("verify.py", "--repair", "--wait", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    pipeline.wait_until_equal()


def test_the_consumer_away_longer_than_the_topic_keeps_messages(pipeline: Pipeline) -> None:
    source = publish_unread(pipeline, "unread")
    remove_messages(pipeline.topic)
    change(source, "after")
    pipeline.start("producer.py")
    consumer = pipeline.start("consumer.py")
    consumer.wait_for("MESSAGES ARE GONE")
    wait_until(lambda: not pipeline.equal())
    result = pipeline.run("verify.py", "--repair", "--wait", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert pipeline.equal()

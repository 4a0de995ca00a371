"""The source moves to another server, by logical replication or by pg_restore, as docs/operations.md tells."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import config
from harness import ROOT
from harness.database import administer, database_url, query
from harness.own_servers import ours_alone, purge, url
from harness.pipeline import Pipeline, new_pipeline
from harness.waiting import wait_until
from stack import servers

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

# A replication slot waits for every transaction of its server: here there are none but the test's.
pytestmark = [pytest.mark.alone, pytest.mark.long]

OFFSET = 2600  # of the ports of the servers here
PG_DUMP, PG_RESTORE = shutil.which("pg_dump"), shutil.which("pg_restore")
VERSION = subprocess.run([PG_DUMP, "--version"], capture_output=True, text=True).stdout if PG_DUMP else ""
MAJOR = (re.findall(r"\) (1[3-8])\.", VERSION) or [""])[0]  # pg_dump refuses a newer server
needs_pg_restore = pytest.mark.skipif(not (MAJOR and PG_RESTORE), reason="there is no pg_dump of PostgreSQL 13 to 18")

SYNCHRONIZED = "SELECT coalesce(bool_and(srsubstate = 'r'), false) FROM pg_subscription_rel"
FAILED = "SELECT sync_error_count + apply_error_count > 0 FROM pg_stat_subscription_stats"
LAST_VALUE = "SELECT last_value FROM employees_emp_id_seq"


@pytest.fixture(scope="module")
def both_servers() -> Iterator[None]:
    """Two PostgreSQL servers: the source's, and the one it moves to (in config.MOVED). The rest is as ever."""
    pair = [server for server in servers.servers(OFFSET, postgres=MAJOR or "17") if server.kind == "postgres"]
    with ours_alone(state := Path(pair[0].state)), pytest.MonkeyPatch.context() as patch:
        purge(state)
        try:
            servers.up(pair)
            patch.setattr(config, "SOURCE_DATABASE_URL", url(pair[0].port))
            patch.setattr(config, "MOVED", url(pair[1].port), raising=False)
            yield
        finally:
            purge(state)


@pytest.fixture
def moving(stack: None, both_servers: None, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with some history, all of it applied."""
    with new_pipeline(tmp_path) as pipeline:
        pipeline.set_up()
        source = pipeline.source()
        query(source, "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 50)")
        query(source, "UPDATE employees SET city = 'Bern' WHERE emp_id % 3 = 0")
        query(source, "DELETE FROM employees WHERE emp_id % 5 = 0")
        pipeline.drain()
        yield pipeline


@pytest.fixture
def moved(moving: Pipeline) -> Iterator[Connection]:
    """An empty database on the other server."""
    server: str = config.MOVED  # type: ignore[attr-defined]
    administer(server, f"CREATE DATABASE {moving.name}")
    with closing(psycopg2.connect(database_url(server, moving.name))) as connection:
        connection.autocommit = True
        yield connection
        with suppress(psycopg2.errors.UndefinedObject):
            query(connection, "DROP SUBSCRIPTION move")


def take_over(pipeline: Pipeline) -> None:
    """From now on the other server is the source."""
    pipeline.source_url = database_url(config.MOVED, pipeline.name)  # type: ignore[attr-defined]
    pipeline.environment["SOURCE_DATABASE_URL"] = pipeline.source_url
    result = pipeline.run("db_setup.py")
    assert result.returncode == 0, result.stderr


def go_on(pipeline: Pipeline, new: Connection) -> None:
    """Producer and consumer, then the applications, then a repair: both sides are equal."""
    producer, _ = pipeline.start("producer.py"), pipeline.start("consumer.py")
    producer.wait_for("publishing from")
    query(new, "INSERT INTO employees (city) VALUES ('the first one'); DELETE FROM employees WHERE emp_id = 2")
    result = pipeline.run("verify.py", "--repair", "--wait", "5")
    assert result.returncode == 0, result.stdout + result.stderr
    assert pipeline.equal()


# By logical replication


def subscribe(pipeline: Pipeline, new: Connection, tables: str) -> None:
    query(pipeline.source(), f"CREATE PUBLICATION move FOR {tables}")
    slot = f"WITH (slot_name = {pipeline.name})"
    query(new, f"CREATE SUBSCRIPTION move CONNECTION '{pipeline.source_url}' PUBLICATION move {slot}")


def synchronized(new: Connection) -> bool:
    return query(new, SYNCHRONIZED) == [(True,)]


def test_a_source_that_moves_by_replication_of_employees_alone_goes_on_there(
    moving: Pipeline, moved: Connection
) -> None:
    old = moving.source()
    destination = (ROOT / "sql" / "destination.sql").read_text(encoding="utf-8")
    query(moved, re.findall(r"CREATE TABLE IF NOT EXISTS public\.employees .*?;", destination, re.DOTALL)[0])
    subscribe(moving, moved, "TABLE employees")
    wait_until(lambda: synchronized(moved), 60)
    # The last changes before the applications stop are not published yet.
    query(old, "INSERT INTO employees (city) VALUES ('the last one'); DELETE FROM employees WHERE emp_id = 1")
    ids = query(old, "SELECT emp_id FROM employees ORDER BY 1")
    wait_until(lambda: query(moved, "SELECT emp_id FROM employees ORDER BY 1") == ids)
    query(moved, "DROP SUBSCRIPTION move")
    query(moved, "SELECT setval('employees_emp_id_seq', %(last)s)", {"last": query(old, LAST_VALUE)[0][0]})
    assert moving.run("producer.py", "--once").returncode == 0
    take_over(moving)
    go_on(moving, moved)


def test_all_tables_replicated_to_a_server_that_is_set_up_never_synchronize(
    moving: Pipeline, moved: Connection
) -> None:
    """Why employees is replicated alone, and the new server set up afterwards."""
    query(moved, (ROOT / "sql" / "source.sql").read_text(encoding="utf-8"))
    subscribe(moving, moved, "ALL TABLES")
    if moved.info.server_version >= 150_000:
        wait_until(lambda: query(moved, FAILED) == [(True,)], 60)
    assert not synchronized(moved)


# By pg_restore


def dump(pipeline: Pipeline) -> str:
    file = pipeline.logs / "dump"
    subprocess.run([str(PG_DUMP), "-Fc", f"--file={file}", pipeline.source_url], check=True)
    return str(file)


def restore(file: str, new: Connection, *arguments: str) -> subprocess.CompletedProcess[str]:
    target = f"--dbname={database_url(config.MOVED, new.info.dbname)}"  # type: ignore[attr-defined]
    return subprocess.run(
        [str(PG_RESTORE), "--data-only", *arguments, target, file], capture_output=True, text=True, check=False
    )


@needs_pg_restore
def test_employees_alone_is_restored_into_a_source_that_is_set_up(moving: Pipeline, moved: Connection) -> None:
    file = dump(moving)
    ids = query(moving.source(), "SELECT emp_id FROM employees ORDER BY 1")
    take_over(moving)
    result = restore(file, moved, "--table=employees", "--table=employees_emp_id_seq")
    assert result.returncode == 0, result.stderr
    assert query(moved, "SELECT emp_id FROM employees ORDER BY 1") == ids
    assert query(moved, "SELECT count(*) FROM emp_cdc WHERE action = 'INSERT'") == [(len(ids),)]
    assert query(moved, LAST_VALUE) == [(50,)]
    go_on(moving, moved)


@needs_pg_restore
@pytest.mark.parametrize("again", [True, False], ids=["employees alone afterwards", "left as it is"])
def test_everything_restored_into_a_source_that_is_set_up_fails_half_way_and_a_repair_mends_it(
    moving: Pipeline, moved: Connection, again: bool
) -> None:
    """Why employees is restored alone: the log's own rows and those of the triggers have the same keys."""
    file = dump(moving)
    take_over(moving)
    result = restore(file, moved)
    assert result.returncode == 1
    assert 'duplicate key value violates unique constraint "emp_cdc_pkey"' in result.stderr
    assert query(moved, "SELECT count(*) FROM employees") == [(0,)]
    if again:
        result = restore(file, moved, "--table=employees", "--table=employees_emp_id_seq")
        assert result.returncode == 0, result.stderr
        assert query(moved, "SELECT count(*) FROM employees") == [(40,)]
    go_on(moving, moved)

"""Our tables have a schema version: scripts wait for tables that are too old, and refuse those that are too new."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

from cdc.schema import TABLES, VERSION, find_version
from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline

import psycopg2
import pytest

OLD = f"the tables are of schema version 0, these scripts need {VERSION}; run python db_setup.py"
NEW = f"the tables are of schema version {VERSION + 1}, these scripts know {VERSION}; install newer scripts"


def label(pipeline: Pipeline, comment: str | None) -> None:
    """Give the tables of both sides a comment, as an earlier or a later version of the scripts would."""
    for side, table in TABLES.items():
        with closing(psycopg2.connect(getattr(pipeline, f"{side}_url"))) as connection:
            connection.autocommit = True
            query(connection, f"COMMENT ON TABLE {table} IS %s", (comment,))


def versions(pipeline: Pipeline) -> list[int | None]:
    return [find_version(getattr(pipeline, side)(), side) for side in TABLES]


@pytest.mark.parametrize("side", TABLES)
def test_the_statements_say_the_version_that_the_scripts_need(side: str) -> None:
    text = (ROOT / "sql" / f"{side}.sql").read_text(encoding="utf-8")
    assert re.findall(r"schema version (\d+)';", text) == [str(VERSION)]


def test_an_upgrade_in_any_order_loses_nothing(pipeline: Pipeline) -> None:
    """The scripts of the next version wait for db_setup.py, and applications write on meanwhile."""
    label(pipeline, None)
    source = pipeline.source()
    query(source, "INSERT INTO employees (emp_id, city) VALUES (1, 'Oslo')")
    scripts = [pipeline.start("producer.py"), pipeline.start("consumer.py")]
    for script in scripts:
        script.wait_for(f"{OLD}; waiting")
    verified = pipeline.run("verify.py")
    assert (verified.returncode, verified.stderr) == (3, f"source: {OLD}\n")
    checked = pipeline.run("admin.py", "check")
    assert checked.returncode == 1
    assert [line[6:] for line in checked.stdout.splitlines() if line.startswith("wrong ")] == [
        f"{side}: {OLD}" for side in TABLES
    ]
    query(source, "UPDATE employees SET city = 'Bern'")
    assert pipeline.run("db_setup.py").returncode == 0
    assert versions(pipeline) == [VERSION, VERSION]
    query(source, "INSERT INTO employees (emp_id) VALUES (2)")
    pipeline.wait_until_equal()
    assert [script.stop() for script in scripts] == [0, 0]


@pytest.fixture
def newer(shared: Pipeline) -> Pipeline:
    label(shared, f"of a later version; schema version {VERSION + 1}")
    return shared


@pytest.mark.parametrize(
    ("script", "side"),
    [("producer.py", "source"), ("consumer.py", "destination"), ("verify.py", "source"), ("db_setup.py", "source")],
)
def test_tables_of_a_later_version_are_refused_at_once(newer: Pipeline, script: str, side: str) -> None:
    result: Any = newer.run(script)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr == f"{side}: {NEW}\n"
    assert versions(newer) == [VERSION + 1, VERSION + 1]

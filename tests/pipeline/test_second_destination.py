"""A second destination beside the first, as docs/operations.md tells: it gets all rows, and then every change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import config
from harness import ROOT
from harness.database import ROWS, administer, database_url, query
from harness.kafka import remove_messages
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2
import pytest


@pytest.fixture
def second(running: Pipeline) -> Iterator[dict[str, Any]]:
    """The settings of a second destination: a new database and a group of its own."""
    name = f"{running.name}_second"
    administer(config.DESTINATION_DATABASE_URL, f"CREATE DATABASE {name}")
    yield {
        "DESTINATION_DATABASE_URL": database_url(config.DESTINATION_DATABASE_URL, name),
        "KAFKA_GROUP_ID": f"{running.name}-second",
    }
    for script in running.scripts:
        script.stop()
    administer(config.DESTINATION_DATABASE_URL, f"DROP DATABASE {name} WITH (FORCE)")


def commands() -> list[list[str]]:
    """What the document has one run, with the new settings."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("\n## A second destination\n")[1]
    return [
        line.split() for line in re.findall(r"^    python (\S+\.py[\w -]*?) *(?:#.*)?$", text.split("\n## ")[0], re.M)
    ]


def test_a_second_destination_gets_what_the_topic_no_longer_holds_and_then_every_change(
    running: Pipeline, second: dict[str, Any]
) -> None:
    source = running.source()
    query(source, "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 20)")
    running.wait_until_equal()
    remove_messages(running.topic)
    query(source, "UPDATE employees SET city = 'Bern' WHERE emp_id = 3; DELETE FROM employees WHERE emp_id = 4")

    assert commands() == [["db_setup.py"], ["consumer.py"], ["verify.py", "--repair"]]
    assert running.run("db_setup.py", **second).returncode == 0
    consumer = running.start("consumer.py", **second)
    consumer.wait_for("partitions assigned")
    repaired = running.run("verify.py", "--repair", "--wait", "2", **second)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    query(source, "INSERT INTO employees (city) VALUES ('Oslo'); UPDATE employees SET salary = 7 WHERE emp_id = 5")
    running.wait_until_equal()
    with closing(psycopg2.connect(second["DESTINATION_DATABASE_URL"])) as copy:
        copy.autocommit = True
        wait_until(lambda: query(copy, ROWS) == query(source, ROWS), what=running.outputs)
    assert running.run("verify.py").returncode == 0, "the first one has lost nothing"
    assert "dead letter" not in running.outputs()

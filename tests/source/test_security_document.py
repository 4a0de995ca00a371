"""What docs/security.md says can be done: take the advisory locks from strangers, erase an employee."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT
from harness.database import query
from harness.kafka import remove_messages
from harness.own_roles import APPLICATION, Roles, new_roles
from harness.pipeline import Pipeline

import pytest
from psycopg2.errors import InsufficientPrivilege

DOCUMENT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def statements(heading: str) -> list[str]:
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^    ([A-Z].*;)$", section, re.MULTILINE)
    assert found
    return found


@pytest.fixture
def roles(stack: None, tmp_path: Path) -> Iterator[Roles]:
    with new_roles(tmp_path) as roles:
        roles.pipeline.set_up()
        query(roles.pipeline.source(), APPLICATION.format(roles.name("app")))
        result = roles.set_up()
        assert result.returncode == 0, result.stdout + result.stderr
        yield roles


def test_no_application_can_take_our_locks_once_their_functions_are_taken_away(roles: Roles) -> None:
    source, app = roles.pipeline.source(), roles.connect("source", "app")
    take = "SELECT pg_try_advisory_lock(6513763, 1), pg_advisory_unlock(6513763, 1)"
    assert query(app, take) == [(True, True)]
    for statement in statements("The advisory locks"):
        query(source, statement.replace("cdc_producer", roles.name("cdc_producer")))
    for name in ("lock", "try_lock", "lock_shared", "try_lock_shared", "xact_lock", "try_xact_lock"):
        function = f"pg_try_advisory_{name[4:]}" if name.startswith("try_") else f"pg_advisory_{name}"
        with pytest.raises(InsufficientPrivilege):
            query(app, f"SELECT {function}(6513763, 1)")
    assert query(app, "SELECT pg_try_advisory_lock(1)") == [(True,)]
    with (
        roles.pipeline.running("producer.py", **roles.settings("cdc_producer")) as producer,
        roles.pipeline.running("consumer.py", **roles.settings("cdc_consumer")),
    ):
        producer.wait_for("publishing from")
        query(app, "INSERT INTO employees (city) VALUES ('Rome')")
        roles.pipeline.wait_until_equal()
    assert roles.set_up().returncode == 0


EVERYTHING = """
SELECT table_schema, table_name, (xpath('count(//row)', query_to_xml(
    format('SELECT * FROM %I.%I AS t WHERE t::text LIKE ''%%Lovelace%%''', table_schema, table_name), true, false, '')
))[1]::text::int FROM information_schema.tables WHERE table_schema = 'public'
"""


def found(pipeline: Pipeline) -> dict[str, int]:
    """Where the name still stands: by table, and in the topic."""
    tables = {
        f"{side}.{table}": count
        for side, connection in (("source", pipeline.source()), ("destination", pipeline.destination()))
        for _, table, count in query(connection, EVERYTHING)
        if count
    }
    messages = sum(b"Lovelace" in (message.value() or b"") for message in pipeline.messages())
    return tables | ({"topic": messages} if messages else {})


@pytest.mark.long
def test_an_erasure_reaches_all_and_is_not_taken_for_a_loss(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (emp_id, last_name) VALUES (7, 'Lovelace'), (8, 'Hopper')")
    pipeline.drain()
    assert found(pipeline).keys() == {"source.employees", "source.emp_cdc", "destination.employees", "topic"}
    query(source, "DELETE FROM employees WHERE emp_id = 7")
    pipeline.drain()
    assert found(pipeline).keys() == {"source.emp_cdc", "topic"}
    for statement in statements("Personal data"):
        query(source, statement)
    remove_messages(pipeline.topic)
    assert found(pipeline) == {}
    query(source, "UPDATE employees SET city = 'Rome'")
    for script in ("producer.py", "consumer.py"):
        result = pipeline.run(script, "--once")
        assert result.returncode == 0
        assert not re.search("REMOVED|GONE", result.stdout), result.stdout
    assert pipeline.equal()

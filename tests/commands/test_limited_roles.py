"""A role that may not do everything: what is refused or hidden is said, and passed over in no case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.database import query
from harness.pipeline import Pipeline
from harness.roles import a_role, on_both

import pytest


@pytest.fixture
def limited(stack: None, tmp_path: Path) -> Iterator[tuple[Pipeline, str]]:
    """A pipeline, no script of it running, and the role of its scripts, which has rights on our tables only."""
    with a_role(tmp_path, "NOSUPERUSER") as (pipeline, role):
        for connection in (pipeline.source(), pipeline.destination()):
            query(connection, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
            query(connection, f"GRANT SELECT, UPDATE, USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1), (2)")
        pipeline.drain()
        assert pipeline.equal()
        yield pipeline, role


def test_a_setting_that_our_role_may_not_set_is_touched_only_where_it_is_wrong(limited: tuple[Pipeline, str]) -> None:
    pipeline, role = limited
    on_both(f"ALTER ROLE {role} SET session_replication_role = replica")
    for script, *arguments in (
        ["producer.py", "--once"],
        ["consumer.py", "--once"],
        ["verify.py"],
        ["admin.py", "status"],
    ):
        result = pipeline.run(script, *arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert 'permission denied to set parameter "session_replication_role"' in line


HIDING = "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; CREATE POLICY part ON {0} USING (emp_id > 1) WITH CHECK (true)"
HIDDEN = {  # by script: the tables of the source and of the destination of which some rows are hidden; the exit code
    "producer.py": (["emp_cdc"], [], 2),
    "consumer.py": ([], ["employees"], 2),
    "verify.py": (["employees"], ["employees"], 3),
    "admin.py": (["employees"], ["employees"], 1),
    "test_cdc.py": (["employees"], ["employees"], 1),
}


@pytest.mark.parametrize("script", HIDDEN)
def test_a_script_to_which_rows_are_hidden_says_so_instead_of_passing_them_over(
    limited: tuple[Pipeline, str], script: str
) -> None:
    pipeline, role = limited
    source, destination = pipeline.source(), pipeline.destination()
    if script == "verify.py":
        query(destination, "UPDATE employees SET city = 'changed by somebody' WHERE emp_id = 1")
    elif script in ("producer.py", "consumer.py"):
        query(source, "DELETE FROM employees WHERE emp_id = 1")
    if script == "consumer.py":
        assert pipeline.run("producer.py", "--once").returncode == 0
    at_source, at_destination, code = HIDDEN[script]
    for connection, tables in ((source, at_source), (destination, at_destination)):
        for table in tables:
            query(connection, HIDING.format(table))
    arguments = {"admin.py": ["status", "--json"], "producer.py": ["--once"], "consumer.py": ["--once"]}.get(script, [])
    result = pipeline.run(script, *arguments)
    said = (result.stdout + result.stderr).partition('"alarms"')[0]  # status has each line there once more
    lines = [line for line in said.splitlines() if "row-level security" in line]
    assert len(lines) == (2 if script == "admin.py" else 1)
    assert all("give it BYPASSRLS" in line for line in lines)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False)
    on_both(f"ALTER ROLE {role} BYPASSRLS")
    if script in ("producer.py", "consumer.py"):
        pipeline.drain()
        assert pipeline.equal()

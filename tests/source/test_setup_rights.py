"""The rights of the role that runs db_setup.py: with exactly these it works, without one it does not."""

from __future__ import annotations

import re

from harness import ROOT
from harness.pipeline import Pipeline
from harness.rights import GRANTS, REFUSED, SIDES, Doors, Grant, impatient

import pytest


@pytest.fixture
def setting_up(doors: Doors, bare_pipeline: Pipeline) -> Doors:
    """Two empty databases with the rights of cdc_setup."""
    empty = Doors(bare_pipeline, doors.prefix)
    empty.lock("cdc_setup")
    return empty


def set_up(doors: Doors) -> tuple[bool, str]:
    result = doors.run("cdc_setup", impatient(doors, "db_setup", "WAIT"))
    return result.returncode == 0, result.stdout + result.stderr


def test_with_exactly_its_rights_db_setup_works_and_again_as_the_owner(setting_up: Doors) -> None:
    for _ in range(2):
        done, said = set_up(setting_up)
        assert done, said


@pytest.mark.parametrize("grant", [grant for grant in GRANTS if grant.role == "cdc_setup"], ids=str)
def test_without_one_right_db_setup_does_not_work_and_one_line_says_why(setting_up: Doors, grant: Grant) -> None:
    with setting_up.without(grant):
        done, said = set_up(setting_up)
    assert not done, said
    assert [line for line in said.splitlines() if grant.side in line and re.search(grant.refusal(), line)], said
    assert "Traceback" not in said


def test_db_setup_needs_to_be_of_the_role_that_owns_a_table_employees_from_before(setting_up: Doors) -> None:
    schema = (ROOT / "sql" / "destination.sql").read_text(encoding="utf-8")
    (table,) = re.findall(r"CREATE TABLE IF NOT EXISTS public.employees .*?;", schema, re.DOTALL)
    owner = setting_up.role("app")
    for side in SIDES:
        setting_up.as_superuser(side, f"{table} ALTER TABLE employees OWNER TO {owner}")
    done, said = set_up(setting_up)
    assert not done
    assert re.search(rf"^source at .*{REFUSED} for table employees", said, re.MULTILINE), said
    setting_up.as_superuser("source", f"GRANT {owner} TO {setting_up.role('cdc_setup')}")
    try:
        done, said = set_up(setting_up)
    finally:
        setting_up.as_superuser("source", f"REVOKE {owner} FROM {setting_up.role('cdc_setup')}")
    assert done, said

"""What pgspot, a linter, finds in our SQL: every name in a SECURITY DEFINER function must have its schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import ROOT

import pytest

# Not asked for, as in the schema of the user's choice whoever may create tables is trusted (docs/security.md):
# PS002 a function, PS012 a table that somebody else could have made there before.
IGNORED = ["--ignore", "PS002", "--ignore", "PS012"]
# It sets no search_path, as that would be done and undone for each row. All its names have their schema instead.
KNOWN = "PS003: SECURITY DEFINER function without explicit search_path: public.employee_cdc_trigger_func()"


def findings(text: str, folder: Path) -> list[str]:
    file = folder / "checked.sql"
    file.write_text(text.replace(':"DBNAME"', "postgres"), encoding="utf-8")
    program = Path(sys.executable).with_name("pgspot")
    result = subprocess.run([program, *IGNORED, str(file)], capture_output=True, text=True, check=False)
    assert "Errors: " in result.stdout, result.stdout + result.stderr
    assert "syntax error" not in result.stdout + result.stderr
    return [line.rpartition(" at line ")[0] for line in result.stdout.splitlines() if line.startswith("PS")]


def source() -> str:
    return (ROOT / "sql" / "source.sql").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["destination", "source_roles", "destination_roles"])
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    assert findings((ROOT / "sql" / f"{name}.sql").read_text(encoding="utf-8"), tmp_path) == []


def test_of_the_capture_one_thing_is_found_which_is_meant(tmp_path: Path) -> None:
    assert findings(source(), tmp_path) == [KNOWN]


@pytest.mark.parametrize(
    ("qualified", "bare"),
    [
        ("TG_RELID OPERATOR(pg_catalog.<>)", "TG_RELID <>"),
        ("pg_catalog.set_config", "set_config"),
        ("FROM public.employees WHERE ctid", "FROM employees WHERE ctid"),
        ("SECURITY DEFINER SET search_path = pg_catalog, pg_temp", "SECURITY DEFINER"),
    ],
)
def test_a_name_without_its_schema_is_found(qualified: str, bare: str, tmp_path: Path) -> None:
    changed = source().replace(qualified, bare)
    assert changed != source()
    assert len(findings(changed, tmp_path)) > 1

"""What the scripts print: in any encoding, to a reader that leaves, and nothing that acts upon a terminal."""

from __future__ import annotations

import subprocess
import sys

from cdc.text import escape
from harness import ROOT
from harness.consuming import change, consuming
from harness.database import query
from harness.pipeline import Pipeline

import pytest

NASTY = "\x1b[31mred \u202eesrever \x07\x9b"
ESCAPED = r"\x1b[31mred \u202eesrever \x07\x9b"


@pytest.fixture(scope="module", autouse=True)
def nasty(shared_running: Pipeline) -> None:
    """An employee whose name would act upon a terminal."""
    source = shared_running.source()
    query(source, "INSERT INTO employees (emp_id, first_name, city) VALUES (900, %s, 'Wien')", (NASTY,))
    shared_running.wait_until_equal()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_what_the_encoding_lacks_is_printed_plainly(shared_running: Pipeline, environment: dict[str, str]) -> None:
    result = shared_running.run("test_cdc.py", seconds=60, **{"COLUMNS": "200", **environment})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "-> arrived" in result.stdout
    assert "+--" in result.stdout


def test_names_are_shown_escaped(shared_running: Pipeline) -> None:
    query(shared_running.destination(), "UPDATE employees SET first_name = 'other' WHERE emp_id = 900")
    try:
        for script, code in (("test_cdc.py", 1), ("verify.py", 1)):
            result = shared_running.run(script, *(["--wait", "1"] if script == "verify.py" else []), COLUMNS="200")
            assert result.returncode == code, result.stdout + result.stderr
            assert escape(NASTY) == ESCAPED
            assert "red" in result.stdout
            assert not {"\x1b", "\u202e", "\x07", "\x9b"} & set(result.stdout), script
    finally:
        query(shared_running.destination(), "UPDATE employees SET first_name = %s WHERE emp_id = 900", (NASTY,))


def test_a_log_line_stays_one_line_and_acts_upon_no_terminal(pipeline: Pipeline) -> None:
    destination = pipeline.destination()
    query(
        destination, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS %s", (f"BEGIN RAISE '{NASTY}'; END",)
    )
    query(destination, "CREATE TRIGGER refuse BEFORE INSERT ON employees FOR EACH ROW EXECUTE FUNCTION refuse()")
    with consuming(pipeline) as script:
        pipeline.send(change(1, 1), partition=0)
        script.wait_for("dead letter")
        script.wait_for(ESCAPED)
    assert not {"\x1b", "\u202e", "\x07", "\x9b"} & set(script.output())


def test_a_reader_that_leaves_ends_a_script_without_a_traceback(shared_running: Pipeline) -> None:
    command = f"{sys.executable} test_cdc.py | head -1"
    result = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env={**shared_running.environment, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == ""
    assert result.returncode == 1
    assert query(shared_running.source(), "SELECT count(*) FROM employees WHERE last_name = 'Byron'") == [(0,)]

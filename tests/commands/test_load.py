"""load.py: invented employees that change steadily, and nobody else touched."""

from __future__ import annotations

import signal
import time

from harness.database import ROWS, query
from harness.pipeline import Pipeline

import pytest

REAL = "INSERT INTO employees (first_name, last_name, salary) VALUES ('Ada', 'Byron', 1), (NULL, NULL, NULL)"
ACTIONS = "SELECT action, count(*) FROM emp_cdc GROUP BY action"
INVENTED = "SELECT count(*) FROM employees WHERE last_name = 'Playground'"


def test_it_fills_changes_steadily_and_removes_only_whom_it_has_invented(shared: Pipeline) -> None:
    source = shared.source()
    query(source, REAL)
    real = query(source, ROWS)
    result = shared.run("load.py", "--rows", "1500", "--rate", "200", "--seconds", "2")
    assert (result.returncode, result.stderr) == (0, "")
    *_, last = result.stdout.splitlines()
    count, left = (int(last.split()[index].replace(",", "")) for index in (0, 2))
    assert 100 <= count <= 401, "a slow machine makes fewer, none makes more"
    assert query(source, INVENTED) == [(left,)]
    assert abs(left - 1500) <= 60
    actions = dict(query(source, ACTIONS))
    assert actions["INSERT"] - 1502 + actions["UPDATE"] + actions["DELETE"] == count
    assert actions["UPDATE"] > actions["DELETE"] > 0
    assert last.endswith("invented employees; python load.py --remove deletes them")

    result = shared.run("load.py", "--rows", "1000", "--seconds", "0")
    assert query(source, INVENTED) == [(left,)], "those that are there are taken again"
    result = shared.run("load.py", "--remove")
    assert (result.returncode, result.stdout) == (0, f"invented employees deleted: {left:,}\n")
    assert query(source, ROWS) == real


def test_ctrl_c_ends_it_in_good_order(shared: Pipeline) -> None:
    script = shared.start("load.py", "--rows", "10", "--rate", "1000")
    script.wait_for("10 invented employees")
    time.sleep(0.3)
    assert script.stop(signal.SIGINT) == 0
    assert " changes; " in script.output().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rows", "-1"],
        ["--rows", "1000001"],
        ["--rows", "9" * 30],
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--rate", "much"],
    ],
)
def test_a_number_that_is_none_is_wrong_use(databases: Pipeline, arguments: list[str]) -> None:
    result = databases.run("load.py", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "is not a number" in result.stderr


def test_a_source_that_is_not_set_up_is_one_line(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("load.py")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.endswith("run python db_setup.py")

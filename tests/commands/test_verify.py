"""verify.py: it finds every difference and no other, and says so."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Iterator

import config
from harness import ROOT
from harness.database import administer, database_url, query
from harness.pipeline import Pipeline
from harness.verifying import FILL, MANY, SPECIAL, WITHOUT_LOG, differing, truth, verify

import pytest


@pytest.fixture(scope="module")
def drained(shared: Pipeline) -> Pipeline:
    """Many rows and some special ones on both sides."""
    query(shared.source(), SPECIAL)
    query(shared.source(), FILL, {"rows": MANY})
    shared.drain()
    query(shared.destination(), "CREATE TABLE kept AS TABLE employees")
    return shared


@pytest.fixture
def filled(drained: Pipeline) -> Iterator[Pipeline]:
    """The same for each test, which may change the destination."""
    yield drained
    query(drained.destination(), "TRUNCATE employees; INSERT INTO employees TABLE kept")


def test_equal_tables_are_equal_and_it_says_so(filled: Pipeline) -> None:
    result = filled.run("verify.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"EQUAL; 50,004 rows compared in [\d.]+ s\n", result.stdout)


@pytest.mark.parametrize(
    ("planted", "keys"),
    [
        ("UPDATE employees SET salary = salary + 1 WHERE emp_id = 20000", [20000]),
        ("DELETE FROM employees WHERE emp_id IN (1, 40000)", [1, 40000]),
        ("INSERT INTO employees (emp_id) VALUES (-8), (60000), (2147483646)", [-8, 60000, 2147483646]),
        ("UPDATE employees SET first_name = '' WHERE emp_id = -7", [-7]),
        ("UPDATE employees SET last_name = NULL WHERE emp_id = -7", [-7]),
        ("UPDATE employees SET first_name = 'null' WHERE emp_id = 0", [0]),
        ("UPDATE employees SET salary = 0 WHERE emp_id = 0", [0]),
        ("UPDATE employees SET dob = '-infinity' WHERE emp_id = -2147483648", [-2147483648]),
        ("UPDATE employees SET dob = 'infinity' WHERE emp_id = 2147483647", [2147483647]),
        ("UPDATE employees SET dob = '4713-11-24 BC' WHERE emp_id = -7", [-7]),
        ("UPDATE employees SET dob = NULL WHERE emp_id = 2147483647", [2147483647]),
        ("UPDATE employees SET city = city || ' ' WHERE emp_id = 50000", [50000]),
        ("UPDATE employees SET city = replace(city, 'Ω', U&'\\2126') WHERE emp_id = -2147483648", [-2147483648]),
        ("UPDATE employees SET first_name = last_name, last_name = first_name WHERE emp_id = 3", [3]),
        ("DELETE FROM employees WHERE emp_id IN (-2147483648, 2147483647)", [-2147483648, 2147483647]),
        ("UPDATE employees SET emp_id = 50001 WHERE emp_id = 50000", [50000, 50001]),
    ],
)
def test_each_kind_of_difference_is_found_and_nothing_else(filled: Pipeline, planted: str, keys: list[int]) -> None:
    query(filled.destination(), planted)
    found = verify(filled)
    assert differing(found) == keys
    assert (found["different"], found["on_their_way"], found["repaired"]) == (len(keys), 0, 0)


def test_a_difference_is_shown_with_both_rows(filled: Pipeline) -> None:
    query(filled.destination(), "UPDATE employees SET city = NULL, dob = 'infinity' WHERE emp_id = 7")
    query(filled.destination(), "DELETE FROM employees WHERE emp_id = -7; INSERT INTO employees VALUES (-9, '')")
    found = {difference["emp_id"]: difference for difference in verify(filled)["differences"]}
    assert found[7]["source"]["city"] == "City 7"
    assert found[7]["destination"] == found[7]["source"] | {"city": None, "dob": "infinity"}
    assert found[-7]["source"]["dob"] == "4714-11-24 BC"
    assert found[-7]["destination"] is found[-9]["source"] is None
    assert found[-9]["destination"]["first_name"] == ""
    table = filled.run("verify.py", COLUMNS="200").stdout
    for line in (
        r'7 +│ dob "1950-01-08", city "City 7" +│ dob "infinity", city NULL ',
        r'-9 +│ no such row +│ first_name "", last_name NULL, ',
        r'-7 +│ first_name NULL, .*"tab\\t\\"quote\\"\\\\\\n\[/red\]".*│ no such row ',
        r"DIFFERENT: 3 employees; ",
    ):
        assert re.search(line, table), line


def test_many_differences_are_counted_and_some_shown(filled: Pipeline) -> None:
    query(filled.destination(), "UPDATE employees SET city = 'elsewhere'")
    result = filled.run("verify.py", "--limit", "3")
    assert result.returncode == 1
    assert result.stdout.count("elsewhere") == 3
    assert "and 50,001 more\n" in result.stdout
    assert "DIFFERENT: 50,004 employees; " in result.stdout


@pytest.mark.parametrize("new", [False, True], ids=["the same in every run", "new in every run"])
def test_random_differences_are_found_exactly_whatever_the_size_of_pages(
    pipeline: Pipeline, run_seed: int, new: bool
) -> None:
    seed = run_seed if new else 1
    print(f"seed {seed}")
    chosen = random.Random(seed)
    keys = chosen.sample(range(-300, 300), 200) + chosen.sample(range(-(2**31), 2**31), 100)
    for side, share in ((pipeline.source(), 0.7), (pipeline.destination(), 0.7)):
        rows = [(key, chosen.choice([None, "", "x"])) for key in keys if chosen.random() < share]
        query(side, "SET session_replication_role = replica")
        if side is pipeline.connections[0]:
            query(side, WITHOUT_LOG)
        with side.cursor() as cursor:
            cursor.executemany("INSERT INTO employees (emp_id, city) VALUES (%s, %s)", rows)
    for page, part, suspects in ((1, 1, 1), (7, 3, 10), (1000, 20, 1000)):
        small = f"comparison.PAGE, comparison.PART, comparison.MAX_SUSPECTS = {page}, {part}, {suspects}"
        found = verify(pipeline, script=pipeline.sabotaged("import verify", "from cdc import comparison", small))
        assert differing(found) == truth(pipeline), (page, part)
        assert found["different"] == len(truth(pipeline)) > 100


def test_empty_tables_are_equal_and_one_empty_side_differs_from_a_full_one(pipeline: Pipeline) -> None:
    assert verify(pipeline)["rows"] == 0
    query(pipeline.destination(), FILL, {"rows": MANY})
    found = verify(pipeline)
    assert (found["rows"], found["different"], found["on_their_way"]) == (MANY, MANY, 0)
    query(pipeline.destination(), "TRUNCATE employees")
    query(pipeline.source(), f"{WITHOUT_LOG}; {FILL}", {"rows": MANY})
    found = verify(pipeline)
    assert (found["rows"], found["different"], found["on_their_way"]) == (MANY, MANY, 0)
    assert found["differences"][0]["destination"] is None


def test_neither_settings_nor_encodings_of_the_databases_matter(bare_pipeline: Pipeline) -> None:
    name = f"{bare_pipeline.name}_copy"
    administer(config.DESTINATION_DATABASE_URL, f"DROP DATABASE {name}")
    administer(
        config.DESTINATION_DATABASE_URL,
        f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    for setting in ("datestyle = 'SQL, DMY'", "extra_float_digits = -3", "client_encoding = 'UTF8'"):
        administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {name} SET {setting}")
    administer(config.SOURCE_DATABASE_URL, f"ALTER DATABASE {bare_pipeline.name} SET datestyle = 'German'")
    bare_pipeline.set_up()
    query(bare_pipeline.source(), "INSERT INTO employees VALUES (1, 'José', 'Ærø', '1999-02-01', 'Zürich', -5)")
    query(bare_pipeline.source(), SPECIAL.replace("Ωmega", "Omega"))
    bare_pipeline.drain()
    by_checksums = bare_pipeline.sabotaged(
        "import verify", "from cdc import comparison", "comparison.ROWS = 'SELECT 1 / 0'"
    )
    assert verify(bare_pipeline, script=by_checksums)["equal"]
    query(bare_pipeline.destination(), "UPDATE employees SET city = 'Zurich' WHERE emp_id = 1")
    assert differing(verify(bare_pipeline)) == [1]


# At the command line


def test_wrong_use_is_refused(stack: None, bare_pipeline: Pipeline) -> None:
    for options in (("--limit", "-1"), ("--limit", "x"), ("--wait", ""), ("--wait", "1.5"), ("--fix",), ("employees",)):
        result = bare_pipeline.run("verify.py", *options)
        assert (result.returncode, result.stdout) == (2, ""), options


def test_a_missing_table_or_server_is_reported_in_one_line(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("verify.py", "--json")
    assert result.returncode == 3
    assert json.loads(result.stdout) == {"error": result.stderr.splitlines()[-1]}
    assert result.stderr == "source: there is no table employees; run python db_setup.py\n"
    down = database_url("postgresql://postgres:postgres@localhost:1/postgres", bare_pipeline.name)
    impatient = bare_pipeline.sabotaged("import verify", "verify.CONNECT_WAIT = 1")
    result = bare_pipeline.run(impatient, "--json", DESTINATION_DATABASE_URL=down)
    assert result.returncode == 3
    assert json.loads(result.stdout) == {"error": result.stderr.splitlines()[-1]}
    assert re.fullmatch(r"destination at localhost:1: .*; gave up after \d+ s\n", result.stderr)


def test_a_server_that_goes_down_is_reported_in_one_line(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    verifying = pipeline.start("verify.py")
    verifying.wait_for("waiting for changes")
    query(
        pipeline.destination(),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'employee-cdc'",
    )
    assert verifying.process.wait(20) == 3
    assert re.fullmatch(r"waiting for changes of 1 employee\ndestination at localhost:\d+: .*\n", verifying.output())


def test_ctrl_c_ends_it(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    verifying = pipeline.start("verify.py")
    verifying.wait_for("waiting for changes")
    assert verifying.stop(2) == 3
    assert verifying.output().endswith("stopped before all was compared\n")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(filled: Pipeline) -> None:
    often = filled.sabotaged("import verify", "from cdc import bar; bar.LINE_EVERY = 0")
    result = filled.run(often, "--json")
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"20,001 of 50,004 rows, [\d,]+/s, \d+ s left", lines[0].replace("20,000 of", "20,001 of"))
    assert lines[-1].startswith("50,004 of 50,004 rows, ")
    assert json.loads(result.stdout)["equal"]

    terminal, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "verify.py")],
        env={**os.environ, **filled.environment, "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=inner,
    ) as process:
        output, _ = process.communicate(timeout=30)
    os.close(inner)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert output.startswith(b"EQUAL; ")
    assert "━━" in shown
    assert re.search(r"of 50,004 rows, [\d,]+/s", shown)

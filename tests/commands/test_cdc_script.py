"""test_cdc.py, the script for people: what it shows, its verdicts, and what it leaves."""

from __future__ import annotations

import re
import signal
import threading

from harness.database import ROWS, query
from harness.pipeline import Pipeline
from harness.script import halted
from harness.waiting import wait_until

import pytest

OTHERS = "INSERT INTO employees (emp_id, first_name) SELECT n, 'other ' || n FROM generate_series(901, 903) AS n"

ADAS = "SELECT count(*) FROM employees WHERE last_name = 'Byron'"


@pytest.fixture(scope="module", autouse=True)
def others(shared_running: Pipeline) -> None:
    """Three employees that no test here is about."""
    query(shared_running.source(), OTHERS)


@pytest.fixture
def impatient(shared_running: Pipeline) -> str:
    """test_cdc.py, but it waits 1 s for a change instead of 15."""
    return shared_running.sabotaged("import test_cdc", "test_cdc.WAIT = test_cdc.GRACE = 1")


def test_it_shows_each_step_passes_and_leaves_no_row(shared_running: Pipeline) -> None:
    shared_running.wait_until_equal()
    before = query(shared_running.source(), ROWS)
    for _ in range(2):
        result = shared_running.run("test_cdc.py", COLUMNS="200")
        assert result.returncode == 0, result.stdout + result.stderr
        arrivals = re.findall(r"^(\w+) employee (\d+) → arrived after [\d.]+ ms$", result.stdout, re.MULTILINE)
        assert [step for step, _ in arrivals] == ["INSERT", "UPDATE", "DELETE"]
        assert len({emp_id for _, emp_id in arrivals}) == 1
        shown = [line.split() for line in result.stdout.splitlines() if "Byron" in line]
        byron, inserted, updated = ["Ada", "Byron", "1815-12-10"], ["London", "1200"], ["Ockham", "*", "1300", "*"]
        emp_id = arrivals[0][1]
        assert [row[-len(byron) - len(inserted) - 1 :] for row in shown[:2]] == [[emp_id, *byron, *inserted]] * 2
        assert [row[-len(byron) - len(updated) - 1 :] for row in shown[2:]] == [[emp_id, *byron, *updated]] * 2
        assert result.stdout.count("other 903") == 6
        assert result.stdout.splitlines()[-2:] == ["both tables are equal", "PASS"]
        assert query(shared_running.source(), ROWS) == query(shared_running.destination(), ROWS) == before


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_the_terminal_and_shows_three_neighbours(shared_running: Pipeline, width: int) -> None:
    result = shared_running.run("test_cdc.py", COLUMNS=str(width))
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1] == "PASS"
    assert lines.count("* changed by this step") == 1
    text = " ".join(result.stdout.split())
    assert "Ockham *" in text
    assert "1300 *" in text
    others = [number for number in (901, 902, 903) if str(number) in text]
    assert others == [901, 902, 903]
    for name in ("emp_id", "first_name", "last_name", "dob", "city", "salary"):
        assert name in text


def test_pass_is_green_and_last_on_a_terminal(shared_running: Pipeline) -> None:
    result = shared_running.run("test_cdc.py", COLUMNS="100", FORCE_COLOR="1", TERM="xterm")
    assert result.stdout.splitlines()[-1] == "\x1b[1;32mPASS\x1b[0m"


def test_an_empty_table_says_no_rows(pipeline: Pipeline) -> None:
    with pipeline.running("producer.py"), pipeline.running("consumer.py"):
        for width in ("60", "100"):
            result = pipeline.run("test_cdc.py", COLUMNS=width)
            assert result.returncode == 0, result.stdout + result.stderr
            assert result.stdout.count("(no rows)") == 2, "both sides, after the DELETE"


def test_it_passes_while_others_write(shared_running: Pipeline) -> None:
    source, done = shared_running.source(), threading.Event()

    def write() -> None:
        while not done.wait(0.02):
            query(source, "UPDATE employees SET salary = coalesce(salary, 0) + 1 WHERE emp_id = 901")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = shared_running.run("test_cdc.py")
    finally:
        done.set()
        writer.join()
    assert result.returncode == 0, result.stdout + result.stderr
    shared_running.wait_until_equal()


def test_names_that_look_like_markup_are_shown_as_they_are(shared_running: Pipeline) -> None:
    query(shared_running.source(), "UPDATE employees SET first_name = '[/b] [red] :heart:' WHERE emp_id = 902")
    result = shared_running.run("test_cdc.py", COLUMNS="200")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[/b] [red] :heart:" in result.stdout


def test_without_a_producer_it_fails_and_asks_for_it(shared_running: Pipeline, impatient: str) -> None:
    with halted(shared_running.scripts[0]):
        result = shared_running.run(impatient)
    assert result.returncode == 1
    assert "did not arrive within 1 s" in result.stdout
    assert "not published: is producer.py running?" in " ".join(result.stdout.split())
    assert "consumer.py" not in result.stdout
    assert result.stdout.splitlines()[-1] == "FAIL"
    assert query(shared_running.source(), ADAS) == [(0,)]


def test_without_a_consumer_it_fails_and_asks_for_it(shared_running: Pipeline, impatient: str) -> None:
    with halted(shared_running.scripts[1]):
        result = shared_running.run(impatient)
    assert result.returncode == 1
    assert "published but not applied: is consumer.py running?" in " ".join(result.stdout.split())
    assert "producer.py" not in result.stdout
    assert result.stdout.splitlines()[-1] == "FAIL"


def test_a_destination_that_differs_is_a_failure(shared_running: Pipeline, impatient: str) -> None:
    shared_running.wait_until_equal()
    query(shared_running.destination(), "UPDATE employees SET city = 'elsewhere' WHERE emp_id = 903")
    result = shared_running.run(impatient)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-2:] == ["1 employee differs; run python verify.py", "FAIL"]
    query(shared_running.source(), "UPDATE employees SET city = 'here' WHERE emp_id = 903")
    shared_running.wait_until_equal()


@pytest.mark.timing
def test_ctrl_c_while_it_waits_ends_it_soon(shared_running: Pipeline) -> None:
    source = shared_running.source()
    ((before,),) = query(source, "SELECT count(*) FROM employees")
    with halted(shared_running.scripts[0]):
        script = shared_running.start("test_cdc.py")
        wait_until(lambda: query(source, "SELECT count(*) FROM employees") == [(before + 1,)], what="its INSERT")
        assert script.stop(signal.SIGINT, seconds=5) == 1
    assert script.output() == "stopped\n"
    assert query(source, ADAS) == [(0,)]


@pytest.mark.parametrize("name", ["source", "destination"])
def test_a_table_that_is_missing_is_reported_with_the_script_that_makes_it(bare_pipeline: Pipeline, name: str) -> None:
    if name == "destination":
        assert bare_pipeline.run("db_setup.py").returncode == 0
        query(bare_pipeline.destination(), "DROP TABLE employees")
    result = bare_pipeline.run("test_cdc.py")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name} at ")
    assert line.endswith("run python db_setup.py")


@pytest.mark.parametrize("name", ["SOURCE", "DESTINATION"])
def test_a_server_that_is_down_is_one_line_and_exit_1(
    shared_running: Pipeline, impatient: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(shared_running.environment, f"{name}_DATABASE_URL", "postgresql://postgres@localhost:1/none")
    result = shared_running.run(impatient)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name.lower()} at localhost:1: ")
    assert line.endswith("gave up after 1 s")
    assert result.stdout.count("; waiting") == 1


def test_a_wrong_password_and_a_wrong_flag_are_exit_2(shared_running: Pipeline) -> None:
    url = shared_running.destination_url.replace(":postgres@", ":wrong@")
    assert url != shared_running.destination_url
    result = shared_running.run("test_cdc.py", DESTINATION_DATABASE_URL=url)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "check DESTINATION_DATABASE_URL" in line
    assert shared_running.run("test_cdc.py", "--fast").returncode == 2

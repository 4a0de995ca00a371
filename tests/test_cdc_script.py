"""test_cdc.py, the script for people: what it shows, its verdicts, and what it leaves behind."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.database import ROWS, query
from harness.pipeline import Pipeline, new_pipeline
from harness.script import Script
from harness.waiting import wait_until

OTHERS = "INSERT INTO employees (emp_id, first_name) SELECT n, 'other ' || n FROM generate_series(901, 903) AS n"


@pytest.fixture(scope="module")
def shared(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline whose producer and consumer run, with three employees."""
    with new_pipeline(tmp_path_factory.mktemp("script")) as pipeline:
        pipeline.set_up()
        pipeline.start("producer.py")
        pipeline.start("consumer.py")
        query(pipeline.source(), OTHERS)
        yield pipeline


@pytest.fixture
def impatient(shared: Pipeline) -> str:
    """test_cdc.py, but it waits 1 s for a change instead of 15."""
    return shared.sabotaged("import test_cdc", "test_cdc.WAIT = test_cdc.SETTLE = 1")


@contextmanager
def halted(script: Script) -> Iterator[None]:
    """The script is there but does nothing."""
    script.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        script.process.send_signal(signal.SIGCONT)


def test_it_shows_each_step_passes_and_leaves_nothing_behind(shared: Pipeline) -> None:
    shared.wait_until_equal()
    before = query(shared.source(), ROWS)
    for _ in range(2):
        result = shared.run("test_cdc.py", COLUMNS="200")
        assert result.returncode == 0, result.stdout + result.stderr
        arrivals = re.findall(r"^(\w+) employee (\d+) → arrived after [\d.]+ ms$", result.stdout, re.MULTILINE)
        assert [step for step, _ in arrivals] == ["INSERT", "UPDATE", "DELETE"]
        assert len({emp_id for _, emp_id in arrivals}) == 1
        shown = [line.split("│")[1:3] for line in result.stdout.splitlines() if "Byron" in line]
        assert len(shown) == 2, "after INSERT and UPDATE"
        assert all(source.strip() == destination.strip() for source, destination in shown)
        assert "London" in shown[0][0]
        assert "Ockham" in shown[1][0]
        assert result.stdout.count("other 903") == 6
        assert result.stdout.splitlines()[-2:] == ["both tables are equal", "PASS"]
        assert query(shared.source(), ROWS) == query(shared.destination(), ROWS) == before


def test_it_passes_while_others_write(shared: Pipeline) -> None:
    source, done = shared.source(), threading.Event()

    def write() -> None:
        while not done.wait(0.02):
            query(source, "UPDATE employees SET salary = coalesce(salary, 0) + 1 WHERE emp_id = 901")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = shared.run("test_cdc.py")
    finally:
        done.set()
        writer.join()
    assert result.returncode == 0, result.stdout + result.stderr
    shared.wait_until_equal()


def test_names_that_look_like_markup_are_shown_as_they_are(shared: Pipeline) -> None:
    query(shared.source(), "UPDATE employees SET first_name = '[/b] [red] :heart:' WHERE emp_id = 902")
    result = shared.run("test_cdc.py", COLUMNS="200")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[/b] [red] :heart:" in result.stdout


def test_without_a_producer_it_fails_and_asks_for_it(shared: Pipeline, impatient: str) -> None:
    with halted(shared.scripts[0]):
        result = shared.run(impatient)
    assert result.returncode == 1
    assert "did not arrive within 1 s" in result.stdout
    assert "not published: does python producer.py run?" in " ".join(result.stdout.split())
    assert "consumer.py" not in result.stdout
    assert result.stdout.splitlines()[-1] == "FAIL"


def test_without_a_consumer_it_fails_and_asks_for_it(shared: Pipeline, impatient: str) -> None:
    with halted(shared.scripts[1]):
        result = shared.run(impatient)
    assert result.returncode == 1
    assert "published but not applied: does python consumer.py run?" in " ".join(result.stdout.split())
    assert "producer.py" not in result.stdout
    assert result.stdout.splitlines()[-1] == "FAIL"


def test_a_destination_that_differs_is_a_failure(shared: Pipeline, impatient: str) -> None:
    shared.wait_until_equal()
    query(shared.destination(), "UPDATE employees SET city = 'elsewhere' WHERE emp_id = 903")
    result = shared.run(impatient)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-2:] == ["1 employees differ; run python verify.py", "FAIL"]
    query(shared.source(), "UPDATE employees SET city = 'here' WHERE emp_id = 903")
    shared.wait_until_equal()


def test_ctrl_c_while_it_waits_ends_it_soon(shared: Pipeline) -> None:
    source = shared.source()
    ((before,),) = query(source, "SELECT count(*) FROM employees")
    with halted(shared.scripts[0]):
        script = shared.start("test_cdc.py")
        wait_until(lambda: query(source, "SELECT count(*) FROM employees") == [(before + 1,)], what="its INSERT")
        assert script.stop(signal.SIGINT, seconds=5) == 1
    assert script.output() == "stopped\n"


@pytest.mark.parametrize("name", ["source", "destination"])
def test_a_table_that_is_missing_is_said_with_the_script_that_makes_it(bare_pipeline: Pipeline, name: str) -> None:
    if name == "destination":
        assert bare_pipeline.run("db_setup.py").returncode == 0
        query(bare_pipeline.destination(), "DROP TABLE employees")
    result = bare_pipeline.run("test_cdc.py")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name} at ")
    assert line.endswith("run python db_setup.py")


@pytest.mark.parametrize("name", ["SOURCE", "DESTINATION"])
def test_a_server_that_is_away_is_one_line_and_exit_1(
    shared: Pipeline, impatient: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(shared.environment, f"{name}_DATABASE_URL", "postgresql://postgres@localhost:1/none")
    result = shared.run(impatient)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name.lower()} at localhost:1: ")
    assert line.endswith("gave up after 1 s")
    assert result.stdout.count("; waiting") == 1


def test_a_wrong_password_and_a_wrong_flag_are_exit_2(shared: Pipeline) -> None:
    url = shared.destination_url.replace(":postgres@", ":wrong@")
    assert url != shared.destination_url
    result = shared.run("test_cdc.py", DESTINATION_DATABASE_URL=url)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "check DESTINATION_DATABASE_URL" in line
    assert shared.run("test_cdc.py", "--fast").returncode == 2

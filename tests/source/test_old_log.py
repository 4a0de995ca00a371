"""A log that has only the specified columns: replaced at once, and its rows moved while applications write."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from harness.capturing import SPECIFIED
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

ROWS = 200_000
LONGEST_WAIT = 0.5  # seconds; rewriting this log kept writers waiting for more than one
LOGGED = "INSERT INTO emp_cdc (emp_id, city, action) SELECT n, 'Rome', 'INSERT' FROM generate_series(1, {rows}) AS n"


def longest_write(pipeline: Pipeline, stopped: list[bool]) -> float:
    """Write until stopped; returns the seconds that the slowest write took."""
    writer, longest = pipeline.source(), 0.0
    while not stopped:
        started = time.monotonic()
        query(writer, "INSERT INTO employees (city) VALUES ('Oslo')")
        longest = max(longest, time.monotonic() - started)
        time.sleep(0.005)
    return longest


def test_no_writer_waits_while_a_large_log_is_upgraded(bare_pipeline: Pipeline) -> None:
    source = bare_pipeline.source()
    query(source, SPECIFIED)
    query(source, LOGGED.format(rows=ROWS))
    stopped: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(longest_write, bare_pipeline, stopped)
        try:
            result = bare_pipeline.run("db_setup.py")
        finally:
            stopped.append(True)
    assert result.returncode == 0, result.stderr
    assert writer.result() < LONGEST_WAIT
    assert "source: old log upgraded, 20" in result.stdout
    assert query(source, "SELECT count(*) FROM emp_cdc WHERE city = 'Rome' AND cdc_id <= 200000") == [(ROWS,)]
    assert query(source, "SELECT to_regclass('emp_cdc_old')") == [(None,)]


def test_an_upgrade_that_was_interrupted_goes_on(bare_pipeline: Pipeline) -> None:
    source = bare_pipeline.source()
    query(source, SPECIFIED)
    query(source, LOGGED.format(rows=25_000))
    script = bare_pipeline.sabotaged(
        "import db_setup",
        "db_setup.bar.LINE_EVERY = 0",
        "db_setup.bar.print = lambda text, **options: 'moved' in text and os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert bare_pipeline.run(script).returncode == -9
    assert query(source, "SELECT count(*) FROM emp_cdc") == [(10_000,)]
    query(source, "INSERT INTO employees (emp_id) VALUES (30000)")
    bare_pipeline.set_up()
    assert query(source, "SELECT count(*), count(DISTINCT cdc_id), max(cdc_id) > 25000 FROM emp_cdc") == [
        (25_001, 25_001, True)
    ]
    bare_pipeline.drain()
    assert query(bare_pipeline.destination(), "SELECT count(*) FROM employees") == [(25_001,)]


def test_a_producer_that_runs_meanwhile_publishes_the_old_rows_too(bare_pipeline: Pipeline) -> None:
    """They come at or below its offset: moved rows are late rows."""
    source = bare_pipeline.source()
    query(source, SPECIFIED)
    query(source, LOGGED.format(rows=3))
    script = bare_pipeline.sabotaged("import db_setup", "db_setup.move_old_log = lambda source: None")
    assert bare_pipeline.run(script).returncode == 0
    assert bare_pipeline.run("admin.py").returncode == 0
    with bare_pipeline.running("producer.py") as producer:
        query(source, "INSERT INTO employees (emp_id, city) VALUES (9, 'new')")
        producer.wait_for("INSERT employee 9")
        assert bare_pipeline.run("db_setup.py").returncode == 0
        wait_until(lambda: len(bare_pipeline.messages()) == 4)


def test_rights_on_the_old_log_stay_and_rows_of_another_action_are_kept(bare_pipeline: Pipeline) -> None:
    source = bare_pipeline.source()
    query(source, SPECIFIED)
    query(source, "GRANT SELECT ON emp_cdc TO PUBLIC; INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'UPSERT')")
    query(source, LOGGED.format(rows=2))
    result = bare_pipeline.run("db_setup.py")
    assert result.returncode == 0, result.stderr
    assert "rows with another action than INSERT, UPDATE and DELETE stay in emp_cdc_old: 1" in result.stdout
    assert query(source, "SELECT action FROM emp_cdc_old WHERE action = 'UPSERT'") == [("UPSERT",)]
    assert query(source, "SELECT cdc_id FROM emp_cdc ORDER BY 1") == [(2,), (3,)]
    assert query(source, "SELECT has_table_privilege('public', 'emp_cdc', 'SELECT')") == [(True,)]

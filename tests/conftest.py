"""The servers and the pipelines of the tests: real ones, and none of the user's own databases and topics."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from harness import ROOT
from harness.database import query
from harness.destination import terminate
from harness.kafka import create_topics
from harness.pipeline import Pipeline, new_pipeline
from stack.artifacts import STATE

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import set_wait_callback

VERSIONS = os.environ.get("STACK", "").split()  # of the servers, such as "--postgres 13 --kafka 4"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="of the random tests, to play a run's again; default: from the clock")


def pytest_configure(config: pytest.Config) -> None:
    # The workers of a run get the options of the process that starts them, and so its seed.
    if config.option.seed is None:
        config.option.seed = time.time_ns() // 1_000_000
    # Else every script that a test starts compiles all modules of cdc/ again, and every worker all tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # A shell that starts us in the background has us, and every script that a test starts, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_report_header(config: pytest.Config) -> str:
    return f"random tests: --seed {config.option.seed}"


@pytest.fixture(autouse=True)
def _no_wait_callback() -> None:
    """What a test before has connected in this process waits by our callback, which knows no COPY."""
    set_wait_callback(None)


@pytest.fixture(scope="session")
def run_seed(pytestconfig: pytest.Config) -> int:
    """Where this run's random tests begin."""
    return int(pytestconfig.option.seed)


def servers(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "stack" / "servers.py"), *arguments, *VERSIONS],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def stack() -> Iterator[None]:
    """The servers of stack/: started where they do not run yet, and then stopped by the last worker that needs them."""
    STATE.mkdir(parents=True, exist_ok=True)
    started_by_us = STATE / "started-by-tests"
    with (STATE / "tests.starting").open("w") as starting, (STATE / "tests.using").open("w") as using:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(using, fcntl.LOCK_SH)
        if servers("status").returncode != 0:
            started_by_us.touch()
        up = servers("up")
        assert up.returncode == 0, up.stdout + up.stderr
        fcntl.flock(starting, fcntl.LOCK_UN)
        yield
        fcntl.flock(starting, fcntl.LOCK_EX)
        with contextlib.suppress(BlockingIOError):  # others still use them
            fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if started_by_us.exists():
                started_by_us.unlink()
                servers("down")


@pytest.fixture(scope="session")
def template(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Databases that db_setup.py has set up, to be copied: that is sooner than db_setup.py for each test."""
    with new_pipeline(tmp_path_factory.mktemp("template")) as pipeline:
        result = pipeline.run("db_setup.py")
        assert result.returncode == 0, result.stdout + result.stderr
        yield pipeline


@pytest.fixture(scope="session")
def drop_later(stack: None) -> Iterator[Callable[[Pipeline], None]]:
    """Drops pipelines' databases and roles in turn, beside the tests that follow.

    DROP DATABASE waits until every session of the server has taken note. One that another test has frozen does so late.
    What a test sets as the wait callback is called for the drops, too. If it raises, they are made again in the end.
    """
    drops: list[tuple[Pipeline, Future[None]]] = []
    with ThreadPoolExecutor(1) as pool:
        yield lambda pipeline: drops.append((pipeline, pool.submit(pipeline.drop_databases)))
    for pipeline, drop in drops:
        if drop.exception() is not None:
            pipeline.drop_databases()


# For one test


@pytest.fixture
def bare_pipeline(drop_later: Callable[[Pipeline], None], tmp_path: Path) -> Iterator[Pipeline]:
    """Two empty databases, and no topic yet."""
    with new_pipeline(tmp_path, drop=drop_later) as pipeline:
        yield pipeline


@pytest.fixture
def pipeline(template: Pipeline, drop_later: Callable[[Pipeline], None], tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with everything set up and no script running."""
    with new_pipeline(tmp_path, template, drop_later) as pipeline:
        create_topics(pipeline.topic)
        yield pipeline


@pytest.fixture
def running(pipeline: Pipeline) -> Pipeline:
    """A pipeline whose producer and consumer run and have carried their first change."""
    pipeline.start("producer.py")
    pipeline.start("consumer.py")
    source = pipeline.source()
    with source.cursor() as cursor:
        cursor.execute("INSERT INTO employees (emp_id, city) VALUES (-1, 'first')")
    pipeline.wait_until_equal()
    return pipeline


# For the tests of one file, which leave none of their own scripts running


@pytest.fixture(scope="module")
def databases(
    template: Pipeline, drop_later: Callable[[Pipeline], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """Two databases that are set up, and no topic."""
    with new_pipeline(tmp_path_factory.mktemp("databases"), template, drop_later) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def shared(
    template: Pipeline, drop_later: Callable[[Pipeline], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """A pipeline with everything set up and no script running."""
    with new_pipeline(tmp_path_factory.mktemp("shared"), template, drop_later) as pipeline:
        create_topics(pipeline.topic)
        yield pipeline


@pytest.fixture(scope="module")
def shared_running(shared: Pipeline) -> Iterator[Pipeline]:
    """The same, its producer and consumer running: to the end, and without an error."""
    scripts = [shared.start("producer.py"), shared.start("consumer.py")]
    yield shared
    for script in scripts:
        assert script.stop() == 0, script.output()
        assert "ERROR" not in script.output()
        assert "Traceback" not in script.output()


@pytest.fixture
def destination(shared: Pipeline) -> Iterator[Connection]:
    """The shared pipeline's destination, empty; whoever an earlier test left in a transaction there is gone."""
    terminate(shared)
    with closing(shared.destination()) as connection:
        query(connection, "TRUNCATE employees, cdc_applied")
        yield connection

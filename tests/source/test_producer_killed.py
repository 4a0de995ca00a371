"""A producer killed at each point of its loop loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable

from harness.database import query
from harness.log_reader import Reader, log_late_rows
from harness.pipeline import Pipeline
from harness.producing import KILL, in_pages_of, published

import pytest
from psycopg2.extensions import connection as Connection


def crash(pipeline: Pipeline, page_size: int, page: int, *instead: str, every: float = 0) -> None:
    """Run producer.py --once until it publishes the page that begins at this offset; there it does something else
    instead, which kills it. It saves the position at most once in so many seconds."""
    body = "\n        ".join(instead)
    publish = f"""
from cdc import position
position.EVERY = {every}
publish, save = producer.publish, position.save
def sabotaged(client, page, *rest):
    if page[0].cdc_id == {page}:
        {body}
    return publish(client, page, *rest)
producer.publish = sabotaged
"""
    result = pipeline.run(pipeline.sabotaged("import producer", in_pages_of(page_size), publish), "--once")
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("sabotage", "position", "repeated"),
    [
        pytest.param(
            "import types; client = types.SimpleNamespace("
            f"produce=client.produce, produce_batch=client.produce_batch, poll=client.poll, flush=lambda _: {KILL})",
            1_000,
            None,  # how much of the page has left the client is up to chance
            id="the page is handed to the client",
        ),
        pytest.param(f"position.save = lambda *_: {KILL}", 1_000, 1_000, id="Kafka has acknowledged the page"),
        pytest.param(f"position.save = lambda *_: (save(*_), {KILL})", 2_000, 0, id="the position is saved"),
    ],
)
def test_a_producer_killed_when_loses_nothing(
    pipeline: Pipeline, sabotage: str, position: int, repeated: int | None
) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 1000)")
    query(source, "UPDATE employees SET salary = salary + 1")
    query(source, "UPDATE employees SET emp_id = emp_id + 10000 WHERE emp_id <= 500")
    crash(pipeline, 1_000, 1_001, sabotage)
    assert query(source, "SELECT last_offset FROM cdc_position") == [(position,)]
    pipeline.drain()
    assert pipeline.equal()
    ids = [record.cdc_id for record in published(pipeline)]
    assert set(ids) == set(range(1, 3_001))
    if repeated is not None:
        assert len(ids) - 3_000 == repeated


def test_pages_that_were_published_and_not_saved_are_published_again(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 3000)")
    crash(pipeline, 1_000, 1_001, f"position.save = lambda *_: {KILL}", every=60)
    assert query(source, "SELECT last_offset FROM cdc_position") == [(1_000,)]
    pipeline.drain()
    assert pipeline.equal()
    assert len(published(pipeline)) == 5_000


def test_a_producer_killed_between_pages_of_late_rows_starts_their_round_again(
    pipeline: Pipeline, read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    log_late_rows(read(), sessions)
    query(sessions[1], "COMMIT")
    crash(pipeline, 10, 11, "publish(client, page, *rest)", KILL)
    assert sorted(record.cdc_id for record in published(pipeline)) == [*range(1, 21), 27]
    pipeline.drain()
    assert sorted(record.cdc_id for record in published(pipeline)) == sorted([*range(1, 21), *range(1, 28)])
    assert pipeline.equal()

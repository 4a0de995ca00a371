"""How often the position is saved, and what it costs."""

from __future__ import annotations

import time

from cdc.position import Position, Saver
from harness.database import query
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import start_producer, wait_until_published
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection

COUNT_SAVES = """
CREATE TABLE saves (number BIGSERIAL);
CREATE FUNCTION count_save() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO public.saves DEFAULT VALUES; RETURN NEW; END';
CREATE TRIGGER count_saves BEFORE UPDATE ON cdc_position FOR EACH ROW EXECUTE FUNCTION count_save();
"""
# What so many saves leave while an old snapshot is held.
LEAVE_VERSIONS = """
DO $$
DECLARE
    place tid := (SELECT ctid FROM cdc_position);
BEGIN
    FOR n IN 1..{} LOOP
        UPDATE cdc_position SET saved_at = clock_timestamp() WHERE ctid = place RETURNING ctid INTO place;
    END LOOP;
END
$$
"""


def seconds_to_save(source: Connection) -> float:
    """The shortest of twenty saves."""
    ((last_offset, snapshot),) = query(source, "SELECT last_offset, snapshot::text FROM cdc_position")
    saver, times = Saver(source, Position(last_offset, snapshot)), []
    for _ in range(20):
        saver.advance(Position(saver.position.last_offset + 1, snapshot))
        began = time.perf_counter()
        saver.save()
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.mark.timing
def test_a_save_takes_no_longer_while_an_old_snapshot_keeps_dead_versions(pipeline: Pipeline) -> None:
    source, report = pipeline.source(), pipeline.source()
    query(source, "SET synchronous_commit = off")
    before = seconds_to_save(source)
    query(report, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")
    query(report, "SELECT FROM employees")
    query(source, LEAVE_VERSIONS.format(40_000))
    after = seconds_to_save(source)
    print(f"a save: {before * 1000:.2f} ms, after 40,000 versions {after * 1000:.2f} ms")
    assert after < 5 * before


def test_many_small_pages_are_few_saves_and_the_last_one_is_saved(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, COUNT_SAVES)
    script = start_producer(pipeline)
    began = time.monotonic()
    for _ in range(200):
        query(source, INSERT)
        time.sleep(0.005)
    assert wait_until_published(source, 5) < 1
    ((saves,),) = query(source, "SELECT count(*) FROM saves")
    assert saves <= 5 * (time.monotonic() - began) + 2
    assert script.stop() == 0


def test_a_stop_saves_what_was_published(pipeline: Pipeline) -> None:
    """Here a save would be due in a minute."""
    source = pipeline.source()
    script = pipeline.start(pipeline.sabotaged("import producer", "from cdc import position", "position.EVERY = 60"))
    script.wait_for("publishing from")
    query(source, INSERT)
    wait_until_published(source, 5)
    query(source, INSERT)
    wait_until(lambda: len(pipeline.messages()) == 2, 10)
    assert query(source, "SELECT last_offset FROM cdc_position") == [(1,)]
    assert script.stop() == 0
    assert query(source, "SELECT last_offset FROM cdc_position") == [(2,)]

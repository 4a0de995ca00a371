"""The polls of a real producer, replayed through the model of reading."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

from harness.database import query
from harness.pipeline import Pipeline, new_pipeline
from harness.producing import in_pages_of, set_up_here, wait_until_published
from proofs.replay import LOG, Broken, Logged, replay

import pytest

Trace = tuple[list[str], list[Logged]]
SESSIONS, EMPLOYEES, SECONDS = 4, 20, 1.5
PAGE = 6  # the least that does not let the producer sleep where more is waiting
INSERT = "INSERT INTO employees (emp_id) {} ON CONFLICT (emp_id) DO UPDATE SET salary = 1"


def write(pipeline: Pipeline) -> None:
    """Transactions of several sessions that begin, draw offsets and end in any order; none waits for another.

    A long one has more late rows than a page.
    """
    sessions, touched = [pipeline.source() for _ in range(SESSIONS)], dict[int, set[int]]()
    long = pipeline.source()
    query(long, "BEGIN; " + INSERT.format("SELECT generate_series(101, 120)"))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        number = random.randrange(SESSIONS)
        others = set[int]().union(*(employees for owner, employees in touched.items() if owner != number))
        free = sorted(set(range(EMPLOYEES)) - others)
        if number not in touched:
            query(sessions[number], "BEGIN; SELECT pg_current_xact_id()")
            touched[number] = set()
        elif free and random.random() < 0.7:
            employee = random.choice(free)
            touched[number].add(employee)
            query(sessions[number], INSERT.format("VALUES (%s)"), (employee,))
        else:
            query(sessions[number], random.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
            del touched[number]
        time.sleep(random.choice([0, 0, 0.005]))
    for number in touched:
        query(sessions[number], "COMMIT")
    query(long, "COMMIT")


@pytest.fixture(scope="module")
def trace(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Of two producers, the first of which is killed; and the log in the end."""
    folder = tmp_path_factory.mktemp("trace")
    file = folder / "polls"
    with new_pipeline(folder) as pipeline:
        set_up_here(pipeline)
        recording = f"record(producer, {str(file)!r})"
        script = pipeline.sabotaged("import producer", "from proofs.record import record", recording, in_pages_of(PAGE))
        first = pipeline.start(script)
        first.wait_for("publishing from")
        write(pipeline)
        first.kill()
        second = pipeline.start(script)
        write(pipeline)
        wait_until_published(pipeline.source(), 20)
        assert second.stop() == 0
        return file.read_text().splitlines(), [Logged(*row) for row in query(pipeline.source(), LOG)]


def test_the_model_reads_the_same_pages_as_a_producer_and_its_promises_hold(trace: Trace) -> None:
    lines, log = trace
    assert replay(lines, log) > 10
    events = [json.loads(line) for line in lines]
    assert [event["what"] for event in events].count("loaded") == 2
    assert any(event["what"] == "late page" for event in events)


def test_a_trace_with_one_poll_left_out_fails(trace: Trace) -> None:
    """Each poll that published something. The last one of a producer that was killed is repeated by the next."""
    lines, log = trace
    events = [json.loads(line) for line in lines]
    last = {event["process"]: number for number, event in enumerate(events)}
    acknowledged = [number for number, event in enumerate(events) if event["what"] == "acknowledged"]
    left_out = [number for number in acknowledged if number < last[events[number]["process"]]]
    assert len(left_out) > 10
    for number in left_out:
        assert events[number - 1]["process"] == events[number]["process"]
        with pytest.raises(Broken):
            replay(lines[: number - 1] + lines[number + 1 :], log)


def leave_out_an_id(lines: list[str], log: list[Logged]) -> Trace:
    events = [json.loads(line) for line in lines]
    number = next(n for n, event in enumerate(events) if event.get("ids") and not event.get("too_many_late"))
    event = events[number]
    return [*lines[:number], json.dumps({**event, "ids": event["ids"][1:]}), *lines[number + 1 :]], log


def add_a_row_to_the_log(lines: list[str], log: list[Logged]) -> Trace:
    """A row that was committed, and that no poll has shown."""
    newest = max(log)
    return lines, [*log, Logged(newest.cdc_id + 1, newest.txid, 1)]


def start_at_another_position(lines: list[str], log: list[Logged]) -> Trace:
    return [lines[0].replace("1:1:", "2:2:"), *lines[1:]], log


@pytest.mark.parametrize("change", [leave_out_an_id, add_a_row_to_the_log, start_at_another_position])
def test_a_trace_that_is_not_as_it_was_fails(trace: Trace, change: Callable[[list[str], list[Logged]], Trace]) -> None:
    with pytest.raises(Broken):
        replay(*change(*trace))

"""Faults that change the history: the source goes back in time, loses commits, or captures nothing for a while, and a
stranger in the group. Each must be noticed, in the line that docs/operations.md says what to do about."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing

from harness.database import query
from harness.kafka import client_settings
from harness.own_servers import bring_back, copy_data
from harness.waiting import wait_until
from stack import servers
from tests.chaos.run import Run, autocommit, kill, quiet, say, start_again, time_until_in_sync
from tests.chaos.verdict import LOG
from tests.chaos.writers import KEYS

from confluent_kafka import Consumer, Message

NOTICED = 25.0  # seconds
BACK_IN_TIME, NOT_OURS = "THE SOURCE WENT BACK IN TIME", "THE GROUP'S OFFSETS ARE NOT OURS"
TRIGGERS_OFF = "the triggers were off or changed for a while"
WAL_WRITER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
OFF = "ALTER TABLE employees DISABLE TRIGGER ALL"
ON = """
ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger;
ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_truncate_trigger
"""
STRANGER = {"partition.assignment.strategy": "cooperative-sticky", "enable.auto.commit": False}
Fault = Iterator[None]


def went_back_in_time(run: Run) -> Fault:
    """The disk is put back to where it was, and applications write before the producer comes back."""
    source = run.servers["source"]
    backup = source.data.with_suffix(".backup")
    with quiet(run):
        servers.kill(source)
        copy_data(source.data, backup)
        bring_back(source, run.pipeline.topic)
    time.sleep(run.random.uniform(0, 2))
    time_until_in_sync(run)
    kill(run, "producer")
    with quiet(run):
        remember(run)
        servers.kill(source)
        shutil.rmtree(source.data)
        backup.rename(source.data)
        bring_back(source, run.pipeline.topic)
    time.sleep(run.random.uniform(0, 3))
    start_again(run, "producer")
    notice(run, "producer", BACK_IN_TIME, 0)
    repair(run)
    yield


def lost_commits(run: Run) -> Fault:
    """A crash of the source that loses what was committed with synchronous_commit off, and has been applied."""
    source, before = run.servers["source"], end_of_output(run, "producer")
    with quiet(run):
        time_until_in_sync(run)
        with closing(autocommit(run.pipeline.source_url)) as connection:
            ((writer,),) = query(connection, WAL_WRITER)
            os.kill(writer, signal.SIGSTOP)  # until the server's end
            query(connection, "SET synchronous_commit = off")
            for _ in range(run.random.randint(1, 40)):
                values = {"emp_id": run.random.randint(1, KEYS), "city": f"{run.random.getrandbits(60):x}"}
                query(connection, "UPDATE employees SET city = %(city)s WHERE emp_id <= %(emp_id)s", values)
        wait_until(run.pipeline.equal, NOTICED, "what will be lost is applied")
        remember(run)
        servers.kill(source)
        bring_back(source, run.pipeline.topic)
        with closing(autocommit(run.pipeline.source_url)) as connection:
            lost = run.known.keys() - {cdc_id for cdc_id, *_ in query(connection, LOG)}
    if lost:
        notice(run, "producer", BACK_IN_TIME, before)
        repair(run)
    else:
        say("the crash lost nothing")
    yield


def triggers_off_and_on(run: Run) -> Fault:
    before = end_of_output(run, "producer")
    for statement, pause in (OFF, run.random.uniform(0.5, 3)), (ON, 0):
        with closing(autocommit(run.pipeline.source_url)) as connection:
            query(connection, statement)
        time.sleep(pause)
    notice(run, "producer", TRIGGERS_OFF, before)
    repair(run)
    yield


def stranger_in_the_group(run: Run) -> Fault:
    """It reads, commits and leaves, as another program with our group's name does."""
    before = end_of_output(run, "consumer")
    with closing(Consumer({**client_settings(), **STRANGER, "group.id": run.pipeline.name})) as stranger:
        stranger.subscribe([run.pipeline.topic])
        messages: list[Message] = []
        until = time.monotonic() + NOTICED
        while not messages and time.monotonic() < until:
            messages = [message for message in stranger.consume(100, 0.1) if not message.error()]
        assert messages, "the stranger has read nothing"
        stranger.commit(message=messages[-1], asynchronous=False)
    notice(run, "consumer", NOT_OURS, before)
    yield


def remember(run: Run) -> None:
    """Keep what the source has logged so far: it is no mistake of the destination to have seen it."""
    with closing(autocommit(run.pipeline.source_url)) as connection:
        for cdc_id, *change in query(connection, LOG):
            run.known.setdefault(cdc_id, set()).add(tuple(change))


def end_of_output(run: Run, role: str) -> int:
    return len(run.running[role].script.output())


def notice(run: Run, role: str, line: str, since: int) -> None:
    """The script must say it: what is lost in silence is a failure."""
    script = run.running[role].script
    wait_until(lambda: line in script.output()[since:], NOTICED, f"{line!r} in {script.log.name}: LOST IN SILENCE")


def repair(run: Run) -> None:
    result = run.pipeline.run("verify.py", "--repair", "--wait", "5")
    if result.returncode != 0:
        run.problem(f"verify.py --repair: exit code {result.returncode}\n{result.stdout}{result.stderr}")

"""Follow a change through all stages at once: what each of them says, in time, and whether anything moves."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import config
from cdc import cli
from cdc.postgres import address, connect, explain
from cdc.status import alarms
from cdc.status.lateness import Sample, add_delays, commit_times, log_times, oldest_change
from cdc.status.stages import Counter, destination_figures, kafka_figures, source_figures

import psycopg2
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

CONNECT_WAIT, STAGE_WAIT = 3.0, 4.5  # seconds for a database to let us in, and for a stage to answer
TIMES_WAIT = 1.0  # seconds for a database to say when changes were made, or came
RECHECK_EVERY, STILL_FOR = 0.5, 2.5  # seconds: what looks stuck and has not moved for STILL_FOR is
ALL_WAIT, LAST_LOOK = 7.0, 2.0  # seconds for all looks together, and the least that is left for the last one


class Call(threading.Thread):
    """A call that may not return in time. The process ends without waiting for it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.result: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except Exception as error:
            self.error = error


def wait_for(calls: Iterable[Call], until: float) -> None:
    """Wait for calls to return, until then (time.monotonic). Raises Stopped if a stop is requested."""
    for call in calls:
        while call.is_alive() and (left := until - time.monotonic()) > 0:
            cli.raise_if_requested(cli.STOP)
            call.join(min(left, 0.1))


@dataclass
class Database:
    """The source or the destination. Its session is kept from one look to the next."""

    name: str
    url: str
    figures: Callable[[Connection, Counter], dict[str, Any]]
    counter: Counter = field(default_factory=Counter)
    connection: Connection | None = None

    def connect(self) -> None:
        self.connection = connect(self.name, self.url)

    def ask(self) -> dict[str, Any]:
        assert self.connection is not None
        return self.figures(self.connection, self.counter)

    def close(self) -> None:
        if self.connection is not None:
            with suppress(psycopg2.Error):
                self.connection.close()
        self.connection = None


@dataclass
class Progress:
    """How long ago what should move was seen to move."""

    marks: dict[str, tuple[Any, float]] = field(default_factory=dict)

    def still(self, name: str, mark: Any) -> bool:
        """Whether the mark has been the same for STILL_FOR seconds."""
        now = time.monotonic()
        if name not in self.marks or self.marks[name][0] != mark:
            self.marks[name] = (mark, now)
        return now - self.marks[name][1] >= STILL_FOR


class Flow:
    """The stages of the pipeline. Each look asks all of them."""

    def __init__(self, admin: AdminClient) -> None:
        self.admin = admin
        self.source = Database("source", config.SOURCE_DATABASE_URL, source_figures)
        self.destination = Database("destination", config.DESTINATION_DATABASE_URL, destination_figures)
        self.calls: dict[str, Call] = {}  # by stage: the last one
        self.progress = Progress()

    def check(self) -> dict[str, Any]:
        """Look, and where something seems to be stuck look again until it moves, or has not moved for STILL_FOR."""
        end = time.monotonic() + ALL_WAIT
        status = self.look()
        while status.pop("suspects") and time.monotonic() < end - LAST_LOOK:
            time.sleep(RECHECK_EVERY)
            status = self.look(end)
        return status

    def look(self, until: float = math.inf) -> dict[str, Any]:
        """Return the status. A stage that does not answer has an "error" instead of its figures."""
        self.ask_all(min(until, time.monotonic() + STAGE_WAIT))
        found = {name: self.result(name) for name in ("source", "kafka", "destination")}
        sample = Sample()
        if "error" not in (answer := found["kafka"]):
            found["kafka"], sample = answer
        status: dict[str, Any] = found
        if "error" not in status["kafka"]:
            made = self.ask_times(self.source, log_times, sample)
            add_delays(status, sample, made, self.ask_times(self.destination, commit_times, sample))
        status["oldest_change_seconds"] = oldest_change(status)
        status["suspects"] = self.find_stuck(status)
        status["not_in_sync_because"] = alarms.out_of_sync(status)
        status["in_sync"] = not status["not_in_sync_because"]
        status["alarms"] = [asdict(alarm) for alarm in alarms.find_alarms(status)]
        return status

    def ask_all(self, until: float) -> None:
        """Ask all stages at once, and wait until then (time.monotonic) for their answers.

        No statement is sent while a database lets us in: psycopg2 has one wait callback for all threads, and `connect`
        takes it away for a moment.
        """
        self.begin("kafka", lambda: kafka_figures(self.admin))
        closed = [database for database in (self.source, self.destination) if database.connection is None]
        for database in closed:
            self.begin(database.name, database.connect)
        wait_for((self.calls[database.name] for database in closed), until - STAGE_WAIT + CONNECT_WAIT)
        for database in (self.source, self.destination):
            if database.connection is not None:
                self.begin(database.name, database.ask)
        wait_for(self.calls.values(), until)

    def begin(self, name: str, call: Callable[[], Any]) -> None:
        """Start a call, unless the last one of this stage has yet to return."""
        if name not in self.calls or not self.calls[name].is_alive():
            self.calls[name] = Call(call)

    def result(self, name: str) -> Any:
        """Return what a stage has answered, or {"error": …}. Raises WrongSetting."""
        call = self.calls[name]
        database = {"source": self.source, "destination": self.destination}.get(name)
        if call.is_alive():
            return {"error": f"{self.where(database)} does not answer"}
        if call.error is None and call.result is not None:
            return call.result
        error = call.error or psycopg2.OperationalError("does not answer")
        if database is not None and not isinstance(error, LookupError):
            database.close()
        if isinstance(error, psycopg2.Error) and database is not None:
            return {"error": explain(database.name, database.url, error)}
        if isinstance(error, KafkaException):
            return {"error": f"{self.where(None)}: {error.args[0].str()}"}
        if isinstance(error, LookupError):
            return {"error": str(error)}
        raise error

    def where(self, database: Database | None) -> str:
        if database is None:
            return f"Kafka at {config.KAFKA['bootstrap.servers']}"
        return f"{database.name} at {address(database.url)}"

    def ask_times(self, database: Database, question: Callable[[Connection, Sample], Any], sample: Sample) -> Any:
        """Return what a database says about the changes of a sample, as far as it says it in time."""
        connection = database.connection
        if connection is None or self.calls[database.name].is_alive():
            return {}
        call = self.calls[database.name] = Call(lambda: question(connection, sample))
        wait_for([call], time.monotonic() + TIMES_WAIT)
        return call.result or {}

    def find_stuck(self, status: dict[str, Any]) -> bool:
        """Note what is stuck; returns whether something may be, and has to be looked at again to know."""
        source, kafka, destination = status["source"], status["kafka"], status["destination"]
        suspects = []

        def stuck(name: str, suspicious: bool, mark: Any) -> bool:
            still = self.progress.still(name, mark) and suspicious
            suspects.append(suspicious and not still)
            return still

        if "error" not in source:
            waits = source["unpublished"] and source["oldest_unpublished_seconds"] > alarms.STALLED_AFTER
            idle = source["active_producer"] and source["saved_seconds"] > alarms.STALLED_AFTER
            source["producer_stuck"] = stuck("producer", bool(waits and idle), source["published_offset"])
        for part in kafka.get("partitions", []):
            suspicious = part["member"] is not None and alarms.unread_for_long(part)
            part["stuck"] = stuck(f"partition {part['partition']}", suspicious, part["committed_offset"])
        if "error" not in destination:
            surplus = alarms.rows_differ(status)
            mark = (surplus, source.get("log_head"), destination["rows"])
            destination["rows_differ"] = surplus if stuck("rows", surplus != 0, mark) else 0
        return any(suspects)

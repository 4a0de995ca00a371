"""Both designs on one source: the same log, read by the plain poller and by producer.py, into a topic each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from bench.systems import EMPLOYEES, check_running, empty_pipeline, our_pipeline, start
from harness.database import query
from harness.pipeline import Pipeline
from harness.producing import create_topic
from harness.script import Script
from harness.waiting import wait_until
from lose.poller import Poll, passing_poll, read_polls
from lose.writers import Row, Writers

from psycopg2.extensions import connection as Connection

WARM_UP = 20.0  # seconds for the first row to arrive at both sides
OVERTAKEN = 2.0  # seconds: rows committed so much later have arrived, so this one is lost
RECENT = 5.0  # seconds of rows of which the delay is shown

ARRIVALS = "ALTER TABLE employees ADD COLUMN arrived_at timestamptz NOT NULL DEFAULT clock_timestamp()"
ARRIVED = "SELECT emp_id, extract(epoch FROM arrived_at)::float FROM employees WHERE emp_id = ANY (%(missing)s)"
CHANGES = "SELECT emp_id, cdc_id, extract(epoch FROM changed_at)::float FROM emp_cdc WHERE emp_id = ANY (%(employees)s)"


@dataclass
class Side:
    """One design: its destination, its consumer, and the rows that have arrived."""

    title: str
    pipeline: Pipeline
    start_consumer: Callable[[], Script]
    arrived: dict[int, float] = field(default_factory=dict)  # emp_id → when
    drained: bool = False  # nothing more will arrive

    def __post_init__(self) -> None:
        self.destination: Connection = self.pipeline.destination()
        query(self.destination, ARRIVALS)
        self.consumer = self.start_consumer()

    def look(self, rows: list[Row]) -> None:
        missing = [row.emp_id for row in self.missing(rows)]
        self.arrived |= dict(query(self.destination, ARRIVED, {"missing": missing}))

    def missing(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.emp_id not in self.arrived]

    def overtaken(self, rows: list[Row]) -> list[Row]:
        """Return the missing rows that can no longer be on their way."""
        if self.drained:
            return self.missing(rows)
        newest = max((row.committed for row in rows if row.emp_id in self.arrived), default=0.0)
        return [row for row in self.missing(rows) if row.committed < newest - OVERTAKEN]

    def delay(self, rows: list[Row]) -> float | None:
        """Return the median seconds from commit to arrival: of the last rows, or in the end of all."""
        since = 0.0 if self.drained else time.time() - RECENT
        arrived = [row for row in rows if row.committed > since and row.emp_id in self.arrived]
        delays = [self.arrived[row.emp_id] - row.committed for row in arrived]
        return max(0.0, median(delays)) if delays else None


@dataclass
class Experiment:
    """The source with its writers, the plain design and ours."""

    source: Connection
    writers: Writers
    plain: Side
    ours: Side
    poller: Script
    producer: Script

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.plain, self.ours

    def look(self) -> list[Row]:
        """Find out what has arrived; returns the rows committed so far."""
        rows = list(self.writers.rows)
        for side in self.sides:
            side.look(rows)
        check_running([self.poller, self.producer])
        assert not self.writers.errors, self.writers.errors[0]
        return rows

    def polls(self) -> list[Poll]:
        return read_polls(self.poller.log)

    def changes(self, rows: list[Row]) -> dict[int, tuple[int, float]]:
        """Return of each employee the cdc_id and when it was drawn."""
        found = query(self.source, CHANGES, {"employees": [row.emp_id for row in rows]})
        return {emp_id: (cdc_id, drawn) for emp_id, cdc_id, drawn in found}

    def passed(self, rows: list[Row]) -> bool:
        """Return whether the plain design's polls have passed all these rows without seeing them."""
        polls, changes = self.polls(), self.changes(rows)
        return all(passing_poll(changes[row.emp_id][0], row.txid, polls) for row in rows)

    def warm_up(self) -> None:
        """Return when a first row has arrived at both sides: the delays that follow are those of running scripts."""
        (first,) = query(self.source, "INSERT INTO employees (city) VALUES ('first') RETURNING emp_id")

        def there() -> bool:
            return all(
                query(side.destination, "SELECT 1 FROM employees WHERE emp_id = %s", first) for side in self.sides
            )

        wait_until(there, WARM_UP, lambda: f"the first row at both destinations\n{self.outputs()}")

    def outputs(self) -> str:
        return "\n".join(side.pipeline.outputs() for side in self.sides)


@contextmanager
def experiment() -> Iterator[Experiment]:
    """Set up both designs and start their scripts; in the end remove their databases and topics."""
    with our_pipeline("lose") as ours, empty_pipeline("lose_plain") as plain:
        plain.environment["SOURCE_DATABASE_URL"] = ours.source_url
        query(plain.destination(), EMPLOYEES)
        create_topic(plain)
        made = Experiment(
            ours.source(),
            Writers(ours.source_url),
            Side("plain design", plain, lambda: start(plain, "bench.plain", "consumer")),
            Side("Employee CDC", ours, lambda: ours.start("consumer.py")),
            start(plain, "lose.poller"),
            ours.start("producer.py"),
        )
        made.warm_up()
        yield made

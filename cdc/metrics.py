"""What is counted and measured, as plain numbers in memory; cdc/endpoints.py shows them to Prometheus.

Each number is updated once for a page or a batch, never for a change. docs/metrics.md says what they mean.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

PREFIX = "employee_cdc_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DELAYS = (*SECONDS, 120.0, 300.0)
CHANGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4)


@dataclass
class Metric:
    """A counter or a gauge, with one value, or one for each value of a label."""

    name: str
    help: str
    label: str = ""
    values: dict[str, float] = field(default_factory=dict)  # by the label's value; "" where there is no label

    def __post_init__(self) -> None:
        if not self.label:
            self.values[""] = 0.0

    @property
    def kind(self) -> str:
        return "counter" if self.name.endswith("_total") else "gauge"

    def add(self, amount: float = 1, label: str = "") -> None:
        self.values[label] = self.values.get(label, 0.0) + amount

    def set(self, value: float, label: str = "") -> None:
        self.values[label] = value

    def read(self) -> dict[str, float]:
        return dict(self.values)


class Age(Metric):
    """A gauge that is set to a time (Unix), and read as the seconds since; 0 where the time is 0."""

    def read(self) -> dict[str, float]:
        return {label: max(0.0, time.time() - value) if value else 0.0 for label, value in dict(self.values).items()}


@dataclass
class Histogram:
    """How often a value was up to each of the bounds, or above all of them."""

    name: str
    help: str
    bounds: tuple[float, ...]
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def timed(self, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """Have a function's seconds observed, also where it raises."""

        @functools.wraps(function)
        def measure(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            started = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                self.observe(time.monotonic() - started)

        return measure


@dataclass
class Lag(Metric):
    """By partition: how many messages the consumer has yet to apply. Offsets of Kafka throughout."""

    bounds: dict[int, tuple[int, int]] = field(default_factory=dict)  # the first offset, and the one after the last
    applied: dict[int, int] = field(default_factory=dict)  # the one after the last applied; 0 where none is known

    def read(self) -> dict[str, float]:
        bounds = dict(self.bounds)
        return {
            str(number): max(0.0, bounds[number][1] - max(applied, bounds[number][0]))
            for number, applied in sorted(dict(self.applied).items())
            if number in bounds
        }


PUBLISHED = Metric("changes_published_total", "Changes that Kafka has acknowledged; after a crash some count twice.")
PUBLISHED_BYTES = Metric("published_bytes_total", "Bytes of the published changes as JSON, before compression.")
POLL_DURATION = Histogram("poll_duration_seconds", "Reading a page of the log, also one without a change.", SECONDS)
PUBLISH_DURATION = Histogram("publish_duration_seconds", "From a page's hand-over to its acknowledgement.", SECONDS)
UNPUBLISHED = Metric("unpublished_changes", "Changes in the log that are not published, at the last poll.")
OLDEST_UNPUBLISHED = Age("oldest_unpublished_seconds", "Age of the oldest unpublished change beyond the offset.")
POSITION = Metric("position_offset", "The log offset up to which changes are published.")
ACTIVE = Metric("producer_active", "1 for the producer that publishes, 0 for one that stands by.")
TRIGGERS_ENABLED = Metric("triggers_enabled", "1 while the triggers capture every change of employees.")

APPLIED = Metric(
    "changes_applied_total",
    "Changes that passed the gate.",
    "action",
    {"INSERT": 0.0, "UPDATE": 0.0, "DELETE": 0.0},
)
STALE = Metric("changes_stale_total", "Changes that the gate dropped: repeated, or older than what it had applied.")
FOLDED = Metric("changes_folded_total", "Changes that a newer one of the same employee superseded in their batch.")
APPLY_DURATION = Histogram("apply_duration_seconds", "One batch at the destination, commit included.", SECONDS)
LAG = Lag("consumer_lag_messages", "Messages of a partition of this consumer that are not applied yet.", "partition")
END_TO_END_DELAY = Histogram(
    "end_to_end_delay_seconds",
    "From changed_at at the source to the destination's commit, by two clocks; the oldest change of each page.",
    DELAYS,
)

BATCH = Histogram("batch_changes", "Changes of a page (producer) or messages of a batch (consumer).", CHANGES)
DEAD_LETTERS = Metric("dead_letters_total", "Messages and changes that were sent to the dead letters.")
OUTAGES = Metric("outages_total", "Outages of a server, as reported in the log.", "server")
OUTAGE_ACTIVE = Metric("outage_active", "1 while a server is down for this script.", "server")
PROGRESS = Metric("last_progress_timestamp_seconds", "When all that was there was last moved, or a part of it.")

COMMON = (BATCH, DEAD_LETTERS, OUTAGES, OUTAGE_ACTIVE, PROGRESS)
OF_PRODUCER = (
    PUBLISHED,
    PUBLISHED_BYTES,
    POLL_DURATION,
    PUBLISH_DURATION,
    UNPUBLISHED,
    OLDEST_UNPUBLISHED,
    POSITION,
    ACTIVE,
    TRIGGERS_ENABLED,
    *COMMON,
)
OF_CONSUMER = (APPLIED, STALE, FOLDED, APPLY_DURATION, LAG, END_TO_END_DELAY, *COMMON)


def found_unpublished(count: int, more: bool, changed_at: str | None) -> None:
    """Note what a poll found. more: it may hold more than the count; changed_at: of the oldest (Unix)."""
    UNPUBLISHED.set(max(count, UNPUBLISHED.values[""]) if more else count)
    OLDEST_UNPUBLISHED.set(float(changed_at or 0))


def published_up_to(log_offset: int, full: bool) -> None:
    """Note that the producer's loop has come round. full: it published a full page, so more may be waiting."""
    PROGRESS.set(time.time())
    POSITION.set(log_offset)
    if not full:
        UNPUBLISHED.set(0)
        OLDEST_UNPUBLISHED.set(0)


def came_round(down: bool) -> None:
    """Note that the consumer's loop has come round. down: Kafka is, so it could not see what there is."""
    if not down:
        PROGRESS.set(time.time())

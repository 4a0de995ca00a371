"""Apply a batch whatever happens: wait out outages, single out what is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import config
from cdc import cli, metrics
from cdc.apply import Refused, apply_each, apply_nothing, newest
from cdc.bulk import SESSION, apply
from cdc.dead_letters import DeadLetters, Letter
from cdc.flush import flusher
from cdc.health import HEALTH
from cdc.intake import Batch, Intake
from cdc.kafka import advise
from cdc.message import Record, describe, read
from cdc.outage import Outage
from cdc.postgres import connect, explain, is_closed, run_settings, wait_for_database
from cdc.progress import Line
from cdc.schema import check_version

import psycopg2
from confluent_kafka import KafkaException, Message
from psycopg2.extensions import connection as Connection

PART = 1_000  # messages among which the refused ones are singled out, and whose offsets are then committed

Result = TypeVar("Result")


@dataclass
class Part:
    """Messages that are done: applied, or dead letters."""

    messages: list[Message]
    changed: int = 0  # employees
    letters: list[Letter] = field(default_factory=list)

    def applied(self) -> list[Message]:
        dead = {id(message) for message, _ in self.letters}
        return [message for message in self.messages if id(message) not in dead] if dead else self.messages

    def describe(self) -> list[Line]:
        """Return a line for each message that was applied."""
        applied, lines = self.applied(), list[Line]()
        employees = {read(message.value()).emp_id for message in applied}
        some = "applied" if self.changed >= len(employees) else "applied, or older than what was"
        outcome = some if self.changed else "already applied"
        for message in applied:
            name, log_offset = describe(message.value())
            values = {"log_offset": log_offset, "partition": message.partition(), "offset": message.offset()}
            lines.append((f"{name} → {outcome}, log offset {log_offset}", values))
        return lines


@dataclass
class Destination:
    """The destination's connection, made when it is needed, and made again after an outage."""

    outage: Outage
    dead_letters: DeadLetters
    connection: Connection | None = None

    def connect(self) -> Connection:
        if self.connection is None:
            connection = connect("destination", config.DESTINATION_DATABASE_URL)
            check_version(connection, "destination")
            run_settings("destination", config.DESTINATION_DATABASE_URL, connection, SESSION)
            self.connection = connection
            self.outage.reached = True
            HEALTH.connected.add("destination")
        return self.connection

    def connect_early(self) -> None:
        """Connect before there is a message, so that a wrong setting is reported at the start."""
        try:
            self.connect()
        except psycopg2.Error as error:
            wait_for_database(self.outage, "destination", config.DESTINATION_DATABASE_URL, error)

    def apply(self, batch: Batch, intake: Intake) -> Iterator[Part]:
        """Apply a batch, however long the destination is down, and yield it: in parts if some of it is refused.

        A crash repeats the dead letters of the part in hand only. Raises Stopped if a stop is requested before the
        batch is applied.
        """
        metrics.BATCH.observe(len(batch.messages))
        try:
            part = Part(batch.messages, self.persist(intake, lambda: self.apply_whole(batch, intake)), batch.bad)
        except Refused:
            yield from self.apply_parts(batch, intake)
        else:
            yield self.send_letters(part, intake)

    def apply_whole(self, batch: Batch, intake: Intake) -> int:
        if not batch.newest:
            return 0
        with intake.reading_ahead(batch):
            changed = apply_or_refuse(self.connect(), batch.newest.values())
        metrics.FOLDED.add(batch.records() - len(batch.newest))
        return changed

    def apply_parts(self, batch: Batch, intake: Intake) -> Iterator[Part]:
        """Apply a batch in which something is refused. The group is kept between two parts."""
        bad = {id(message): reason for message, reason in batch.bad}
        for start in range(0, len(batch.messages), PART):
            poll_paused(intake, 0)
            cli.raise_if_requested(self.outage.stop)
            ours = {partition.partition for partition in intake.consumer.assignment()}
            messages = [m for m in batch.messages[start : start + PART] if m.partition() in ours]
            part = self.persist(intake, partial(self.single_out, messages, bad))
            yield self.send_letters(part, intake)
        intake.consumer.resume(intake.consumer.assignment())

    def single_out(self, messages: list[Message], bad: dict[int, str]) -> Part:
        return single_out(self.connect(), messages, bad)

    def send_letters(self, part: Part, intake: Intake) -> Part:
        unsent = list(part.letters)
        if unsent:
            with flusher.doing(lambda: poll_paused(intake, 0)):  # Kafka may acknowledge late
                self.persist(intake, lambda: self.dead_letters.send(unsent))
            intake.consumer.resume(intake.consumer.assignment())
        return part

    def persist(self, intake: Intake, work: Callable[[], Result]) -> Result:
        """Do work, again and again until no server is down.

        Meanwhile the partitions are paused and the consumer is polled, so that its group keeps it. Raises Stopped.
        """
        paused = False
        while True:
            closed = False
            try:
                result = work()
                break
            except psycopg2.Error as error:
                self.close()
                closed = is_closed(error)
                reason = explain("destination", config.DESTINATION_DATABASE_URL, error)
            except KafkaException as error:
                topic, refusal = config.DEAD_LETTER_TOPIC, error.args[0]
                advice = advise(refusal, f"WRITE on topic {topic}") or "; if it is missing, run python admin.py"
                reason = f"topic {topic}: {refusal.str()}{advice}"
            paused = True
            self.outage.wait(reason, lambda seconds: poll_paused(intake, seconds), closed=closed)
            cli.raise_if_requested(self.outage.stop)
        if paused:
            intake.consumer.resume(intake.consumer.assignment())
        self.outage.over()
        return result

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            HEALTH.connected.discard("destination")


def poll_paused(intake: Intake, seconds: float) -> None:
    """Stay a member of the group for so many seconds, and read no further.

    Partitions that the group assigns meanwhile may give a message before they are paused too.
    """
    intake.consumer.pause(intake.consumer.assignment())
    message = intake.consumer.poll(seconds)
    if message is not None:
        intake.add([message])


def apply_or_refuse(destination: Connection, records: Collection[Record]) -> int:
    """Apply records. Raises Refused only if an empty batch is not refused likewise: else it is an outage."""
    try:
        return apply(destination, records)
    except Refused:
        apply_nothing(destination)
        raise


def single_out(destination: Connection, messages: list[Message], bad: dict[int, str]) -> Part:
    """Apply messages, all at once or, if some of them are refused, one by one. Returns them with those refused.

    bad: by id(), why a message is no record.
    """
    good = [message for message in messages if id(message) not in bad]
    records = [read(message.value()) for message in good]
    refused = dict(bad)
    try:
        folded = newest(records)
        changed = apply_or_refuse(destination, folded)
        metrics.FOLDED.add(len(records) - len(folded))
    except Refused:
        results = apply_each(destination, records)
        apply_nothing(destination)  # nothing has gone meanwhile
        changed = sum(count for count, _ in results)
        refused |= {id(message): reason for message, (_, reason) in zip(good, results, strict=True) if reason}
    return Part(messages, changed, [(message, refused[id(message)]) for message in messages if id(message) in refused])

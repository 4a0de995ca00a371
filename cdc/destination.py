"""Apply a batch whatever happens: wait out outages, single out what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import config
from cdc import cli
from cdc.apply import DATA_ERRORS, SESSION, apply, newest
from cdc.dead_letters import DeadLetters
from cdc.intake import Batch, Intake
from cdc.message import read
from cdc.outage import Outage
from cdc.postgres import connect, explain, first_line, wait_for_database

import psycopg2
from confluent_kafka import KafkaException, Message
from psycopg2.extensions import connection as Connection


@dataclass
class Destination:
    """The destination's connection, made when it is needed, and made again after an outage."""

    outage: Outage
    dead_letters: DeadLetters
    connection: Connection | None = None

    def connect(self) -> Connection:
        if self.connection is None:
            self.connection = connect("destination", config.DESTINATION_DATABASE_URL, SESSION)
            self.outage.reached = True
        return self.connection

    def connect_early(self) -> None:
        """Connect before there is a message, so that a wrong setting is reported at the start."""
        try:
            self.connect()
        except psycopg2.Error as error:
            wait_for_database(self.outage, "destination", config.DESTINATION_DATABASE_URL, error)

    def apply(self, batch: Batch, intake: Intake) -> int:
        """Apply a batch, however long the destination is down. Returns how many employees changed.

        Meanwhile the partitions are paused and the consumer is polled, so that its group keeps it. Raises Stopped if a
        stop is requested before the batch is applied.
        """
        paused = False
        while True:
            try:
                connection = self.connect()
                with intake.reading_ahead(batch):
                    changed = apply_batch(connection, batch, self.dead_letters)
                break
            except psycopg2.Error as error:
                self.close()
                reason = explain("destination", config.DESTINATION_DATABASE_URL, error)
            except KafkaException as error:
                topic = config.DEAD_LETTER_TOPIC
                reason = f"topic {topic}: {error.args[0].str()}; if it is missing, run python admin.py"
            paused = True
            self.outage.wait(reason, lambda seconds: poll_paused(intake, seconds))
            cli.raise_if_requested(self.outage.stop)
        if paused:
            intake.consumer.resume(intake.consumer.assignment())
        self.outage.over()
        return changed

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def poll_paused(intake: Intake, seconds: float) -> None:
    """Stay a member of the group for so many seconds, and read no further.

    Partitions that the group assigns meanwhile may give a message before they are paused too.
    """
    intake.consumer.pause(intake.consumer.assignment())
    message = intake.consumer.poll(seconds)
    if message is not None:
        intake.add([message])


def apply_batch(destination: Connection, batch: Batch, dead_letters: DeadLetters) -> int:
    """Apply a batch; what is no record becomes a dead letter. Returns how many employees changed."""
    for message, error in batch.bad:
        dead_letter(batch, message, error, dead_letters)
    if not batch.newest:
        return 0
    try:
        return apply(destination, batch.newest.values())
    except DATA_ERRORS:
        bad = {id(message) for message, _ in batch.bad}
        good = [message for message in batch.messages if id(message) not in bad]
        return single_out(destination, batch, good, dead_letters)


def single_out(destination: Connection, batch: Batch, messages: list[Message], dead_letters: DeadLetters) -> int:
    """Apply messages; halve those that PostgreSQL refuses for their data until the bad ones stand alone."""
    try:
        return apply(destination, newest(read(message.value()) for message in messages))
    except DATA_ERRORS as error:
        if len(messages) == 1:
            dead_letter(batch, messages[0], first_line(error), dead_letters)
            return 0
    middle = len(messages) // 2
    halves = messages[:middle], messages[middle:]
    return sum(single_out(destination, batch, half, dead_letters) for half in halves)


def dead_letter(batch: Batch, message: Message, error: str, dead_letters: DeadLetters) -> None:
    """Send a message to the dead letters, unless an earlier try of the same batch did."""
    place = (message.partition(), message.offset())
    if place not in batch.dead_lettered:
        dead_letters.send(message, error)
        batch.dead_lettered.add(place)

"""Apply the changes from Kafka to the destination: each employee's newest state, whatever arrives twice or late.

    python consumer.py           until Ctrl-C
    python consumer.py --once    what is in the topic now, then exit

Several consumers share the partitions. What can never be applied goes to the dead-letter topic; the rest goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import config
from cdc import cli, endpoints, metrics
from cdc.dead_letters import DeadLetters
from cdc.delay import observe_delays
from cdc.destination import Destination, Part
from cdc.drain import Drain
from cdc.flush import bound_waits
from cdc.intake import Intake, kafka_settings
from cdc.kafka import NO_RIGHT, Brokers, make_client
from cdc.message import describe
from cdc.offsets import Offsets, read_from_first
from cdc.outage import Outage
from cdc.postgres import WrongSetting
from cdc.progress import Report

from confluent_kafka import Consumer, KafkaError, Message

log = logging.getLogger("consumer")

GIVE_UP = 60.0  # seconds without progress after which --once gives up
FENCED_AGAIN = 10.0  # seconds; if we are fenced twice within them, another consumer has our name


class Fenced(Exception):
    """Kafka gave our place to another consumer with the same KAFKA_GROUP_INSTANCE_ID."""


def run_once(
    consumer: Consumer, intake: Intake, offsets: Offsets, destination: Destination, report: Report, drain: Drain
) -> bool:
    """Apply one batch, and then commit its offsets. Returns whether there was one.

    Raises Fenced, Stopped, WrongSetting.
    """
    batch, events = intake.take_batch()  # waits for a first message, then takes what is there
    drain.reopen(batch)
    for event in events:
        handle(event, consumer, drain, offsets.brokers)
    if offsets.brokers.wrong_setting:
        raise WrongSetting(offsets.brokers.wrong_setting)
    if offsets.brokers.fatal:
        raise Fenced(offsets.brokers.fatal)
    if batch.messages:
        started = time.monotonic()
        offsets.brokers.mark_up()
        for part in destination.apply(batch, intake):  # all of it, however long the destination is down
            observe_delays(part.messages)
            # A crash here reads the part again; the gate drops what has been applied.
            offsets.commit(consumer, part.messages)
            log_applied(report, part, batch.full(), started, partial(offsets.count_left, consumer))
            started = drain.progress = time.monotonic()
    offsets.commit_again(consumer)
    if offsets.topic_recreated(consumer):
        intake.discard()  # it is from the old topic
    return bool(batch.messages)


def handle(event: Message, consumer: Consumer, drain: Drain, brokers: Brokers) -> None:
    """Act on what is no message: an end of partition, an offset out of range."""
    error = event.error()
    assert error is not None
    if error.code() == KafkaError._PARTITION_EOF:
        drain.drained.add(event.partition() or 0)
    elif error.code() == KafkaError._AUTO_OFFSET_RESET:
        read_from_first(consumer, event)
    elif error.fatal() or error.code() == KafkaError._FATAL:
        brokers.fatal = error.str()
    elif error.code() in NO_RIGHT:
        brokers.warn_no_right(error)
    else:
        log.debug("Kafka: %s", error.str())


def log_applied(report: Report, part: Part, full: bool, started: float, count_left: Callable[[], int]) -> None:
    if applied := part.applied():
        newest = describe(applied[-1].value())[1]
        report.add(len(applied), newest, started, part.describe, count_left, full)


def session(destination: Destination, brokers: Brokers, report: Report, stop: cli.Stop, once: bool) -> None:
    """Join the group and apply batches until a stop is requested, or with once until the topic is read to its end.

    Leaves the group in good order, whatever happens. Raises Fenced, Stopped, WrongSetting.
    """
    offsets = Offsets(brokers, Outage(stop))
    settings = {**kafka_settings(), "on_commit": offsets.on_commit, "enable.partition.eof": once}
    consumer = make_client(Consumer, settings, brokers)
    intake, drain = Intake(consumer), Drain(once, GIVE_UP)
    try:
        consumer.subscribe([config.KAFKA_TOPIC], on_assign=offsets.on_assign, on_revoke=offsets.on_revoke)
        destination.connect_early()
        while not stop.requested:
            metrics.came_round(brokers.down)
            if run_once(consumer, intake, offsets, destination, report, drain):
                continue
            report.idle()
            destination.dead_letters.report()
            if brokers.down:
                brokers.probe(consumer)
            if drain.done(consumer, offsets.admin):
                break
    finally:
        offsets.leave(consumer, stop)


def keep_applying(destination: Destination, brokers: Brokers, report: Report, stop: cli.Stop, once: bool) -> None:
    """Apply, session after session: one ends when Kafka gives our place to another consumer."""
    fenced = float("-inf")
    while True:
        try:
            session(destination, brokers, report, stop, once)
            break
        except Fenced as error:  # the first may be our own doing: a commit that an outage held up
            if time.monotonic() - fenced < FENCED_AGAIN and not brokers.unsteady():
                cli.fail(f"Kafka: {error}; does another consumer run with our KAFKA_GROUP_INSTANCE_ID?")
            log.warning("Kafka: %s; joining the group again", error)
            fenced, brokers.fatal = time.monotonic(), ""
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
        except cli.Stopped:
            log.warning("stopped in the middle of a batch; what is left of it will be read again")
            break


@cli.script
def main() -> None:
    parser = cli.make_parser(__doc__, verbose="log every change, and what the Kafka client says")
    parser.add_argument("--once", action="store_true", help="apply what is in the topic, then exit")
    arguments = parser.parse_args()
    cli.start_logging(arguments.verbose)
    cli.tune_python()
    stop, brokers, report = cli.stop_on_signals(), Brokers(), Report(log, "applied")
    endpoints.serve("consumer")
    limit = GIVE_UP if arguments.once else float("inf")
    bound_waits(limit, brokers)
    destination = Destination(Outage(stop, give_up_after=limit), DeadLetters(brokers, stop))
    try:
        keep_applying(destination, brokers, report, stop, arguments.once)
    finally:
        report.end()
        destination.dead_letters.end()
        destination.close()


if __name__ == "__main__":
    main()

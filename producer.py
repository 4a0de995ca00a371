"""Publish the changes in the source's log to Kafka: each at least once, those of one employee in their order.

    python producer.py           until Ctrl-C
    python producer.py --once    what is in the log now, then exit

A second producer beside an active one stands by, and takes over when the first one's session ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import config
from cdc import cli, endpoints, metrics, standby, wakeup
from cdc.emp_cdc import count_unpublished, late_pages, prepare, read_page
from cdc.flush import bound_waits
from cdc.health import HEALTH
from cdc.history import History
from cdc.kafka import Brokers, make_client, wait_for_login
from cdc.outage import Outage
from cdc.position import Position, PositionLost, Saver, load_position
from cdc.postgres import WrongSetting, connect, wait_for_database
from cdc.progress import Report
from cdc.publisher import KAFKA_SETTINGS, PAGE, NotPublished, Published, publish, wait_for_topic
from cdc.topic import Tail
from cdc.upkeep import Upkeep

import psycopg2
from confluent_kafka import KafkaException, Producer

log = logging.getLogger("producer")

GIVE_UP = 60.0  # seconds without progress after which --once gives up


def run_once(producer: Producer, saver: Saver, stop: cli.Stop, page_size: int = PAGE) -> Published:
    """Publish one page, or all late rows where they are more than a page, and then advance the position.

    Raises NotPublished, Stopped, psycopg2.Error, KafkaException.
    """
    page = read_page(saver.source, saver.position, page_size)
    if not page.changes:
        saver.advance(page.position_after(saver.position), published=False)
        return Published()
    if page.too_many_late:
        return publish_late(producer, saver, stop, page_size)
    refused = publish(producer, page.changes, stop, page.changed_at)
    # In memory: stream() saves it soon. A crash before that publishes again, and the consumer's gate drops the repeats.
    saver.advance(page.position_after(saver.position))
    return Published().with_page(page.changes, refused)


def publish_late(producer: Producer, saver: Saver, stop: cli.Stop, page_size: int) -> Published:
    """Publish all late rows of one snapshot, page by page, and then advance the position to that snapshot.

    Nothing beyond the offset is published meanwhile: it may hold newer changes of the same employees. A crash before
    the end publishes the late rows again.
    """
    position, snapshot, published = saver.position, saver.position.snapshot, Published()
    for page in late_pages(saver.source, position, page_size):
        refused = publish(producer, page.changes, stop)
        cli.raise_if_requested(stop)
        snapshot, published = page.snapshot, published.with_page(page.changes, refused)
    saver.advance(Position(position.last_offset, snapshot))
    return published


def log_published(report: Report, published: Published, started: float, count_left: Callable[[], int]) -> None:
    if published.changes:
        count, newest = published.count - published.refused, published.changes[-1].cdc_id
        report.add(count, newest, started, published.describe, count_left, published.full)


def stream(
    producer: Producer, saver: Saver, upkeep: Upkeep, brokers: Brokers, outage: Outage, report: Report, once: bool
) -> None:
    """Publish until a stop is requested, or with once until the log is drained."""
    stop, rest = outage.stop, wakeup.Rest(saver.source, outage.stop)
    while not stop.requested:
        started = time.monotonic()
        published = run_once(producer, saver, stop)
        took = time.monotonic() - started
        saver.save_if_due()
        upkeep.run_if_due(saver, full=published.full)
        outage.over()  # not before: a session can begin and then fail, again and again
        if published.count:
            brokers.mark_up()
            log_published(report, published, started, partial(count_unpublished, saver.source, saver.position))
        elif once:
            break
        metrics.published_up_to(saver.position.last_offset, published.full)
        report.idle()
        rest.after(published.count, published.full, took, until=min(upkeep.due, saver.due))


def session(brokers: Brokers, outage: Outage, report: Report, stop: cli.Stop, once: bool) -> None:
    """Publish over one connection to the source until a stop is requested, or with once until the log is drained."""
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source, HEALTH.connection("source"):
        outage.reached = True  # from now on a refused login is an outage, and no wrong setting
        wakeup.introduce(source)
        if once:
            standby.become_active_or_exit(source)
        producer = make_client(Producer, KAFKA_SETTINGS, brokers)
        wait_for_login(producer, brokers)  # before we take the lock: Kafka may let another producer in
        standby.become_active(source, stop)
        if stop.requested:
            return
        prepare(source)
        history = History(source, Tail(brokers), stop)
        position = load_position(source)
        count_unpublished(source, position)  # for the metrics, before Kafka is asked: it may be down
        position = history.check_at_start(position)
        brokers.mark_up()
        outage.announce(f"publishing from log offset {position.last_offset:,} to topic {config.KAFKA_TOPIC}")
        with Saver(source, position) as saver:
            stream(producer, saver, Upkeep(source, history), brokers, outage, report, once)


def keep_publishing(brokers: Brokers, outage: Outage, report: Report, stop: cli.Stop, once: bool) -> None:
    """Publish, session after session. Between two of them, wait for the server that is down."""
    while not stop.requested:
        try:
            session(brokers, outage, report, stop, once)
            break
        except psycopg2.Error as error:
            wait_for_database(outage, "source", config.SOURCE_DATABASE_URL, error)
        except (KafkaException, NotPublished) as error:
            wait_for_topic(outage, brokers, error)
        except PositionLost as error:
            outage.wait(str(error))
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
        except cli.Stopped:
            log.warning("stopped before the page in hand was done; it will be published at the next start")


@cli.script
def main() -> None:
    parser = cli.make_parser(__doc__, verbose="log every change, and what the Kafka client says")
    parser.add_argument("--once", action="store_true", help="publish what is in the log, then exit")
    arguments = parser.parse_args()
    cli.start_logging(arguments.verbose)
    cli.tune_python()
    stop, brokers, report = cli.stop_on_signals(), Brokers(), Report(log, "published")
    endpoints.serve("producer")
    limit = GIVE_UP if arguments.once else float("inf")
    bound_waits(limit, brokers)
    outage = Outage(stop, give_up_after=limit)
    try:
        keep_publishing(brokers, outage, report, stop, arguments.once)
    finally:
        report.end()


if __name__ == "__main__":
    main()

"""How cost grows: of a poll with the log, of applying with the destination.

    python -m bench.growth
    python -m bench.growth --log 10_000,10_000_000 --destination 10_000,10_000_000

A poll is producer.py's own statement over a log of so many published rows. One finds
nothing, one 100 changes, one a full page. "Held" is the largest log up to a million
rows, all written and published while one transaction that has changed a row stays open.
The apply rate is measured through producer and consumer, as in catch_up.py. Half the
changes insert rows, half update them, both scattered over the whole table, so that
every change meets another block. The sizes take turns. In the end both tables are
compared.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from bench import command, marks, output, systems, tables
from bench.figures import median, median_pair, text
from bench.loads import ALL_PUBLISHED, EXISTING, LOG_ROWS, SCATTERED, TRANSACTION, TRANSACTIONS_SEEN
from bench.output import print_table, say
from cdc import emp_cdc
from cdc.publisher import PAGE
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

from psycopg2.extensions import connection as Connection

HELD_LIMIT = 1_000_000
FEWEST = 30_000  # changes; fewer arrive in one transaction, and take no time
TIMES = {"nothing": 60, "100 changes": 30, "a full page": 10}  # that each poll is timed in a round
# Polls sent together, so that what is timed is the server's work and not two processes
# that wake each other.
AT_ONCE = {"nothing": 10, "100 changes": 10, "a full page": 1}


@dataclass
class Log:
    """A log of so many published rows, and the session that polls it."""

    source: Connection
    last_offset: int
    snapshot: str


def fill_log(pipeline: Pipeline, rows: int, held: bool) -> Log:
    """Return a published log of so many rows.

    held: a transaction that has changed a row stays open meanwhile.
    """
    if held:
        query(pipeline.source(), "BEGIN; INSERT INTO employees (city) VALUES ('not yet committed')")
    source = pipeline.source()
    query(source, LOG_ROWS)
    query(source, f"CALL log_rows({rows // TRANSACTION})")
    query(source, "VACUUM ANALYZE emp_cdc")
    ((last_offset, snapshot),) = query(source, ALL_PUBLISHED)
    query(source, emp_cdc.SESSION)
    return Log(source, last_offset, snapshot)


def one_poll(log: Log, what: str, back: int, page: int) -> float:
    """Return the milliseconds of a poll that finds so many changes."""
    values = {"last_offset": log.last_offset - back, "snapshot": log.snapshot, "page_size": page}
    started = time.perf_counter()
    rows = query(log.source, ";".join([emp_cdc.POLL] * AT_ONCE[what]), values)
    seconds = time.perf_counter() - started
    assert len(rows) == 1 + back, f"{len(rows)} rows instead of {1 + back}, with the snapshot's"
    return 1000 * seconds / AT_ONCE[what]


def poll_milliseconds(logs: dict[str, Log], page: int) -> dict[str, dict[str, float]]:
    """Return the median time of each kind of poll of each log; the logs take turns."""
    medians: dict[str, dict[str, float]] = {name: {} for name in logs}
    for (what, times), back in zip(TIMES.items(), (0, 100, page), strict=True):
        polls = [{name: one_poll(log, what, back, page) for name, log in logs.items()} for _ in range(times)]
        for name in logs:
            medians[name][what] = median([poll[name] for poll in polls])
    return medians


def poll_rounds(sizes: list[int], rounds: int) -> list[dict[str, dict[str, float]]]:
    with ExitStack() as stack:
        logs = {}
        for size in sizes:
            logs[f"{size:,} rows"] = fill_log(stack.enter_context(systems.our_pipeline(f"log_{size}")), size, False)
            say(f"log of {size:,} rows is there")
        held = min(max(sizes), HELD_LIMIT)
        pipeline = stack.enter_context(systems.our_pipeline("log_held"))
        logs[f"{held:,} rows, held"] = fill_log(pipeline, held, True)
        say(f"log of {held:,} rows with an open transaction is there")
        page = min(PAGE, *sizes)
        systems.checkpoint()
        return [poll_milliseconds(logs, page) for _ in range(rounds)]


def grow(pipeline: Pipeline, rows: int) -> None:
    """Put so many rows on both sides, and start the consumer."""
    tables.add_uncaptured(pipeline, EXISTING.format(rows=rows, gap=gap(rows)))
    query(pipeline.source(), SCATTERED)
    for connection in pipeline.source(), pipeline.destination():
        query(connection, "VACUUM ANALYZE employees")
    query(pipeline.destination(), "VACUUM ANALYZE cdc_applied")
    pipeline.start("consumer.py")
    systems.wait_for_members(pipeline, 1)


def gap(rows: int) -> int:
    return 2_000_000_000 // rows


def apply_rate(pipeline: Pipeline, rows: int, number: int, transactions: int) -> float:
    """Return the changes per second from the first to the last row of a load."""
    source, destination = pipeline.source(), pipeline.destination()
    first_k = number * (transactions + 1) * 500
    query(source, f"CALL scattered({first_k}, {rows}, {gap(rows)}, {transactions})")
    systems.checkpoint()
    script = pipeline.start("producer.py")
    running = [script for script in pipeline.scripts if script.process.poll() is None]
    arrival = marks.watch(destination, TRANSACTIONS_SEEN, 300, running)
    tables.check_equal(pipeline)
    query(source, "DELETE FROM employees WHERE emp_id < 0")
    wait_until(lambda: not query(destination, "SELECT 1 FROM employees WHERE emp_id < 0 LIMIT 1"), 30, "marks gone")
    systems.stop([script])
    return (transactions - arrival.count) * TRANSACTION / (arrival.last - arrival.first)


def apply_rounds(sizes: list[int], rounds: int, changes: int) -> list[dict[str, float]]:
    with ExitStack() as stack:
        pipelines = {size: stack.enter_context(systems.our_pipeline(f"destination_{size}")) for size in sizes}
        for size, pipeline in pipelines.items():
            grow(pipeline, size)
            say(f"destination of {size:,} rows is there")
        return [
            {
                f"{size:,} rows": apply_rate(pipeline, size, number, changes // TRANSACTION)
                for size, pipeline in pipelines.items()
            }
            for number in range(rounds)
        ]


def report_polls(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print a table of the polls; its ratios are those of the figures in it."""
    figures = {name: {what: median([one[name][what] for one in rounds]) for what in TIMES} for name in rounds[0]}
    smallest = next(iter(figures.values()))
    print_table(
        f"One poll, milliseconds and beside the smallest log: medians of {len(rounds)} rounds",
        ("log", *(column for what in TIMES for column in (f"finds {what}", "ratio"))),
        [
            (
                name,
                *(
                    cell
                    for what, value in values.items()
                    for cell in (text(value, ",.3f"), text(value / smallest[what], ".2f"))
                ),
            )
            for name, values in figures.items()
        ],
    )
    return figures


def report_applies(rounds: list[dict[str, float]], changes: int) -> dict[str, dict[str, float]]:
    """Print a table of the rates, each beside the smallest's in the same round."""
    smallest = next(iter(rounds[0]))
    figures = {}
    for name in rounds[0]:
        rate, smallest_rate = median_pair([(one[name], one[smallest]) for one in rounds])
        figures[name] = {"rate": rate, "smallest_rate": smallest_rate, "of_smallest": rate / smallest_rate}
    print_table(
        f"Applying {changes:,} scattered changes: the round with the median ratio of {len(rounds)}",
        ("destination", "of the smallest", "changes/s", "the smallest's"),
        [
            (name, text(values["of_smallest"], ".2f"), text(values["rate"]), text(values["smallest_rate"]))
            for name, values in figures.items()
        ],
    )
    return figures


def benchmark() -> None:
    parser = command.parser(__doc__)
    sizes = [10_000, 1_000_000]
    parser.add_argument("--log", type=command.numbers, default=sizes, metavar="10_000,1_000_000", help="sizes")
    parser.add_argument("--destination", type=command.numbers, default=sizes, metavar="10_000,1_000_000", help="sizes")
    parser.add_argument("--changes", type=int, default=60_000, help="applied for each size in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.changes < FEWEST:
        parser.error(f"--changes: give {FEWEST:,} or more, fewer arrive in one transaction")
    if arguments.quick:
        arguments.log, arguments.destination = [10_000, 100_000], [10_000, 100_000]
        arguments.changes, arguments.rounds = FEWEST, 1
    polls = poll_rounds(sorted(arguments.log), arguments.rounds)
    poll_figures = report_polls(polls)
    applies = apply_rounds(sorted(arguments.destination), arguments.rounds, arguments.changes)
    figures = {"polls": poll_figures, "applies": report_applies(applies, arguments.changes)}
    output.write("growth", {"polls": polls, "applies": applies, "medians": figures})


if __name__ == "__main__":
    command.main(benchmark)

"""How soon a commit is visible at the destination: ours, native, the plain design.

    python -m bench.latency
    python -m bench.latency --rates 20,500 --seconds 20 --pairs 5 --systems ours,native

Each change carries the source's clock of just before its commit. A deferred trigger at
the destination notes the clock when the change's transaction there begins to commit. So
the source's flush to disk is in the figures. The destination's is not: it is measured,
and printed beside them. Both servers must run on one machine, or the clocks differ. The
changes are commits of single rows at random moments, made in the source's server by a
procedure: no client takes CPU from what is measured. Then 50,000 rows of one
transaction are committed while single commits go on at 50/s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench import command, output, systems, tables
from bench.figures import median, percentile, text
from bench.output import say
from bench.probes import ARRIVALS, BURST, BURST_RATE, COMMITS, burst, commits, delays
from harness.database import query
from harness.pipeline import Pipeline

from psycopg2.extensions import connection as Connection

FEWEST = 150  # commits at a rate; of fewer the p99 is just the slowest
RATES = {"plain": [20]}  # of the systems that do not get all
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}

Figures = dict[str, Any]


@contextmanager
def ours() -> Iterator[Pipeline]:
    with systems.our_pipeline("ours") as pipeline:
        query(pipeline.destination(), ARRIVALS)
        pipeline.start("consumer.py")
        pipeline.start("producer.py")
        yield pipeline


@contextmanager
def native() -> Iterator[Pipeline]:
    with systems.native_pipeline("native") as pipeline:
        query(pipeline.destination(), ARRIVALS)
        systems.start_replication(pipeline)
        systems.enable_replication(pipeline)
        yield pipeline


@contextmanager
def plain() -> Iterator[Pipeline]:
    with systems.plain_pipeline("plain") as pipeline:
        query(pipeline.destination(), ARRIVALS)
        systems.start_plain(pipeline)
        yield pipeline


SYSTEMS: dict[str, Callable[[], Any]] = {"ours": ours, "native": native, "plain": plain}


def flush_milliseconds(connection: Connection) -> float:
    """Return how long a commit at this server waits for its disk.

    It is the difference of two medians: with synchronous_commit and without.
    """
    query(connection, "CREATE TABLE flushes (n INT)")
    medians = {}
    for durable in ("off", "on"):
        query(connection, f"SET synchronous_commit = {durable}")
        times = []
        for number in range(100):
            started = time.perf_counter()
            query(connection, f"INSERT INTO flushes VALUES ({number})")
            times.append(time.perf_counter() - started)
        medians[durable] = median(times) * 1000
    return medians["on"] - medians["off"]


def measure(system: str, rates: list[int], seconds: float) -> Figures:
    """Measure one system at every rate, then in a burst; compare the tables."""
    with SYSTEMS[system]() as pipeline:
        query(pipeline.source(), COMMITS)
        commits(pipeline, 1, 20, 1)  # to warm up caches, connections and plans
        systems.checkpoint()
        figures: Figures = {"rates": {}}
        # The highest rate first: Kafka's JVM compiles what it has run some thousand
        # times, which takes minutes at 20 commits a second.
        for number, rate in enumerate(sorted(RATES.get(system, rates), reverse=True)):
            first = 100_000_000 * (number + 1)
            lasting = seconds if system in RATES else max(seconds, FEWEST / rate)
            sent = commits(pipeline, first, rate, lasting)
            values = delays(pipeline, first, first + 100_000_000)
            figures["rates"][rate] = {name: percentile(values, part) for name, part in PERCENTILES.items()}
            figures["rates"][rate] |= {"commits": sent, "reached": sent / lasting}
        if system not in RATES:
            figures["burst"] = burst(pipeline)
        figures["flush"] = flush_milliseconds(pipeline.destination())
        tables.check_equal(pipeline)
    return figures


def medians(runs: list[Figures]) -> Figures:
    """Return the median of each figure over the runs."""
    return {name: median([run[name] for run in runs]) for name in runs[0]}


def report(pairs: list[dict[str, Figures]], rates: list[int]) -> Figures:
    """Print the tables, and return their figures."""
    figures: Figures = {"rates": report_rates(pairs, rates), "burst": report_burst(pairs)}
    flush = figures["flush"] = median([run["flush"] for pair in pairs for run in pair.values()])
    say(f"not in the figures: the destination's flush at commit, {flush:.1f} ms (native does not wait for it)")
    return figures


def report_rates(pairs: list[dict[str, Figures]], rates: list[int]) -> Figures:
    figures: Figures = {}
    rows = []
    for rate in rates:
        for system in pairs[0]:
            if rate in pairs[0][system]["rates"]:
                values = medians([pair[system]["rates"][rate] for pair in pairs])
                figures.setdefault(str(rate), {})[system] = values
                percentiles = [text(values[name], ",.1f") for name in PERCENTILES]
                rows.append((f"{rate:,}/s, {system}", *percentiles, text(values["reached"])))
    title = f"Commit to visible, milliseconds: medians of {len(pairs)} pairs"
    output.print_table(title, ("", *PERCENTILES, "commits/s reached"), rows)
    return figures


def report_burst(pairs: list[dict[str, Figures]]) -> Figures:
    figures = {
        system: medians([pair[system]["burst"] for pair in pairs]) for system in pairs[0] if "burst" in pairs[0][system]
    }
    output.print_table(
        f"{BURST:,} rows in one transaction beside single commits at {BURST_RATE}/s, milliseconds",
        ("", "last row visible after", "others p50", "others max"),
        [
            (
                system,
                text(values["last_row_after"]),
                text(values["p50_of_others"], ",.1f"),
                text(values["longest_delay_of_others"]),
            )
            for system, values in figures.items()
        ],
    )
    return figures


def run_pair(number: int, names: Sequence[str], rates: list[int], seconds: float) -> dict[str, Figures]:
    """Measure every system once, every other time in the opposite order."""
    pair = {}
    for system in names if number % 2 == 0 else reversed(names):
        pair[system] = measure(system, rates, seconds)
        parts = [f"{rate}/s p50 {v['p50']:.1f} p99 {v['p99']:.1f} ms" for rate, v in pair[system]["rates"].items()]
        say(f"pair {number + 1}: {system} " + ", ".join(parts))
    return {system: pair[system] for system in names}


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--rates", type=command.numbers, default=[20, 500, 2000], metavar="20,500,2000")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help=f"at each rate; longer where that is less than {FEWEST} commits"
    )
    parser.add_argument("--pairs", type=int, default=3)
    names = list(SYSTEMS)
    parser.add_argument("--systems", type=command.names(names), default=names, metavar=",".join(names))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.pairs = 2.0, 1
    pairs = [
        run_pair(number, arguments.systems, arguments.rates, arguments.seconds) for number in range(arguments.pairs)
    ]
    output.write("latency", {"pairs": pairs, "medians": report(pairs, arguments.rates)})


if __name__ == "__main__":
    command.main(benchmark)

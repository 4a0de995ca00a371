"""How soon a commit is visible at the destination: ours, PostgreSQL's native logical replication, and the plain design.

    python bench/latency.py
    python bench/latency.py --rates 20,500 --seconds 20 --pairs 5 --systems ours,native

Each change carries the source's clock when it was made, just before its commit; a deferred trigger at the destination
notes the clock when the change's transaction there begins to commit. So the source's flush to disk is in the figures,
the destination's is not (it is measured and told beside them), and both clocks are the same only if both servers run
on one machine. The changes are single-row commits at random moments, made inside the source server by a procedure (up
to 500/s each): no client takes CPU from what is measured. Then 50,000 rows of one transaction are committed
while single commits go on at 50/s.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg2.extensions import connection as Connection

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import command, output, systems, tables
from bench.figures import median, percentile, shown
from bench.output import say
from bench.probes import ARRIVALS, BURST, BURST_RATE, COMMITS, burst, commits, delays
from tests.pipeline import ROOT, Pipeline, query

FEWEST = 150  # commits at a rate: of fewer the p99 is the slowest one
SLOW = {"plain": [20]}  # the rates that a system is asked for, where not all
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@contextmanager
def ours() -> Iterator[Pipeline]:
    with systems.product("ours") as pipeline:
        query(pipeline.destination(), ARRIVALS)
        pipeline.start("consumer.py")
        pipeline.start("producer.py")
        yield pipeline


@contextmanager
def native() -> Iterator[Pipeline]:
    with systems.pipeline("native") as pipeline:
        for connection in pipeline.source(), pipeline.destination():
            query(connection, systems.EMPLOYEES)
        query(pipeline.destination(), ARRIVALS)
        systems.start_replication(pipeline)
        query(pipeline.destination(), f"ALTER SUBSCRIPTION {pipeline.name} ENABLE")
        yield pipeline


@contextmanager
def plain() -> Iterator[Pipeline]:
    with systems.plain("plain") as pipeline:
        query(pipeline.destination(), ARRIVALS)
        for name in ("consumer", "producer"):
            systems.start(pipeline, "plain.py", name)
        yield pipeline


SYSTEMS: dict[str, Callable[[], Any]] = {"ours": ours, "native": native, "plain": plain}


def flush_milliseconds(connection: Connection) -> float:
    """What a commit at this server waits for its disk: with it and without, the difference of the medians."""
    query(connection, "CREATE TABLE flushes (n INT)")
    found = {}
    for durable in ("off", "on"):
        query(connection, f"SET synchronous_commit = {durable}")
        times = []
        for number in range(100):
            started = time.perf_counter()
            query(connection, f"INSERT INTO flushes VALUES ({number})")
            times.append(time.perf_counter() - started)
        found[durable] = median(times) * 1000
    return found["on"] - found["off"]


def one_system(system: str, rates: list[int], seconds: float) -> dict[str, Any]:
    """Measure one system at every rate, then in a burst; compare the tables."""
    with SYSTEMS[system]() as pipeline:
        query(pipeline.source(), COMMITS)
        commits(pipeline, 1, 20, 1)  # warm: caches, connections, plans
        systems.checkpoint()
        found: dict[str, Any] = {"rates": {}}
        # The highest first: Kafka's JVM compiles what it has run some thousand times, minutes at 20 commits a second.
        for number, rate in enumerate(sorted(SLOW.get(system, rates), reverse=True)):
            first = 100_000_000 * (number + 1)
            lasting = seconds if system in SLOW else max(seconds, FEWEST / rate)
            sent = commits(pipeline, first, rate, lasting)
            values = delays(pipeline, first, first + 100_000_000)
            found["rates"][rate] = {name: percentile(values, part) for name, part in PERCENTILES.items()}
            found["rates"][rate] |= {"commits": sent, "reached": sent / lasting}
        if system not in SLOW:
            found["burst"] = burst(pipeline)
        found["flush"] = flush_milliseconds(pipeline.destination())
        tables.check_equal(pipeline)
    return found


def tell(number: int, system: str, found: dict[str, Any]) -> None:
    parts = [f"{rate}/s p50 {values['p50']:.1f} p99 {values['p99']:.1f} ms" for rate, values in found["rates"].items()]
    say(f"pair {number + 1}: {system} " + ", ".join(parts))


def medians(pairs: list[dict[str, Any]], system: str, *path: Any) -> dict[str, float]:
    """The median over the pairs of each figure that stands at this place, and its ratio to native's."""

    def at(pair: dict[str, Any], system: str) -> dict[str, float]:
        found: Any = pair.get(system, {})
        for step in path:
            found = found.get(step, {})
        return dict(found)

    figures = at(pairs[0], system)
    result = {name: median([at(pair, system)[name] for pair in pairs]) for name in figures}
    for name in figures:
        if all(name in at(pair, "native") for pair in pairs):
            result[f"{name}_of_native"] = median([at(pair, system)[name] / at(pair, "native")[name] for pair in pairs])
    return result


def report(pairs: list[dict[str, Any]], systems: list[str], rates: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"rates": {}, "burst": {}}
    rows = []
    for rate in rates:
        for system in systems:
            if rate not in pairs[0][system]["rates"]:
                continue
            values = medians(pairs, system, "rates", rate)
            found["rates"].setdefault(str(rate), {})[system] = values
            rows.append(
                (
                    f"{rate:,}/s, {system}",
                    *(shown(values[name], ",.1f") for name in PERCENTILES),
                    shown(values.get("p50_of_native"), ".1f"),
                    shown(values.get("p99_of_native"), ".1f"),
                    shown(values["reached"]),
                )
            )
    output.print_table(
        f"Commit to visible, milliseconds: medians of {len(pairs)} pairs",
        ("", *PERCENTILES, "p50 of native", "p99 of native", "commits/s reached"),
        rows,
    )
    rows = []
    for system in systems:
        if "burst" in pairs[0][system]:
            values = found["burst"][system] = medians(pairs, system, "burst")
            rows.append(
                (
                    system,
                    shown(values["last_row_after"]),
                    shown(values.get("last_row_after_of_native"), ".1f"),
                    shown(values["p50_of_others"], ",.1f"),
                    shown(values["longest_delay_of_others"]),
                    shown(values.get("longest_delay_of_others_of_native"), ".1f"),
                )
            )
    output.print_table(
        f"{BURST:,} rows in one transaction beside single commits at {BURST_RATE}/s, milliseconds",
        ("", "last row visible after", "of native", "others p50", "others max", "of native"),
        rows,
    )
    found["flush"] = median([pair[system]["flush"] for pair in pairs for system in systems])
    say(f"not in the figures: the destination's flush at commit, {found['flush']:.1f} ms (native does not wait for it)")
    return found


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--rates", type=command.numbers, default=[20, 500, 2000], metavar="20,500,2000")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help=f"at each rate; longer where that is less than {FEWEST} commits"
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--systems", type=command.names, default=list(SYSTEMS), metavar="ours,native,plain")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.pairs = 2.0, 1
    pairs = []
    for number in range(arguments.pairs):
        pair = {}
        for system in arguments.systems if number % 2 == 0 else reversed(arguments.systems):
            pair[system] = one_system(system, arguments.rates, arguments.seconds)
            tell(number, system, pair[system])
        pairs.append(pair)
    output.write("latency", {"pairs": pairs, "medians": report(pairs, arguments.systems, arguments.rates)})


if __name__ == "__main__":
    os.chdir(ROOT)
    command.main(benchmark)

"""How fast a backlog is carried over: ours, native replication, the plain design.

    python -m bench.catch_up
    python -m bench.catch_up --pairs 5 --loads mixed --consumers 1 --systems ours,native

Two loads, each in transactions of 1,000 changes: `mixed` is 60 % INSERT, 30 % UPDATE
and 10 % DELETE, `hot` is 90 % updates of 10,000 rows. The whole load waits in the log
before a system starts (native: in its slot). Changes per second count from the moment
when the load's first rows are visible at the destination until all of it is, without
those first rows. "With start-up" counts all changes from the start of the processes
(native: from ALTER SUBSCRIPTION ... ENABLE). Producer and a single consumer start
together; several consumers share the partitions first. In the end both tables are
compared.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from bench import command, marks, output, systems, tables
from bench.catch_up_runs import Pair, Run, report
from bench.cpu import Meter
from bench.loads import COUNT, HOT_ROWS, LOADS, ROWS_PER_TRANSACTION, TRANSACTION
from bench.output import say
from bench.systems import Scripts
from harness.database import query
from harness.pipeline import Pipeline
from harness.script import peak_memory
from harness.waiting import wait_until

SYSTEMS = ("ours", "native", "plain")
TIMEOUT = 300  # seconds for a load to arrive
NO_SCRIPTS: Scripts = {}
ALL_PUBLISHED = "SELECT 1 FROM cdc_position WHERE last_offset >= (SELECT max(cdc_id) FROM emp_cdc)"
SAVED_AT = "SELECT extract(epoch FROM saved_at)::float FROM cdc_position"


def prepare(pipeline: Pipeline, load: str, transactions: int, hold: Callable[[], None] = lambda: None) -> None:
    """Put the rows that the load needs on both sides, then run the load.

    hold: is called in between. From then on changes wait to be carried.
    """
    source = pipeline.source()
    query(source, LOADS)
    if load == "hot":
        tables.add_uncaptured(pipeline, HOT_ROWS)
    hold()
    query(source, f"CALL {load}({transactions})")


def carry(
    system: str,
    load: str,
    transactions: int,
    pipeline: Pipeline,
    launch: Callable[[], Scripts],
    waiting: Scripts = NO_SCRIPTS,
    start_cpu: dict[str, float] | None = None,
) -> Run:
    """Launch a system, watch the load arrive, and compare the tables.

    launch: returns the scripts that it started. waiting: the scripts that run already.
    """
    systems.checkpoint()
    source, destination = pipeline.source(), pipeline.destination()
    rows_before = query(destination, COUNT)[0][0]
    meter = Meter(pipeline, source, destination, waiting)
    began, began_at = time.monotonic(), time.time()
    scripts = launch() | waiting
    arrival = marks.watch(destination, COUNT, TIMEOUT, [script for group in scripts.values() for script in group])
    cpu = meter.result(scripts, start_cpu or {})
    memory = {name: max(peak_memory(s.process.pid) for s in group) for name, group in scripts.items()}
    tables.check_equal(pipeline)
    changes = transactions * TRANSACTION + 2 * marks.MARKS
    rows = transactions * ROWS_PER_TRANSACTION.get(load, TRANSACTION) + 2 * marks.MARKS
    changes_at_first = changes * (arrival.count - rows_before) / rows
    seconds = arrival.last - arrival.first
    return Run(
        system,
        load,
        changes,
        consumers=len(scripts.get("consumer", [])),
        seconds=round(seconds, 4),
        rate=(changes - changes_at_first) / seconds,
        start_up=round(arrival.first - began, 4),
        rate_with_start_up=changes / (arrival.last - began),
        began=began_at,
        cpu=cpu,
        memory=memory,
    )


def run_ours(load: str, transactions: int, consumers: list[int]) -> Iterator[Run]:
    """Carry one load once for each number of consumers.

    In between, position and destination are put back to where they were, so that the
    same backlog waits again.
    """
    with systems.our_pipeline("ours") as pipeline:
        start_cpu = {name: cpu_of_start(pipeline, f"{name}.py") for name in ("producer", "consumer")}
        ((offset, snapshot),) = query(pipeline.source(), "SELECT last_offset, snapshot::text FROM cdc_position")
        prepare(pipeline, load, transactions)
        for number in consumers:
            if number != consumers[0]:
                query(pipeline.destination(), "TRUNCATE employees, cdc_applied")
                if load == "hot":
                    tables.add_at_destination(pipeline.destination(), HOT_ROWS)
                move = "UPDATE cdc_position SET last_offset = %s, snapshot = %s"
                query(pipeline.source(), move, (offset, snapshot))
            yield carry_ours(pipeline, load, transactions, number, start_cpu)


def carry_ours(pipeline: Pipeline, load: str, transactions: int, number: int, start_cpu: dict[str, float]) -> Run:
    """Carry the load with so many consumers; several share the partitions first."""

    def consumers() -> Scripts:
        return {"consumer": [pipeline.start("consumer.py") for _ in range(number)]}

    def launch() -> Scripts:
        started = {} if waiting else consumers()
        return started | {"producer": [pipeline.start("producer.py")]}

    waiting = consumers() if number > 1 else {}
    if waiting:
        systems.wait_for_members(pipeline, number)
    run = carry("ours", load, transactions, pipeline, launch, waiting, start_cpu)
    source = pipeline.source()
    wait_until(lambda: query(source, ALL_PUBLISHED), 5)  # the position is saved up to 0.2 s later
    run.published = round(query(source, SAVED_AT)[0][0] - run.began, 2)
    systems.stop([script for script in pipeline.scripts if script.process.poll() is None])
    return run


def cpu_of_start(pipeline: Pipeline, script: str) -> float:
    """Return the CPU seconds of a script that starts, finds nothing to do and ends."""

    def children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children()
    result = pipeline.run(script, "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    return children() - before


def run_native(load: str, transactions: int) -> list[Run]:
    with systems.native_pipeline("native") as pipeline:
        prepare(pipeline, load, transactions, lambda: systems.start_replication(pipeline))

        def launch() -> Scripts:
            systems.enable_replication(pipeline)
            return {}

        return [carry("native", load, transactions, pipeline, launch)]


def run_plain(load: str, transactions: int) -> list[Run]:
    with systems.plain_pipeline("plain") as pipeline:
        prepare(pipeline, load, transactions)
        return [carry("plain", load, transactions, pipeline, lambda: systems.start_plain(pipeline))]


def run_pair(load: str, number: int, arguments: argparse.Namespace) -> Pair:
    """Run every system once, every other time in the opposite order."""
    runners: list[Callable[[], Iterable[Run]]] = []
    transactions = arguments.changes // TRANSACTION
    if "ours" in arguments.systems:
        runners.append(lambda: run_ours(load, transactions, arguments.consumers))
    if "native" in arguments.systems:
        runners.append(lambda: run_native(load, transactions))
    if "plain" in arguments.systems and load == "mixed":
        runners.append(lambda: run_plain(load, arguments.plain_changes // TRANSACTION))
    pair: Pair = {}
    for runner in runners if number % 2 == 0 else reversed(runners):
        for run in runner():
            say(f"pair {number + 1}, {load}: {run.title} {run.rate:,.0f} changes/s")
            pair[run.title] = run
    return pair


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--changes", type=int, default=300_000)
    parser.add_argument("--plain-changes", type=int, default=10_000, help="the plain design's load, as it is slow")
    parser.add_argument("--pairs", type=int, default=3)
    loads = list(ROWS_PER_TRANSACTION)
    parser.add_argument("--loads", type=command.names(loads), default=loads, metavar=",".join(loads))
    parser.add_argument("--systems", type=command.names(SYSTEMS), default=SYSTEMS, metavar=",".join(SYSTEMS))
    parser.add_argument("--consumers", type=command.numbers, default=[1, 3], metavar="1,2,3")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.changes, arguments.plain_changes, arguments.pairs = 30_000, 2_000, 1
    results: dict[str, Any] = {"runs": [], "medians": {}}
    for load in arguments.loads:
        pairs = [run_pair(load, number, arguments) for number in range(arguments.pairs)]
        results["runs"] += [asdict(run) | {"pair": n} for n, pair in enumerate(pairs) for run in pair.values()]
        results["medians"][load] = report(load, pairs)
    output.write("catch_up", results)


if __name__ == "__main__":
    command.main(benchmark)

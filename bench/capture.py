"""What capture costs the writers on the source, beside the bare trigger.

    python -m bench.capture
    python -m bench.capture --clients 16 --seconds 3 --rounds 5

pgbench changes one row per transaction. In each round every variant does the same
number of transactions, one variant after the other: as many as the bare trigger does in
--seconds. Ratios are to the bare trigger's rate in the same round. `none` has no
capture at all, `bare` the log and trigger as first specified (bench/bare.sql),
`stopped` and `running` are ours without and with the producer. `notify` is ours with a
NOTIFY in every transaction, and nobody who listens. Then one statement inserts 100,000
rows. In the end what the running producer published is applied, and both tables are
compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench import command, output, systems, tables
from bench.figures import median, text
from bench.output import say
from bench.pgbench import ROWS, SCRIPTS, STATEMENT_ROWS, Case, program, transactions_per_second
from harness.database import ALWAYS_NOTIFY, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

VARIANTS = ("bare", "none", "stopped", "running", "notify")  # the reference first
FILL = f"""
INSERT INTO employees SELECT n, 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n % 9999, 'City ' || n, n
FROM generate_series(1, {ROWS}) AS n
"""
STATEMENT = f"""
INSERT INTO employees (first_name, last_name, dob, city, salary)
SELECT 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n % 9999, 'City ' || n, n
FROM generate_series(1, {STATEMENT_ROWS}) AS n
"""
UNPUBLISHED = "SELECT 1 FROM cdc_position WHERE last_offset < (SELECT max(cdc_id) FROM emp_cdc)"


def set_up(variant: str, stack: ExitStack) -> Pipeline:
    """Make the variant's databases, with the rows to be updated on both sides."""
    if variant in ("none", "bare"):
        pipeline = stack.enter_context(systems.empty_pipeline(variant))
        query(pipeline.source(), systems.BARE if variant == "bare" else systems.EMPLOYEES)
        query(pipeline.destination(), systems.EMPLOYEES)
    else:
        pipeline = stack.enter_context(systems.our_pipeline(variant))
    if variant == "notify":
        query(pipeline.source(), ALWAYS_NOTIFY)
    tables.add_uncaptured(pipeline, FILL)
    query(pipeline.source(), f"SELECT setval('employees_emp_id_seq', {ROWS})")
    if variant == "running":
        pipeline.start("producer.py").wait_for("publishing from log offset")
    return pipeline


def statements_per_second(pipeline: Pipeline) -> float:
    source = pipeline.source()
    started = time.perf_counter()
    query(source, STATEMENT)
    return 1 / (time.perf_counter() - started)


def wait_until_published(pipeline: Pipeline) -> None:
    """Let the producer publish what this run left: it is not to burden the next."""
    systems.check_running(pipeline.scripts)
    wait_until(lambda: not query(pipeline.connections[0], UNPUBLISHED), 60, "the producer has published all")


def measure_round(
    pipelines: dict[str, Pipeline], cases: list[Case], number: int, rate: Callable[[Case, Pipeline], float]
) -> dict[str, dict[str, float]]:
    """Return the rate of every variant in every case.

    Each round another variant is the first.
    """
    rates: dict[str, dict[str, float]] = {}
    order = list(pipelines.items())
    order = order[number % len(order) :] + order[: number % len(order)]
    for case in cases:
        systems.checkpoint()
        for variant, pipeline in order:
            rates.setdefault(str(case), {})[variant] = rate(case, pipeline)
            if variant == "running":
                wait_until_published(pipeline)
    for variant, pipeline in pipelines.items():
        if variant != "none":
            query(pipeline.source(), "TRUNCATE emp_cdc")
    return rates


def measure_rounds(
    pipelines: dict[str, Pipeline], cases: list[Case], rounds: int, seconds: float
) -> list[dict[str, dict[str, float]]]:
    say("finding out how much is a good measure, by the bare trigger")
    bare = pipelines["bare"]
    amounts = {case: int(seconds * transactions_per_second(bare, case, 0)) for case in cases}

    def rate(case: Case, pipeline: Pipeline) -> float:
        if case.change == "statement":
            return statements_per_second(pipeline)
        return transactions_per_second(pipeline, case, amounts[case])

    results = []
    for number in range(rounds):
        results.append(measure_round(pipelines, [*cases, Case("statement", True, 1)], number, rate))
        say(f"round {number + 1} of {rounds} done")
    return results


def report(rounds: list[dict[str, dict[str, float]]], variants: list[str]) -> dict[str, Any]:
    """Print the bare trigger's rate, and the ratio to it of each other variant."""
    others = [variant for variant in variants if variant != "bare"]
    figures: dict[str, Any] = {}
    rows = []
    for case in rounds[0]:
        bare = median([one[case]["bare"] for one in rounds])
        ratios = {variant: median([one[case][variant] / one[case]["bare"] for one in rounds]) for variant in others}
        figures[case] = {"bare_per_second": bare, "of_bare": ratios}
        rows.append((case, text(bare, ",.0f" if bare > 50 else ",.2f"), *(text(r, ".2f") for r in ratios.values())))
    output.print_table(
        f"What capture costs the source: ratios to the bare trigger, medians of {len(rounds)} rounds",
        ("", "bare, per second", *others),
        rows,
    )
    return figures


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--clients", type=command.numbers, default=[1, 4, 16], metavar="1,4,16")
    changes = list(SCRIPTS)
    parser.add_argument("--changes", type=command.names(changes), default=changes, metavar=",".join(changes))
    parser.add_argument("--variants", type=command.names(VARIANTS), default=VARIANTS, metavar=",".join(VARIANTS))
    parser.add_argument("--seconds", type=float, default=0.4, help="that the bare trigger works for in each case")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.seconds, arguments.rounds = [1, 4], 0.2, 1
    program()  # before all the work
    variants = [variant for variant in VARIANTS if variant in {"bare", *arguments.variants}]
    cases = [
        Case(change, durable, clients)
        for durable in (True, False)
        for change in arguments.changes
        for clients in arguments.clients
    ]
    with ExitStack() as stack:
        pipelines = {variant: set_up(variant, stack) for variant in variants}
        rounds = measure_rounds(pipelines, cases, arguments.rounds, arguments.seconds)
        if "running" in pipelines:
            pipelines["running"].start("consumer.py")
            tables.wait_until_equal(pipelines["running"], 120)
    output.write("capture", {"rounds": rounds, "medians": report(rounds, variants)})


if __name__ == "__main__":
    command.main(benchmark)

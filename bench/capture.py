"""What capture costs the writers on the source: ours, with the producer running and stopped, beside the bare trigger.

    python bench/capture.py
    python bench/capture.py --clients 16 --seconds 3 --rounds 5

pgbench changes one row per transaction; in each round every variant does the same number of transactions, one variant
after the other (as many as the bare trigger does in --seconds). Ratios are to the bare trigger's rate of the same
round. `none` has no capture at all, `bare` the log and trigger as first specified (bench/bare.sql), `notify` is ours
with a NOTIFY in every transaction, and nobody listening. Then one statement inserts 100,000 rows. In the end what the
running producer published is applied and both tables are compared.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import command, output, systems, tables
from bench.figures import median, shown
from bench.output import say
from bench.pgbench import ROWS, SCRIPTS, STATEMENT_ROWS, Case, pgbench_program, transactions_per_second
from tests.pipeline import ALWAYS_NOTIFY, ROOT, Pipeline, query, wait_until

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
    """The variant's databases, with the rows to be updated on both sides."""
    if variant in ("none", "bare"):
        pipeline = stack.enter_context(systems.pipeline(variant))
        query(pipeline.source(), systems.BARE if variant == "bare" else systems.EMPLOYEES)
        query(pipeline.destination(), systems.EMPLOYEES)
    else:
        pipeline = stack.enter_context(systems.product(variant))
    if variant == "notify":
        query(pipeline.source(), ALWAYS_NOTIFY)
    tables.add_uncaptured(pipeline, FILL)
    query(pipeline.source(), f"SELECT setval('employees_emp_id_seq', {ROWS})")
    if variant == "running":
        pipeline.start("producer.py").wait_for("publishing from offset")
    return pipeline


def statements_per_second(pipeline: Pipeline) -> float:
    source = pipeline.source()
    started = time.perf_counter()
    query(source, STATEMENT)
    return 1 / (time.perf_counter() - started)


def settle(variant: str, pipeline: Pipeline) -> None:
    """Let the producer publish what this run left, so that it takes nothing from the next."""
    if variant == "running":
        assert not systems.ended(pipeline.scripts), systems.ended(pipeline.scripts)
        wait_until(lambda: not query(pipeline.connections[0], UNPUBLISHED), 60, "the producer has published all")


def measure_round(
    pipelines: dict[str, Pipeline], cases: list[Case], number: int, rate: Callable[[Case, Pipeline], float]
) -> dict[str, dict[str, float]]:
    """The rate of every variant in every case; each round another variant is the first."""
    found: dict[str, dict[str, float]] = {}
    turned = list(pipelines.items())
    turned = turned[number % len(turned) :] + turned[: number % len(turned)]
    for case in cases:
        systems.checkpoint()
        for variant, pipeline in turned:
            found.setdefault(str(case), {})[variant] = rate(case, pipeline)
            settle(variant, pipeline)
    for variant, pipeline in pipelines.items():
        if variant != "none":
            query(pipeline.source(), "TRUNCATE emp_cdc")
    return found


def report(rounds: list[dict[str, dict[str, float]]], variants: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in rounds[0]:
        rates = {variant: [one[case][variant] for one in rounds] for variant in variants}
        found[case] = {
            "per_second": {variant: median(values) for variant, values in rates.items()},
            "of_bare": {
                variant: median([value / bare for value, bare in zip(values, rates["bare"], strict=True)])
                for variant, values in rates.items()
            },
        }
    output.print_table(
        f"What capture costs the source, per second and beside the bare trigger: medians of {len(rounds)} rounds",
        ("", *(variant for variant in variants)),
        [(case, *(cell(values, variant) for variant in variants)) for case, values in found.items()],
    )
    return found


def cell(values: dict[str, dict[str, float]], variant: str) -> str:
    rate = shown(values["per_second"][variant], ",.0f" if values["per_second"]["bare"] > 50 else ",.2f")
    return rate if variant == "bare" else f"{rate} = {shown(values['of_bare'][variant], '.2f')}"


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--clients", type=command.numbers, default=[1, 4, 16], metavar="1,4,16")
    parser.add_argument("--changes", type=command.names, default=list(SCRIPTS), metavar="INSERT,UPDATE")
    parser.add_argument("--variants", type=command.names, default=list(VARIANTS), metavar=",".join(VARIANTS))
    parser.add_argument("--seconds", type=float, default=0.4, help="that the bare trigger works for in each case")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.seconds, arguments.rounds = [1, 4], 0.2, 1
    variants = [variant for variant in VARIANTS if variant in {"bare", *arguments.variants}]
    program = pgbench_program()
    cases = [
        Case(change, durable, clients)
        for durable in (True, False)
        for change in arguments.changes
        for clients in arguments.clients
    ]
    with ExitStack() as stack:
        pipelines = {variant: set_up(variant, stack) for variant in variants}
        say("finding out how much is a good measure, by the bare trigger")
        amounts = {
            case: int(arguments.seconds * transactions_per_second(program, pipelines["bare"], case, 0))
            for case in cases
        }

        def rate(case: Case, pipeline: Pipeline) -> float:
            if case.change == "statement":
                return statements_per_second(pipeline)
            return transactions_per_second(program, pipeline, case, amounts[case])

        rounds = []
        for number in range(arguments.rounds):
            rounds.append(measure_round(pipelines, [*cases, Case("statement", True, 1)], number, rate))
            say(f"round {number + 1} of {arguments.rounds} done")
        if "running" in pipelines:
            pipelines["running"].start("consumer.py")
            tables.wait_until_equal(pipelines["running"], 120)
    output.write("capture", {"rounds": rounds, "medians": report(rounds, variants)})


if __name__ == "__main__":
    os.chdir(ROOT)
    command.main(benchmark)

"""How fast large transactions are carried, beside as many changes in small ones.

    python -m bench.large
    python -m bench.large --pairs 5 --consumers 3

All changes are INSERTs, and all wait in the log before producer and consumer start.
`small` are transactions of 1,000 changes, `statement` is one statement of 300,000 rows,
`late` are 600,000 rows of a transaction that was open when the producer passed its
offsets, and that commits afterwards. Changes per second count from the moment when the
load's first rows are visible at the destination until all of it is. In the end both
tables are compared.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

from bench import command, marks, output, systems
from bench.catch_up import carry, cpu_of_start
from bench.catch_up_runs import Run
from bench.figures import median, text
from bench.loads import TRANSACTION
from bench.output import print_table, say
from bench.systems import Scripts
from harness.database import query
from harness.pipeline import Pipeline

import psycopg2

ROWS = "SELECT n, 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n % 9999, 'City ' || n % 100, n"
SMALL = f"""
CREATE PROCEDURE small(transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    {marks.FIRST_MARKS};
    COMMIT;
    FOR t IN 1..transactions LOOP
        INSERT INTO employees {ROWS} FROM generate_series(t * 1000, t * 1000 + 999) AS n;
        COMMIT;
    END LOOP;
    {marks.LAST_MARKS};
END
$$;
"""
LARGE = f"""
{marks.FIRST_MARKS};
INSERT INTO employees {ROWS} FROM generate_series(1, {{rows}}) AS n;
{marks.LAST_MARKS}
"""
TIMES = {"small": 1, "statement": 1, "late": 2}  # the changes of --changes


def prepare(pipeline: Pipeline, load: str, changes: int) -> None:
    """Have so many changes wait in the log."""
    source = pipeline.source()
    if load == "small":
        query(source, SMALL)
        query(source, f"CALL small({changes // TRANSACTION})")
        return
    with closing(psycopg2.connect(pipeline.source_url)) as writer:
        query(writer, LARGE.format(rows=changes))
        if load == "late":
            query(source, "INSERT INTO employees (emp_id) VALUES (-5000)")
            result = pipeline.run("producer.py", "--once")
            assert result.returncode == 0, result.stdout + result.stderr
        writer.commit()


def run_load(load: str, changes: int, consumers: int) -> Run:
    with systems.our_pipeline(load) as pipeline:
        start_cpu = {name: cpu_of_start(pipeline, f"{name}.py") for name in ("producer", "consumer")}
        prepare(pipeline, load, changes)
        waiting: Scripts = {"consumer": [pipeline.start("consumer.py") for _ in range(consumers)]}
        systems.wait_for_members(pipeline, consumers)

        def launch() -> Scripts:
            return {"producer": [pipeline.start("producer.py")]}

        run = carry("ours", load, changes // TRANSACTION, pipeline, launch, waiting, start_cpu)
        systems.stop(pipeline.scripts)
        return run


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--changes", type=int, default=300_000, help="of small and statement; late are twice as many")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--consumers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.changes, arguments.pairs = 20_000, 1
    pairs = list[dict[str, Run]]()
    for number in range(arguments.pairs):
        pair = dict[str, Run]()
        for load in TIMES if number % 2 == 0 else reversed(TIMES):
            pair[load] = run_load(load, TIMES[load] * arguments.changes, arguments.consumers)
            say(f"pair {number + 1}, {load}: {pair[load].rate:,.0f} changes/s")
        pairs.append(pair)
    ratios = {load: median([pair[load].rate / pair["small"].rate for pair in pairs]) for load in TIMES}
    rates = {load: median([pair[load].rate for pair in pairs]) for load in TIMES}
    print_table(
        f"Large transactions, consumers: {arguments.consumers}; medians of {arguments.pairs}, ratios within each pair",
        ("", "of small", "changes/s", "start-up s"),
        [
            (load, text(ratios[load], ".2f"), text(rates[load]), text(median([p[load].start_up for p in pairs]), ".2f"))
            for load in TIMES
        ],
    )
    results: dict[str, Any] = {"runs": [asdict(run) for pair in pairs for run in pair.values()], "of_small": ratios}
    output.write("large", results)


if __name__ == "__main__":
    command.main(benchmark)

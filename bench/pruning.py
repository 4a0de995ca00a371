"""What pruning costs the source's writers: pgbench with a log of a million published rows, with and without pruning.

    python bench/pruning.py
    python bench/pruning.py --clients 4 --seconds 5 --rounds 5

All rows that lie in the log at the start are older than RETENTION for one producer, none is for the other; they take
turns. In the end both tables are compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import command, output, systems, tables
from bench.capture import settle
from bench.figures import median, shown
from bench.loads import ALL_PUBLISHED
from bench.output import say
from bench.pgbench import Case, pgbench_program, transactions_per_second
from tests.pipeline import ROOT, Pipeline, query

FILL = """
INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action, changed_at)
SELECT n, 'First ' || n, 'Last ' || n, DATE '1970-01-01', 'City', n, 'INSERT', now() - INTERVAL '2 days'
FROM generate_series(1, %(rows)s) AS n
"""
OLD = "SELECT count(*) FROM emp_cdc WHERE changed_at < now() - INTERVAL '1 day'"
RETENTIONS = {"without": "1000 days", "pruning": "1 day"}


def rate(pipeline: Pipeline, program: str, case: Case, transactions: int, retention: str) -> float:
    """Transactions per second beside a producer with this RETENTION."""
    producer = pipeline.start("producer.py", RETENTION=retention)
    producer.wait_for("publishing from offset")
    systems.checkpoint()
    found = transactions_per_second(program, pipeline, case, transactions)
    settle("running", pipeline)
    systems.stop([producer])
    pipeline.scripts.remove(producer)
    return found


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the log at the start")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    program, case = pgbench_program(), Case("INSERT", True, arguments.clients)
    with systems.product("pruning") as pipeline:
        source = pipeline.source()
        query(source, FILL, {"rows": arguments.rows})
        query(source, ALL_PUBLISHED)  # a transaction of its own: its snapshot must show that of the rows
        query(source, "VACUUM ANALYZE emp_cdc")
        amount = int(arguments.seconds * transactions_per_second(program, pipeline, case, 0))
        rounds: list[dict[str, float]] = []
        pruned = []
        for number in range(arguments.rounds):
            found: dict[str, float] = {}
            for name in RETENTIONS if number % 2 == 0 else reversed(RETENTIONS):
                before = query(source, OLD)[0][0]
                found[name] = rate(pipeline, program, case, amount, RETENTIONS[name])
                if name == "pruning":
                    pruned.append(before - query(source, OLD)[0][0])
            rounds.append(found)
            say(
                f"round {number + 1}: {found['without']:,.0f}/s, pruning {found['pruning']:,.0f}/s, {pruned[-1]:,} rows"
            )
        pipeline.start("producer.py")
        pipeline.start("consumer.py")
        tables.wait_until_equal(pipeline, 120)
    medians = {name: median([found[name] for found in rounds]) for name in RETENTIONS}
    ratio = median([found["pruning"] / found["without"] for found in rounds])
    output.print_table(
        f"{case}, beside a log of {arguments.rows:,} rows: medians of {len(rounds)} rounds",
        ("without pruning /s", "with pruning /s", "ratio", "rows pruned in a run"),
        [(*(shown(medians[name]) for name in RETENTIONS), shown(ratio, ".2f"), shown(median(pruned)))],
    )
    output.write("pruning", {"rounds": rounds, "pruned": pruned, "medians": medians, "ratio": ratio})


if __name__ == "__main__":
    os.chdir(ROOT)
    command.main(benchmark)

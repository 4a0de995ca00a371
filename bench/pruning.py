"""What pruning costs the source's writers, beside a log of a million rows.

    python -m bench.pruning
    python -m bench.pruning --clients 4 --seconds 5 --rounds 5

All rows that are in the log at the start are older than RETENTION for one producer,
none is for the other. They take turns beside pgbench. In the end both tables are
compared.
"""

from __future__ import annotations

from bench import command, output, systems, tables
from bench.capture import wait_until_published
from bench.figures import median, median_pair, text
from bench.loads import ALL_PUBLISHED
from bench.output import say
from bench.pgbench import Case, program, transactions_per_second
from harness.database import query
from harness.pipeline import Pipeline

from psycopg2.extensions import connection as Connection

FILL = """
INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action, changed_at)
SELECT n, 'First ' || n, 'Last ' || n, DATE '1970-01-01', 'City', n, 'INSERT', now() - INTERVAL '2 days'
FROM generate_series(1, %(rows)s) AS n
"""
OLD = "SELECT count(*) FROM emp_cdc WHERE changed_at < now() - INTERVAL '1 day'"
RETENTIONS = {"without": "1000 days", "pruning": "1 day"}


def rate(pipeline: Pipeline, case: Case, transactions: int, retention: str) -> float:
    """Return the transactions per second beside a producer with this RETENTION."""
    producer = pipeline.start("producer.py", RETENTION=retention)
    producer.wait_for("publishing from log offset")
    systems.checkpoint()
    result = transactions_per_second(pipeline, case, transactions)
    wait_until_published(pipeline)
    systems.stop([producer])
    pipeline.scripts.remove(producer)
    return result


def fill_log(source: Connection, rows: int) -> None:
    query(source, FILL, {"rows": rows})
    query(source, ALL_PUBLISHED)  # a transaction of its own: its snapshot must show that of the rows
    query(source, "VACUUM ANALYZE emp_cdc")


def measure(pipeline: Pipeline, case: Case, seconds: float, rounds: int) -> tuple[list[dict[str, float]], list[int]]:
    """Return the rates of each round, and how many rows were pruned in it."""
    source = pipeline.source()
    transactions = int(seconds * transactions_per_second(pipeline, case, 0))
    results: list[dict[str, float]] = []
    pruned: list[int] = []
    for number in range(rounds):
        rates: dict[str, float] = {}
        for name in RETENTIONS if number % 2 == 0 else reversed(RETENTIONS):
            before = query(source, OLD)[0][0]
            rates[name] = rate(pipeline, case, transactions, RETENTIONS[name])
            if name == "pruning":
                pruned.append(before - query(source, OLD)[0][0])
        results.append(rates)
        say(f"round {number + 1}: {rates['without']:,.0f}/s, pruning {rates['pruning']:,.0f}/s, {pruned[-1]:,} rows")
    return results, pruned


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the log at the start")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    program()  # before all the work
    case = Case("INSERT", True, arguments.clients)
    with systems.our_pipeline("pruning") as pipeline:
        fill_log(pipeline.source(), arguments.rows)
        rounds, pruned = measure(pipeline, case, arguments.seconds, arguments.rounds)
        pipeline.start("producer.py")
        pipeline.start("consumer.py")
        tables.wait_until_equal(pipeline, 120)
    pruning, without = median_pair([(rates["pruning"], rates["without"]) for rates in rounds])
    output.print_table(
        f"{case}, beside a log of {arguments.rows:,} rows: the round with the median ratio of {len(rounds)}",
        ("ratio", "with pruning /s", "without pruning /s", "rows pruned in a run"),
        [(text(pruning / without, ".2f"), text(pruning), text(without), text(median(pruned)))],
    )
    figures = {"ratio": pruning / without, "pruning": pruning, "without": without}
    output.write("pruning", {"rounds": rounds, "pruned": pruned, "medians": figures})


if __name__ == "__main__":
    command.main(benchmark)

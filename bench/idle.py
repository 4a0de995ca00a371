"""What the pipeline costs when there is nothing to do: CPU and statements.

    python -m bench.idle
    python -m bench.idle --seconds 60

CPU is what the kernel counted for the threads of both scripts, in percent of one core.
Statements are the transactions that PostgreSQL counted in the pipeline's databases,
ours not included; every idle statement is one. The servers' CPU is that of the scripts'
own connections. Kafka is never idle: its share without producer and consumer is
measured first.
"""

from __future__ import annotations

import time
from typing import Any

from bench import command, cpu, output, systems, tables
from bench.figures import text
from bench.output import say
from harness.database import query
from harness.pipeline import Pipeline

from psycopg2.extensions import connection as Connection

SETTLING = 3  # seconds from the first change to the beginning of the count
# Flushed at once: otherwise our own statements would be counted at any time.
TRANSACTIONS = """
SELECT pg_stat_clear_snapshot(), pg_stat_force_next_flush(), pg_stat_get_db_xact_commit(oid)
    + pg_stat_get_db_xact_rollback(oid)
FROM pg_database WHERE datname = current_database()
"""
BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def transactions(connection: Connection) -> int:
    return int(query(connection, TRANSACTIONS)[0][2])


def backends_cpu(connection: Connection) -> float:
    return sum(cpu.fine_cpu(process) for (process,) in query(connection, BACKENDS))


def idle(pipeline: Pipeline, seconds: float) -> dict[str, Any]:
    """Watch an idle pipeline for so many seconds; return CPU in percent of a core."""
    kafka = cpu.kafka_process()
    kafka_alone = kafka_percent(kafka, seconds / 4)
    scripts = {name: pipeline.start(f"{name}.py") for name in ("consumer", "producer")}
    query(pipeline.source(), "INSERT INTO employees (city) VALUES ('the first change')")
    tables.wait_until_equal(pipeline, 60)
    for connection in pipeline.connections:  # a session's last transactions are counted when it ends
        connection.close()
    pipeline.connections.clear()
    databases = {"source": pipeline.source(), "destination": pipeline.destination()}

    def read() -> dict[str, float]:
        counts = {name: cpu.fine_cpu(script.process.pid) for name, script in scripts.items()}
        counts |= {f"{name} backend": backends_cpu(connection) for name, connection in databases.items()}
        counts |= {"kafka": cpu.cpu(kafka)} if kafka else {}
        counts |= {f"{name} transactions": transactions(connection) for name, connection in databases.items()}
        return counts

    read()
    time.sleep(SETTLING)
    before, began = read(), time.monotonic()
    time.sleep(seconds)
    after, lasted = read(), time.monotonic() - began
    tables.wait_until_equal(pipeline, 5)
    change = {name: (after[name] - before[name]) / lasted for name in after}
    percent = {name: 100 * change[name] for name in change if "transactions" not in name}
    own = 2  # statements of read() in each database
    return {
        "seconds": lasted,
        "cpu_percent": percent,
        "both_scripts_percent": percent["producer"] + percent["consumer"],
        "kafka_alone_percent": kafka_alone,
        "statements_per_second": {name: max(0.0, change[f"{name} transactions"] - own / lasted) for name in databases},
    }


def kafka_percent(kafka: int | None, seconds: float) -> float:
    if kafka is None:
        return float("nan")
    before = cpu.cpu(kafka)
    time.sleep(seconds)
    return 100 * (cpu.cpu(kafka) - before) / seconds


def report(figures: dict[str, Any]) -> None:
    percent, statements = figures["cpu_percent"], figures["statements_per_second"]
    rows = [
        ("producer", text(percent["producer"], ".2f"), text(statements["source"], ".1f")),
        ("consumer", text(percent["consumer"], ".2f"), text(statements["destination"], ".1f")),
        ("both scripts", text(figures["both_scripts_percent"], ".2f"), text(sum(statements.values()), ".1f")),
        ("source, the producer's connection", text(percent["source backend"], ".2f"), ""),
        ("destination, the consumer's connection", text(percent["destination backend"], ".2f"), ""),
        ("Kafka with them", text(percent.get("kafka"), ".1f"), ""),
        ("Kafka without them", text(figures["kafka_alone_percent"], ".1f"), ""),
    ]
    output.print_table(f"Nothing to do for {figures['seconds']:.0f} s", ("", "CPU, % of a core", "statements/s"), rows)


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 5.0
    with systems.our_pipeline("idle") as pipeline:
        say("watching an idle pipeline")
        figures = idle(pipeline, arguments.seconds)
    report(figures)
    output.write("idle", figures)


if __name__ == "__main__":
    command.main(benchmark)

"""Writers on the source: pgbench with one change per transaction."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.output import say
from cdc import cli
from harness.pipeline import Pipeline

from psycopg2.extensions import parse_dsn

ROWS = 100_000  # to be updated
STATEMENT_ROWS = 100_000
SCRIPTS = {
    "INSERT": """
INSERT INTO employees (first_name, last_name, dob, city, salary)
VALUES ('Ada', 'Lovelace', '1815-12-10', 'London', 1000);
""",
    "UPDATE": f"""
\\set id random(1, {ROWS})
UPDATE employees SET salary = salary + 1 WHERE emp_id = :id;
""",
}


@dataclass(frozen=True)
class Case:
    """One kind of writing."""

    change: str  # INSERT, UPDATE, or statement
    durable: bool
    clients: int

    def __str__(self) -> str:
        if self.change == "statement":
            return f"INSERT, {STATEMENT_ROWS:,} rows in one statement"
        return (
            f"{self.change}, {self.clients} client{'s' * (self.clients > 1)}{'' if self.durable else ', not durable'}"
        )


@functools.cache
def program() -> str:
    """Return where pgbench is, on PATH or where Debian puts it; exit if nowhere."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), key=lambda path: float(path.parts[-3]))
    path = shutil.which("pgbench") or (str(installed[-1]) if installed else "")
    if not path:
        say("skipped: pgbench is not here; it comes with PostgreSQL's server package (Debian: apt install postgresql)")
        sys.exit(cli.DONE)
    return path


def transactions_per_second(pipeline: Pipeline, case: Case, transactions: int) -> float:
    """Run pgbench for so many transactions, or with 0 for a second."""
    script = pipeline.logs / f"{case.change}.sql"
    script.write_text(SCRIPTS[case.change])
    parts = parse_dsn(pipeline.source_url)
    environment = {
        "PGHOST": parts.get("host", "localhost"),
        "PGPORT": parts.get("port", "5432"),
        "PGUSER": parts.get("user", ""),
        "PGPASSWORD": parts.get("password", ""),
        "PGDATABASE": pipeline.name,
        "PGOPTIONS": f"-c synchronous_commit={'on' if case.durable else 'off'}",
    }
    length = ["-t", str(max(1, transactions // case.clients))] if transactions else ["-T", "1"]
    result = subprocess.run(
        [program(), *f"-n -M prepared -c {case.clients} -j {min(case.clients, 2)}".split(), *length, "-f", str(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    rate = re.search(r"^tps = ([\d.]+)", result.stdout, re.MULTILINE)
    assert result.returncode == 0, f"pgbench: {result.stderr}"
    assert rate, f"pgbench: {result.stdout}"
    return float(rate[1])

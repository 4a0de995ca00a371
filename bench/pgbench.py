"""Writers on the source, by pgbench."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from psycopg2.extensions import parse_dsn

import cli
from bench.output import say
from tests.pipeline import Pipeline

ROWS = 100_000  # that are there to be updated
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
    change: str  # INSERT, UPDATE, or statement
    durable: bool
    clients: int

    def __str__(self) -> str:
        if self.change == "statement":
            return f"INSERT, {STATEMENT_ROWS:,} rows in one statement"
        return (
            f"{self.change}, {self.clients} client{'s' * (self.clients > 1)}{'' if self.durable else ', not durable'}"
        )


def pgbench_program() -> str:
    """Where pgbench is: on PATH, or where Debian puts it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), key=lambda path: float(path.parts[-3]))
    program = shutil.which("pgbench") or (str(found[-1]) if found else "")
    if not program:
        say("skipped: pgbench is not here; it comes with PostgreSQL's server package (Debian: apt install postgresql)")
        sys.exit(cli.DONE)
    return program


def transactions_per_second(program: str, pipeline: Pipeline, case: Case, transactions: int) -> float:
    """Run pgbench, so many transactions in all; with 0 for a second."""
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
        [program, *f"-n -M prepared -c {case.clients} -j {min(case.clients, 2)}".split(), *length, "-f", str(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^tps = ([\d.]+)", result.stdout, re.MULTILINE)
    assert result.returncode == 0, f"pgbench: {result.stderr}"
    assert found, f"pgbench: {result.stdout}"
    return float(found[1])

"""What a benchmark prints, and writes to bench/results/."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import config
from harness import ROOT
from harness.database import query

import psycopg2
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results"
console = Console(width=None if sys.stdout.isatty() else 130)


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write(name: str, results: Any) -> None:
    """Write bench/results/<name>.json: the results, and where they come from."""
    about: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cores": os.cpu_count()}
    about |= {"python": platform.python_version(), "load_average": os.getloadavg()}
    for database, url in (("source", config.SOURCE_DATABASE_URL), ("destination", config.DESTINATION_DATABASE_URL)):
        with closing(psycopg2.connect(url)) as connection:
            about[database] = query(connection, "SHOW server_version")[0][0]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    content = for_json({"about": about, name: results})
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"all figures in {file.relative_to(ROOT)}")


def for_json(value: Any) -> Any:
    """Return the value with null for NaN, which JSON lacks, and six digits a figure."""
    if isinstance(value, dict):
        return {key: for_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [for_json(part) for part in value]
    if isinstance(value, float):
        return None if value != value else float(f"{value:.6g}") if abs(value) < 1e9 else value
    return value

"""Is the set-up right? Python, the settings, both databases, Kafka: one line each, what to do where it is not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

from cdc import cli
from cdc.check.finding import NOTE, OK, WRONG, Finding
from cdc.check.servers import check_databases, check_kafka
from cdc.check.settings import check_python, check_settings
from cdc.kafka import Brokers
from cdc.text import escape
from cdc.waiting import waiter

from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table
from rich.text import Text

SLOW = 2.0  # seconds after which what is wrong is not kept for the end: the next server may be as slow
STATEMENT_WAIT = 3.0  # seconds for a statement that waits, as for a lock


def run(admin: AdminClient, brokers: Brokers, as_json: bool) -> int:
    """Print what was found; returns the exit code."""
    waiter.limit = STATEMENT_WAIT
    findings, started = [], time.monotonic()
    console = Console(highlight=False, markup=False, emoji=False)
    for finding in find(admin, brokers):
        findings.append(finding)
        if not as_json:
            show(finding, console)
        elif finding.state == WRONG and time.monotonic() - started > SLOW:
            print(escape(f"{finding.what}: {finding.text}"), file=sys.stderr)
    wrong = sum(finding.state == WRONG for finding in findings)
    if as_json:
        print(json.dumps({"right": not wrong, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        console.print(Text(summary(wrong), style="red" if wrong else "green"))
    return cli.FAILED if wrong else cli.DONE


def summary(wrong: int) -> str:
    return f"wrong: {wrong}; the lines above say what to do" if wrong else "the set-up is right"


def show(finding: Finding, console: Console) -> None:
    """Print a line; on a terminal its further lines are indented."""
    color = {OK: "green", NOTE: "yellow", WRONG: "red"}[finding.state]
    state, text = (
        Text(f"{finding.state:5}", style=color),
        Text(escape(f"{finding.what}: {finding.text}"), overflow="fold"),
    )
    if console.is_terminal:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(state, text)
        console.print(grid)
    else:
        console.print(state, text, soft_wrap=True)


def find(admin: AdminClient, brokers: Brokers) -> Iterator[Finding]:
    yield from check_python()
    yield from check_settings()
    yield from check_databases()
    yield from check_kafka(admin, brokers)

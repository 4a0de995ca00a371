"""`admin.py status`: one look at the pipeline, as a screen, as JSON, as one line for cron, or redrawn all the time."""

from __future__ import annotations

import argparse
import json
import logging
import math
from typing import Any

from cdc import cli
from cdc.status import watch
from cdc.status.alarms import ERROR, Alarm
from cdc.status.flow import Flow
from cdc.status.screen import render
from cdc.text import age, escape
from cdc.waiting import waiter

from confluent_kafka.admin import AdminClient
from rich.console import Console

STATEMENT_WAIT = 3.0  # seconds for a statement that waits, as for a lock; those that work may take longer


def add_options(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--watch", action="store_true", help="redraw it every second, with rates and courses")
    form.add_argument("--check", action="store_true", help="one line; exit 1 if something is to be done, for cron")
    text = "with --check: exit 1 if a change has waited for longer"
    parser.add_argument("--max-delay", type=seconds, metavar="SECONDS", help=text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def run(admin: AdminClient, arguments: argparse.Namespace) -> int:
    """Show the status; returns the exit code."""
    logging.disable(logging.WARNING)  # stdout is for the answer alone
    waiter.limit = STATEMENT_WAIT
    if arguments.max_delay is not None and not arguments.check:
        cli.fail("--max-delay goes with --check", cli.WRONG_USE)
    flow, console = Flow(admin), Console(highlight=False)
    if arguments.watch:
        return watch.run(flow, console)
    status = flow.check()
    if arguments.check:
        return check(status, arguments.max_delay)
    if arguments.json:
        print(json.dumps(status, indent=2))
    else:
        console.print(render(status, console.width))
    failed = any("error" in status[stage] for stage in ("source", "kafka", "destination"))
    return cli.FAILED if failed else cli.DONE


def check(status: dict[str, Any], max_delay: float | None) -> int:
    """Print one line; returns 1 if something is to be done, or a change has waited for longer than max_delay."""
    reasons = [str(Alarm(**alarm)) for alarm in status["alarms"] if alarm["level"] == ERROR]
    oldest = status["oldest_change_seconds"]
    if max_delay is not None and oldest is not None and oldest > max_delay:
        reasons.append(f"the oldest change that has not arrived was made {age(oldest)} ago")
    if max_delay is not None and oldest is None and not reasons:
        reasons.append("nobody knows the delay: this user has no right to read the topic")
    if reasons:
        print(escape(f"FAILED: {'; '.join(reasons)}"))
        return cli.FAILED
    delay = "" if oldest is None else f", the oldest change on its way was made {age(oldest)} ago" if oldest else ""
    why = "in sync" if status["in_sync"] else ", ".join(status["not_in_sync_because"])
    warnings = "".join(f"; warning: {Alarm(**alarm)}" for alarm in status["alarms"])
    print(escape(f"OK: {why}{delay}{warnings}"))
    return cli.DONE

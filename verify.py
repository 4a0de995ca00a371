"""Compare the employees of source and destination while both are in use; with --repair send again those that differ.

    python verify.py             which employees differ
    python verify.py --json      the same as JSON
    python verify.py --repair    send them again through the pipeline, wait until they have arrived, compare them again

A change that is still on its way is no difference: verify.py looks again until it has been applied. Exit code 0 equal,
1 different, 2 wrong use, 3 could not compare.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from contextlib import closing
from typing import Any

import config
from cdc import cli, schema, verified
from cdc.bar import progress
from cdc.comparison import Comparison, Side
from cdc.postgres import connect_within
from cdc.text import counted, escape
from employee import EMPLOYEE_COLUMNS

from rich.console import Console
from rich.table import Table
from rich.text import Text

CONNECT_WAIT = 10.0  # seconds for a server to answer
COULD_NOT_COMPARE = 3  # exit code


def to_json(comparison: Comparison, seconds: float) -> str:
    differences = [
        {
            "emp_id": suspect.emp_id,
            "source": to_columns(suspect.source),
            "destination": to_columns(suspect.destination),
            "on_its_way": suspect.awaited > 0,
        }
        for suspect in comparison.differences
    ]
    result = {
        "equal": comparison.equal(),
        "rows": comparison.rows,
        "different": comparison.different,
        "on_their_way": comparison.on_their_way,
        "repaired": comparison.repaired,
        "source_went_back_in_time": comparison.back_in_time,
        "not_captured": comparison.not_captured,
        "differences": differences,
        "seconds": round(seconds, 1),
    }
    return json.dumps(result, indent=2, ensure_ascii=False)


def to_columns(row: str) -> dict[str, Any] | None:
    values = json.loads(row)
    return values and dict(zip(EMPLOYEE_COLUMNS, values, strict=True))


def print_result(comparison: Comparison, seconds: float, console: Console) -> None:
    if comparison.differences:
        table = Table("emp_id", "source", "destination", title="employees that differ", title_justify="left")
        for suspect in comparison.differences:
            here, there = to_columns(suspect.source), to_columns(suspect.destination)
            table.add_row(str(suspect.emp_id), in_words(here, there), in_words(there, here))
        console.print(table)
    if unlisted := comparison.different - len(comparison.differences):
        console.print(f"and {unlisted:,} more")
    if comparison.on_their_way:
        console.print(f"{comparison.on_their_way:,} of them wait for a change {advice(comparison)}", soft_wrap=True)
    if comparison.repaired:
        console.print(f"{counted(comparison.repaired, 'employee')} repaired")
    verdict = f"DIFFERENT: {counted(comparison.different, 'employee')}" if comparison.different else "EQUAL"
    console.print(f"{verdict}; {counted(comparison.rows, 'row')} compared in {seconds:.1f} s")


def in_words(row: dict[str, Any] | None, other: dict[str, Any] | None) -> Text:
    """Return the columns of a row that differ from the other row, all of them if there is no other."""
    if row is None:
        return Text("no such row")
    return Text(
        ", ".join(
            f"{name} {'NULL' if value is None else escape(json.dumps(value, ensure_ascii=False))}"
            for name, value in row.items()
            if name != "emp_id" and (other is None or value != other[name])
        )
    )


def advice(comparison: Comparison) -> str:
    """Return which script seems not to be running, judged by how far the changes have come."""
    if comparison.unpublished:
        return "that is not published; is producer.py running?"
    return (
        "that is published but not applied; is consumer.py running? If so it is a dead letter (python admin.py "
        "dead-letters), or a backup of the destination was restored (python verify.py --repair)"
    )


def number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number: give 0 or more")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__, verbose="log each employee that is sent again")
    parser.add_argument("--repair", action="store_true", help="send again what differs")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument("--limit", type=number, default=20, help="how many differences to show; default 20")
    parser.add_argument(
        "--wait",
        type=number,
        default=30,
        help="seconds without any progress until the pipeline counts as standing still; default 30",
    )
    return parser.parse_args()


def compare(arguments: argparse.Namespace, stop: cli.Stop) -> Comparison:
    """Compare the tables. Exits with one line if that cannot be done."""
    with (
        closing(connect_within("source", config.SOURCE_DATABASE_URL, CONNECT_WAIT, stop)) as source,
        closing(connect_within("destination", config.DESTINATION_DATABASE_URL, CONNECT_WAIT, stop)) as destination,
    ):
        sides = (
            Side("source", config.SOURCE_DATABASE_URL, source),
            Side("destination", config.DESTINATION_DATABASE_URL, destination),
        )
        for side in sides:
            schema.check_or_exit(side.connection, side.name)
        comparison = Comparison(sides, arguments.repair, arguments.wait, arguments.limit)
        comparison.check_capture()
        with progress(comparison.count_rows(), "rows") as advance:
            comparison.run(advance, stop)
        if comparison.equal() and not stop.requested and (reason := verified.save(destination, comparison.rows)):
            print(f"destination: {reason}; status will not show this comparison", file=sys.stderr)
    if stop.requested:
        raise cli.Stopped
    return comparison


def compare_or_exit(arguments: argparse.Namespace, stop: cli.Stop) -> Comparison:
    """Compare the tables. If that cannot be done, exit with COULD_NOT_COMPARE, with --json after the reason as JSON."""
    try:
        try:
            return compare(arguments, stop)
        except cli.Stopped:
            cli.fail("stopped before all was compared")
    except cli.Failure as failure:
        if arguments.json:
            print(json.dumps({"error": failure.message}, indent=2))
        sys.exit(COULD_NOT_COMPARE if failure.code == cli.FAILED else failure.code)


@cli.script
def main() -> None:
    arguments = parse_arguments()
    cli.start_logging(arguments.verbose)
    if arguments.json:
        logging.disable(logging.WARNING)  # stdout is for the JSON alone
    stop = cli.stop_on_signals()
    started = time.monotonic()
    comparison = compare_or_exit(arguments, stop)
    seconds = time.monotonic() - started
    if arguments.json:
        print(to_json(comparison, seconds))
    else:
        print_result(comparison, seconds, Console(highlight=False))
    sys.exit(cli.DONE if comparison.equal() else cli.FAILED)


if __name__ == "__main__":
    main()

"""See the plain design lose rows beside ours: the same source, the same writers, at most a minute.

    python -m lose
    python -m lose --seconds 10

The plain design, that of most tutorials, polls WHERE cdc_id > offset, and applies one message, one statement and one
commit at a time. Both run on the servers that are there, with databases and topics of their own, which are removed in
the end. On a terminal keys make it worse. Exits 0 when all rows have arrived at our side, else 1.
"""

from __future__ import annotations

import argparse
import sys
import time

from bench import command
from cdc import cli
from lose.experiment import Experiment, experiment
from lose.faults import Faults
from lose.reasons import explain
from lose.show import Lines, print_lost, view

from rich.console import Console

WRITERS = 6
SECONDS = 30  # of writing
LIMIT = 60.0  # seconds for everything
CLOSING = 20.0  # seconds of them for what is on its way, and for the removal
SHORTEST = 3.0  # seconds of writing, however long the set-up took
EVERY = 0.2  # seconds between two looks


def run(made: Experiment, shown: Lines, began: float, seconds: float) -> None:
    """Write for some seconds, then wait until both sides have got what they will ever get."""
    faults = Faults(made)
    try:
        for _ in range(WRITERS):
            made.writers.add()
        now = time.monotonic()
        write(made, faults, shown, min(now + seconds, max(now + SHORTEST, began + LIMIT - CLOSING)))
    finally:
        for line in faults.mend():
            shown.event(line)
        shown.update(made, list(made.writers.rows), 0.0)
        faults.wait_for_kafka()
        made.writers.end()
    drain(made, shown, began + LIMIT - 4)


def write(made: Experiment, faults: Faults, shown: Lines, end: float) -> None:
    while (left := end - time.monotonic()) > 0:
        for key in shown.pressed():
            if key == "q":
                return
            if line := faults.press(key):
                shown.event(line)
        shown.update(made, made.look(), left)
        time.sleep(EVERY)


def drain(made: Experiment, shown: Lines, end: float) -> None:
    """Return when ours has everything, and the plain design all but what its polls have passed; or at the end."""
    shown.event("the writers have ended; what is on its way arrives")
    rows = made.look()
    while time.monotonic() < end and (made.ours.missing(rows) or not made.passed(made.plain.missing(rows))):
        shown.update(made, rows, 0.0)
        time.sleep(EVERY)
        rows = made.look()
    made.plain.drained = made.ours.drained = True
    shown.update(made, rows, 0.0)


def verdict(console: Console, made: Experiment, most: int) -> bool:
    """Print the lost rows and who lost them; returns whether ours lost none."""
    plain, ours = explain(made, made.plain), explain(made, made.ours)
    print_lost(console, plain, most)
    print_lost(console, ours, most)
    written = len(made.writers.rows)
    console.print(f"{written:,} rows written. The plain design lost {len(plain):,}, Employee CDC lost {len(ours):,}.")
    if not plain:
        console.print("This time no poll of the plain design fell between a drawing and its commit. Run it again.")
    return not ours


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.prog = "python -m lose"
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of writing, default {SECONDS}, at most 40")
    return parser.parse_args()


def lose() -> None:
    arguments, began = parse_arguments(), time.monotonic()
    console = Console(highlight=False)
    console.print("setting up both designs on one source, and starting their scripts")
    with experiment() as made:
        with view(console) as shown:
            run(made, shown, began, arguments.seconds)
        held = verdict(console, made, shown.most_lost)
    sys.exit(cli.DONE if held else cli.FAILED)


if __name__ == "__main__":
    command.main(lose)

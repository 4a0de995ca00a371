"""Prove what the pipeline promises: go through every interleaving of models that are tied to the code.

    python -m proofs            a minute; what `make prove` runs
    python -m proofs --deep     with larger bounds: half an hour, and 8 GB of memory

Exit code 0: every promise holds in every state, and each wrong protocol is caught. 1: not so. What needs a server or a
program that is not there is left out, and named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection
from contextlib import closing
from functools import partial

import config
from cdc import cli
from proofs import asleep, reading, statement
from proofs.explore import Explored, explore
from proofs.story import tell
from proofs.wrong import WRONG

import psycopg2


def heading(text: str) -> None:
    print(f"\n{text}\n{'═' * len(text)}\n", flush=True)


def progress(count: int) -> None:
    """On a terminal; elsewhere the lines come at least every few seconds."""
    if sys.stdout.isatty():
        print(f"\r{count:,} states …", end="", flush=True)


def describe(found: Explored[reading.State], began: float) -> str:
    verdict = f"BROKEN: {found.wrong}" if found.wrong else "every promise holds"
    return f"{len(found.states):>9,} states, {found.steps:>10,} steps, {time.monotonic() - began:3.0f} s: {verdict}"


def prove_reading(deep: bool) -> bool:
    heading("Reading the log: every interleaving of writers, polls, saves and crashes, in runs of any length")
    right = True
    for bounds in (*reading.QUICK, *reading.LONGER, *(reading.DEEP if deep else ())):
        began = time.monotonic()
        found = explore(reading.START, partial(reading.steps, protocol=reading.OURS, bounds=bounds), progress)
        print(f"\r{bounds!s:<66}{describe(found, began)}", flush=True)
        for step in found.way:
            print(f"    {step.event}")
        right = right and not found.wrong and ask_postgres(found.states, bounds)
    return right


def ask_postgres(states: Collection[reading.State], bounds: reading.Bounds) -> bool:
    """Whether the product's statements find on a server, at each poll of the model, what the model finds."""
    try:
        source = psycopg2.connect(config.SOURCE_DATABASE_URL, connect_timeout=5)
    except psycopg2.OperationalError:
        print("    left out: its polls by the product's own statements, as no PostgreSQL answers (make up)")
        return True
    with closing(source):
        polls, different = statement.compare(source, states, bounds)
    print(f"    PostgreSQL answers {polls - len(different):,} of its {polls:,} polls as the model does")
    for line in different[:5]:
        print(f"    {line}")
    return not different


def tell_wrong() -> bool:
    heading("What each clause is for: protocols that look right, and the shortest way to break each")
    right = True
    for wrong in WRONG:
        found = wrong.explore()
        print("\n".join(tell(wrong, found.way)) if found.way else f"NOT CAUGHT: {wrong.name}", "\n", flush=True)
        right = right and bool(found.way)
    return right


def prove_asleep() -> bool:
    heading("Falling asleep: no change is missed, whenever writers look, commit and notify")
    if missing := asleep.missing():
        print(f"left out, as there is no {missing} (Debian's packages spin and gcc)")
        return True
    checked = asleep.check()
    print(f"{checked.states:,} states: {'every promise holds' if checked.holds else 'BROKEN'}\n", flush=True)
    right = checked.holds
    for variant in asleep.WRONG:
        wrong = asleep.check(variant)
        print("\n".join(asleep.tell(variant, wrong)), "\n", flush=True)
        right = right and not wrong.holds
    return right


@cli.script
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m proofs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deep", action="store_true", help="with larger bounds")
    deep = parser.parse_args().deep
    if not all([prove_reading(deep), tell_wrong(), prove_asleep()]):
        cli.fail("a promise is broken, or a wrong protocol is not caught: see above")


if __name__ == "__main__":
    main()

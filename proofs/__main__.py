"""Prove what the pipeline promises: go through every interleaving of models that are tied to the code.

    python -m proofs            a minute or two; what `make prove` runs
    python -m proofs --deep     with larger bounds: five minutes, and half a GB of memory

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
from proofs import asleep, gate, gate_story, reading, statement
from proofs.explore import explore
from proofs.protocol import OURS, State
from proofs.story import tell
from proofs.wrong import WRONG

import psycopg2

EVERY = 3.0  # seconds


def heading(text: str) -> None:
    print(f"\n{text}\n{'═' * len(text)}\n", flush=True)


class Progress:
    """Says every few seconds how far an exploration is."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        if time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            print(f"    {count:,} states so far", end="\r" if sys.stdout.isatty() else "\n", flush=True)

    def result(self, bounds: object, states: int, steps: int, wrong: str) -> None:
        took = time.monotonic() - self.began
        verdict = f"BROKEN: {wrong}" if wrong else "every promise holds"
        print(f"{bounds!s:<60}{states:>9,} states, {steps:>10,} steps, {took:3.0f} s: {verdict}", flush=True)


def prove_reading(deep: bool) -> bool:
    heading("Reading the log: every interleaving of writers, polls, saves and crashes, in runs of any length")
    right = True
    for bounds in (*reading.QUICK, *reading.LONGER, *(reading.DEEP if deep else ())):
        progress = Progress()
        found = explore(reading.START, partial(reading.steps, protocol=OURS, bounds=bounds), progress)
        progress.result(bounds, len(found.states), found.steps, found.wrong)
        for step in found.way:
            print(f"    {step.event}")
        right = right and not found.wrong and ask_postgres(found.states, bounds)
    return right


def ask_postgres(states: Collection[State], bounds: reading.Bounds) -> bool:
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


def prove_gate() -> bool:
    heading("The gate: two consumers apply the same changes, statement by statement, and crash anywhere")
    right = True
    for bounds in (*gate.QUICK, *gate.LONGER):
        progress, states, count, wrong = Progress(), 0, 0, ""
        for case in bounds.cases():
            found = explore(case.start, partial(gate.steps, case=case))
            states, count = states + len(found.states), count + found.steps
            wrong = wrong or (found.wrong and f"{found.wrong}: {case}")
            progress(states)
        progress.result(bounds, states, count, wrong)
        right = right and not wrong
    print()
    for way in gate_story.WRONG:
        broken = way.explore()
        print(
            "\n".join(gate_story.tell(way, broken.way)) if broken.way else f"NOT CAUGHT: {way.name}", "\n", flush=True
        )
        right = right and bool(broken.way)
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
    if not all([prove_reading(deep), tell_wrong(), prove_asleep(), prove_gate()]):
        cli.fail("a promise is broken, or a wrong protocol is not caught: see above")


if __name__ == "__main__":
    main()

"""Let spin go through asleep.pml, the model of falling asleep: docs/design.md, "Waking up at once"."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proofs.story import WIDTHS, at, timeline

MODEL = Path(__file__).with_name("asleep.pml")
NEEDED = ("spin", "gcc")
# What each leaves out of the protocol.
WRONG = {
    "NO_SECOND_POLL": "The producer does not poll once more after it has got the lock",
    "UNLOCK_BEFORE_COMMIT": "A writer gives its share of the lock back before it commits",
    "NOTIFY_BEFORE_COMMIT": "A writer notifies when it finds the producer asleep, not when it commits",
    "FORGET_AFTER_POLL": "The producer forgets notifications after its poll, not before it",
}
COLUMNS = ("producer", "writer 1", "writer 2")


@dataclass(frozen=True)
class Checked:
    """What spin says."""

    states: int
    holds: bool  # what is committed is published in the end, with every process going on when it can
    unreached: list[str]  # what no run does, but for the ends of processes that have none
    story: list[tuple[str, str]]  # the shortest run to a change that waits for ever: who, and what


def missing() -> str:
    return " and ".join(name for name in NEEDED if not shutil.which(name))


def check(variant: str = "") -> Checked:
    """Go through all of the model, or of a variant that leaves something out."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MODEL, folder)
        define = [f"-D{variant}"] if variant else []
        run(folder, "spin", *define, "-a", MODEL.name)
        fair = verify(folder, ["-DNFAIR=3"], ["-a", "-f", "-m1000000"])
        (Path(folder) / f"{MODEL.name}.trail").unlink(missing_ok=True)
        shortest = verify(folder, ["-DBFS", "-DSAFETY", "-DNOCLAIM"], [])
        story = run(folder, "spin", *define, "-t", "-T", MODEL.name) if number("errors: (\\d+)", shortest) else ""
    unreached = re.findall(rf'{MODEL.name}:(\d+), state \d+, "(?!-end-)', fair.split("unreached in claim")[0])
    return Checked(
        number("(\\d+) states, stored", fair),
        holds=not number("errors: (\\d+)", fair) + number("errors: (\\d+)", shortest),
        unreached=unreached,
        story=re.findall(r"^\s*(producer|writer \d): (.*)$", story, re.MULTILINE),
    )


def verify(folder: str, defines: list[str], options: list[str]) -> str:
    run(folder, "gcc", "-w", *defines, "-o", "pan", "pan.c")
    return run(folder, "./pan", *options)


def run(folder: str, *command: str) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return result.stdout


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def tell(variant: str, checked: Checked) -> Iterator[str]:
    """Yield the lines of the story of a variant."""
    yield from (WRONG[variant], "")
    steps = [
        at(COLUMNS.index(who), textwrap.wrap(what, WIDTHS[COLUMNS.index(who)])) for who, what in numbered(checked.story)
    ]
    yield from timeline(COLUMNS, steps)
    yield from ("", "    → a change is committed, the producer sleeps, and nobody wakes it")


def numbered(story: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Number the writers in the order in which they appear."""
    names: dict[str, str] = {"producer": "producer"}
    for who, what in story:
        yield names.setdefault(who, f"writer {len(names)}"), what

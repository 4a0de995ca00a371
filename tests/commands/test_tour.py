"""docs/tour.md: what its commands print is what it shows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.tour import TOUR, alike, commands, take

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("psql"), reason="the tour is made with psql, which is not here")


def check(document: str, folder: Path) -> None:
    different = [
        f"line {command.line}: {command.typed}\n  shown   {alike(command.output)}\n  printed {alike(printed)}"
        for command, printed in take(document, f"cdc_tour_{os.getpid()}", folder)
        if alike(command.output) != alike(printed)
    ]
    assert not different, "look at it, and if it is right: make tour\n" + "\n".join(different)


@pytest.mark.long
def test_each_step_of_the_tour_prints_what_the_tour_shows(stack: None, tmp_path: Path) -> None:
    steps, _, exercises = TOUR.read_text(encoding="utf-8").partition("## Exercises")
    assert exercises
    check(steps, tmp_path)


@pytest.mark.long
def test_each_solution_prints_what_the_tour_shows(stack: None, tmp_path: Path) -> None:
    check(TOUR.read_text(encoding="utf-8"), tmp_path)


def test_the_comparison_takes_no_offset_for_another_and_no_time_for_a_difference() -> None:
    shown = ["2026-11-26 10:00:00+00:00 INFO    UPDATE employee 2 → published, log offset 6", "----+---"]
    assert alike(shown) == alike(
        ["2026-12-27 11:11:11-05:30 INFO    UPDATE employee 2 → published, log offset 6", "", "------+-----"]
    )
    assert alike(shown) != alike(
        ["2026-11-26 10:00:00+00:00 INFO    UPDATE employee 2 → published, log offset 7", "----+---"]
    )
    assert alike(shown) != alike(shown[1:])
    assert len(commands(TOUR.read_text(encoding="utf-8"))) > 80

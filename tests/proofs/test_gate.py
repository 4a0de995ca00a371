"""Every interleaving of two consumers that apply the same changes, and of ways to do so that look right."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

from harness import ROOT
from proofs.explore import Explored, explore
from proofs.gate import QUICK, Bounds, Case, State, steps
from proofs.gate_story import WRONG, Wrong, tell

import pytest

ALL = {
    "take",
    "look up",
    "key",
    "insert",
    "taken",
    "register",
    "compare",
    "upsert",
    "delete",
    "stale",
    "commit",
    "crash",
}


@cache
def explored(case: Case) -> Explored[State]:
    return explore(case.start, partial(steps, case=case))


@pytest.mark.parametrize("bounds", QUICK, ids=str)
def test_no_interleaving_of_two_consumers_goes_backwards_or_ends_different(bounds: Bounds) -> None:
    cases = list(bounds.cases())
    for case in cases:
        assert explored(case).wrong == "", (case, [step.event for step in explored(case).way])
        assert any(state.applied == bounds.changes for state in explored(case).states)
    states = sum(len(explored(case).states) for case in cases)
    assert f"| {bounds} | {states:,} |" in (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_each_statement_is_met_in_the_model() -> None:
    case = replace(WRONG[0].case, own_snapshot=True)
    assert {step.event[0] for state in explored(case).states for step in steps(state, case)} > ALL


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_way_to_apply_changes_that_looks_right_is_broken(wrong: Wrong) -> None:
    found = explored(wrong.case)
    assert found.wrong
    assert found.wrong in "\n".join(tell(wrong, found.way))


def test_without_its_own_snapshot_the_delete_is_lost() -> None:
    lines = [" ".join(line.split()) for line in tell(WRONG[0], explored(WRONG[0].case).way)]
    waited = lines.index("UPDATE cdc_applied waits …")
    assert [line.split(" ", 1)[1] for line in lines[waited + 1 : waited + 5]] == [
        "COMMIT gate 3, the row of change 3",
        "UPDATE cdc_applied: passes, 4",
        "DELETE FROM employees: no row",
        "COMMIT gate 4, the row of change 3",
    ]
    assert explored(replace(WRONG[0].case, own_snapshot=True)).wrong == ""

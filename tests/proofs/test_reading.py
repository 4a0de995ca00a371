"""Every interleaving of the reading protocol, and of protocols that look right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache, partial

import config
from harness import ROOT
from proofs import reading, statement
from proofs.explore import Explored, explore
from proofs.protocol import OURS, State
from proofs.reading import QUICK, Bounds
from proofs.story import tell
from proofs.wrong import SMALL, WRONG, Wrong

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

FEW = Bounds(transactions=2)  # states


@cache
def explored(bounds: Bounds) -> Explored[State]:
    return explore(reading.START, partial(reading.steps, protocol=OURS, bounds=bounds))


@pytest.fixture(scope="module")
def server(stack: None) -> Iterator[Connection]:
    """A session that only computes: no table is touched."""
    with closing(psycopg2.connect(config.SOURCE_DATABASE_URL)) as connection:
        yield connection


@pytest.mark.parametrize("bounds", QUICK, ids=str)
def test_no_interleaving_loses_or_reorders_a_change_and_our_statements_find_what_the_model_finds(
    server: Connection, bounds: Bounds
) -> None:
    found = explored(bounds)
    assert found.wrong == "", [step.event for step in found.way]
    assert any(state.too_many_late for state in found.states)
    assert any(state.position != state.saved for state in found.states)
    polls, different = statement.compare(server, found.states, bounds)
    assert polls > 500
    assert different == []
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert f"| {bounds} | {len(found.states):,} |" in design


def drain(state: State) -> State:
    """A producer that crashes and starts again, and polls until it finds nothing, while nobody writes."""
    state = reading.crashed(state)
    for _ in range(20):
        if state.page is not None and not state.page.ids:
            return state
        state = next(reading.producer_steps(state, OURS, FEW)).state
    raise AssertionError(f"it never finds nothing: {state}")


def test_in_whatever_state_it_crashes_all_that_is_committed_is_published_in_the_end() -> None:
    for state in explored(FEW).states:
        drained = drain(state)
        assert all(drained.log[cdc_id - 1].published for cdc_id, _ in drained.poll().rows), state


def test_readme_names_how_many_states_make_test_goes_through() -> None:
    design, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/design.md", "README.md"))
    counts = [re.search(rf"\| {re.escape(str(bounds))} \| ([\d,]+) \|", design) for bounds in QUICK]
    states = sum(int(count[1].replace(",", "")) for count in counts if count)
    assert f"{states:,} states" in readme


def test_what_is_forgotten_would_break_no_promise() -> None:
    assert explored(SMALL).wrong == ""


@pytest.mark.parametrize(
    ("clause", "instead"),
    [
        pytest.param("txid = ANY (", "false AND txid = ANY (", id="those of the xip"),
        pytest.param("txid >= pg_snapshot_xmax($2)", "false", id="those from xmax on"),
        pytest.param("cdc_id + 0 <= $1", "true", id="at or below the offset"),
        pytest.param("cdc_id > $1", "cdc_id >= $1", id="beyond the offset"),
        pytest.param("LIMIT $3 + 1", "LIMIT $3", id="one late row more than a page"),
        pytest.param("> $1 ORDER BY cdc_id LIMIT", "> $1 ORDER BY cdc_id DESC LIMIT", id="the first beyond it"),
    ],
)
def test_a_change_of_any_clause_of_our_statement_is_noticed(
    server: Connection, monkeypatch: pytest.MonkeyPatch, clause: str, instead: str
) -> None:
    assert statement.compare(server, explored(FEW).states, FEW)[1] == []
    assert clause in statement.POLL
    monkeypatch.setattr(statement, "POLL", statement.POLL.replace(clause, instead))
    assert statement.compare(server, explored(FEW).states, FEW)[1]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_protocol_that_looks_right_is_broken_by_two_sessions(wrong: Wrong) -> None:
    found = wrong.explore()
    assert found.wrong
    assert max(len(step.state.transactions) for step in found.way) <= 2
    lines = list(tell(wrong, found.way))
    assert found.wrong in "\n".join(lines)
    assert max(map(len, lines)) <= 120
    forgetting = partial(reading.steps, protocol=wrong.protocol, bounds=replace(wrong.bounds, forget=True))
    assert explore(reading.START, forgetting).wrong == found.wrong


def test_the_story_in_the_design_is_one_of_them() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    lines = list(tell(WRONG[2], WRONG[2].explore().way))
    assert "\n".join(f"    {line}" if line else "" for line in lines) in design

"""A bound that no noise trips but a blunder would; bench/ measures for real."""

from __future__ import annotations

from bench.catch_up import run_ours, run_plain

import pytest

pytestmark = pytest.mark.alone


def test_a_backlog_is_carried_ten_times_as_fast_as_by_the_plain_design(stack: None) -> None:
    (plain,) = run_plain("mixed", 5)
    (ours,) = run_ours("mixed", 100, [1])
    print(f"{ours.rate:,.0f} changes/s, {plain.rate:,.0f} by the plain design: {ours.rate / plain.rate:.0f} times")
    assert ours.rate > 10 * plain.rate

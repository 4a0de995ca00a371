"""The model of falling asleep, gone through by spin."""

from __future__ import annotations

from proofs import asleep

import pytest

pytestmark = pytest.mark.skipif(bool(asleep.missing()), reason=f"needs {asleep.missing()}")


def test_no_change_falls_between_while_the_producer_falls_asleep() -> None:
    checked = asleep.check()
    assert checked.holds, checked.story
    assert checked.states > 100_000
    assert checked.unreached == []


@pytest.mark.parametrize("variant", asleep.WRONG)
def test_a_change_is_missed_where_a_step_is_left_out(variant: str) -> None:
    checked = asleep.check(variant)
    assert not checked.holds
    story = "\n".join(asleep.tell(variant, checked))
    assert "commits" in story
    assert story.rindex("sleeps") > story.index("commits")

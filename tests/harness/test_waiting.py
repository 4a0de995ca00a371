"""What the tests wait by."""

from __future__ import annotations

import threading
import time

from harness.waiting import at_once

import pytest


def test_a_call_that_hangs_does_not_keep_a_failed_test_from_its_end() -> None:
    started, never = time.monotonic(), threading.Event()

    def fail() -> None:
        raise AssertionError("the one that fails")

    with pytest.raises(AssertionError, match="the one that fails"):
        at_once(fail, lambda: never.wait(10))
    assert time.monotonic() - started < 5

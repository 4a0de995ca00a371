"""Wait for what must come true soon, and do at once what need not wait for something else."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from typing import Any


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str | Callable[[], str] = "") -> Any:
    """Return the condition's first true value; fails the test if there is none within so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what() if callable(what) else what or condition}")
        time.sleep(0.01)
    return value


def at_once(*calls: Callable[[], object]) -> None:
    """Make all calls at the same time, and return when all are done; what one of them raises is raised here.

    A call that hangs is left to itself when the test's time is up: a ThreadPoolExecutor would wait for it.
    """
    with ThreadPool(len(calls)) as pool:
        for result in [pool.apply_async(call) for call in calls]:
            result.get()

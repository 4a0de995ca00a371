"""The seed of a run's random tests, from the clock."""

from __future__ import annotations

import os
import time

# The workers of a run must all collect the same tests: they inherit the first one's seed.
CLOCK_SEED = int(os.environ.setdefault("TESTS_SEED", str(time.time_ns() // 1_000_000)))

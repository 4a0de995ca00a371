"""Three quarters of a minute of tests/chaos/; `make faults` runs longer, with all kinds of faults."""

from __future__ import annotations

import subprocess
import sys

from harness import ROOT

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.own_servers]

# A busy machine may be slow; the 10 s are for `make chaos`.
ARGUMENTS = ["--seconds", "45", "--limit", "30", "--port-offset", "2100", "--replay"]


def test_nothing_is_lost_whatever_fails_and_the_model_reads_the_same_pages() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *ARGUMENTS], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    print(result.stdout + result.stderr)
    assert result.returncode == 0
    assert "pages replayed through the model" in result.stdout

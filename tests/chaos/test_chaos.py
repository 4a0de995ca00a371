"""A minute of tests/chaos/; `make chaos` runs longer ones."""

from __future__ import annotations

import subprocess
import sys

from harness import ROOT

import pytest

pytestmark = pytest.mark.alone

ARGUMENTS = ["--seconds", "60", "--port-offset", "2100"]
# A busy machine may be slow; the 10 s are for `make chaos`.
ARGUMENTS += ["--limit", "30"]


def chaos(*options: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *ARGUMENTS, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(result.stdout + result.stderr)
    assert result.returncode == 0
    return result.stdout


def test_nothing_is_lost_and_nothing_goes_backwards_whatever_fails() -> None:
    chaos()


@pytest.mark.long
def test_whatever_fails_the_model_reads_the_same_pages() -> None:
    assert "pages replayed through the model" in chaos("--replay")

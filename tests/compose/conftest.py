"""Only for `make test-compose`: these tests start and kill containers on the ports of docker-compose.yml."""

from __future__ import annotations

import shutil
import subprocess

import pytest


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine; without one these tests are skipped."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker here")
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode != 0:
        pytest.skip(f"no Docker engine answers: {(answer.stderr.strip().splitlines() or ['docker info failed'])[-1]}")

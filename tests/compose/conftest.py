"""Only for `make test-compose`: these tests start and kill containers on the ports of docker-compose.yml."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine; without one, or without being asked for, these tests are skipped."""
    if os.environ.get("TEST_COMPOSE") != "1":
        pytest.skip("takes the ports of docker-compose.yml; run make test-compose")
    if shutil.which("docker") is None:
        pytest.skip("there is no docker here")
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode != 0:
        pytest.skip(f"no Docker engine answers: {(answer.stderr.strip().splitlines() or ['docker info failed'])[-1]}")

"""The two compose files on a real Docker engine, under a project of their own, and this repository's scripts beside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config
from harness import ROOT
from harness.database import ROWS, query
from harness.script import Script, launch
from harness.waiting import wait_until

import psycopg2
from psycopg2.extensions import connection as Connection

PROJECT = "cdc_test"
PATIENCE = 180  # seconds for servers to come up, on a slow machine that is busy otherwise


def docker(*arguments: str, seconds: float = 120) -> str:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    assert result.returncode == 0, f"docker {' '.join(arguments)}: {result.stderr}"
    return result.stdout


@dataclass(frozen=True)
class Compose:
    file: str

    def run(self, *arguments: str, seconds: float = 900) -> str:
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        command = [*program, "-p", PROJECT, "-f", str(ROOT / self.file), *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def up(self) -> None:
        self.run("up", "-d")

    def down(self, *arguments: str) -> None:
        self.run("down", *arguments)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What `docker inspect` says of each service's container, those that have ended too."""
        ids = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        found = json.loads(docker("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def container(self, service: str) -> str:
        return str(self.containers()[service]["Id"])

    def healthy(self) -> bool:
        """Whether every service is healthy, or has done what it had to do once."""
        states = [container["State"] for container in self.containers().values()]
        return all(
            state["Health"]["Status"] == "healthy" if "Health" in state else state["ExitCode"] == 0 for state in states
        )

    def wait_until_healthy(self) -> None:
        def states() -> str:
            return docker("ps", "-a", "--filter", f"label=com.docker.compose.project={PROJECT}")

        try:
            wait_until(self.healthy, PATIENCE)
        except AssertionError:
            raise AssertionError(f"not healthy within {PATIENCE} s:\n{states()}") from None


ONE_MACHINE = Compose("docker-compose.yml")
CLUSTER = Compose("docker-compose.cluster.yml")


def run_script(name: str, *arguments: str, seconds: float = 120) -> str:
    """Run a script on this machine, as README says; returns what it printed."""
    command = [sys.executable, str(ROOT / name), *arguments]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def start_script(name: str, logs: Path) -> Script:
    """Start a script on this machine, its output in a file of its own."""
    return launch(logs / f"{name}-{time.monotonic_ns()}.log", str(ROOT / name), PYTHONUNBUFFERED="1")


def source() -> Connection:
    return _connect(config.SOURCE_DATABASE_URL)


def destination() -> Connection:
    return _connect(config.DESTINATION_DATABASE_URL)


def _connect(url: str) -> Connection:
    connection: Connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def equal() -> bool:
    with closing(source()) as one, closing(destination()) as other:
        return query(one, ROWS) == query(other, ROWS)


def wait_until_equal(seconds: float = PATIENCE) -> None:
    wait_until(equal, seconds, "source and destination equal")

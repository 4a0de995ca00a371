"""deploy/: what the scripts tell systemd, credentials, and units and manifest as far as they can be checked here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest

DEPLOY = ROOT / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket at which systemd listens."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(10)
        yield server


def message_to(systemd: socket.socket) -> str:
    return systemd.recv(1000).decode()


@pytest.mark.parametrize("script", [pytest.param("producer.py", marks=pytest.mark.long), "consumer.py"])
def test_a_script_tells_that_it_is_up_that_it_turns_and_that_it_stops(
    shared: Pipeline, systemd: socket.socket, script: str
) -> None:
    environment = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "400000"}
    started = shared.start(script, **environment)
    assert message_to(systemd) == "READY=1"
    assert [message_to(systemd) for _ in range(10)] == ["WATCHDOG=1"] * 10
    started.process.terminate()
    wait_until(lambda: message_to(systemd) == "STOPPING=1")
    assert started.process.wait(10) == 0


def test_a_script_says_so_while_it_waits_for_a_server_and_not_when_it_hangs(
    shared: Pipeline, systemd: socket.socket
) -> None:
    environment = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "400000"}
    holder = shared.source()
    query(holder, "BEGIN; LOCK TABLE cdc_position")
    started = shared.start("producer.py", **environment)
    assert [message_to(systemd) for _ in range(10)] == ["READY=1"] + ["WATCHDOG=1"] * 9
    started.process.send_signal(signal.SIGSTOP)
    systemd.settimeout(1)
    with suppress(TimeoutError):
        for _ in range(5):  # what it sent before
            message_to(systemd)
    with pytest.raises(TimeoutError):
        message_to(systemd)
    started.kill()
    query(holder, "ROLLBACK")


def test_settings_come_from_systemds_credentials(shared: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "employee-cdc.env").write_text("KAFKA_TOPIC=from-the-credential\nPOLL_INTERVAL=none\n")
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, ROOT / "producer.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "POLL_INTERVAL is 'none'" in shown.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_units_and_calls_them_well_hardened(unit: str, tmp_path: Path) -> None:
    text = (DEPLOY / unit).read_text(encoding="utf-8")
    script = re.findall(r"^ExecStart=/opt/employee-cdc/.venv/bin/python (\w+\.py)$", text, re.MULTILINE)
    assert [(ROOT / name).exists() for name in script] == [True]
    file = tmp_path / unit
    file.write_text(text.replace("/opt/employee-cdc/.venv/bin/python", sys.executable), encoding="utf-8")
    verified = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    assert unit.partition("@")[0] not in verified.stderr, verified.stderr
    rated = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(file)]
    result = subprocess.run(rated, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-200:] + result.stderr

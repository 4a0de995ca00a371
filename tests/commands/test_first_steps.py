"""What a newcomer meets: a missing package, the version, a host that does not resolve, settings that are kept."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from cdc import __version__
from cdc.kafka import Brokers
from harness import ROOT
from harness.pipeline import Pipeline

import pytest

SCRIPTS = ("admin.py", "consumer.py", "db_setup.py", "load.py", "producer.py", "test_cdc.py", "verify.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_package_is_one_line_that_says_what_to_run(script: str) -> None:
    without_packages = [sys.executable, "-S", str(ROOT / script)]
    result = subprocess.run(without_packages, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "confluent_kafka" in line
    assert "pip install -r requirements.txt" in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_prints_its_version(script: str) -> None:
    result = subprocess.run([sys.executable, ROOT / script, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"Employee CDC {__version__}\n")


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
def test_a_kafka_host_that_does_not_resolve_is_logged_once(pipeline: Pipeline, script: str) -> None:
    started = pipeline.start(script, KAFKA_BOOTSTRAP_SERVERS="no-such-host.invalid:9092")
    started.wait_for("no-such-host.invalid", 30)
    time.sleep(4)
    lines = started.output().splitlines()
    assert len([line for line in lines if "resolve" in line]) == 1, lines
    assert len(lines) <= 4, lines
    assert started.stop() == 0


def test_what_the_kafka_client_says_again_with_another_time_or_a_count_is_not_logged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text, brokers = "kafka:9092/bootstrap: Failed to resolve 'kafka:9092': Name or service not known", Brokers()
    for times in (
        " (after 3ms in state CONNECT)",
        " (after 0ms in state CONNECT, 1 identical error(s) suppressed)",
        "",
    ):
        brokers.warn_once(f"{text}{times}")
    assert len(caplog.messages) == 1
    brokers.warn_once(text.replace("kafka", "another"))
    assert len(caplog.messages) == 2


def test_what_admin_keeps_of_an_existing_topic_is_reported(pipeline: Pipeline) -> None:
    result = pipeline.run("admin.py", "create", "--partitions", "2", "--replication-factor", "3")
    assert result.returncode == 0
    first, second = result.stdout.splitlines()
    assert "3 partitions; kept, not reduced to 2: that would delete messages" in first
    assert re.search(r"replication factor 1 kept", first)
    assert re.search(r"1 partition; replication factor 1 kept", second)

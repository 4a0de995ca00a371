"""A broker's port that speaks another protocol than we do: one line that says so, at once, and exit 2."""

from __future__ import annotations

from typing import Any

import config
from cdc import listener
from harness.pipeline import Pipeline
from harness.waiting import at_once

import pytest

PORT = config.KAFKA["bootstrap.servers"].split(",")[0].rpartition(":")[2]
SCRIPTS = (["producer.py"], ["consumer.py"], ["admin.py"], ["admin.py", "status"], ["admin.py", "dead-letters"])


@pytest.mark.parametrize("protocol", ["SSL", "SASL_PLAINTEXT"])
def test_a_protocol_that_the_brokers_do_not_speak_ends_each_script_with_one_line(
    databases: Pipeline, protocol: str
) -> None:
    wrong: dict[str, Any] = {"KAFKA_SECURITY_PROTOCOL": protocol}
    if protocol == "SASL_PLAINTEXT":
        wrong |= {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "a", "KAFKA_SASL_PASSWORD": "b"}

    def fails(script: list[str]) -> None:
        result = databases.run(*script, seconds=20, **wrong)
        assert (result.returncode, result.stderr.splitlines()) == (
            2,
            [f"Kafka: localhost:{PORT} takes PLAINTEXT, not {protocol}; check KAFKA_SECURITY_PROTOCOL"],
        )

    at_once(*(lambda script=script: fails(script) for script in SCRIPTS))


def test_check_shows_it_among_its_lines(databases: Pipeline) -> None:
    result = databases.run("admin.py", "check", KAFKA_SECURITY_PROTOCOL="SSL")
    assert result.returncode == 1
    assert f"wrong Kafka: localhost:{PORT} takes PLAINTEXT, not SSL; check KAFKA_SECURITY_PROTOCOL" in result.stdout


def test_what_is_no_broker_is_not_taken_for_one(databases: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL, and a port at which nobody listens: these are an outage."""
    postgresql = databases.source_url.split("@")[1].split("/")[0]
    for address in (postgresql, "localhost:1", "localhost", "nowhere.invalid:9092"):
        monkeypatch.setattr(config, "KAFKA", {"bootstrap.servers": address, "security.protocol": "SSL"})
        assert listener.find_fault() == ""

"""Servers that take nothing in the clear: the whole way by settings only, and one clear line for each that is wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.acls import grant
from harness.database import query
from harness.pipeline import Pipeline, new_pipeline
from harness.secured import EXPIRED, OPEN, Secured, secured_servers
from harness.waiting import at_once, wait_until
from stack.certificates import make_authority

import psycopg2
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

pytestmark = pytest.mark.long

OFFSET = 6100  # of the ports here
SOON = 10.0  # seconds for the line, the start of Python included
USERS = {"producer.py": "producer", "consumer.py": "consumer", "admin.py": "admin", "admin.py status": "monitor"}


@dataclass
class Doors:
    """A pipeline on the secured servers, set up with its roles and ACLs."""

    pipeline: Pipeline
    secured: Secured

    def settings(self, script: str) -> dict[str, Any]:
        return self.secured.settings(USERS[script], self.pipeline)

    def run(self, script: str, *arguments: str, **environment: Any) -> Any:
        return self.pipeline.run(*script.split(), *arguments, seconds=30, **{**self.settings(script), **environment})


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with secured_servers(OFFSET) as secured, new_pipeline(tmp_path_factory.mktemp("secured")) as pipeline:
        doors = Doors(pipeline, secured)
        for script in ("db_setup.py", "--roles"), ("admin.py",):
            result = pipeline.run(*script, **secured.settings("admin", pipeline))
            assert result.returncode == 0, result.stdout + result.stderr
        grant(pipeline.topic, pipeline.name)
        make_authority(secured.folder, "another")
        yield doors


def test_the_whole_way_works_by_settings_only(doors: Doors) -> None:
    pipeline, source = doors.pipeline, doors.pipeline.source()
    scripts = [pipeline.start(script, **doors.settings(script)) for script in ("producer.py", "consumer.py")]
    query(source, "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 1000)")
    pipeline.wait_until_equal()
    query(source, "UPDATE employees SET city = 'Oslo'; DELETE FROM employees WHERE emp_id <= 10")
    pipeline.send("no change")
    pipeline.wait_until_equal()
    wait_until(lambda: pipeline.dead_letters())
    status = doors.run("admin.py status")
    assert status.returncode == 0, status.stdout + status.stderr
    verified = pipeline.run("verify.py", **doors.settings("admin.py status"))
    assert (verified.returncode, verified.stdout[:5]) == (0, "EQUAL")
    encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename LIKE 'cdc%'"
    assert query(source, encrypted) == query(pipeline.destination(), encrypted) == [(True,)]
    for script in scripts:
        assert script.stop() == 0, script.output()
        assert "WARNING" not in script.output()


def test_nobody_comes_in_without_a_login_or_in_the_clear(doors: Doors) -> None:
    plain: dict[str, Any] = {"bootstrap.servers": f"localhost:{doors.secured.servers['kafka'].port}", "log_level": 0}
    with pytest.raises(KafkaException):
        AdminClient(plain).list_topics(timeout=2)
    with pytest.raises(psycopg2.OperationalError, match="no encryption"):
        psycopg2.connect(doors.pipeline.source_url, sslmode="disable")


# Wrong settings of Kafka: what is set, and what the line must say.


def wrong_for_kafka(secured: Secured) -> dict[str, tuple[dict[str, str], str]]:
    port = secured.servers["kafka"].port
    return {
        "a wrong password": ({"KAFKA_SASL_PASSWORD": "wrong"}, "KAFKA_SASL_PASSWORD"),
        "an unknown user": ({"KAFKA_SASL_USERNAME": "nobody"}, "KAFKA_SASL_USERNAME"),
        "another mechanism": ({"KAFKA_SASL_MECHANISM": "PLAIN"}, "KAFKA_SASL_MECHANISM"),
        "an unknown authority": (
            {"KAFKA_SSL_CA_LOCATION": str(secured.folder / "another.crt")},
            "check KAFKA_SSL_CA_LOCATION",
        ),
        "another host's name": (
            {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"},
            "not valid for '127.0.0.1'; check KAFKA_BOOTSTRAP_SERVERS",
        ),
        "an expired certificate": (
            {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{secured.port(EXPIRED)}"},
            "certificate has expired; check the certificate",
        ),
        "in the clear": ({"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}, "takes SASL_SSL, not PLAINTEXT"),
        "a login in the clear": ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, "takes SASL_SSL, not SASL_PLAINTEXT"),
        "no login": ({"KAFKA_SECURITY_PROTOCOL": "SSL"}, "takes SASL_SSL, not SSL; check KAFKA_SECURITY_PROTOCOL"),
        "TLS to a port in the clear": (
            {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{secured.port(OPEN)}"},
            "takes PLAINTEXT, not SASL_SSL; check KAFKA_SECURITY_PROTOCOL",
        ),
    }


WRONG_FOR_KAFKA = list(wrong_for_kafka(Secured({"kafka": type("Server", (), {"port": 0})()}, Path())))


@pytest.mark.timing
@pytest.mark.parametrize("what", WRONG_FOR_KAFKA)
def test_a_wrong_setting_of_kafka_ends_each_script_soon_with_one_line(doors: Doors, what: str) -> None:
    wrong, said = wrong_for_kafka(doors.secured)[what]

    def fails(script: str) -> None:
        started = time.monotonic()
        ends_with_one_line(doors.run(script, **wrong), said)
        assert time.monotonic() - started < SOON, script

    at_once(*(lambda script=script: fails(script) for script in USERS))


def ends_with_one_line(result: Any, said: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert said in line
    assert result.stdout == ""


# Wrong settings of PostgreSQL


def wrong_url(doors: Doors, script: str, what: str) -> tuple[str, dict[str, str], str]:
    """Return the name of the URL, what is set, and what the line must say."""
    name = "SOURCE_DATABASE_URL" if script == "producer.py" else "DESTINATION_DATABASE_URL"
    url = doors.settings(script)[name]
    user = url.split("//")[1].split(":")[0]
    another = doors.secured.folder / "another.crt"
    cases = {
        "a wrong password": (url.replace(f"{user}:", f"{user}:wrong"), "password authentication failed"),
        "an unknown authority": (f"{url}?sslrootcert={another}", "certificate verify failed"),
        "another host's name": (url.replace("localhost", "127.0.0.1"), 'does not match host name "127.0.0.1"'),
        "in the clear": (f"{url}?sslmode=disable", "no encryption"),
        "an expired certificate": (url, "certificate verify failed"),
    }
    wrong, said = cases[what]
    return name, {name: wrong}, said


@contextmanager
def expired(doors: Doors) -> Iterator[None]:
    """PostgreSQL with an expired certificate."""
    folder = doors.secured.folder
    for suffix in "crt", "key":
        shutil.copy(folder / f"server.{suffix}", folder / f"kept.{suffix}")
    connections = [doors.pipeline.source(), doors.pipeline.destination()]
    try:
        put(doors, "expired", connections)
        yield
    finally:
        put(doors, "kept", connections)


def put(doors: Doors, name: str, connections: list[Connection]) -> None:
    for suffix in "crt", "key":
        place = doors.secured.folder / f"server.{suffix}"
        place.write_bytes((doors.secured.folder / f"{name}.{suffix}").read_bytes())  # its owner stays
    for connection in connections:
        query(connection, "SELECT pg_reload_conf()")
    time.sleep(0.5)


@pytest.mark.timing
@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
@pytest.mark.parametrize(
    "what",
    ["a wrong password", "an unknown authority", "another host's name", "in the clear", "an expired certificate"],
)
def test_a_wrong_setting_of_postgresql_ends_a_script_soon_with_one_line(doors: Doors, script: str, what: str) -> None:
    name, wrong, said = wrong_url(doors, script, what)
    started = time.monotonic()
    if what == "an expired certificate":
        with expired(doors):
            result = doors.run(script, **wrong)
    else:
        result = doors.run(script, **wrong)
    ends_with_one_line(result, said)
    assert f"check {name}" in result.stderr
    assert time.monotonic() - started < SOON

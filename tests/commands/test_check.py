"""admin.py check: is the set-up right? One line each, what to do where it is not."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import config
from cdc.check import settings as check_settings
from cdc.check.finding import NOTE, Finding
from cdc.check.report import show
from cdc.check.settings import check_setting, settings
from harness import ROOT
from harness.database import administer, query
from harness.kafka import client_settings, delete_topics
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console

SIDES = ("source", "destination")
Findings = list[tuple[str, str]]


def check(pipeline: Pipeline, code: int, script: str = "admin.py", **environment: Any) -> dict[str, Findings]:
    """Run it; returns what it has found, by what was looked at: the state of each, and its text."""
    result = pipeline.run(script, "check", "--json", **environment)
    assert result.returncode == code, result.stdout + result.stderr
    findings = json.loads(result.stdout)
    assert findings["right"] == (code == 0)
    found: dict[str, Findings] = {}
    for finding in findings["findings"]:
        found.setdefault(finding["what"], []).append((finding["state"], finding["text"]))
    return found


def states(found: dict[str, Findings], what: str) -> set[str]:
    return {state for state, _ in found[what]}


def test_a_right_set_up_is_one_line_each_and_exit_0(shared: Pipeline) -> None:
    result = shared.run("admin.py", "check")
    assert (result.returncode, result.stderr) == (0, "")
    *lines, last = result.stdout.splitlines()
    assert last == "the set-up is right"
    assert {line.split()[0] for line in lines} == {"ok"}
    shown = dict(line[6:].split(": ", 1) for line in lines)
    assert shown["KAFKA_TOPIC"] == f"{shared.topic} (environment)"
    assert shown["SOURCE_DATABASE_URL"].endswith(f"@{shared.source_url.rpartition('@')[2]} (environment)")
    assert shown["POLL_INTERVAL"] == "0.5 (default)"
    assert shown[f"topic {shared.topic}"] == "partitions 3, replicas 1, all in sync"
    for side, script in (("source", "producer.py"), ("destination", "consumer.py")):
        assert re.search(rf"^ok    {side}: PostgreSQL \d+", result.stdout, re.MULTILINE)
        assert re.search(rf"^ok    {side}: role \w+ has the rights of {script}", result.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts in a folder of their own, so that they may have a .env."""
    folder: Path = tmp_path_factory.mktemp("copy")
    for name in ("admin.py", "config.py", "employee.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("cdc", "sql"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


SECRETS = {
    "KAFKA_SASL_PASSWORD": "qzx7kvw9jy",
    "KAFKA_SSL_KEY_PASSWORD": "qzx7kvw9jy",
    "POSTGRES_PASSWORD": "qzx7kvw9jy",
    "CDC_MONITOR_PASSWORD": "qzx7kvw9jy",
    "PGPASSWORD": "qzx7kvw9jy",
    "DESTINATION_DATABASE_URL": "postgresql://bob:qzx7kvw9jy@localhost:1/none?sslpassword=qzx7kvw9jy&sslmode=disable",
}


ENV_FILE = """
SOURCE_DATABASE_URL=host=localhost port=1 user=me password=qzx7kvw9jy
KAFKA_TOPIC=mine
RETENTION=1 day
POLL_INTERVALL=3
KAFKA_BOOTSTRAP_SERVER=elsewhere:9092
source_database_ur=x
"""
SHOWN = (
    "ok    SOURCE_DATABASE_URL: me@localhost:1/ (.env)",
    "ok    DESTINATION_DATABASE_URL: bob@localhost:1/none, sslmode=disable, sslpassword=hidden (environment)",
    "ok    KAFKA_TOPIC: mine (.env)",
    "ok    RETENTION: 2 days (environment)",
    "ok    KAFKA_GROUP_ID: employee-cdc (default)",
    "ok    KAFKA_SASL_PASSWORD: hidden (environment)",
    "ok    CDC_MONITOR_PASSWORD: hidden (environment)",
    "note  libpq's own variables: PGPASSWORD=hidden; what a URL leaves out comes from them",
    "wrong POLL_INTERVALL: (.env) is none of our settings; is POLL_INTERVAL meant?",
    "wrong KAFKA_BOOTSTRAP_SERVER: (.env) is none of our settings; is KAFKA_BOOTSTRAP_SERVERS meant?",
    "wrong source_database_ur: (.env) is none of our settings; is SOURCE_DATABASE_URL meant?",
    "note  ignored: KAFKA_PORT: the Kafka client has no such setting",
    "note  .env: others can read it, and it holds passwords: chmod 600 .env",
)
NOT_REACHED = (
    "wrong source: source at localhost:1: ",
    "wrong destination: destination at localhost:1: ",
    "wrong Kafka: ",
)


def check_in(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `admin.py check` in a folder, with nothing else in its environment; a server has 1 s to answer."""
    impatient = "import admin, sys; from cdc.check import servers; servers.ANSWER_WAIT = 1; sys.argv[1:] = ['check']"
    return subprocess.run(
        [sys.executable, "-c", f"{impatient}; admin.main()"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_are_named_with_their_origin_secrets_hidden_and_misspelt_names_seen(copy: Path) -> None:
    (copy / ".env").write_text(ENV_FILE, encoding="utf-8")
    (copy / ".env").chmod(0o644)
    environment = {"RETENTION": "2 days", "KAFKA_BOOTSTRAP_SERVERS": "localhost:1", "KAFKA_PORT": "tcp://1"}
    result = check_in(copy, {**environment, **SECRETS})
    assert result.returncode == 1, result.stdout + result.stderr
    assert "qzx7" not in result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for line in SHOWN:
        assert line in lines, result.stdout
    for start in NOT_REACHED:
        assert [line for line in lines if line.startswith(start)], result.stdout
    assert lines[-1] == "wrong: 6; the lines above say what to do"


def test_a_package_of_another_version_is_worth_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One for other versions of Python is none of ours."""
    wanted = (
        "none-of-ours==1.0 ; python_full_version < '3.0' \\\n    --hash=sha256:0\nrich==0.1 \\\n    --hash=sha256:0\n"
    )
    (tmp_path / "requirements.txt").write_text(wanted, encoding="utf-8")
    monkeypatch.setattr(check_settings, "REQUIREMENTS", tmp_path / "requirements.txt")
    _, packages = check_settings.check_python()
    assert packages.state == "note"
    assert re.fullmatch(r"rich \d+\.[\d.]+, not 0\.1: pip install -r requirements.txt", packages.text)


def test_every_setting_of_env_example_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = [name for name in re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE) if not name.startswith("KAFKA_S")]
    for name in names:
        monkeypatch.setenv(name, "given")
    assert set(names) <= set(settings())
    assert all(check_setting(name).state == "ok" for name in names)


def test_a_malformed_url_is_wrong_and_nothing_of_it_is_shown(shared: Pipeline) -> None:
    found = check(shared, 1, SOURCE_DATABASE_URL="postgresql://user:qzx7@kvw9jy@localhost:5433/postgres")
    (line,) = found["SOURCE_DATABASE_URL"]
    assert line[0] == "wrong"
    assert "is not a PostgreSQL URL" in line[1]
    assert not re.search("qzx7|kvw9jy", str(found))


def test_what_is_missing_is_named_with_the_script_that_makes_it(bare_pipeline: Pipeline) -> None:
    found = check(bare_pipeline, 1)
    assert ("wrong", "no employees, emp_cdc, cdc_position in schema public; run python db_setup.py") in found["source"]
    assert ("wrong", "no employees, cdc_applied, cdc_verified in schema public; run python db_setup.py") in found[
        "destination"
    ]
    for topic in (bare_pipeline.topic, f"{bare_pipeline.topic}_dlq"):
        assert found[f"topic {topic}"] == [("wrong", "does not exist; run python admin.py")]
    found = check(bare_pipeline, 1, CDC_SCHEMA="nowhere")
    assert ("wrong", "there is no schema nowhere; create it, or correct CDC_SCHEMA") in found["source"]


@pytest.fixture
def spoilt(pipeline: Pipeline) -> Pipeline:
    query(
        pipeline.source(),
        "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger; ALTER TABLE employees ADD email TEXT",
    )
    query(
        pipeline.destination(),
        "ALTER TABLE employees ALTER city SET NOT NULL, ADD CONSTRAINT rich CHECK (salary > 0)",
    )
    delete_topics(f"{pipeline.topic}_dlq")
    return pipeline


def test_what_was_spoilt_since_the_set_up_is_named(spoilt: Pipeline) -> None:
    found = check(spoilt, 1)
    assert ("wrong", "the trigger employee_cdc_trigger is disabled; run python db_setup.py") in found["source"]
    assert ("note", "employees.email is not captured") in found["source"]
    assert "the triggers capture every change" not in [text for _, text in found["source"]]
    assert ("wrong", "employees.city is NOT NULL, and NULL is allowed at the source") in found["destination"]
    refusal = "employees has the CHECK constraint rich; what it refuses becomes a dead letter"
    assert ("note", refusal) in found["destination"]
    assert states(found, f"topic {spoilt.topic}_dlq") == {"wrong"}
    assert states(found, f"topic {spoilt.topic}") == {"ok"}


def test_clocks_that_differ_and_one_database_for_both_sides_are_wrong(shared: Pipeline) -> None:
    slow = shared.sabotaged("import admin", "import time", "now = time.time; time.time = lambda: now() - 100")
    found = check(shared, 1, slow, DESTINATION_DATABASE_URL=shared.source_url)
    clock = next(text for _, text in found["source"] if "clock" in text)
    assert re.fullmatch(r"its clock is 100\.\d s fast beside this machine's: set both by NTP; .*", clock)
    assert ("wrong", "source and destination are the same database; a change would go round for ever") in found[
        "databases"
    ]


def test_another_program_in_the_group_is_wrong_and_what_it_has_committed_worth_a_note(shared: Pipeline) -> None:
    settings = {**client_settings(), "group.id": shared.name, "client.id": "console-consumer"}
    with closing(Consumer({**settings, "enable.auto.commit": False})) as stranger:
        stranger.subscribe([shared.topic])
        wait_until(lambda: stranger.poll(0.1) or stranger.assignment())
        ((state, text),) = check(shared, 1)[f"group {shared.name}"]
        assert state == "wrong"
        assert "is no consumer.py" in text
        stranger.commit(offsets=[TopicPartition(shared.topic, 0, 0)], asynchronous=False)
    ((state, text),) = check(shared, 0)[f"group {shared.name}"]
    assert (state, text[:16]) == ("note", "another program ")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_nothing_breaks_at_any_width(width: int) -> None:
    output = io.StringIO()
    long = Finding(NOTE, "libpq's own variables", "PGOPTIONS=\x1b[31m\u202e" + "-c jit=off " * 12 + "x" * 130)
    show(long, Console(file=output, force_terminal=True, width=width, color_system=None))
    lines = output.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("note  libpq's own variables: ")
    assert all(line.startswith("      ") for line in lines[1:])
    assert not {"\x1b", "\u202e"} & set(output.getvalue())
    assert "".join("".join(line[6:] for line in lines).split()).endswith("x" * 130)


@pytest.fixture
def role(shared: Pipeline) -> Iterator[str]:
    """A role without a right, on both servers."""
    name = f"{shared.name}_role"
    for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
        administer(url, f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield name
    for connection in (shared.source(), shared.destination()):
        query(connection, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_the_rights_of_the_role_are_judged_by_what_the_script_of_its_side_needs(shared: Pipeline, role: str) -> None:
    urls = [re.sub("//.*@", f"//{role}:secret@", url) for url in (shared.source_url, shared.destination_url)]
    environment = dict(zip(("SOURCE_DATABASE_URL", "DESTINATION_DATABASE_URL"), urls, strict=True))

    def rights(code: int) -> list[Findings]:
        found = check(shared, code, **environment)
        return [[line for line in found[side] if line[1].startswith(f"role {role} ")] for side in SIDES]

    def grant(at_source: str, at_destination: str) -> None:
        query(shared.source(), at_source.replace("me;", f"{role};"))
        query(shared.destination(), at_destination.replace("me;", f"{role};"))

    ((here,), (there,)) = rights(1)
    lacking = "SELECT on emp_cdc, UPDATE on emp_cdc, DELETE on emp_cdc, SELECT on cdc_position, UPDATE on cdc_position"
    sequence = "SELECT on emp_cdc_cdc_id_seq, UPDATE on emp_cdc_cdc_id_seq"
    rest = "for producer.py: Rights in docs/operations.md"
    assert here == ("wrong", f"role {role} lacks {lacking}, {sequence} {rest}")
    assert there[0] == "wrong"

    grant(
        "GRANT SELECT ON employees, emp_cdc, cdc_position, emp_cdc_cdc_id_seq TO me;",
        "GRANT SELECT ON employees, cdc_applied, cdc_verified TO me;",
    )
    ((here,), (there,)) = rights(0)
    assert (here[0], there[0]) == ("note", "note")
    assert here[1].endswith(
        "not of producer.py, which needs UPDATE on emp_cdc, DELETE on emp_cdc, "
        "UPDATE on cdc_position, UPDATE on emp_cdc_cdc_id_seq"
    )

    grant(
        "GRANT UPDATE, DELETE ON emp_cdc TO me; GRANT UPDATE ON cdc_position, emp_cdc_cdc_id_seq TO me;",
        "GRANT INSERT, UPDATE, DELETE ON employees TO me; GRANT INSERT, UPDATE ON cdc_applied TO me;",
    )
    assert rights(0) == [
        [("ok", f"role {role} has the rights of producer.py")],
        [("ok", f"role {role} has the rights of consumer.py")],
    ]


def test_a_server_that_is_slow_to_refuse_is_named_before_the_json_is_whole(databases: Pipeline) -> None:
    slow = databases.sabotaged(
        "import admin", "from cdc.check import report, servers", "report.SLOW = 0; servers.ANSWER_WAIT = 1"
    )
    result = databases.run(slow, "check", "--json", KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    assert result.stderr.startswith("Kafka: Kafka at localhost:1 does not answer: ")
    assert json.loads(result.stdout)["right"] is False

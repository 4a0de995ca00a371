"""Settings from the environment: what is none of ours, what is wrong, and what must never be shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdc import cli
from cdc.postgres import connect_within, explain
from harness import ROOT
from harness.pipeline import Pipeline, new_pipeline

import psycopg2
import pytest


@pytest.fixture(scope="module")
def shared(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path_factory.mktemp("shared")) as pipeline:
        pipeline.set_up()
        yield pipeline


# KAFKA_ variables

# What Kubernetes puts into every pod beside a Service called kafka, what images set, and a misspelt setting.
NOT_OURS = {
    "KAFKA_PORT": "tcp://10.0.0.1:9092",
    "KAFKA_PORT_9092_TCP": "tcp://10.0.0.1:9092",
    "KAFKA_PORT_9092_TCP_ADDR": "10.0.0.1",
    "KAFKA_SERVICE_HOST": "10.0.0.1",
    "KAFKA_SERVICE_PORT": "9092",
    "KAFKA_HOME": "/opt/kafka",
    "KAFKA_HEAP_OPTS": "-Xmx1g",
    "KAFKA_VERSION": "3.9.1",
    "KAFKA_BOOTSTRAP_SERVER": "elsewhere:9092",
    # what the client knows, but only a program can give
    "KAFKA_LOGGER": "mine",
    "KAFKA_ERROR_CB": "mine",
    "KAFKA_DEFAULT_TOPIC_CONFIG": "mine",
    "KAFKA_OPAQUE": "mine",
    "KAFKA_INTERCEPTORS": "mine",
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_variable_that_the_client_does_not_know_is_named_and_ignored(shared: Pipeline, name: str) -> None:
    result = shared.run("producer.py", "--once", seconds=60, **{name: NOT_OURS[name]})
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"{name}: ignored, the Kafka client has no such setting\n"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("admin.py", []),
        ("admin.py", ["status", "--json"]),
        ("admin.py", ["dead-letters", "--json"]),
        ("producer.py", ["--once"]),
        ("consumer.py", ["--once"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_all_of_them_are_named_in_one_line_that_is_not_on_stdout(
    shared: Pipeline, script: str, arguments: list[str]
) -> None:
    result = shared.run(script, *arguments, seconds=60, **NOT_OURS)
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    names, _, what = line.partition(": ")
    assert (set(names.split(", ")), what) == (set(NOT_OURS), "ignored, the Kafka client has no such setting")
    assert "ignored" not in result.stdout
    if "--json" in arguments:
        json.loads(result.stdout)


@pytest.mark.parametrize(("name", "value"), [("KAFKA_BATCH_SIZE", "much"), ("KAFKA_SECURITY_PROTOCOL", "tcp://")])
def test_a_wrong_value_of_a_setting_that_the_client_knows_is_exit_2(shared: Pipeline, name: str, value: str) -> None:
    result = shared.run("admin.py", seconds=60, **{name: value}, KAFKA_PORT="tcp://10.0.0.1:9092")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert name.removeprefix("KAFKA_").lower().replace("_", ".") in line


# CDC_SCHEMA


def schema(value: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", "import config; print(config.SCHEMA)"],
        env={**os.environ, "CDC_SCHEMA": value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("value", ["public", "App", "user", "2nd", "a_b$c-d", "größe", "x" * 63])
def test_a_schema_is_a_quoted_identifier(value: str) -> None:
    assert schema(value).stdout == f'"{value}"\n'


def test_the_schema_is_public_where_nothing_is_set() -> None:
    assert schema("").stdout == '"public"\n'


@pytest.mark.parametrize(
    "value", ['a"b', "a.b", "a b", "a%sb", "a'b", "a;b", "\n", "public\n", "x" * 64, "ß" * 32, "pg_temp", "pg_catalog"]
)
def test_a_schema_of_other_characters_is_refused_in_one_line(value: str) -> None:
    result = schema(value)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("CDC_SCHEMA is ")


# .env


def test_the_way_in_which_env_is_made_leaves_it_to_its_owner(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = set(re.findall(r"install .*\.env\b", example + readme.replace("`", "\n")))
    (tmp_path / ".env.example").write_text(example, encoding="utf-8")
    subprocess.run(command, shell=True, cwd=tmp_path, umask=0, check=True)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


# URLs

# The password is qzx7kvw9jy, with something in it, or digits.
MALFORMED = {
    "a percent sign": "postgresql://user:q%zzx7kvw9jy@localhost:5433/postgres",
    "half a percent code": "postgresql://user:qzx7kvw%9@localhost:5433/postgres",
    "a percent code that is no character": "postgresql://user:qzx%00kvw9jy@localhost:5433/postgres",
    "an at sign": "postgresql://user:qzx7@kvw9jy@localhost:5433/postgres",
    "an at sign first": "postgresql://user:@qzx7kvw9jy@localhost:5433/postgres",
    "an at sign in the user": "postgresql://me@corp:qzx7kvw9jy@localhost:5433/postgres",
    "an at sign escaped that should not be": "postgresql://user:qzx7kvw9jy%40localhost:5433/postgres",
    "a colon escaped that should not be": "postgresql://user%3Aqzx7kvw9jy@localhost:5433/postgres",
    "a slash": "postgresql://user:qzx7/kvw9jy@localhost:5433/postgres",
    "a slash first": "postgresql://user:/qzx7kvw9jy@localhost:5433/postgres",
    "a slash after digits": "postgresql://user:974/qzx7kvw9jy@localhost:5433/postgres",
    "a slash for a colon": "postgresql://user/qzx7kvw9jy@localhost:5433/postgres",
    "a semicolon for a colon": "postgresql://user;qzx7kvw9jy@localhost:5433/postgres",
    "no host": "postgresql://user:qzx7kvw9jy",
    "no host, but a database": "postgresql://user:qzx7kvw9jy/postgres",
    "no host, and a password of digits": "postgresql://user:974839/postgres",
    "a bracket": "postgresql://user@[qzx7kvw9jy@localhost/postgres",
    "a port that is no number": "postgresql://user:qzx7kvw9jy@localhost:54x3/postgres",
    "an unknown option": "postgresql://user:qzx7kvw9jy@localhost:5433/postgres?sslmod=disable",
    "a password among the options, with an ampersand": "postgresql://localhost:5433/postgres?password=qzx7&kvw9jy",
    "a password among the options, with a percent": "postgresql://localhost:5433/postgres?password=qzx%kvw9jy",
    "options without a question mark": "postgresql://localhost:5433/postgres&password=qzx7kvw9jy",
    "options after a semicolon": "postgresql://localhost:5433/postgres;password=qzx7kvw9jy",
    "no colon": "postgresql//user:qzx7kvw9jy@localhost:5433/postgres",
    "one slash": "postgres:/user:qzx7kvw9jy@localhost:5433/postgres",
    "backslashes": r"postgresql:\\user:qzx7kvw9jy@localhost:5433\postgres",
    "another scheme": "mysql://user:qzx7kvw9jy@localhost:5433/postgres",
    "SQLAlchemy's scheme": "postgresql+psycopg2://user:qzx7kvw9jy@localhost:5433/postgres",
    "JDBC": "jdbc:postgresql://localhost:5433/postgres?user=user&password=qzx7kvw9jy",
    "quotes around it": "'postgresql://user:qzx7kvw9jy@localhost:5433/postgres'",
    "no scheme": "user:qzx7kvw9jy@localhost:5433/postgres",
    "a line of .pgpass": "localhost:5433:postgres:user:qzx7kvw9jy",
    "nothing else": "qzx7kvw9jy",
    "key words, a space": "host=localhost port=5433 user=user password=qzx7 kvw9jy",
    "key words, a quote": "host=localhost port=5433 user=user password='qzx7kvw9jy",
    "key words, no equals sign": "host=localhost port=5433 user=user password:qzx7kvw9jy",
    "key words, semicolons": "host=localhost;port=5433;user=user;password=qzx7kvw9jy",
    "key words, commas": "host=localhost,port=5433,user=user,password=qzx7kvw9jy",
    "key words, semicolons after the port": "host=localhost port=5433;user=user;password=qzx7kvw9jy",
    "key words, semicolons after the user": "host=localhost port=5433 user=user;password=qzx7kvw9jy",
    "key words, semicolons after the database": "host=localhost port=5433 dbname=postgres;password=qzx7kvw9jy",
    "bytes that are no text": os.fsdecode(b"postgresql://user:qzx7\xffkvw9jy@localhost:5433/postgres"),
}
# And those that are right, and whose password the server refuses.
REFUSED = {
    "a question mark": "postgresql://user:qzx7?kvw9jy@localhost:5433/postgres",
    "escapes": "postgresql://user:qzx7%40kvw%2F9jy@localhost:5433/postgres",
    "key words": "host=localhost port=5433 user=user password='qzx7 kvw9jy'",
}
PIECES = {word[n : n + 3] for word in ("qzx7kvw9jy", "q%zzx7", "qzx%00", "974839") for n in range(len(word) - 2)}


def shown(text: str) -> set[str]:
    return {piece for piece in PIECES if piece in text}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_url_is_refused_in_one_line_without_a_piece_of_it(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        connect_within("source", MALFORMED[what], 0.1, cli.Stop())
    said = capsys.readouterr()
    assert shown(said.out + said.err) == set()
    (line,) = said.err.splitlines()
    assert ended.value.code == 2
    assert "SOURCE_DATABASE_URL" in line
    assert "write %40 for @" in line


@pytest.mark.parametrize("what", ["a percent sign", "an at sign", "a slash"])
@pytest.mark.parametrize(
    ("script", "arguments", "which"),
    [
        ("db_setup.py", [], "SOURCE"),
        ("admin.py", ["status", "--json"], "DESTINATION"),
        ("producer.py", ["--once"], "SOURCE"),
        ("consumer.py", ["--once"], "DESTINATION"),
        ("verify.py", ["--json"], "DESTINATION"),
        ("test_cdc.py", [], "SOURCE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_script_shows_a_piece_of_a_malformed_url(
    shared: Pipeline, script: str, arguments: list[str], which: str, what: str
) -> None:
    result = shared.run(script, *arguments, seconds=60, **{f"{which}_DATABASE_URL": MALFORMED[what]})
    assert shown(result.stdout + result.stderr) == set()
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_login_is_reported_with_the_address_and_without_the_password(stack: None, what: str) -> None:
    with pytest.raises(psycopg2.OperationalError) as refused:
        psycopg2.connect(REFUSED[what])
    line = explain("source", REFUSED[what], refused.value)
    assert shown(line) == set()
    assert line.startswith("source at localhost:5433: ")
    assert line.endswith("; check SOURCE_DATABASE_URL")

"""The settings: from the environment, else from `.env` beside this file, else what fits docker-compose.yml.

A file `employee-cdc.env` of systemd's credentials, which no other user can read, counts as the environment.

Every KAFKA_X_Y but KAFKA_TOPIC and KAFKA_GROUP_ID is given to the Kafka client as x.y, such as KAFKA_SASL_USERNAME
(all of them: CONFIGURATION.md of librdkafka). A variable that the client does not know as a setting is ignored.
What libpq knows works through the URLs or its own PG* variables.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

import cdc  # noqa: F401  says in one line which packages are missing

from dotenv import load_dotenv

ENV_FILE = Path(__file__).with_name(".env")
if "CREDENTIALS_DIRECTORY" in os.environ:  # of systemd's LoadCredential; deploy/kubernetes.yml sets it, too
    load_dotenv(Path(os.environ["CREDENTIALS_DIRECTORY"], "employee-cdc.env"))
FROM_ENVIRONMENT = frozenset(os.environ)
"""The variables that were set before `.env` was read."""

load_dotenv(ENV_FILE)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        seconds = float(text)
        if not 0.01 <= seconds <= 3600:
            raise ValueError
    except ValueError:
        print(f"{name} is {text!r}: give seconds from 0.01 to 3600, such as {name}={default}", file=sys.stderr)
        sys.exit(2)
    return seconds


def _port(name: str) -> int:
    """Return the setting as a port; 0 where it is not set."""
    text = os.environ.get(name)
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        print(f"{name} is {text!r}: give a port from 1 to 65535, such as {name}=9401", file=sys.stderr)
        sys.exit(2)
    return int(text)


def _choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    text = os.environ.get(name) or default
    if text not in choices:
        print(f"{name} is {text!r}: give one of {', '.join(choices)}", file=sys.stderr)
        sys.exit(2)
    return text


def _identifier(name: str, default: str) -> str:
    """Return the setting as an SQL identifier in double quotes."""
    text = os.environ.get(name) or default
    # PostgreSQL cuts longer names off, and keeps names with pg_ for itself.
    if not re.fullmatch(r"(?!pg_)[\w$-]+", text) or len(text.encode()) > 63:
        print(
            f"{name} is {text!r}: give a name of letters, digits, _, $ and -, such as {name}={default}", file=sys.stderr
        )
        sys.exit(2)
    return f'"{text}"'


_LOGIN = f"postgres:{quote(os.environ.get('POSTGRES_PASSWORD') or 'postgres', safe='')}"

SOURCE_DATABASE_URL = os.environ.get("SOURCE_DATABASE_URL") or f"postgresql://{_LOGIN}@localhost:5433/postgres"
DESTINATION_DATABASE_URL = (
    os.environ.get("DESTINATION_DATABASE_URL") or f"postgresql://{_LOGIN}@localhost:5434/postgres"
)

SCHEMA = _identifier("CDC_SCHEMA", "public")
"""Where all our tables are, in both databases; every statement names them with it, whatever the search_path says."""

KAFKA_TOPIC = os.environ.get("KAFKA_TOPIC") or "employee_cdc"
DEAD_LETTER_TOPIC = f"{KAFKA_TOPIC}_dlq"

KAFKA_GROUP_ID = os.environ.get("KAFKA_GROUP_ID") or "employee-cdc"

NOT_THE_CLIENTS = {"KAFKA_TOPIC", "KAFKA_GROUP_ID"}
KAFKA = {
    "bootstrap.servers": "localhost:9092",
    "client.id": "employee-cdc",
    # localhost is ::1 too on most machines, where nothing listens: the first try would be reported as an outage
    "broker.address.family": "v4",
    # back within a second of the broker's return; the default lets the client wait 10 s between tries
    "reconnect.backoff.max.ms": "1000",
    **{
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in os.environ.items()
        if name.startswith("KAFKA_") and name not in NOT_THE_CLIENTS and value
    },
}
POLL_INTERVAL = _seconds("POLL_INTERVAL", 0.5)
"""The longest a sleeping producer waits before it polls the log again, in seconds, if no notification comes. It polls
every 10 s in any case."""

LOG_FORMAT = _choice("LOG_FORMAT", "text", ("text", "json"))
LOG_LEVEL = _choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))

METRICS_PORT = _port("METRICS_PORT")
"""Where producer.py and consumer.py answer /metrics, /healthz and /readyz; 0: nowhere."""

METRICS_HOST = os.environ.get("METRICS_HOST") or "127.0.0.1"

RETENTION = os.environ.get("RETENTION") or "7 days"
"""How long published rows stay in the log, as a PostgreSQL interval."""

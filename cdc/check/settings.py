"""What `admin.py check` says of Python, its packages and the settings: where each comes from, and what is misspelt."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import config
from cdc.check.finding import NOTE, OK, WRONG, Finding
from cdc.postgres import WrongSetting, check_url
from cdc.roles import ROLES, variable
from cdc.text import escape

from psycopg2.extensions import parse_dsn

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
PINNED = re.compile(
    r"^([\w-]+)==([\w.]+) *\\?$", re.MULTILINE
)  # those for certain versions of Python have more after it
MIN_PYTHON = (3, 10)

SECRET = re.compile(r"password|secret|token|pem|oauthbearer.config", re.IGNORECASE)
HIDDEN = "hidden"
SIMILAR = 0.85  # from which on two names are one, misspelt
# The names of config.py that are not those of a variable.
DERIVED = {"SCHEMA", "DEAD_LETTER_TOPIC", "KAFKA", "NOT_THE_CLIENTS", "ENV_FILE", "FROM_ENVIRONMENT"}
# What people set most of what the Kafka client takes; a name that is close to one of these is that one.
KAFKA_NAMES = (
    *(
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_CLIENT_ID",
        "KAFKA_GROUP_INSTANCE_ID",
        "KAFKA_SESSION_TIMEOUT_MS",
        "KAFKA_DEBUG",
    ),
    *("KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"),
    *("KAFKA_SSL_CA_LOCATION", "KAFKA_SSL_CERTIFICATE_LOCATION", "KAFKA_SSL_KEY_LOCATION", "KAFKA_SSL_KEY_PASSWORD"),
)
PASSWORDS = ("POSTGRES_PASSWORD", *sorted({variable(role) for roles in ROLES.values() for role in roles}))


def check_python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        yield Finding(WRONG, "Python", f"{found}; 3.10 or later is needed")
    else:
        yield Finding(OK, "Python", found)
    pinned = dict(PINNED.findall(REQUIREMENTS.read_text(encoding="utf-8"))) if REQUIREMENTS.exists() else {}
    installed = {name: installed_version(name) for name in pinned}
    others = [
        f"{name} {installed[name] or 'missing'}, not {pinned[name]}"
        for name in pinned
        if installed[name] != pinned[name]
    ]
    if others:
        yield Finding(NOTE, "packages", f"{'; '.join(others)}: pip install -r requirements.txt")
    else:
        yield Finding(
            OK, "packages", ", ".join(f"{name} {installed[name]}" for name in installed) or "no list of them here"
        )


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check_settings() -> Iterator[Finding]:
    """Each setting with its value and where it comes from, then what is misspelt."""
    for name in settings():
        yield check_setting(name)
    libpq = [name for name in sorted(os.environ) if re.fullmatch(r"PG[A-Z]+", name) and os.environ[name]]
    if libpq:
        values = ", ".join(f"{name}={show(name, os.environ[name])}" for name in libpq)
        yield Finding(NOTE, "libpq's own variables", f"{values}; what a URL leaves out comes from them")
    yield from check_names()
    if config.ENV_FILE.exists() and config.ENV_FILE.stat().st_mode & 0o077:
        yield Finding(NOTE, ".env", "others can read it, and it holds passwords: chmod 600 .env")


def settings() -> list[str]:
    """The names of our settings; of the passwords and the Kafka client's settings those that are set."""
    ours = [name for name in vars(config) if re.fullmatch("[A-Z][A-Z_]*", name) and name not in DERIVED]
    kafka = ["KAFKA_" + key.upper().replace(".", "_") for key in sorted(config.KAFKA)]
    given = {"KAFKA_BOOTSTRAP_SERVERS", *(name for name in os.environ if os.environ[name])}
    return [*ours, "CDC_SCHEMA", *(name for name in (*PASSWORDS, *kafka) if name in given)]


def check_setting(name: str) -> Finding:
    if name.endswith("_DATABASE_URL"):
        url = getattr(config, name)
        try:
            check_url(name.removesuffix("_DATABASE_URL").lower(), url)
        except WrongSetting as error:
            return Finding(WRONG, name, str(error))
        value = show_url(url)
    elif name == "CDC_SCHEMA":
        value = config.SCHEMA.strip('"')
    elif name in PASSWORDS:
        value = HIDDEN
    elif hasattr(config, name):
        value = show(name, str(getattr(config, name)))
    else:
        value = show(name, config.KAFKA[name.removeprefix("KAFKA_").lower().replace("_", ".")])
    return Finding(OK, name, f"{value} ({origin(name)})")


def origin(name: str) -> str:
    if not os.environ.get(name):
        return "default"
    return "environment" if name in config.FROM_ENVIRONMENT else ".env"


def show(name: str, value: str) -> str:
    return HIDDEN if SECRET.search(name) else escape(value)


def show_url(url: str) -> str:
    """Return a URL that is well-formed without what is secret in it."""
    parts = parse_dsn(url)
    host, port, database = parts.pop("host", "local socket"), parts.pop("port", "5432"), parts.pop("dbname", "")
    user = parts.pop("user", "")
    options = [f"{key}={show(key, value)}" for key, value in parts.items() if key != "password"]
    place = f"{user}@{host}:{port}/{database}" if user else f"{host}:{port}/{database}"
    return ", ".join([escape(place), *options])


def check_names() -> Iterator[Finding]:
    """Variables that are close to one of ours, and those that the Kafka client does not know."""
    known = {*settings(), *PASSWORDS, *KAFKA_NAMES, *config.NOT_THE_CLIENTS}
    ignored = []
    for name in sorted(os.environ):
        if name in known:
            continue
        close = get_close_matches(name.upper(), known, 1, SIMILAR)
        if close and not name.startswith(f"{close[0]}_"):
            yield Finding(WRONG, name, f"({origin(name)}) is none of our settings; is {close[0]} meant?")
        elif name.startswith("KAFKA_") and os.environ[name]:
            ignored.append(name)
    if ignored:
        yield Finding(NOTE, "ignored", f"{', '.join(ignored)}: the Kafka client has no such setting")

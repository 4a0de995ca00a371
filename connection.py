"""Connections to the two databases and to Kafka, what their errors mean, and waiting until a server is back."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn

import cli
import config

log = logging.getLogger(__name__)
Client = TypeVar("Client")

# A host that vanished must not keep its session, and with it the active producer's lock, for hours: both ends ask.
CLIENT_KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "target_session_attrs": "read-write",  # of several hosts the primary; a standby cannot hold position or copy
}
# What enable_seqscan = off overprices would be compiled each time, 40 ms for an UPDATE of one row.
NO_JIT = "SET jit = off"
SERVER_KEEPALIVES = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"

WRONG_LOGIN = (
    "password authentication failed",
    "no password supplied",
    "does not exist",  # role or database
    "no pg_hba.conf entry",
    "invalid port",
    "invalid connection option",
)
NO_BROKER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)  # as what a call raises
SETTLING = 5.0  # seconds
SET_UP_MISSING = ("42P01", "42703", "42883")  # undefined table, column, function


class WrongSetting(Exception):
    """A setting that no waiting can mend; its text names the setting."""


def connect(name: str, url: str, settings: str = "") -> Connection:
    """Return an autocommit connection to the database called name ("source" or "destination"); settings is SQL that it
    runs first.

    Raises WrongSetting for a malformed URL, psycopg2.OperationalError when the server does not answer or refuses.
    """
    try:
        connection: Connection = psycopg2.connect(
            url,
            connect_timeout=5,
            fallback_application_name="employee-cdc",
            client_encoding="UTF8",
            **CLIENT_KEEPALIVES,
        )
    except psycopg2.ProgrammingError as error:
        raise WrongSetting(f"{name.upper()}_DATABASE_URL is not a PostgreSQL URL: {first_line(error)}") from None
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"{SERVER_KEEPALIVES}; {NO_JIT}; {settings}")
    return connection


def connect_within(name: str, url: str, seconds: float, stop: cli.Stop) -> Connection:
    """Return a connection as `connect` does, for scripts that do one thing and end: exits with one line if the server
    refuses the login (2) or does not answer within so many seconds (1)."""
    outage = Outage(stop, give_up_after=seconds)
    while not stop.requested:
        try:
            return connect(name, url)
        except psycopg2.OperationalError as error:
            outage.wait_for(name, url, error)
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
    cli.fail("stopped")


def address(url: str) -> str:
    parts = parse_dsn(url)
    return f"{parts.get('host', 'localhost')}:{parts.get('port', '5432')}"


def first_line(error: BaseException) -> str:
    """What an error of libpq or PostgreSQL says, in one line: of several tries (IPv6, IPv4) the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in reversed(lines) if "failed: " in line), lines[0])
    return line.split("failed: ", 1)[-1].removeprefix("FATAL:").strip()


def explain(name: str, url: str, error: psycopg2.Error) -> str:
    """Return one line: which database, what is wrong, and what to do where we know it."""
    advice = ""
    if error.pgcode in SET_UP_MISSING:
        advice = "; run python db_setup.py"
    elif is_wrong_login(error):
        advice = f"; check {name.upper()}_DATABASE_URL"
    return f"{name} at {address(url)}: {first_line(error)}{advice}"


def is_wrong_login(error: psycopg2.Error) -> bool:
    return error.pgcode is None and any(text in str(error) for text in WRONG_LOGIN)


def same(what: str) -> tuple[str, str]:
    return what.partition(": ")[0], what.partition("; ")[2]


@dataclass
class Outage:
    """Says once that a server is away and once that it is back; in between waits longer and longer, up to a second,
    with jitter so that many clients do not come back in step.

    What is said is "who: what is wrong; what to do", and said again only if who or what to do is another: a server that
    goes down and comes up again gives many reasons.
    """

    stop: cli.Stop
    give_up_after: float = float("inf")  # seconds
    reached: bool = False
    said: str = ""
    since: float = 0.0
    delay: float = 0.1

    def wait(self, what: str, sleep: Callable[[float], None] | None = None, quiet: bool = False) -> None:
        """Wait before the next try; sleep(seconds) may do something useful meanwhile. Exits when to give up.

        quiet: it is told already, as something else's outage.
        """
        self.since = self.since or time.monotonic()
        if not quiet:
            self.say(what)
        if time.monotonic() - self.since > self.give_up_after:
            cli.fail(f"{what}; gave up after {self.give_up_after:.0f} s")
        (sleep or self.stop.sleep)(self.delay * random.uniform(0.5, 1.0))
        self.delay = min(self.delay * 2, 1.0)

    def say(self, what: str) -> None:
        if same(what) != same(self.said):
            log.warning("%s; waiting", what)
            self.said = what
        else:
            log.debug("%s; waiting", what)

    def wait_for(
        self, name: str, url: str, error: psycopg2.Error, sleep: Callable[[float], None] | None = None
    ) -> None:
        """Wait for a database. Exits if it refused the login at the first try: a wrong setting, not an outage."""
        if is_wrong_login(error) and not self.reached:
            cli.fail(explain(name, url, error), cli.WRONG_USE)
        self.wait(explain(name, url, error), sleep)

    def over(self) -> None:
        if self.said:
            log.info("%s answers again", self.said.split(": ")[0])
        self.reached, self.said, self.since, self.delay = True, "", 0.0, 0.1


@dataclass
class Kafka:
    """What the Kafka client's callbacks tell about the brokers."""

    away: bool = False
    told: bool = False
    fatal: str = ""  # the error after which the client is of no more use
    back: float = float("-inf")  # when they answered again
    bootstrap: str = field(default_factory=lambda: config.KAFKA["bootstrap.servers"])

    def on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.lost()
        elif error.fatal() or error.code() == KafkaError._FATAL:
            self.fatal = error.str()
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE):
            log.warning("Kafka: %s", error.str())
        else:
            log.debug("Kafka: %s", error.str())

    def lost(self) -> None:
        """Brokers that come and go while they start are one outage: told again only once `ask` finds none."""
        if not self.away and not self.settling():
            self.tell()
        self.away = True

    def tell(self) -> None:
        if not self.told:
            self.told = True
            log.warning("Kafka at %s does not answer; waiting", self.bootstrap)

    def answered(self) -> None:
        if self.told:
            log.info("Kafka at %s answers again", self.bootstrap)
        if self.away:
            self.away, self.told, self.back = False, False, time.monotonic()

    def settling(self) -> bool:
        """Whether the brokers are away, or back so lately that they may not know all their topics yet."""
        return self.away or time.monotonic() - self.back < SETTLING

    def ask(self, client: Consumer) -> None:
        """Find out whether the brokers are back."""
        try:
            client.list_topics(config.KAFKA_TOPIC, timeout=1)
        except KafkaException:
            self.tell()
        else:
            self.answered()


def kafka_client(kind: Callable[..., Client], settings: dict[str, Any], kafka: Kafka) -> Client:
    """Return a client of this kind (Producer, Consumer, AdminClient). What the environment sets goes over settings.

    Raises WrongSetting for a setting that the client refuses.
    """
    try:
        return kind({**settings, **config.KAFKA, "error_cb": kafka.on_error}, logger=logging.getLogger("librdkafka"))
    except (KafkaException, ValueError, TypeError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise WrongSetting(f"Kafka refuses a setting: {reason} (from a KAFKA_… variable?)") from None

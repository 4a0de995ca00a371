"""Connect to a database, and say what its errors mean."""

from __future__ import annotations

import re
from contextlib import closing, suppress
from typing import Any

from cdc import cli
from cdc.outage import Outage
from cdc.session import backend, is_shared, set_up
from cdc.waiting import Session, waiter

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn, set_wait_callback

CLIENT: dict[str, Any] = {
    "connect_timeout": 5,
    "fallback_application_name": "employee-cdc",
    "client_encoding": "UTF8",
    # a server that vanished is noticed within 25 s; cdc/session.py has the server ask likewise
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "target_session_attrs": "primary",  # of several hosts; a standby can hold neither position nor copy
}
URL_FORM = (
    "{}_DATABASE_URL is not a PostgreSQL URL: give postgresql://USER:PASSWORD@HOST:PORT/DATABASE; in USER and PASSWORD "
    "write %40 for @, %2F for /, %3A for :, %25 for %"
)
WRONG_LOGIN = (
    "password authentication failed",
    "no password supplied",
    "does not exist",  # role or database
    "no pg_hba.conf entry",
    "invalid port",
    "invalid integer value",
    "invalid sslmode value",
    "invalid connection option",
    "definition of service",
    "service file",
    "server does not support SSL",
    "certificate",  # unknown CA, another host's name, a file that cannot be read
    "private key file",
)
SESSION_ENDED = ("57P01", "57P05")  # by an administrator, by idle_session_timeout
SET_UP_MISSING = ("42P01", "42703", "42883")  # undefined table, column, function
INSUFFICIENT_PRIVILEGE, HIDDEN_ROWS = "42501", "row-level security"


class WrongSetting(Exception):
    """A setting that no waiting can mend; its text names the setting."""


def connect(name: str, url: str, settings: str = "") -> Connection:
    """Return an autocommit connection to the database called name, "source" or "destination".

    settings is SQL that the session runs first, with the search_path pg_catalog. Raises WrongSetting for a malformed
    URL, for a pooler that shares sessions, and for a setting that the role may not set; psycopg2.OperationalError when
    the server does not answer or refuses; another psycopg2.Error when it refuses settings.
    """
    check_url(name, url)
    set_wait_callback(None)  # libpq's own connect: it has a time limit, and tries several hosts
    try:
        connection: Session = psycopg2.connect(url, **CLIENT, connection_factory=Session)
    finally:
        set_wait_callback(waiter)
    connection.database, connection.url = f"{name} at {address(url)}", url
    connection.autocommit = True
    connection.pid = backend(connection)
    if connection.pid != connection.info.backend_pid:  # that of a pooler
        refuse_if_shared(name, url, connection)
    try:
        set_up(connection)
    except psycopg2.errors.InsufficientPrivilege as error:
        connection.close()
        raise WrongSetting(explain(name, url, error)) from None
    if settings:
        run_settings(name, url, connection, settings)
    return connection


def run_settings(name: str, url: str, connection: Connection, settings: str) -> None:
    """Run the SQL that a session begins with. Raises WrongSetting where a policy hides rows from the role."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(settings)
    except psycopg2.errors.InsufficientPrivilege as error:
        if HIDDEN_ROWS not in str(error):
            raise
        raise WrongSetting(explain(name, url, error)) from None


def check_url(name: str, url: str) -> None:
    """Raise WrongSetting for a malformed URL, in words that quote none of it.

    A part of the password may have become the host, the port, the user or the database. libpq's own errors quote all
    of these.
    """
    try:
        parts = parse_dsn(url)
    except (psycopg2.ProgrammingError, UnicodeError):
        raise WrongSetting(URL_FORM.format(name.upper())) from None
    suspicious = {"host": "[@=;]", "port": "[^0-9,]|[0-9]{6}"}
    if "password" not in parts:  # it may be in one of these
        suspicious |= {"user": "[:=;]", "dbname": "[@:=;]"}
    if any(re.search(pattern, parts.get(part, "")) for part, pattern in suspicious.items()):
        raise WrongSetting(URL_FORM.format(name.upper()))


def refuse_if_shared(name: str, url: str, connection: Connection) -> None:
    """Raise WrongSetting where a pooler shares the session.

    Locks, LISTEN and prepared statements would get lost, and what we SET would reach the sessions of others.
    """
    with suppress(psycopg2.Error), closing(psycopg2.connect(url, **CLIENT, async_=True)) as second:
        if is_shared(connection, second):
            connection.close()
            raise WrongSetting(
                f"{name} at {address(url)}: this is a pooler in transaction or statement mode; "
                f"{name.upper()}_DATABASE_URL must lead to PostgreSQL itself, or to a pool in session mode"
            )


def connect_within(name: str, url: str, seconds: float, stop: cli.Stop) -> Connection:
    """Return a connection as `connect` does, for scripts that do one thing and end.

    Exits with one line if the server refuses the login (2), or does not answer within so many seconds (1).
    """
    outage = Outage(stop, give_up_after=seconds)
    while not stop.requested:
        try:
            return connect(name, url)
        except psycopg2.OperationalError as error:
            wait_for_database(outage, name, url, error)
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
    cli.fail("stopped")


def wait_for_database(outage: Outage, name: str, url: str, error: psycopg2.Error) -> None:
    """Wait before the next try. Exits if the server refused the login at the first one: that is a wrong setting."""
    if is_wrong_login(error) and not outage.reached:
        cli.fail(explain(name, url, error), cli.WRONG_USE)
    outage.wait(explain(name, url, error), closed=is_closed(error))


def address(url: str) -> str:
    parts = parse_dsn(url)
    return f"{parts.get('host', 'localhost')}:{parts.get('port', '5432')}"


def first_line(error: BaseException) -> str:
    """Return what an error of libpq or PostgreSQL says, in one line.

    libpq tells of several tries (IPv6, IPv4), of which the last counts. PostgreSQL's message is never cut.
    """
    if isinstance(error, psycopg2.Error) and error.diag.message_primary:
        return " ".join(error.diag.message_primary.split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in reversed(lines) if "failed: " in line), lines[0])
    return line.split("failed: ", 1)[-1].removeprefix("FATAL:").strip()


def explain(name: str, url: str, error: psycopg2.Error) -> str:
    """Return one line: which database, what is wrong, and what to do where we know it."""
    advice = ""
    if error.pgcode in SET_UP_MISSING and error.diag.context:
        advice = "; a trigger function of yours needs a search_path of its own: ALTER FUNCTION … SET search_path = …"
    elif error.pgcode in SET_UP_MISSING:
        advice = "; run python db_setup.py"
    elif error.pgcode == INSUFFICIENT_PRIVILEGE and HIDDEN_ROWS in str(error):
        advice = "; rows are hidden from this role: give it BYPASSRLS"
    elif error.pgcode == INSUFFICIENT_PRIVILEGE and "parameter" in str(error):
        advice = "; take it back where it is set for the role, the database or the server"
    elif is_wrong_login(error) or (error.pgcode is None and "could not translate host name" in str(error)):
        advice = f"; check {name.upper()}_DATABASE_URL"
    return f"{name} at {address(url)}: {first_line(error)}{advice}"


def is_closed(error: psycopg2.Error) -> bool:
    """Whether a session has ended that had begun: an administrator, a time limit or something between did that."""
    text = str(error)
    return error.pgcode in SESSION_ENDED or (error.pgcode is None and "closed" in text and "failed: " not in text)


def is_wrong_login(error: psycopg2.Error) -> bool:
    return error.pgcode is None and any(text in str(error) for text in WRONG_LOGIN)

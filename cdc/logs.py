"""The lines of the log, for people or as JSON; nothing in them acts upon a terminal.

At INFO and above they name an employee by its id alone. What else is known goes by extra=, under the names in FIELDS.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

import config
from cdc.text import escape

FIELDS = ("count", "log_offset", "duration_seconds", "partition", "offset")  # offset: of Kafka


class LineFormatter(logging.Formatter):
    """For people: the time with its offset from UTC, the level, the message, on one line."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return moment(record.created).isoformat(sep=" ", timespec="seconds")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape(super().formatMessage(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            known["exception"] = self.formatException(record.exc_info)
        return to_json(record.created, record.levelname, record.name, record.getMessage(), known)


def moment(created: float) -> datetime:
    return datetime.fromtimestamp(created).astimezone()


def to_json(created: float, level: str, logger: str, message: str, known: dict[str, Any]) -> str:
    time = moment(created).isoformat(timespec="milliseconds")
    return json.dumps({"timestamp": time, "level": level, "logger": logger, "message": message, **known})


def formatter() -> logging.Formatter:
    if config.LOG_FORMAT == "json":
        return JsonFormatter()
    return LineFormatter("%(asctime)s %(levelname)-7s %(message)s")


def as_line(message: str, level: str = "ERROR") -> str:
    """Return a line that goes to stderr, such as that with which a script fails."""
    if config.LOG_FORMAT == "json":
        return to_json(datetime.now().timestamp(), level, "cdc", message, {})
    return escape(message)

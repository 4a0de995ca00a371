"""The row and the change: two dataclasses, their columns, their checks, and their JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

ACTIONS = ("INSERT", "UPDATE", "DELETE")
INT4 = (-(2**31), 2**31 - 1)
OFFSET = (1, 2**63 - 1)
MAX_LENGTH = 100

_DATE = re.compile(r"(\d{4}|[1-9]\d{4,6})-(\d\d)-(\d\d)( BC)?", re.ASCII)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True)
class Employee:
    """A row of `employees`.

    `dob` stays text, as PostgreSQL writes dates in ISO style: they reach from 4714-11-24 BC to 5874897-12-31 and
    infinity, which `datetime.date` cannot hold. Raises ValueError for what the table would not take.
    """

    emp_id: int
    first_name: str | None = None
    last_name: str | None = None
    dob: str | None = None
    city: str | None = None
    salary: int | None = None

    def __post_init__(self) -> None:
        _check_columns(self)


@dataclass(frozen=True)
class CDCRecord:
    """A row of `emp_cdc`, and the value of a Kafka message: one change of one employee.

    INSERT and UPDATE carry the row as it became, DELETE the row as it was. `cdc_id` is the change's offset in the
    log: of two changes of one employee the one with the higher cdc_id is the newer. Raises ValueError for a change
    that the destination could not apply.
    """

    cdc_id: int
    emp_id: int
    first_name: str | None = None
    last_name: str | None = None
    dob: str | None = None
    city: str | None = None
    salary: int | None = None
    action: str = ""

    def __post_init__(self) -> None:
        _check_int("cdc_id", self.cdc_id, OFFSET)
        _check_columns(self)
        if self.action not in ACTIONS:
            raise ValueError(f"action is {_shorten(self.action)}, not one of {', '.join(ACTIONS)}")

    def to_json(self) -> str:
        """Return the record as one flat JSON object, its fields in the order of the log's columns."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes | None) -> CDCRecord:
        """Return the record that a message's value holds.

        A missing data column is NULL, so that old messages survive a new column; a field that is not a column is
        ignored, so that old consumers survive one. Raises ValueError, in words for people, for anything else.
        """
        if text is None:
            raise ValueError("the message has no value")
        try:
            data = json.loads(text.decode() if isinstance(text, bytes) else text)  # it would take UTF-16 too
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"a JSON object is needed, not {type(data).__name__}")
        if missing := [name for name in ("cdc_id", "emp_id", "action") if data.get(name) is None]:
            raise ValueError(f"{' and '.join(missing)} missing")
        return cls(**{name: data[name] for name in CDC_COLUMNS if name in data})

    def __str__(self) -> str:
        return f"{self.action} employee {self.emp_id}"


EMPLOYEE_COLUMNS = tuple(field.name for field in fields(Employee))
CDC_COLUMNS = tuple(field.name for field in fields(CDCRecord))


def _check_columns(row: Employee | CDCRecord) -> None:
    _check_int("emp_id", row.emp_id, INT4)
    for name in ("first_name", "last_name", "city"):
        _check_text(name, getattr(row, name))
    if row.dob is not None and not _is_date(row.dob):
        raise ValueError("dob is not a date that PostgreSQL knows")
    if row.salary is not None:
        _check_int("salary", row.salary, INT4)


def _check_int(name: str, value: Any, bounds: tuple[int, int]) -> None:
    if type(value) is not int:  # isinstance would let True pass
        raise ValueError(f"{name} is {_shown(name, value)}not a whole number")
    if not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"{name} is {_shown(name, value)}outside {bounds[0]} to {bounds[1]}")


def _check_text(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    if len(value) > MAX_LENGTH:
        raise ValueError(f"{name} has {len(value)} characters, {MAX_LENGTH} are allowed")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} holds a character that PostgreSQL cannot store")


def _is_date(text: Any) -> bool:
    """Whether text is a date as PostgreSQL writes it in ISO style (range: its manual, table 8.9)."""
    if text in ("infinity", "-infinity"):
        return True
    match = _DATE.fullmatch(text) if isinstance(text, str) else None
    if not match:
        return False
    year, month, day = (int(part) for part in match.group(1, 2, 3))
    if year == 0 or not 1 <= month <= 12 or not 1 <= day <= _DAYS[month - 1]:
        return False
    if match[4]:
        year = 1 - year  # 1 BC is the year 0, and a leap year
    if (month, day) == (2, 29) and not (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)):
        return False
    return (-4713, 11, 24) <= (year, month, day) <= (5874897, 12, 31)


def _shown(name: str, value: Any) -> str:
    """Return a value as part of a reason, which is logged: of an employee, nothing but the id."""
    return f"{_shorten(value)}, " if name in ("cdc_id", "emp_id") else ""


def _shorten(value: Any) -> str:
    try:
        text = ascii(value)
    except RecursionError:  # json reads a little deeper than Python writes
        return "nested too deeply"
    return text if len(text) <= 40 else text[:37] + "..."

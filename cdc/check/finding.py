"""What `admin.py check` has found: one line each."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is right, and what to do if not."""

    state: str  # OK, NOTE: right, but worth knowing, or WRONG
    what: str
    text: str

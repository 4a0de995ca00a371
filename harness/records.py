"""Records for a test: one that is right, and values made from it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings

FULL: dict[str, Any] = {
    "cdc_id": 17,
    "emp_id": 3,
    "first_name": "Ada",
    "last_name": "Lovelace",
    "dob": "1815-12-10",
    "city": "London",
    "salary": 120000,
    "action": "UPDATE",
}
OLDEST, NEWEST = "4714-11-24 BC", "5874897-12-31"


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def value(**columns: Any) -> str:
    """A message's value: FULL with other columns."""
    return json.dumps({**FULL, **columns})

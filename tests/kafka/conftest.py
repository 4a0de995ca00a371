"""A real server that is asked what it makes of a value."""

from __future__ import annotations

from harness.pipeline import Pipeline

import pytest
from psycopg2.extensions import connection as Connection


@pytest.fixture(scope="module")
def server(databases: Pipeline) -> Connection:
    return databases.destination()

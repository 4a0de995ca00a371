"""A real server that is asked what it makes of a value."""

from __future__ import annotations

import pytest
from psycopg2.extensions import connection as Connection

from harness.pipeline import Pipeline


@pytest.fixture(scope="module")
def server(databases: Pipeline) -> Connection:
    return databases.destination()

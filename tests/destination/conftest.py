"""What the tests of the destination share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from cdc import bulk
from cdc.postgres import connect
from harness.pipeline import Pipeline

import pytest
from psycopg2.extensions import connection as Connection


@pytest.fixture
def session(shared: Pipeline, destination: Connection) -> Iterator[Connection]:
    """A consumer's session at an empty destination."""
    with closing(connect("destination", shared.destination_url, bulk.SESSION)) as connection:
        yield connection

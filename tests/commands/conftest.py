"""Tables with many rows, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

from harness.database import query
from harness.pipeline import Pipeline, new_pipeline
from harness.verifying import FILL, MANY, SPECIAL

import pytest


@pytest.fixture(scope="module")
def module_pipeline(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path_factory.mktemp("verify")) as pipeline:
        pipeline.set_up()
        query(pipeline.source(), SPECIAL)
        query(pipeline.source(), FILL, {"rows": MANY})
        pipeline.drain()
        query(pipeline.destination(), "CREATE TABLE kept AS TABLE employees")
        yield pipeline


@pytest.fixture
def filled(module_pipeline: Pipeline) -> Iterator[Pipeline]:
    """A drained pipeline with many rows and some special ones. The test may change the destination."""
    yield module_pipeline
    query(module_pipeline.destination(), "TRUNCATE employees; INSERT INTO employees TABLE kept")

"""A topic that is not there yet, and one that is re-created under a running consumer."""

from __future__ import annotations

from collections.abc import Iterator

from harness.consuming import change, consuming, wait_until_read
from harness.destination import wait_for_rows
from harness.pipeline import Pipeline, new_pipeline

import pytest


@pytest.fixture(scope="module")
def without_topic(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a consumer says that was started before admin.py, and whose first change then arrives."""
    with new_pipeline(tmp_path_factory.mktemp("without_topic")) as pipeline:
        assert pipeline.run("db_setup.py").returncode == 0
        with consuming(pipeline) as script:
            script.wait_for("; waiting")
            assert pipeline.run("admin.py").returncode == 0
            pipeline.send(change(1, 1))
            wait_for_rows(pipeline, [1], seconds=10)
            wait_until_read(pipeline)
        yield script.output()


def test_a_missing_topic_is_reported_once_and_waited_for(without_topic: str) -> None:
    (line,) = (line for line in without_topic.splitlines() if "; waiting" in line)
    assert "does not exist; run python admin.py; waiting" in line


def test_a_topic_that_is_there_at_last_is_reported_in_plain_words(without_topic: str) -> None:
    assert "run python admin.py answers again" not in without_topic


def test_a_topic_re_created_under_a_running_consumer_is_read_from_its_first_message(pipeline: Pipeline) -> None:
    with consuming(pipeline) as script:
        for partition in range(3):
            pipeline.send(change(1, partition), change(2, partition), partition=partition)
        wait_until_read(pipeline)
        assert pipeline.run("admin.py", "delete", "--yes").returncode == 0
        script.wait_for("does not exist; run python admin.py; waiting")
        assert pipeline.run("admin.py").returncode == 0
        for partition in range(3):
            pipeline.send(change(3, 10 + partition), partition=partition)
        wait_for_rows(pipeline, [0, 1, 2, 10, 11, 12])

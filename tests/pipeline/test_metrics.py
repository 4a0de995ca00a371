"""Metrics and probes of producer and consumer: their values under real traffic, with a real Prometheus."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdc import metrics
from harness import ROOT
from harness.consuming import change
from harness.database import query
from harness.pipeline import Pipeline
from harness.scraping import free_port, get, prometheus, scrape
from harness.script import Script
from harness.waiting import wait_until

import pytest

INSERT = "INSERT INTO employees (city, salary) SELECT 'Wien', n FROM generate_series(1, %(rows)s) AS n"


@dataclass(frozen=True)
class Watched:
    """A pipeline, its consumer, and the ports of producer and consumer."""

    pipeline: Pipeline
    consumer: Script
    published: int
    applied: int


@pytest.fixture(scope="module")
def watched(shared: Pipeline) -> Iterator[Watched]:
    """A pipeline that runs and shows its metrics."""
    published, applied = free_port(), free_port()
    producer = shared.start("producer.py", METRICS_PORT=str(published), POLL_INTERVAL="0.2")
    consumer = shared.start("consumer.py", METRICS_PORT=str(applied))
    wait_until(lambda: get(published, "/readyz")[0] == get(applied, "/readyz")[0] == 200, 20, shared.outputs)
    yield Watched(shared, consumer, published, applied)
    for script in (producer, consumer):
        assert script.stop() == 0, script.output()
        assert "Traceback" not in script.output()


def test_prometheus_reads_what_was_sent(watched: Watched, tmp_path: Path) -> None:
    source = watched.pipeline.source()
    with prometheus(tmp_path, watched.published, watched.applied) as server:
        before = scrape(watched.applied)
        query(source, INSERT, {"rows": 12_000})
        for _ in range(20):
            query(source, INSERT, {"rows": 1})
        query(source, "UPDATE employees SET city = 'Graz' WHERE emp_id <= 500")
        query(source, "DELETE FROM employees WHERE emp_id <= 200")
        watched.pipeline.wait_until_equal()
        total = 12_000 + 20 + 500 + 200
        done = "sum(employee_cdc_changes_applied_total) + sum(employee_cdc_changes_folded_total)"
        wait_until(lambda: server.one(done) == total, 20, lambda: str(scrape(watched.applied)))
        wait_until(lambda: server.one("employee_cdc_changes_published_total") == total)
        watched.pipeline.send("no change at all", change(1, 501), partition=0)  # a dead letter, and a stale one
        actions = server.ask("employee_cdc_changes_applied_total")
        assert actions == {"INSERT,employee-cdc": 12_020, "UPDATE,employee-cdc": 500, "DELETE,employee-cdc": 200} or (
            server.one("employee_cdc_changes_folded_total") > 0  # of the 700 changes that followed on one another
            and actions["INSERT,employee-cdc"] >= 12_020 - 500
        )
        wait_until(lambda: server.one("sum(employee_cdc_dead_letters_total)") == 1, 10)
        wait_until(lambda: server.one("employee_cdc_changes_stale_total") == 1)
        ((head, size),) = query(source, "SELECT max(cdc_id), sum(octet_length(city)) FROM emp_cdc")
        wait_until(lambda: server.one("employee_cdc_position_offset") == head, 10)
        assert server.one("employee_cdc_published_bytes_total") > size + 100 * total
        assert server.one("employee_cdc_batch_changes_count") >= 2
        wait_until(lambda: server.one("sum(employee_cdc_consumer_lag_messages)") == 0, 10)
        assert sorted(server.ask("employee_cdc_consumer_lag_messages")) == [f"employee-cdc,{n}" for n in range(3)]
        assert server.one("employee_cdc_oldest_unpublished_seconds") == 0
        assert server.one("employee_cdc_unpublished_changes") == 0
        assert server.one("employee_cdc_producer_active") == server.one("employee_cdc_triggers_enabled") == 1
        assert server.one("time() - max(employee_cdc_last_progress_timestamp_seconds)") < 5
        assert server.one("sum(up)") == 2
    after = scrape(watched.applied)
    count, seconds = (
        after[f"end_to_end_delay_seconds_{what}"] - before[f"end_to_end_delay_seconds_{what}"]
        for what in ("count", "sum")
    )
    assert 1 <= count <= 60  # the oldest change of each page
    assert 0 < seconds / count < 5


def test_each_page_is_timed_and_an_empty_poll_is_none(watched: Watched) -> None:
    before = scrape(watched.published)
    query(watched.pipeline.source(), INSERT, {"rows": 100})
    watched.pipeline.wait_until_equal()
    polls = before["poll_duration_seconds_count"] + 5
    wait_until(lambda: scrape(watched.published)["poll_duration_seconds_count"] > polls)
    after = scrape(watched.published)
    assert after["publish_duration_seconds_count"] == after["batch_changes_count"] > before["batch_changes_count"]


@pytest.mark.parametrize("script", ["published", "applied"])
def test_prometheus_finds_no_fault_with_the_names_and_texts(watched: Watched, script: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool here (Debian: apt-get install prometheus)")
    text = get(getattr(watched, script), "/metrics")[1]
    assert subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True).returncode == 0


def test_a_delay_is_what_the_destination_sees(watched: Watched) -> None:
    """The change waits for a second in Kafka: the consumer is stopped meanwhile."""
    before = scrape(watched.applied)
    watched.consumer.process.send_signal(19)
    query(watched.pipeline.source(), INSERT, {"rows": 1})
    time.sleep(1)
    watched.consumer.process.send_signal(18)
    watched.pipeline.wait_until_equal()
    wait_until(
        lambda: scrape(watched.applied)["end_to_end_delay_seconds_count"] > before["end_to_end_delay_seconds_count"]
    )
    after = scrape(watched.applied)
    assert after["end_to_end_delay_seconds_count"] == before["end_to_end_delay_seconds_count"] + 1
    assert 1 < after["end_to_end_delay_seconds_sum"] - before["end_to_end_delay_seconds_sum"] < 4


def test_docs_metrics_names_each_of_them() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([a-z_]+)", text, re.MULTILINE))
    assert named == {metric.name for metric in (*metrics.OF_PRODUCER, *metrics.OF_CONSUMER)} | {"build_info"}

"""METRICS_PORT: what a script shows of itself while something is wrong, and its probes."""

from __future__ import annotations

import socket
import time
from contextlib import closing

from harness.database import WAITING, query
from harness.pipeline import Pipeline
from harness.scraping import free_port, get, scrape
from harness.waiting import wait_until

import pytest

INSERT = "INSERT INTO employees (salary) SELECT n FROM generate_series(1, %(rows)s) AS n"
OFF = "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger"
ON = "ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger"


def test_what_is_not_published_has_an_age(shared: Pipeline) -> None:
    port, source = free_port(), shared.source()
    missing = {"METRICS_PORT": str(port), "KAFKA_TOPIC": f"{shared.topic}_missing"}
    query(source, INSERT, {"rows": 3})
    with shared.running("producer.py", **missing) as script:
        script.wait_for("run python admin.py")
        wait_until(lambda: scrape(port)["oldest_unpublished_seconds"] > 1)
        found = scrape(port)
        assert found["unpublished_changes"] == 3
        assert found['outage_active{server="kafka"}'] == found['outages_total{server="kafka"}'] == 1
        assert found['outage_active{server="source"}'] == found['outages_total{server="source"}'] == 0
        status, reason = get(port, "/readyz")
        assert (status, reason.splitlines()[0].endswith("outage of kafka")) == (503, True)
        assert get(port, "/healthz") == (200, "ok\n")
    with shared.running("producer.py", METRICS_PORT=str(port)):
        wait_until(lambda: scrape(port).get("changes_published_total") == 3)
        wait_until(lambda: scrape(port)["oldest_unpublished_seconds"] == scrape(port)["unpublished_changes"] == 0)


def test_a_producer_that_stands_by_is_ready_and_not_active(shared: Pipeline) -> None:
    port = free_port()
    with shared.running("producer.py") as active:
        active.wait_for("publishing from")
        with shared.running("producer.py", METRICS_PORT=str(port)) as standby:
            standby.wait_for("standing by")
            assert scrape(port)["producer_active"] == 0
            assert get(port, "/readyz") == (200, "ok\n")
            assert active.stop() == 0
            wait_until(lambda: scrape(port)["producer_active"] == 1)


@pytest.mark.long
def test_a_consumer_without_its_destination_shows_the_growing_lag(shared: Pipeline) -> None:
    port, source = free_port(), shared.source()
    shared.drain()
    down = {"METRICS_PORT": str(port), "DESTINATION_DATABASE_URL": "postgresql://localhost:1/postgres"}
    with shared.running("consumer.py", **down) as script, shared.running("producer.py"):
        script.wait_for("waiting")
        assert get(port, "/readyz")[1].startswith("not connected to destination")
        query(source, INSERT, {"rows": 5})
        wait_until(lambda: lag(port) == 5, 20, script.output)
        query(source, INSERT, {"rows": 12})
        wait_until(lambda: lag(port) == 17, 20, script.output)
        found = scrape(port)
        assert found['outages_total{server="destination"}'] == found['outage_active{server="destination"}'] == 1


def lag(port: int) -> float:
    return sum(value for name, value in scrape(port).items() if name.startswith("consumer_lag_messages"))


def test_a_loop_that_does_not_turn_is_not_healthy(shared: Pipeline) -> None:
    port = free_port()
    hang = "import time; producer.run_once = lambda *_: time.sleep(60)"
    script = shared.sabotaged("import producer", "import cdc.health; cdc.health.HANGS_AFTER = 1.0", hang)
    hanging = shared.start(script, METRICS_PORT=str(port))
    try:
        wait_until(lambda: is_told_as_hanging(get(port, "/healthz")), 20, hanging.output)
    finally:
        hanging.kill()


def is_told_as_hanging(answer: tuple[int, str]) -> bool:
    return answer[0] == 503 and "the loop has not turned" in answer[1]


def test_a_statement_that_waits_for_a_lock_is_no_hanging(shared: Pipeline) -> None:
    port, blocker, other = free_port(), shared.destination(), shared.destination()
    query(blocker, "BEGIN; LOCK TABLE cdc_applied IN ACCESS EXCLUSIVE MODE")
    query(shared.source(), INSERT, {"rows": 1})
    script = shared.sabotaged("import consumer", "import cdc.health; cdc.health.HANGS_AFTER = 2.0")
    with shared.running("producer.py"), shared.running(script, METRICS_PORT=str(port)):
        wait_until(lambda: query(other, WAITING) == [(1,)])
        time.sleep(3)
        assert get(port, "/healthz") == (200, "ok\n")
        assert query(other, WAITING) == [(1,)]
        query(blocker, "ROLLBACK")


def test_a_trigger_that_is_off_shows(shared: Pipeline) -> None:
    port, source = free_port(), shared.source()
    query(source, OFF)
    try:
        with shared.running("producer.py", METRICS_PORT=str(port)) as script:
            script.wait_for("is disabled")
            assert scrape(port)["triggers_enabled"] == 0
    finally:
        query(source, ON)


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
@pytest.mark.parametrize("value", ["soon", "0", "-1", "65536", "²", "taken", "no address"])
def test_a_port_that_cannot_be_had_is_named_in_one_line(shared: Pipeline, script: str, value: str) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"taken": str(taken.getsockname()[1]), "no address": "9401"}.get(value, value)
        host = {"METRICS_HOST": "no.such.host.invalid"} if value == "no address" else {}
        result = shared.run(script, "--once", seconds=20, METRICS_PORT=port, **host)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert "METRICS_PORT" in line

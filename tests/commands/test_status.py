"""admin.py status: it follows a change through all stages."""

from __future__ import annotations

import json
import re
import socket
import time

from harness.database import query
from harness.pipeline import Pipeline
from harness.showing import lag, screen
from harness.waiting import wait_until

import pytest


def test_status_of_a_pipeline_in_which_nothing_runs_yet_says_what_to_start(pipeline: Pipeline) -> None:
    found, shown = pipeline.status(), screen(pipeline)
    assert found["source"]["rows"] == found["source"]["log_head"] == found["source"]["unpublished"] == 0
    assert found["source"]["active_producer"] is None
    assert [part["partition"] for part in found["kafka"]["partitions"]] == [0, 1, 2]
    assert found["kafka"]["members"] == []
    assert found["in_sync"] is True
    assert shown["producer"] == "0 log offset; none; start python producer.py"
    assert shown["partition 1"] == "0 messages; 0; no consumer"
    assert shown["group"] == f"0 consumers; {pipeline.name}; start python consumer.py"
    assert shown["log"] == "0 log offset; 0; no change yet"
    assert shown["answer"] == "in sync: yes; but no producer is active"


def test_status_follows_a_change_from_the_log_into_the_topic(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    time.sleep(0.2)  # the age shows tenths of a second
    found, shown = pipeline.status(), screen(pipeline)
    assert (found["source"]["rows"], found["destination"]["rows"]) == (1, 0)
    assert (found["source"]["log_head"], found["source"]["published_offset"]) == (1, 0)
    assert found["source"]["unpublished"] == 1
    assert found["source"]["oldest_unpublished_seconds"] >= 0.2
    assert (lag(found), found["in_sync"]) == (0, False)
    assert re.fullmatch(r"1 log offset; 1 oldest \d\.\d s; last change \d\.\d s ago", shown["log"])
    assert shown["source"].startswith("1 row; localhost:")
    assert shown["answer"] == "in sync: no; 1 change is not published"

    assert pipeline.run("producer.py", "--once").returncode == 0
    found, shown = pipeline.status(), screen(pipeline)
    assert (found["source"]["unpublished"], found["source"]["published_offset"]) == (0, 1)
    assert (lag(found), found["in_sync"]) == (1, False)
    assert found["oldest_change_seconds"] >= 0.2
    assert any(re.fullmatch(r"1 message; 1 oldest \d\.\d s; no consumer", row) for row in shown.values())
    assert shown["log"].startswith("1 log offset; 0; last change ")
    assert found["to_kafka"]["changes"] == 1
    assert found["to_destination"] is None  # that server does not keep the times of commits
    assert found["to_kafka"]["median_ms"] == found["to_kafka"]["slowest_ms"] >= 200


def test_status_counts_a_late_row_as_not_published(pipeline: Pipeline) -> None:
    late = pipeline.source()
    query(late, "BEGIN; INSERT INTO employees (emp_id) VALUES (1)")
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (2)")
    assert pipeline.run("producer.py", "--once").returncode == 0
    query(late, "COMMIT")
    found = pipeline.status()
    assert (found["source"]["log_head"], found["source"]["published_offset"]) == (2, 2)
    assert found["source"]["unpublished"] == 1


def test_status_of_a_running_pipeline_names_who_is_at_work_and_counts_dead_letters(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id) VALUES (1), (2)")
    running.wait_until_equal()
    found = wait_until(lambda: (now := running.status())["in_sync"] and now, what="in sync")
    shown = screen(running)
    assert (found["source"]["rows"], found["destination"]["rows"]) == (3, 3)
    assert (found["source"]["unpublished"], lag(found), found["kafka"]["dead_letters"]) == (0, 0, 0)
    assert re.fullmatch(r"pid \d+ at \S+", found["source"]["active_producer"])
    (member,) = found["kafka"]["members"]
    assert [part["member"] for part in found["kafka"]["partitions"]] == [member] * 3
    assert sum(part["end_offset"] for part in found["kafka"]["partitions"]) == 3
    assert shown["group"] == f"1 consumer; {running.name}"
    producer = running.scripts[0]
    assert shown["producer"] == f"3 log offset; script {producer.process.pid} on {socket.gethostname()}"
    assert shown["answer"] == "in sync: yes"
    assert found["alarms"] == []

    running.send("no change")
    wait_until(lambda: running.status()["kafka"]["dead_letters"] == 1, what="a dead letter")
    assert screen(running)["dead letters"] == "1; python admin.py dead-letters"


NOT_ANSWERING = {
    "source": ({"SOURCE_DATABASE_URL": "postgresql://postgres@localhost:1/none"}, "source at localhost:1: "),
    "kafka": ({"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, "Kafka at localhost:1: "),
    "destination": (
        {"DESTINATION_DATABASE_URL": "postgresql://postgres@localhost:1/none"},
        "destination at localhost:1: ",
    ),
}


@pytest.mark.parametrize("stage", NOT_ANSWERING)
def test_status_of_a_stage_that_does_not_answer_is_an_error_beside_the_others(pipeline: Pipeline, stage: str) -> None:
    settings, said = NOT_ANSWERING[stage]
    pipeline.environment.update(settings)
    impatient = pipeline.sabotaged(
        "import admin",
        "from cdc import topic",
        "from cdc.status import stages",
        "stages.ANSWER_WAIT = topic.ANSWER_WAIT = 1",
    )
    result = pipeline.run(impatient, "status", "--json")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = json.loads(result.stdout)
    assert found[stage]["error"].startswith(said)
    assert "\n" not in found[stage]["error"]
    assert [other for other in NOT_ANSWERING if "error" in found[other]] == [stage]
    assert found["in_sync"] is False
    human = pipeline.run(impatient, "status", COLUMNS="200")
    assert human.returncode == 1
    assert said in human.stdout


def test_status_names_the_script_that_makes_what_is_missing(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("admin.py", "status", "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert found["source"]["error"].endswith("run python db_setup.py")
    assert found["kafka"]["error"] == f"topic {bare_pipeline.topic} does not exist; run python admin.py"
    assert found["destination"]["error"].endswith("run python db_setup.py")
    assert bare_pipeline.run("db_setup.py").returncode == 0
    query(bare_pipeline.source(), "DELETE FROM cdc_position")
    found = json.loads(bare_pipeline.run("admin.py", "status", "--json").stdout)
    assert found["source"]["error"].endswith("run python db_setup.py")


def test_status_shows_an_error_with_brackets_as_it_is(databases: Pipeline) -> None:
    url = databases.destination_url + "_[/b]"
    result = databases.run("admin.py", "status", COLUMNS="200", DESTINATION_DATABASE_URL=url)
    assert result.returncode == 1
    assert '_[/b]" does not exist' in result.stdout

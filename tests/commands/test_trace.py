"""admin.py trace: where one employee's changes are, and where they hang."""

from __future__ import annotations

import json
from typing import Any

from cdc.trace.search import partition_of
from harness.consuming import change
from harness.database import query
from harness.kafka import remove_messages
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest

FORGET = "DELETE FROM cdc_applied WHERE emp_id = %(id)s; DELETE FROM employees WHERE emp_id = %(id)s"
THREE, SIX = [0, 1, 2], [0, 1, 2, 3, 4, 5]  # partitions
FOLLOWED, CARRIED, REFUSED, STRANGERS, DIFFERING, FORGOTTEN, UNFOUND = 7, 8, 10, 12, 13, 14, 15


def trace(pipeline: Pipeline, emp_id: int, script: str = "admin.py") -> dict[str, Any]:
    result = pipeline.run(script, "trace", str(emp_id), "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def once(pipeline: Pipeline, script: str) -> None:
    result = pipeline.run(script, "--once")
    assert result.returncode == 0, result.stdout + result.stderr


def insert(pipeline: Pipeline, emp_id: int) -> int:
    """Insert an employee; returns the log offset."""
    source = pipeline.source()
    query(source, "INSERT INTO employees (emp_id, city) VALUES (%s, 'Oslo')", (emp_id,))
    return int(query(source, "SELECT max(cdc_id) FROM emp_cdc")[0][0])


def test_a_change_is_followed_from_the_log_to_the_destination(shared: Pipeline) -> None:
    found = trace(shared, FOLLOWED)
    assert (found["state"], found["in_sync"], found["log"], found["messages"]) == ("in sync", True, [], [])
    assert found["verdict"] == "in sync: there is no employee 7 on either side"

    first = insert(shared, FOLLOWED)
    found = trace(shared, FOLLOWED)
    (logged,) = found["log"]
    assert (logged["log_offset"], logged["action"], logged["published"]) == (first, "INSERT", False)
    same_time = "abs(extract(epoch FROM changed_at - %s)) < 0.001"
    assert query(shared.source(), f"SELECT txid::text, {same_time} FROM emp_cdc", (logged["changed_at"],)) == [
        (logged["txid"], True)
    ]
    assert (found["state"], found["in_sync"]) == ("unpublished", False)
    assert found["verdict"] == (
        f"hangs before the topic: INSERT, log offset {first}, is not published; start python producer.py"
    )

    once(shared, "producer.py")
    found = trace(shared, FOLLOWED)
    (sent,) = found["messages"]
    assert (found["log"][0]["published"], sent["log_offset"], sent["read"]) == (True, first, False)
    assert (found["partition"], found["state"]) == (sent["partition"], "not read")
    assert found["verdict"] == (
        f"hangs before the destination: INSERT, log offset {first}, is published (partition {sent['partition']}, "
        f"offset {sent['offset']}) and not applied; start python consumer.py"
    )

    once(shared, "consumer.py")
    found = trace(shared, FOLLOWED)
    assert [(part["log_offset"], part["read"]) for part in found["messages"]] == [(first, True)]
    assert (found["applied"], found["state"], found["verdict"]) == (first, "in sync", "in sync")
    row = {"emp_id": 7, "first_name": None, "last_name": None, "dob": None, "city": "Oslo", "salary": None}
    assert found["source"] == found["destination"] == row


@pytest.fixture(scope="module")
def stopped(shared: Pipeline) -> Pipeline:
    """A pipeline that has carried its changes, all but one as it should, and does not run."""
    destination = shared.destination()
    query(destination, f"ALTER TABLE employees ADD CONSTRAINT mine CHECK (emp_id NOT IN ({REFUSED}, {STRANGERS}))")
    for emp_id in (CARRIED, REFUSED, DIFFERING, FORGOTTEN):
        insert(shared, emp_id)
    shared.send("no change", '{"cdc_id":1,"emp_id":12,"action":"MERGE"}', key=str(STRANGERS))
    shared.send(change(1, STRANGERS))
    shared.drain()
    query(destination, "ALTER TABLE employees DROP CONSTRAINT mine")
    return shared


def test_who_could_carry_a_change_is_named(stopped: Pipeline) -> None:
    with stopped.running("producer.py") as producer, stopped.running("consumer.py") as consumer:
        producer.wait_for("publishing from")
        consumer.wait_for("partitions assigned")
        destination = stopped.destination()
        query(destination, "BEGIN; SELECT FROM cdc_applied WHERE emp_id = %s FOR UPDATE", (CARRIED,))
        query(stopped.source(), "UPDATE employees SET city = 'Rome' WHERE emp_id = %s", (CARRIED,))
        found = wait_until(lambda: (now := trace(stopped, CARRIED))["state"] == "not read" and now)
        query(destination, "COMMIT")
    assert found["producer"].startswith("pid ")
    reader = found["readers"][str(found["partition"])]
    assert found["verdict"].endswith(f" and not applied; {reader} has 0 messages before it")
    assert " at 127.0.0.1" in reader


def test_a_dead_letter_is_where_a_change_hangs_until_a_newer_one_is_applied(stopped: Pipeline) -> None:
    found = trace(stopped, REFUSED)
    (letter,), (logged,) = found["letters"], found["log"]
    assert (letter["log_offset"], letter["action"]) == (logged["log_offset"], "INSERT")
    assert found["state"] == "dead letter"
    assert found["verdict"].startswith(f"hangs as a dead letter: INSERT, log offset {logged['log_offset']}, ")
    assert 'violates check constraint "mine"' in found["verdict"]
    assert found["verdict"].endswith("; python admin.py dead-letters")

    query(stopped.source(), "UPDATE employees SET city = 'Rome' WHERE emp_id = %s", (REFUSED,))
    stopped.drain()
    found = trace(stopped, REFUSED)
    assert (found["state"], found["letters"]) == ("in sync", [letter])


def test_a_stranger_s_dead_letters_are_found_by_their_key_or_by_their_value(stopped: Pipeline) -> None:
    letters = trace(stopped, STRANGERS)["letters"]
    assert sorted(letter["log_offset"] or 0 for letter in letters) == [0, 0, 1]
    assert [letter["action"].partition(":")[0] for letter in letters].count("no change") == 2


def test_rows_that_differ_though_all_is_applied_are_named_by_their_columns(stopped: Pipeline) -> None:
    query(stopped.destination(), "UPDATE employees SET city = 'Rome', salary = 0 WHERE emp_id = %s", (DIFFERING,))
    found = trace(stopped, DIFFERING)
    assert (found["state"], found["in_sync"]) == ("differs", False)
    line = "differs in city, salary, and no change is on its way; run python verify.py --repair"
    assert found["verdict"] == line


def test_a_change_that_was_read_and_is_not_applied_points_to_a_restored_destination(stopped: Pipeline) -> None:
    query(stopped.destination(), FORGET, {"id": FORGOTTEN})
    found = trace(stopped, FORGOTTEN)
    assert found["state"] == "not applied"
    assert found["verdict"].endswith("is not applied: a restored destination? run python verify.py --repair")


def test_a_search_that_ends_before_the_message_says_what_was_not_searched(stopped: Pipeline) -> None:
    log_offset = insert(stopped, UNFOUND)
    once(stopped, "producer.py")
    for number in range(3):
        stopped.send(*[change(1, 16)] * 30, partition=number)
    bounds = "search.MAX_MESSAGES = 20; search.FIRST_BLOCK = 4"
    found = trace(stopped, UNFOUND, stopped.sabotaged("import admin", "from cdc.trace import search", bounds))
    assert (found["state"], found["messages"]) == ("not found", [])
    assert {part["end_offset"] - part["searched_from"] for part in found["searched"]} == {20}
    unsearched = sum(part["searched_from"] - part["first_offset"] for part in found["searched"])
    assert found["verdict"].endswith(f"its message may be among the {unsearched:,} that were not searched")

    in_blocks = stopped.sabotaged("import admin", "from cdc.trace import search", "search.FIRST_BLOCK = 4")
    found = trace(stopped, UNFOUND, in_blocks)
    assert [part["partition"] for part in found["searched"]] == [found["partition"]]
    assert [part["log_offset"] for part in found["messages"]] == [log_offset]

    query(stopped.source(), "UPDATE cdc_position SET last_offset = last_offset - 1")
    found = trace(stopped, UNFOUND)
    assert (found["log"][0]["published"], found["state"]) == (False, "not read"), "sent, and the position not saved yet"
    query(stopped.source(), "UPDATE cdc_position SET last_offset = last_offset + 1")

    remove_messages(stopped.topic)
    found = trace(stopped, UNFOUND)
    assert found["state"] == "not found"
    assert found["verdict"].endswith("the topic does not hold it any more: run python verify.py --repair")


def test_a_message_from_before_partitions_were_added_is_found_in_its_old_one(stopped: Pipeline) -> None:
    emp_id = next(number for number in range(100, 200) if partition_of(number, SIX) not in THREE)
    log_offset = insert(stopped, emp_id)
    once(stopped, "producer.py")
    assert stopped.run("admin.py", "create", "--partitions", "6").returncode == 0
    found = trace(stopped, emp_id)
    (message,) = found["messages"]
    assert (message["partition"] in THREE, found["partition"] in THREE) == (True, False)
    assert (message["log_offset"], found["state"]) == (log_offset, "not read")

"""The lines of the log: their time, LOG_FORMAT, LOG_LEVEL, and nothing of a person but the employee's id."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from cdc.logs import FIELDS
from harness.database import query
from harness.pipeline import Pipeline
from harness.records import value

import pytest

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d) (INFO|WARNING|ERROR) +\S")
INSERT = "INSERT INTO employees (first_name, city) SELECT 'Ada', 'Wien' FROM generate_series(1, %(rows)s)"
# At the destination: takes the first name for a number, as a trigger of somebody's own might.
CAST = """
CREATE FUNCTION take_for_a_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.salary := NEW.first_name::int;
    RETURN NEW;
END
$$;
CREATE TRIGGER take_for_a_number BEFORE INSERT ON employees FOR EACH ROW
WHEN (NEW.city = 'a trigger') EXECUTE FUNCTION take_for_a_number()
"""


def once(pipeline: Pipeline, script: str, **environment: Any) -> str:
    result = pipeline.run(script, "--once", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return str(result.stdout)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_line_has_the_date_and_the_offset_from_utc(shared: Pipeline) -> None:
    query(shared.source(), INSERT, {"rows": 1})
    for script in ("producer.py", "consumer.py"):
        for line in once(shared, script, TZ="Asia/Kolkata").splitlines():
            match = LINE.match(line)
            assert match, line
            assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(match[1])).total_seconds()) < 60
            assert match[1].endswith("+05:30")


def test_json_is_an_object_a_line_with_fixed_fields(shared: Pipeline) -> None:
    source = shared.source()
    query(source, INSERT, {"rows": 2})
    ((head,),) = query(source, "SELECT max(cdc_id) FROM emp_cdc")
    few = parsed(once(shared, "producer.py", LOG_FORMAT="json"))
    applied = parsed(once(shared, "consumer.py", LOG_FORMAT="json"))
    query(source, INSERT, {"rows": 100})
    many = parsed(once(shared, "producer.py", LOG_FORMAT="json")) + parsed(
        once(shared, "consumer.py", LOG_FORMAT="json")
    )
    for line in few + applied + many:
        assert list(line)[:4] == ["timestamp", "level", "logger", "message"]
        assert set(list(line)[4:]) <= set(FIELDS)
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
    assert [line["log_offset"] for line in few if "→ published" in line["message"]] == [head - 1, head]
    places = [(line["partition"], line["offset"]) for line in applied if "→ applied" in line["message"]]
    assert len(set(places)) == 2
    assert all(isinstance(number, int) for place in places for number in place)
    batches = [line for line in many if "duration_seconds" in line]
    assert {line["logger"] for line in batches} == {"producer", "consumer"}
    for name in ("producer", "consumer"):
        assert sum(line["count"] for line in batches if line["logger"] == name) == 100
    assert {line["log_offset"] for line in batches if line["logger"] == "producer"} == {head + 100}


def test_the_line_with_which_a_script_fails_is_json_too(shared: Pipeline) -> None:
    result = shared.run("producer.py", "--once", LOG_FORMAT="json", RETENTION="nonsense", KAFKA_HOME="/opt")
    assert result.returncode == 2
    assert ["RETENTION" in line["message"] for line in parsed(result.stderr)] == [False, True]


def test_log_level_leaves_out_what_is_below_it(shared: Pipeline) -> None:
    query(shared.source(), INSERT, {"rows": 1})
    for script in ("producer.py", "consumer.py"):
        assert once(shared, script, LOG_LEVEL="WARNING") == ""
    assert " DEBUG " in once(shared, "consumer.py", LOG_LEVEL="DEBUG", KAFKA_DEBUG="cgrp")


@pytest.mark.parametrize(("name", "given"), [("LOG_FORMAT", "xml"), ("LOG_LEVEL", "info"), ("LOG_LEVEL", "10")])
def test_a_wrong_setting_is_named_in_one_line(shared: Pipeline, name: str, given: str) -> None:
    wrong: Any = {name: given}
    result = shared.run("producer.py", "--once", **wrong)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name} is {given!r}: give one of ")


# A secret in each of the columns, where it makes the message or the row bad.
BAD = {
    "salary is no number": value(emp_id=1, salary="Geheim"),
    "salary is too large": value(emp_id=1, salary=77777777777),
    "dob is no date": value(emp_id=1, dob="Geheim"),
    "a name is no text": value(emp_id=1, first_name=["Geheim"]),
    "no object": '["Geheim"]',
    "refused by the destination": value(emp_id=900_001, first_name="Geheim", city="a trigger"),
}


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_of_a_person_is_logged_but_the_id(shared: Pipeline, form: str) -> None:
    destination = shared.destination()
    query(destination, CAST)
    try:
        shared.send(*BAD.values(), partition=0)
        shown = once(shared, "consumer.py", LOG_FORMAT=form)
    finally:
        query(destination, "DROP FUNCTION take_for_a_number CASCADE")
    assert f"sent {len(BAD)} dead letters in all" in shown
    assert "Geheim" not in shown
    assert "7777" not in shown

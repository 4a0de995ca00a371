"""Bad messages: each becomes a dead letter, and the good ones around it are applied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from employee import CDCRecord
from harness.consuming import change, wait_until_read
from harness.database import query
from harness.destination import ROW, Row, wait_for_rows
from harness.kafka import client_settings, count_messages
from harness.pipeline import Pipeline, new_pipeline
from harness.waiting import wait_until

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient

CITY = '"city":"here"'
GOOD = change(50, 666, first_name="a", city="here", salary=7)  # what the bad ones are made from; never sent itself


def spoiled(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


BAD: dict[str, bytes | None] = {
    "a tombstone": None,
    "an empty value": b"",
    "a space": b" ",
    "not JSON": b"hello",
    "truncated JSON": GOOD[:-1].encode(),
    "invalid UTF-8": spoiled("here", "here").replace(b"here", b"h\xffre"),
    "a surrogate in UTF-8": spoiled("here", "here").replace(b"here", b"h\xed\xa0\x80re"),
    "null": b"null",
    "a number": b"1",
    "an array": f"[{GOOD}]".encode(),
    "an empty array": b"[]",
    "two objects": f"{GOOD}{GOOD}".encode(),
    "two objects with a comma": f"{GOOD},{GOOD}".encode(),
    "a comma in front": f",{GOOD}".encode(),
    "an object and the array's end": f"{GOOD}],[{GOOD}".encode(),
    "an object that is not closed and one not opened": b"{},{}",
    "an unknown action": spoiled("INSERT", "MERGE"),
    "an action in lower case": spoiled("INSERT", "insert"),
    "an action that is null": spoiled('"INSERT"', "null"),
    "no action": spoiled(',"action":"INSERT"', ""),
    "no cdc_id": spoiled('"cdc_id":50,', ""),
    "no emp_id": spoiled('"emp_id":666,', ""),
    "an emp_id that is null": spoiled('"emp_id":666', '"emp_id":null'),
    "a cdc_id as text": spoiled(":50,", ':"50",'),
    "an emp_id as text": spoiled(":666,", ':"666",'),
    "an emp_id as a float": spoiled(":666,", ":666.0,"),
    "an emp_id in exponents": spoiled(":666,", ":666e0,"),
    "an emp_id that is true": spoiled(":666,", ":true,"),
    "an emp_id with a leading zero": spoiled(":666,", ":0666,"),
    "an emp_id out of range": spoiled(":666,", ":2147483648,"),
    "cdc_id 0": spoiled(":50,", ":0,"),
    "a negative cdc_id": spoiled(":50,", ":-50,"),
    "a cdc_id out of range": spoiled(":50,", ":9223372036854775808,"),
    "a cdc_id of 30 digits": spoiled(":50,", f":{10**29},"),
    "a salary out of range": spoiled(":7,", ":-2147483649,"),
    "a salary as text": spoiled(":7,", ':"7",'),
    "a salary that is NaN": spoiled(":7,", ":NaN,"),
    "a city that is a number": spoiled('"here"', "17"),
    "a city that is an object": spoiled('"here"', '{"a":"b"}'),
    "101 letters": spoiled("here", "x" * 101),
    "100 letters and a space": spoiled("here", "x" * 100 + " "),
    "101 astral characters": spoiled("here", "😀" * 101),
    "a NUL": spoiled("here", "he\\u0000re"),
    "a raw NUL": spoiled("here", "he\0re"),
    "a lone surrogate": spoiled("here", "he\\ud800re"),
    "a raw line end": spoiled("here", "he\nre"),
    "30 February": spoiled('"dob":null', '"dob":"2001-02-30"'),
    "month 13": spoiled('"dob":null', '"dob":"2001-13-01"'),
    "the year 0": spoiled('"dob":null', '"dob":"0000-01-01"'),
    "a date that is nonsense": spoiled('"dob":null', '"dob":"soon"'),
    "a date that PostgreSQL would reckon": spoiled('"dob":null', '"dob":"today"'),
    "a date before the first": spoiled('"dob":null', '"dob":"4714-11-23 BC"'),
    "a row that a CHECK refuses": spoiled(":7,", ":13,"),
    "a row that a UNIQUE index refuses": spoiled("here", "taken"),
    "a row that a trigger refuses": spoiled("here", "forbidden"),
}
USERS_OWN = """
ALTER TABLE employees ADD CHECK (salary <> 13);
CREATE UNIQUE INDEX ON employees (city);
INSERT INTO employees (emp_id, city) VALUES (-1, 'taken');
CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$;
CREATE TRIGGER forbid BEFORE INSERT ON employees FOR EACH ROW WHEN (NEW.city = 'forbidden') EXECUTE FUNCTION forbid();
"""
UNUSUAL: dict[str, tuple[str, Row]] = {
    "spaces and line ends": (
        '\n{ "cdc_id" : 1 ,\t"emp_id" : 5001 , "city" : " a " , "action" : "INSERT" }\r\n',
        (None, None, None, " a ", None),
    ),
    "another order": (
        '{"action":"INSERT","salary":1,"city":"b","dob":null,"last_name":null,"first_name":null,"emp_id":5002,"cdc_id":1}',
        (None, None, None, "b", 1),
    ),
    "fields that are no columns": (
        '{"cdc_id":1,"emp_id":5003,"city":"c","action":"INSERT","txid":17,"more":{"a":[1.5,null,"\\u0000"]}}',
        (None, None, None, "c", None),
    ),
    "missing columns": ('{"cdc_id":1,"emp_id":5004,"action":"UPDATE"}', (None, None, None, None, None)),
    "escapes": (
        '{"cdc_id":1,"emp_id":5005,"first_name":"\\u0041\\u00e9\\ud83d\\ude00\\/\\"\\\\","action":"\\u0049NSERT"}',
        ('Aé😀/"\\', None, None, None, None),
    ),
    "a field given twice: the last one counts": (
        '{"cdc_id":1,"emp_id":666,"city":"x","emp_id":5006,"city":"d","action":"DELETE","action":"INSERT"}',
        (None, None, None, "d", None),
    ),
    "100 astral characters": (change(1, 5007, last_name="😀" * 100), (None, "😀" * 100, None, None, None)),
    "a negative zero": (change(1, 5008, salary=0).replace('"salary":0', '"salary":-0'), (None, None, None, None, 0)),
    "all limits": (
        change(2**63 - 1, -(2**31), dob="4714-11-24 BC", salary=-(2**31)),
        (None, None, "4714-11-24 BC", None, -(2**31)),
    ),
}


@dataclass
class Outcome:
    """What became of the bad messages."""

    pipeline: Pipeline
    among: dict[str, Message]  # the dead letters of BAD, sent in the middle of good ones in one batch
    alone: dict[str, Message]  # the same, each sent when all before was done
    output: str


@pytest.fixture(scope="module")
def outcome(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """All bad messages in the middle of good ones in one batch, and then each of them alone."""
    with new_pipeline(tmp_path_factory.mktemp("bad")) as pipeline:
        pipeline.set_up()
        query(pipeline.destination(), USERS_OWN)
        good = list(range(1000, 1000 + len(BAD)))
        with closing(Producer(client_settings())) as stranger:
            for emp_id, (what, bad) in zip(good, BAD.items(), strict=True):
                stranger.produce(pipeline.topic, change(1, emp_id), partition=0)
                stranger.produce(pipeline.topic, bad, what, partition=0)
            for unusual, _ in UNUSUAL.values():
                stranger.produce(pipeline.topic, unusual, partition=0)
            assert stranger.flush(10) == 0
            script = pipeline.start("consumer.py")
            expected = sorted([-1, *good, *(5001 + n for n in range(8)), -(2**31)])
            wait_for_rows(pipeline, expected)
            for number, (what, bad) in enumerate(BAD.items(), len(BAD) + 1):
                stranger.produce(pipeline.topic, bad, what, partition=1)
                wait_for_letters(pipeline, number)
            stranger.produce(pipeline.topic, change(1, 9000), partition=1)
            assert stranger.flush(10) == 0
            wait_for_rows(pipeline, sorted([*expected, 9000]))
        assert script.stop() == 0, script.output()
        letters = pipeline.dead_letters()
        assert len(letters) == 2 * len(BAD)
        by_partition: dict[bytes, dict[str, Message]] = {b"0": {}, b"1": {}}
        for letter in letters:
            by_partition[headers(letter)["partition"]][(letter.key() or b"").decode()] = letter
        yield Outcome(pipeline, by_partition[b"0"], by_partition[b"1"], script.output())


def wait_for_letters(pipeline: Pipeline, count: int) -> None:
    topic = f"{pipeline.topic}_dlq"
    wait_until(lambda: count_messages(topic) >= count, what=lambda: f"{count} dead letters:\n{pipeline.outputs()}")


def headers(message: Message) -> dict[str, bytes]:
    return dict(message.headers() or [])  # type: ignore[arg-type]


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_becomes_a_dead_letter_alone_and_in_the_middle_of_good_ones(outcome: Outcome, what: str) -> None:
    numbers = {b"0": 2 * list(BAD).index(what) + 1, b"1": list(BAD).index(what)}
    for letter in (outcome.among[what], outcome.alone[what]):
        origin = headers(letter)
        assert letter.key() == what.encode()
        assert letter.value() == BAD[what]
        assert origin["topic"].decode() == outcome.pipeline.topic
        assert int(origin["offset"]) == numbers[origin["partition"]]
        assert "\n" not in origin["error"].decode()
    assert headers(outcome.among[what])["error"] == headers(outcome.alone[what])["error"]


def test_nothing_of_the_bad_messages_is_applied_and_all_good_ones_are(outcome: Outcome) -> None:
    destination = outcome.pipeline.destination()
    assert query(destination, "SELECT count(*) FROM employees WHERE emp_id = 666") == [(0,)]
    assert query(destination, "SELECT count(*) FROM cdc_applied WHERE emp_id = 666") == [(0,)]
    assert query(destination, "SELECT count(*) FROM employees") == [(1 + len(BAD) + len(UNUSUAL) + 1,)]
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_but_valid_message_is_applied(outcome: Outcome, what: str) -> None:
    value, row = UNUSUAL[what]
    assert query(outcome.pipeline.destination(), ROW, (CDCRecord.from_json(value).emp_id,)) == [row]


def test_a_dead_letter_is_not_logged_as_applied(outcome: Outcome) -> None:
    assert "a message that is no change → " not in outcome.output


@pytest.mark.timing
def test_a_bad_message_as_large_as_a_broker_takes_becomes_a_dead_letter(pipeline: Pipeline) -> None:
    large = b"x" * 1_048_000
    with closing(Producer({**client_settings(), "message.max.bytes": 2_000_000})) as stranger:
        stranger.produce(pipeline.topic, large, partition=0)
        stranger.produce(pipeline.topic, change(1, 1), partition=0)
        assert stranger.flush(10) == 0
    script = pipeline.start("consumer.py")
    script.wait_for("partition 0, offset 0 → ", 8)
    wait_for_rows(pipeline, [1])
    assert [letter.value() for letter in pipeline.dead_letters()] == [large]


def test_without_the_dead_letter_topic_a_bad_message_waits_for_it(pipeline: Pipeline) -> None:
    letters, admin = f"{pipeline.topic}_dlq", AdminClient(client_settings())
    admin.delete_topics([letters])[letters].result(10)
    pipeline.send("no change", change(1, 1), partition=0)
    # else Kafka's client says nothing about a missing topic for 30 s
    script = pipeline.start("consumer.py", KAFKA_TOPIC_METADATA_PROPAGATION_MAX_MS="1000")
    script.wait_for(f"topic {pipeline.topic}_dlq: ")
    assert "run python admin.py" in script.output()
    wait_for_rows(pipeline, [1])
    assert pipeline.run("admin.py").returncode == 0
    wait_until_read(pipeline)
    assert [letter.value() for letter in pipeline.dead_letters()] == [b"no change"]
    assert script.output().count("; waiting") == 1
    assert script.stop() == 0

"""consumer.py at the command line: --once, exit codes, wrong use and wrong settings."""

from __future__ import annotations

import time

from harness.consuming import SAME_PLACE, change, consuming, wait_until_read
from harness.database import WAITING, query
from harness.destination import ids
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest


def test_once_reads_what_is_there_and_exits_0_also_where_partitions_are_empty(pipeline: Pipeline) -> None:
    hasty = pipeline.sabotaged(
        "import consumer", "from cdc import intake", "intake.FIRST_WAIT = 0.001"
    )  # finds nothing there more often
    for messages, applied in (([], 0), ([change(1, 1), change(2, 2)], 2), ([], 0)):
        pipeline.send(*messages, partition=1)
        result = pipeline.run(hasty, "--once", seconds=20)
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"applied {applied} changes in all" in result.stdout
    assert ids(pipeline.destination()) == [1, 2]


@pytest.mark.timing
def test_once_ends_also_when_messages_and_the_end_of_their_partition_come_in_one_batch(pipeline: Pipeline) -> None:
    holder, destination = pipeline.destination(), pipeline.destination()
    query(holder, "BEGIN; LOCK TABLE employees")
    for partition in range(3):
        pipeline.send(change(1 + partition, 1 + partition), partition=partition)
    script = pipeline.start("consumer.py", "--once")
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the first batch waits")
    time.sleep(1.5)  # the other partitions are read to their ends meanwhile
    query(holder, "COMMIT")
    assert script.process.wait(6) == 0


GIVES_UP = {
    "the destination is down": {"DESTINATION_DATABASE_URL": "postgresql://postgres@localhost:1/none"},
    "the topic is missing": {"KAFKA_TOPIC": "cdc_test_no_such_topic"},
    "Kafka is down": {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"},
}


@pytest.mark.timing
@pytest.mark.parametrize(
    "what",
    [
        "the destination is down",
        pytest.param("the topic is missing"),
        pytest.param("Kafka is down"),
    ],
)
def test_once_gives_up_with_one_line_and_exit_1(shared: Pipeline, what: str) -> None:
    """After 60 s; here after 2."""
    shared.send(change(1, 1), partition=0)
    impatient = shared.sabotaged(
        "import consumer",
        "from cdc.outage import Outage",
        "consumer.Outage = lambda stop, give_up_after=60: Outage(stop, min(give_up_after, 2))",
        "consumer.GIVE_UP = 2",
    )
    script = shared.start(impatient, "--once", KAFKA_GROUP_ID=f"{shared.name}-once", **GIVES_UP[what])
    try:
        assert script.process.wait(8) == 1, script.output()
        assert "gave up after 2 s" in script.output()
        assert "Traceback" not in script.output()
    finally:
        script.kill()


@pytest.mark.timing
def test_a_consumer_whose_place_another_one_took_says_so_and_ends(shared: Pipeline) -> None:
    first = shared.start("consumer.py", **SAME_PLACE)
    first.wait_for("partitions assigned")
    with consuming(shared):
        shared.send(change(1, 1), partition=0)
        wait_until_read(shared)
        try:
            assert first.process.wait(6) == 1, first.output()
            assert "group.instance.id" in first.output()
            assert "Traceback" not in first.output()
        finally:
            first.kill()


def wrong_password(url: str) -> str:
    login, _, server = url.rpartition("@")
    return f"{login.rpartition(':')[0]}:wrong@{server}"


def test_a_wrong_password_ends_with_one_line_and_exit_2(shared: Pipeline) -> None:
    shared.send(change(1, 1), partition=0)
    url = wrong_password(shared.destination_url)
    result = shared.run("consumer.py", KAFKA_GROUP_ID=f"{shared.name}-stranger", DESTINATION_DATABASE_URL=url)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "librdkafka" not in line)
    assert "password" in line
    assert "check DESTINATION_DATABASE_URL" in line
    with consuming(shared):
        wait_until_read(shared)


@pytest.mark.timing
def test_a_wrong_password_is_found_before_the_first_message(shared: Pipeline) -> None:
    url = wrong_password(shared.destination_url)
    script = shared.start("consumer.py", **SAME_PLACE, DESTINATION_DATABASE_URL=url)
    try:
        assert script.process.wait(5) == 2
    finally:
        script.kill()


@pytest.mark.timing
def test_a_consumer_that_ends_with_an_error_ends_at_once(shared: Pipeline) -> None:
    """Also when the group has just given it partitions that it has not taken: left to the end of the interpreter,
    Kafka's client would wait for that without end, deaf to signals."""
    slow = shared.sabotaged(
        "import consumer",
        "import time",
        "from cdc import cli",
        "def connect_early(self):",
        "    time.sleep(2)",
        "    cli.fail('a password refused slowly', 2)",
        "consumer.Destination.connect_early = connect_early",
    )
    script = shared.start(slow, **SAME_PLACE)
    try:
        assert script.process.wait(8) == 2
    finally:
        script.kill()


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--all"], {}, "--all"),
        (["twice"], {}, "twice"),
        ([], {"KAFKA_SESSION_TIMEOUT_MS": "soon"}, "session.timeout.ms"),
        ([], {"KAFKA_FETCH_MIN_BYTES": "few"}, "fetch.min.bytes"),
    ],
)
def test_wrong_use_ends_with_exit_2_and_names_it(
    shared: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    named: str,
) -> None:
    for name, setting in environment.items():
        monkeypatch.setenv(name, setting)
    result = shared.run("consumer.py", *arguments)
    assert result.returncode == 2
    assert named in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_help_shows_the_purpose_and_an_example(shared: Pipeline) -> None:
    result = shared.run("consumer.py", "--help")
    assert result.returncode == 0
    assert "Apply the changes from Kafka to the destination" in result.stdout
    assert "python consumer.py --once" in result.stdout


def test_a_batch_of_which_the_gate_drops_a_part_is_not_called_applied(pipeline: Pipeline) -> None:
    pipeline.send(change(5, 1), partition=0)
    assert "INSERT employee 1 → applied, log offset 5" in pipeline.run("consumer.py", "--once").stdout
    pipeline.send(change(3, 1), change(6, 2), change(7, 2, "UPDATE"), partition=0)
    assert pipeline.run("consumer.py", "--once").stdout.count("→ applied, or older than what was, log offset") == 3
    pipeline.send(change(8, 2, "UPDATE"), change(9, 2, "UPDATE"), partition=0)
    assert pipeline.run("consumer.py", "--once").stdout.count("→ applied, log offset") == 2

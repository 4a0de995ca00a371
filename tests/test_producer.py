"""producer.py: reading the log without losing a row, waking up, publishing, guards, standby.

Where a test guards a clause of a query, it also runs without that clause and must then see changes lost.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from psycopg2.extensions import connection as Connection

import cli
import config
import emp_cdc
import producer
from connection import Kafka, kafka_client
from employee import CDCRecord, Change
from harness import ROOT
from harness.database import ALWAYS_NOTIFY, administer, query
from harness.kafka import client_settings
from harness.pipeline import Pipeline, new_pipeline
from harness.script import Script
from harness.seed import CLOCK_SEED
from harness.waiting import wait_until

INSERT = "INSERT INTO employees (city) VALUES ('Rome')"
TAKE_XID = "SELECT pg_current_xact_id()"
LOG_HEAD = "SELECT coalesce(max(cdc_id), 0) FROM emp_cdc"
UNPUBLISHED = """
SELECT count(*) FROM emp_cdc, cdc_position WHERE cdc_id > last_offset OR NOT pg_visible_in_snapshot(txid, snapshot)
"""
HELD_BY_WRITERS = """
SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND objid = 2
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
ALL = 10_000  # a page that takes all that a test here logs


@pytest.fixture
def pipeline(bare_pipeline: Pipeline) -> Pipeline:
    """Set up, and no script running."""
    set_up(bare_pipeline)
    return bare_pipeline


@pytest.fixture(scope="module")
def shared(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Set up, for scripts that do not get as far as to change anything."""
    with new_pipeline(tmp_path_factory.mktemp("shared")) as pipeline:
        set_up(pipeline)
        yield pipeline


def set_up(pipeline: Pipeline) -> None:
    """In this process: sooner than by db_setup.py and admin.py, which have tests of their own."""
    query(pipeline.source(), (ROOT / "sql" / "source.sql").read_text(encoding="utf-8"))
    query(pipeline.destination(), (ROOT / "sql" / "destination.sql").read_text(encoding="utf-8"))
    create_topic(pipeline)


def create_topic(pipeline: Pipeline) -> None:
    admin = AdminClient(client_settings())
    for future in admin.create_topics([NewTopic(pipeline.topic, 3, 1)]).values():
        future.result()


# Reading in this process: run_once on a real connection, and on real Kafka


@dataclass
class Reader:
    """producer.run_once, poll by poll, and what it has published, in that order."""

    source: Connection
    client: Producer
    position: emp_cdc.Position
    published: list[Change] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)  # their sizes

    def poll(self, page_size: int = ALL) -> bool:
        """Whether there was something to publish."""
        self.position, page, _ = producer.run_once(self.source, self.client, self.position, cli.Stop(), page_size)
        return bool(page)

    def drain(self, page_size: int = ALL) -> None:
        wait_until(lambda: not self.poll(page_size), what="drained")

    def ids(self) -> list[int]:
        return [change.cdc_id for change in self.published]

    def lost(self, since: int = 0) -> set[int]:
        """The log's committed rows behind the offset since that were not published."""
        return {cdc_id for (cdc_id,) in query(self.source, f"SELECT cdc_id FROM emp_cdc WHERE cdc_id > {since}")} - set(
            self.ids()
        )


@pytest.fixture
def read(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Reader]]:
    """Makes readers, each from the saved position on, as a producer that starts."""
    monkeypatch.setattr(config, "KAFKA_TOPIC", pipeline.topic)
    client = kafka_client(Producer, producer.KAFKA_SETTINGS, Kafka())
    readers: list[Reader] = []
    publish = producer.publish

    def publish_and_record(client: Producer, page: list[Change], stop: cli.Stop) -> None:
        publish(client, page, stop)
        readers[-1].published += page
        readers[-1].pages.append(len(page))

    def make() -> Reader:
        source = pipeline.source()
        query(source, emp_cdc.PREPARE)
        readers.append(Reader(source, client, emp_cdc.load_position(source)))
        return readers[-1]

    monkeypatch.setattr(producer, "publish", publish_and_record)
    yield make
    client.flush(10)


@pytest.fixture
def sessions(pipeline: Pipeline) -> list[Connection]:
    """Writers, each with a session of its own."""
    return [pipeline.source() for _ in range(4)]


def leave_out(monkeypatch: pytest.MonkeyPatch, *conditions: str) -> None:
    """Take conditions out of the queries that read the log."""
    for condition in conditions:
        bound = condition.replace("$1", "%(last_offset)s").replace("$2", "%(snapshot)s::pg_snapshot")
        for name, text in (("PREPARE", condition), ("LATE_CURSOR", bound)):
            sql = getattr(emp_cdc, name)
            assert text in sql
            monkeypatch.setattr(emp_cdc, name, sql.replace(text, "false"))


def published(pipeline: Pipeline) -> list[CDCRecord]:
    """The topic's messages; those of one employee are in one partition, so in their order."""
    return [CDCRecord.from_json(message.value()) for message in pipeline.messages()]


def messages_in_topic(pipeline: Pipeline) -> int:
    with closing(Consumer({**client_settings(), "group.id": "counter"})) as reader:
        partitions = reader.list_topics(pipeline.topic, timeout=10).topics[pipeline.topic].partitions
        bounds = [reader.get_watermark_offsets(TopicPartition(pipeline.topic, number)) for number in partitions]
        return sum(high - low for low, high in bounds)


def rise_per_employee(changes: list[tuple[str, int]]) -> bool:
    newest: dict[str, int] = {}
    for key, cdc_id in changes:
        if cdc_id <= newest.get(key, 0):
            return False
        newest[key] = cdc_id
    return True


# Late commits

Interleaving = Callable[[list[Connection], Callable[[], bool]], Any]


def the_lower_offset_commits_last(sessions: list[Connection], poll: Callable[[], bool]) -> None:
    a, b, *_ = sessions
    query(a, f"BEGIN; {INSERT}")
    query(b, INSERT)
    poll()
    query(a, "COMMIT")


def the_higher_xid_draws_the_lower_offset(sessions: list[Connection], poll: Callable[[], bool]) -> None:
    """At the poll b is above the snapshot's xmax, so not among its running transactions; unless a stranger on the same
    server commits meanwhile."""
    a, b, *_ = sessions
    query(a, f"BEGIN; {TAKE_XID}")
    query(b, f"BEGIN; {INSERT}")
    query(a, f"{INSERT}; COMMIT")
    poll()
    query(b, "COMMIT")


@pytest.mark.parametrize(
    ("interleaving", "needed"),
    [
        pytest.param(the_lower_offset_commits_last, emp_cdc.RUNNING_THEN, id="running at the poll"),
        pytest.param(the_higher_xid_draws_the_lower_offset, emp_cdc.BEGUN_LATER, id="above the snapshot's xmax"),
    ],
)
def test_a_change_that_commits_behind_the_offset_is_not_lost(
    read: Callable[[], Reader],
    sessions: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    interleaving: Interleaving,
    needed: str,
) -> None:
    def losses() -> set[int]:
        reader = read()
        reader.drain()
        ((head,),) = query(reader.source, LOG_HEAD)
        interleaving(sessions, reader.poll)
        reader.drain()
        assert len(reader.ids()) == len(set(reader.ids()))
        lost = reader.lost(since=head)
        query(reader.source, "UPDATE cdc_position SET snapshot = pg_current_snapshot()")  # what is lost stays lost
        reader.source.close()
        return lost

    for _ in range(5):
        assert losses() == set()
    with monkeypatch.context() as without:
        leave_out(without, needed)
        assert any(losses() for _ in range(20)), "the interleaving does not need this half"
    with monkeypatch.context() as without:
        leave_out(without, emp_cdc.RUNNING_THEN, emp_cdc.BEGUN_LATER)
        assert losses(), "the interleaving does not need the late rows"
    assert losses() == set()


def test_a_rolled_back_transaction_leaves_a_hole_that_stalls_nothing(
    read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    a, b, *_ = sessions
    reader = read()
    query(a, f"BEGIN; {INSERT}")
    query(b, INSERT)
    assert reader.poll()
    query(a, "ROLLBACK")
    query(b, INSERT)
    assert reader.poll()
    assert not reader.poll()
    assert reader.ids() == [2, 3]


def test_an_open_transaction_stalls_nobody(read: Callable[[], Reader], sessions: list[Connection]) -> None:
    a, b, *_ = sessions
    reader = read()
    query(a, f"BEGIN; {INSERT}")
    for cdc_id in range(2, 6):
        query(b, INSERT)
        assert reader.poll()
        assert reader.ids()[-1] == cdc_id
    query(a, "COMMIT")
    assert reader.poll()
    assert reader.ids() == [2, 3, 4, 5, 1]


@pytest.mark.parametrize("page_size", [1, 2, ALL])
def test_late_changes_of_an_employee_go_before_its_newer_ones(
    read: Callable[[], Reader], sessions: list[Connection], page_size: int
) -> None:
    a, b, *_ = sessions
    reader = read()
    query(a, "INSERT INTO employees (emp_id) VALUES (7)")
    query(a, "BEGIN; UPDATE employees SET salary = 1; UPDATE employees SET salary = 2")
    query(b, INSERT)
    reader.drain(page_size)
    query(a, "COMMIT")
    query(b, "UPDATE employees SET salary = 3 WHERE emp_id = 7")
    reader.drain(page_size)
    assert [change.cdc_id for change in reader.published if change.emp_id == 7] == [1, 2, 3, 5]


def test_changes_go_in_the_order_of_their_commits_per_employee_which_is_not_that_of_transaction_ids(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, *_ = sessions
    query(a, "INSERT INTO employees (emp_id) VALUES (7)")
    read().drain()

    def cities() -> list[str | None]:
        query(a, f"BEGIN; {TAKE_XID}")
        query(b, "UPDATE employees SET city = 'older'")
        query(a, "UPDATE employees SET city = 'newer'; COMMIT")
        reader = read()
        reader.drain()
        return [change.city for change in reader.published]

    assert cities() == ["older", "newer"]
    by_cdc_id = "ORDER BY cdc_id NULLS FIRST\n"
    assert emp_cdc.PREPARE.endswith(by_cdc_id)
    head, found = emp_cdc.PREPARE.removesuffix(by_cdc_id).split("AS\nSELECT NULL", 1)
    by_txid = "ORDER BY (SELECT txid FROM emp_cdc WHERE cdc_id = found.cdc_id) NULLS FIRST, cdc_id"
    monkeypatch.setattr(emp_cdc, "PREPARE", f"{head}AS SELECT * FROM (SELECT NULL{found}) AS found {by_txid}")
    assert cities()[0] == "newer"


def random_schedule(seed: int, sessions: list[Connection], poll: Callable[[int], bool]) -> None:
    """Transactions of several sessions, interleaved at random with polls of pages of 1 to 3 rows. Of two open
    transactions no two touch the same employee, as the second would wait."""
    at = random.Random(seed)
    touched: dict[Connection, set[int]] = {}  # by the open transactions

    def change(session: Connection) -> None:
        others = set().union(*(ids for owner, ids in touched.items() if owner is not session))
        if not (free := set(range(1, 13)) - others):
            return
        emp_id = at.choice(sorted(free))
        touched.get(session, set()).add(emp_id)
        statement = at.choice(
            [
                "INSERT INTO employees (emp_id, salary) VALUES (%s, %s) ON CONFLICT (emp_id) DO UPDATE SET salary = 0",
                "UPDATE employees SET emp_id = %s, salary = %s WHERE emp_id = %s",
                "DELETE FROM employees WHERE emp_id = %s",
            ]
        )
        query(session, statement, (emp_id, at.randint(0, 99), emp_id)[: statement.count("%s")])

    for _ in range(60):
        session = at.choice(sessions)
        match at.choices(["begin", "change", "savepoint", "end", "poll"], [2, 5, 1, 1, 2])[0]:
            case "begin" if session not in touched:
                query(session, at.choice(["BEGIN", f"BEGIN; {TAKE_XID}"]))
                touched[session] = set()
            case "change":
                change(session)
            case "savepoint" if session in touched:
                query(session, "SAVEPOINT here")
                change(session)
                query(session, "ROLLBACK TO here")
            case "end" if session in touched:
                query(session, at.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]))
                del touched[session]
            case "poll":
                poll(at.randint(1, 3))
    for session in touched:
        query(session, "COMMIT")


def test_random_schedules_of_four_sessions_lose_repeat_and_reorder_nothing(
    pipeline: Pipeline, read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0
    publish_late = producer.publish_late

    def counted(*arguments: Any) -> Any:
        nonlocal rounds
        rounds += 1
        return publish_late(*arguments)

    monkeypatch.setattr(producer, "publish_late", counted)
    clock = CLOCK_SEED
    print(f"seeds: 1 to 30, {clock} to {clock + 29}")
    seeds = [*range(1, 31), *range(clock, clock + 30)]

    reader = read()
    for seed in seeds:
        random_schedule(seed, sessions, reader.poll)
    reader.drain(2)
    assert reader.lost() == set()
    assert len(reader.ids()) == len(set(reader.ids())) > 500
    assert rise_per_employee([(str(change.emp_id), change.cdc_id) for change in reader.published])
    records = published(pipeline)
    assert sorted(record.cdc_id for record in records) == sorted(reader.ids())
    assert rise_per_employee([(str(record.emp_id), record.cdc_id) for record in records])
    late = sum(cdc_id < max(reader.ids()[:number], default=0) for number, cdc_id in enumerate(reader.ids()))
    assert late > 20
    assert rounds > 5, "late rows were never more than a page"

    for conditions in ((emp_cdc.RUNNING_THEN, emp_cdc.BEGUN_LATER), (emp_cdc.RUNNING_THEN,)):
        with monkeypatch.context() as without:
            leave_out(without, *conditions)
            reader = read()
            reader.drain()
            ((head,),) = query(reader.source, LOG_HEAD)
            for seed in seeds[:30]:
                random_schedule(seed, sessions, reader.poll)
            reader.drain()
            assert reader.lost(since=head), "the schedules do not need the late rows"


# Late rows that are more than a page


def log_late_rows(reader: Reader, sessions: list[Connection]) -> None:
    """25 rows at offsets 1 to 25 that become visible when the reader stands at 27; that of offset 26 is still open."""
    a, b, c, *_ = sessions
    query(a, "BEGIN; INSERT INTO employees (city) SELECT 'late' FROM generate_series(1, 25)")
    query(b, f"BEGIN; {INSERT}")
    query(c, INSERT)
    assert reader.poll()
    assert reader.ids() == [27]
    query(a, "COMMIT")


def test_late_rows_of_one_snapshot_go_in_bounded_pages_and_what_comes_meanwhile_in_the_next_round(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = read()
    log_late_rows(reader, sessions)
    publish = producer.publish

    def publish_while_others_commit(client: Producer, page: list[Change], stop: cli.Stop) -> None:
        publish(client, page, stop)
        if page[0].cdc_id == 1:
            query(sessions[1], "COMMIT")  # offset 26, behind the reader's
            query(sessions[2], INSERT)  # offset 28, beyond it

    monkeypatch.setattr(producer, "publish", publish_while_others_commit)
    assert reader.poll(10)
    assert reader.pages == [1, 10, 10, 5]
    assert reader.ids() == [27, *range(1, 26)]
    assert reader.poll(10)
    assert reader.ids() == [27, *range(1, 26), 26, 28]
    assert not reader.poll(10)


def test_a_producer_killed_between_pages_of_late_rows_starts_their_round_again(
    pipeline: Pipeline, read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    log_late_rows(read(), sessions)
    query(sessions[1], "COMMIT")
    crash(pipeline, 10, 11, "publish(client, page, stop)", KILL)
    assert sorted(record.cdc_id for record in published(pipeline)) == [*range(1, 21), 27]
    drain(pipeline)
    assert sorted(record.cdc_id for record in published(pipeline)) == sorted([*range(1, 21), *range(1, 28)])
    assert pipeline.equal()


def test_late_rows_of_several_pages_are_counted_in_the_total(
    pipeline: Pipeline, read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    log_late_rows(read(), sessions)
    result = pipeline.run(pipeline.sabotaged("import producer", in_pages_of(10)), "--once")
    assert "published 25 changes in all" in result.stdout


# Crashes

KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def in_pages_of(size: int) -> str:
    return (
        f"run_once = producer.run_once; producer.run_once = lambda *arguments: run_once(*arguments, page_size={size})"
    )


def crash(pipeline: Pipeline, page_size: int, page: int, *instead: str) -> None:
    """Run producer.py --once until it publishes the page that begins at this offset; there it does something else
    instead, which kills it."""
    body = "\n        ".join(instead)
    publish = f"""
publish, save = producer.publish, producer.save
def sabotaged(client, page, stop):
    if page[0].cdc_id == {page}:
        {body}
    publish(client, page, stop)
producer.publish = sabotaged
"""
    result = pipeline.run(pipeline.sabotaged("import producer", in_pages_of(page_size), publish), "--once")
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr


def drain(pipeline: Pipeline) -> None:
    pipeline.drain()


@pytest.mark.parametrize(
    ("sabotage", "position", "repeated"),
    [
        pytest.param(
            "import types; client = types.SimpleNamespace("
            f"produce_batch=client.produce_batch, poll=client.poll, flush=lambda _: {KILL})",
            1_000,
            None,  # how much of the page has left the client is up to chance
            id="the page is handed to the client",
        ),
        pytest.param(f"producer.save = lambda *_: {KILL}", 1_000, 1_000, id="Kafka has acknowledged the page"),
        pytest.param(f"producer.save = lambda *_: (save(*_), {KILL})", 2_000, 0, id="the position is saved"),
    ],
)
def test_a_producer_killed_when_loses_nothing(
    pipeline: Pipeline, sabotage: str, position: int, repeated: int | None
) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 1000)")
    query(source, "UPDATE employees SET salary = salary + 1")
    query(source, "UPDATE employees SET emp_id = emp_id + 10000 WHERE emp_id <= 500")
    crash(pipeline, 1_000, 1_001, sabotage)
    assert query(source, "SELECT last_offset FROM cdc_position") == [(position,)]
    drain(pipeline)
    assert pipeline.equal()
    ids = [record.cdc_id for record in published(pipeline)]
    assert set(ids) == set(range(1, 3_001))
    if repeated is not None:
        assert len(ids) - 3_000 == repeated


# Falling asleep and waking up


def start_producer(pipeline: Pipeline, **environment: str) -> Script:
    """A producer that has nothing to do."""
    script = pipeline.start("producer.py", **environment)
    script.wait_for("publishing from")
    return script


def wait_until_published(source: Connection, seconds: float) -> float:
    """Returns how long it took."""
    started = time.monotonic()
    wait_until(lambda: query(source, UNPUBLISHED) == [(0,)], seconds, "all published")
    return time.monotonic() - started


@contextmanager
def streaming(reader: Reader) -> Iterator[Future[None]]:
    """producer.stream beside the test, stopped at the end; what it raised, the test raises."""
    stop = cli.Stop()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(producer.stream, reader.source, reader.client, reader.position, Kafka(), stop, once=False)
        try:
            yield stream
        finally:
            stop.requested = True
        stream.result(10)


def test_at_rest_no_change_waits_for_the_poll_interval(pipeline: Pipeline) -> None:
    start_producer(pipeline, POLL_INTERVAL="30")
    source = pipeline.source()
    for pause in [0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1] * 3:
        time.sleep(pause)  # the producer is awake, falling asleep, or asleep
        query(source, INSERT)
        assert wait_until_published(source, 5) < 1


def test_beside_an_open_transaction_no_change_waits_for_the_poll_interval(pipeline: Pipeline) -> None:
    start_producer(pipeline, POLL_INTERVAL="30")
    source, idle = pipeline.source(), pipeline.source()
    for _ in range(5):
        query(idle, f"BEGIN; {INSERT}")
        query(source, INSERT)
        ((last,),) = query(source, LOG_HEAD)
        started = time.monotonic()
        wait_until(lambda: query(source, f"SELECT last_offset >= {last} FROM cdc_position") == [(True,)])  # noqa: B023
        assert time.monotonic() - started < 1
        query(idle, "COMMIT")
        assert wait_until_published(source, 5) < 1


@pytest.mark.parametrize("held", [False, True], ids=["that has committed", "that is still open"])
def test_a_change_that_saw_the_producer_awake_does_not_wait_where_it_falls_asleep(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(config, "POLL_INTERVAL", 30.0)
    try_lock = producer.try_lock
    tries: list[bool] = []

    def change_and_try_lock(source: Connection, lock: int) -> bool:
        if not tries:  # the poll before found nothing; the writer still finds the lock free
            query(sessions[0], f"BEGIN; {INSERT}")
            assert query(sessions[1], HELD_BY_WRITERS) == [("ShareLock",)]
        if not held or len(tries) == 3:
            query(sessions[0], "COMMIT")
        tries.append(try_lock(source, lock))
        return tries[-1]

    monkeypatch.setattr(producer, "try_lock", change_and_try_lock)
    reader = read()
    with streaming(reader) as stream:
        try:
            wait_until(lambda: reader.ids() == [1] or stream.done(), 5, "the change is published")
        finally:
            query(sessions[0], "COMMIT")
    assert tries[:4] == ([False, False, False, True] if held else [True, *tries[1:4]])


def test_no_change_is_missed_around_the_moment_of_falling_asleep(pipeline: Pipeline) -> None:
    """The first change of a round wakes the producer; others come while it falls asleep again, mostly a single one, as
    the notification of the next one would make good for one that was missed. The next round waits for all."""
    start_producer(pipeline, POLL_INTERVAL="30")
    at = random.Random(1)
    source, *writers = [pipeline.source() for _ in range(5)]

    def write(connection: Connection, before: float, within: float, end: str) -> None:
        time.sleep(before)
        query(connection, f"BEGIN; {INSERT}")
        time.sleep(within)
        query(connection, end)

    slowest = 0.0
    with ThreadPoolExecutor(len(writers)) as pool:
        for _ in range(250):
            query(source, INSERT)
            pauses = [(at.uniform(0, 0.006), at.uniform(0, 0.006)) for _ in range(at.choice([1, 1, 1, 1, 2, 4]))]
            others = [
                pool.submit(write, writer, *pause, at.choice(["COMMIT"] * 5 + ["ROLLBACK"]))
                for writer, pause in zip(writers, pauses, strict=False)
            ]
            for other in others:
                other.result()
            slowest = max(slowest, wait_until_published(source, 10))
    print(f"the slowest round took {slowest * 1000:.0f} ms")
    assert slowest < 2


def notifications_and_commits(pipeline: Pipeline, seconds: float) -> tuple[int, int]:
    listener = pipeline.source()
    query(listener, "LISTEN emp_cdc")

    def write(connection: Connection) -> int:
        end, commits = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            query(connection, INSERT)
            commits += 1
        return commits

    writers = [pipeline.source() for _ in range(4)]
    with ThreadPoolExecutor(len(writers)) as pool:
        commits = sum(pool.map(write, writers))
    query(listener, "SELECT")
    return len(listener.notifies), commits


def test_under_load_nobody_notifies(pipeline: Pipeline) -> None:
    start_producer(pipeline)
    notifications, commits = notifications_and_commits(pipeline, 2)
    print(f"{notifications} notifications, {commits} commits")
    assert notifications < commits / 20
    source = pipeline.source()
    query(source, ALWAYS_NOTIFY)
    notifications, commits = notifications_and_commits(pipeline, 0.5)
    assert notifications == commits, "the count of notifications shows nothing"


@pytest.mark.parametrize(("changes", "wakes"), [(1, 0), (producer.FEW, 0), (producer.FEW + 1, 1)])
def test_only_a_larger_page_wakes_the_producer_up(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch, changes: int, wakes: int
) -> None:
    monkeypatch.setattr(config, "POLL_INTERVAL", 30.0)
    woken: list[None] = []
    wake_up = producer.wake_up
    monkeypatch.setattr(producer, "wake_up", lambda source: woken.append(wake_up(source)))
    reader = read()
    with streaming(reader):
        for _ in range(3):
            wait_until(lambda: query(sessions[0], HELD_BY_WRITERS) == [("ExclusiveLock",)], 5, "it sleeps")
            query(sessions[1], f"INSERT INTO employees (salary) SELECT generate_series(1, {changes})")
            wait_until(lambda: query(sessions[0], UNPUBLISHED) == [(0,)], 5, "all published")
            time.sleep(0.1)
    assert (len(reader.ids()), len(woken)) == (3 * changes, 3 * wakes)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [(producer.FEW, 0), (producer.FEW + 1, 0.005), (50, 0.005), (100, 0.01), (5_000, 0.02), (producer.PAGE, 0)],
)
def test_the_larger_a_page_the_longer_the_next_one_may_fill(
    read: Callable[[], Reader],
    sessions: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    changes: int,
    seconds: float,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(cli.Stop, "sleep", lambda _, seconds: slept.append(seconds))
    reader = read()
    query(reader.source, f"INSERT INTO employees (salary) SELECT generate_series(1, {changes})")
    with streaming(reader):
        wait_until(lambda: query(sessions[0], HELD_BY_WRITERS) == [("ExclusiveLock",)], 5, "it sleeps")
    assert slept == ([seconds] if seconds else [])


def test_without_notifications_a_change_waits_for_the_poll_interval_only(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "SET cdc.notify = off; LISTEN emp_cdc")
    start_producer(pipeline, POLL_INTERVAL="0.3")
    for _ in range(3):
        query(source, INSERT)
        assert wait_until_published(source, 5) < 1
    assert source.notifies == []


# Publishing


def test_dates_do_not_depend_on_the_way_the_source_writes_them(pipeline: Pipeline) -> None:
    dates = ["0044-03-15 BC", "12345-06-07", "2001-02-03", "infinity"]
    administer(config.SOURCE_DATABASE_URL, f"ALTER DATABASE {pipeline.name} SET datestyle = 'German'")
    query(pipeline.source(), "INSERT INTO employees (dob) SELECT unnest(%s::date[])", (dates,))
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(record.dob or "" for record in published(pipeline)) == dates


def test_a_row_without_an_employee_has_no_key(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO emp_cdc (action) VALUES ('UPDATE')")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [message.key() for message in pipeline.messages()] == [None]


def test_a_page_larger_than_the_clients_queue_is_published_once_and_in_order(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 500)")
    for _ in range(9):
        query(source, "UPDATE employees SET salary = salary + 1")
    result = pipeline.run("producer.py", "--once", KAFKA_QUEUE_BUFFERING_MAX_MESSAGES="100")
    assert result.returncode == 0, result.stdout + result.stderr
    records = published(pipeline)
    assert sorted(record.cdc_id for record in records) == list(range(1, 5_001))
    assert rise_per_employee([(str(record.emp_id), record.cdc_id) for record in records])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak from Linux' /proc")
def test_transactions_of_300_000_rows_stay_within_bounded_memory_on_time_and_late(
    bare_pipeline: Pipeline, record_property: Callable[[str, object], None]
) -> None:
    pipeline = bare_pipeline
    a, b = pipeline.source(), pipeline.source()
    query(
        a,
        """
        CREATE TABLE employees (emp_id SERIAL PRIMARY KEY, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE,
                                city VARCHAR(100), salary INT);
        INSERT INTO employees (first_name, last_name, dob, city, salary)
        SELECT 'Augusta Ada', 'King-Noel', '1815-12-10', 'Ockham', generate_series(1, 300000);
        """,
    )
    pipeline.set_up()  # logs them all in one transaction
    peaks = {"producer, 300,000 rows of one transaction": pipeline.peak_memory("producer.py")}
    peaks["consumer, 300,000 changes"] = pipeline.peak_memory("consumer.py")
    assert pipeline.equal()

    query(a, "BEGIN")
    query(
        a,
        "INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action) "
        "SELECT emp_id, first_name, last_name, dob, city, salary, 'UPDATE' FROM employees",
    )
    query(b, INSERT)
    assert pipeline.run("producer.py", "--once").returncode == 0
    assert query(b, "SELECT last_offset FROM cdc_position") == [(600_001,)]
    query(a, "COMMIT")
    peaks["producer, 300,000 rows of one late transaction"] = pipeline.peak_memory("producer.py")
    assert query(b, UNPUBLISHED) == [(0,)]
    assert messages_in_topic(pipeline) == 600_001
    for name, megabytes in peaks.items():
        record_property(name, f"{megabytes:.0f} MB")
        print(f"peak of the {name}: {megabytes:.0f} MB")
    assert max(peaks.values()) < 150


# Guards


def moved_to_another_server(source: Connection, shift: int) -> None:
    """Make the source look like one restored from a dump of another server, whose transaction ids are that much higher
    than this one's."""
    query(
        source,
        """
        UPDATE emp_cdc SET txid = (txid::text::bigint + %(shift)s)::text::xid8;
        UPDATE cdc_position SET system_identifier = 1, snapshot = format(
            '%%s:%%s:%%s', pg_snapshot_xmin(snapshot)::text::bigint + %(shift)s,
            pg_snapshot_xmax(snapshot)::text::bigint + %(shift)s,
            (SELECT string_agg((xip::text::bigint + %(shift)s)::text, ',' ORDER BY xip)
             FROM pg_snapshot_xip(snapshot) AS xip))::pg_snapshot
        """,
        {"shift": shift},
    )


@pytest.mark.parametrize("shift", [-500, 0, 1_000_000], ids=["lower", "like here", "higher"])
def test_a_log_restored_from_a_server_whose_transaction_ids_were_goes_on_where_it_stood(
    read: Callable[[], Reader], sessions: list[Connection], shift: int
) -> None:
    a, b, c, d = sessions
    reader = read()
    query(d, INSERT)
    query(a, f"BEGIN; {INSERT}")
    query(c, f"BEGIN; {TAKE_XID}")
    query(b, f"BEGIN; {INSERT}")
    query(c, f"{INSERT}; COMMIT")
    reader.drain()
    assert reader.ids() == [1, 4]
    query(a, "COMMIT")
    query(b, "COMMIT")
    query(c, INSERT)
    moved_to_another_server(a, shift)

    reader = read()
    reader.drain()
    assert reader.ids() == [2, 3, 5]
    the_lower_offset_commits_last(sessions, reader.poll)
    the_higher_xid_draws_the_lower_offset(sessions, reader.poll)
    query(d, INSERT)
    reader.drain()
    assert sorted(reader.ids()) == [2, 3, *range(5, 11)]
    assert read().ids() == []
    reader = read()
    reader.drain()
    assert reader.ids() == []


def test_a_log_restored_on_another_server_is_told_once_and_reaches_the_destination(
    pipeline: Pipeline, read: Callable[[], Reader]
) -> None:
    source = pipeline.source()
    query(source, INSERT)
    read().drain()
    query(source, INSERT)
    moved_to_another_server(source, 1_000_000)
    first, second = pipeline.run("producer.py", "--once"), pipeline.run("producer.py", "--once")
    assert "restored from another server" in first.stdout
    assert "published 1 changes in all" in first.stdout
    assert "restored" not in second.stdout
    assert "published 0 changes in all" in second.stdout
    query(source, INSERT)
    drain(pipeline)
    assert pipeline.equal()


BACKUP = """
CREATE SCHEMA backup;
CREATE TABLE backup.position AS SELECT * FROM cdc_position;
"""
RESTORE = """
DELETE FROM emp_cdc WHERE cdc_id > (SELECT last_offset FROM backup.position);
SELECT setval('emp_cdc_cdc_id_seq', last_offset) FROM backup.position;
UPDATE cdc_position SET last_offset = backup.last_offset, snapshot = backup.snapshot FROM backup.position AS backup;
"""


@pytest.mark.parametrize(
    ("back", "kept"),
    [
        pytest.param(RESTORE, True, id="backup restored"),
        pytest.param("TRUNCATE emp_cdc RESTART IDENTITY", True, id="log truncated"),
        pytest.param("TRUNCATE emp_cdc RESTART IDENTITY", False, id="log truncated and nothing left in Kafka"),
    ],
)
def test_a_source_that_went_back_in_time_goes_on_behind_what_was_published(
    pipeline: Pipeline, read: Callable[[], Reader], back: str, kept: bool
) -> None:
    source = pipeline.source()
    query(source, INSERT)
    read().drain()
    query(source, BACKUP)
    for _ in range(5):
        query(source, "UPDATE employees SET salary = coalesce(salary, 0) + 1")
    read().drain()
    query(source, back)
    if not kept:
        remove_messages(pipeline)
    assert "WENT BACK IN TIME" in pipeline.run("producer.py", "--once").stdout
    query(source, "UPDATE employees SET city = 'Oslo'")
    drain(pipeline)
    assert pipeline.equal()
    assert [record.cdc_id for record in published(pipeline)] == ([1, 2, 3, 4, 5, 6, 7] if kept else [7])


def remove_messages(pipeline: Pipeline) -> None:
    """As Kafka does once they are older than the topic keeps messages."""
    admin = AdminClient(client_settings())
    ends = [TopicPartition(pipeline.topic, number, OFFSET_END) for number in range(3)]
    for future in admin.delete_records(ends).values():
        future.result()


def test_a_log_truncated_after_its_first_change_goes_on_behind_it(
    pipeline: Pipeline, read: Callable[[], Reader]
) -> None:
    source = pipeline.source()
    query(source, INSERT)
    read().drain()
    query(source, "TRUNCATE emp_cdc RESTART IDENTITY")
    assert pipeline.run("producer.py", "--once").returncode == 0
    query(source, INSERT)
    assert query(source, "SELECT cdc_id FROM emp_cdc") == [(2,)]


def test_a_log_truncated_while_the_producer_runs_is_noticed(pipeline: Pipeline) -> None:
    source = pipeline.source()
    for _ in range(3):
        query(source, INSERT)
    script = pipeline.start(pipeline.sabotaged("import producer", "producer.HOUSEKEEPING = 0.2"))
    script.wait_for("publishing from")
    wait_until_published(source, 20)
    query(source, "TRUNCATE emp_cdc RESTART IDENTITY")
    script.wait_for("WENT BACK IN TIME")
    query(source, INSERT)
    assert query(source, "SELECT cdc_id FROM emp_cdc") == [(4,)]


def test_a_strangers_message_does_not_use_up_the_logs_offsets(pipeline: Pipeline) -> None:
    pipeline.send(CDCRecord(2**63 - 1, 1, action="DELETE").to_json())
    assert pipeline.run("producer.py", "--once").returncode == 0
    query(pipeline.source(), INSERT)


def test_a_position_moved_by_someone_else_is_told_and_read_again(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, INSERT)
    script = start_producer(pipeline)
    wait_until_published(source, 20)
    query(source, "UPDATE cdc_position SET last_offset = 0, snapshot = '1:1:'")
    query(source, INSERT)
    script.wait_for("moved by someone else")
    wait_until_published(source, 20)
    assert [record.cdc_id for record in sorted(published(pipeline), key=lambda record: record.cdc_id)] == [1, 1, 2, 2]


# One active producer


def test_a_second_producer_stands_by_and_takes_over_when_the_first_is_killed(pipeline: Pipeline) -> None:
    source = pipeline.source()
    first = start_producer(pipeline)
    second = pipeline.start("producer.py")
    second.wait_for("another producer is active; standing by")

    def write(connection: Connection) -> None:
        while "publishing from" not in second.output():
            query(connection, INSERT)

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, pipeline.source()) for _ in range(2)]
        wait_until(lambda: query(source, "SELECT last_offset > 50 FROM cdc_position") == [(True,)])
        assert "publishing" not in second.output()
        killed = time.monotonic()
        first.kill()
        try:
            second.wait_for("publishing from")
            assert time.monotonic() - killed < 2
        finally:
            second.process.poll() is None or second.stop()
        for future in writing:
            future.result()
    wait_until_published(source, 10)
    records = published(pipeline)
    assert {record.cdc_id for record in records} == {
        cdc_id for (cdc_id,) in query(source, "SELECT cdc_id FROM emp_cdc")
    }


def test_a_standby_that_is_stopped_does_nothing_and_exits_0(pipeline: Pipeline) -> None:
    start_producer(pipeline)
    second = pipeline.start("producer.py")
    second.wait_for("standing by")
    assert second.stop() == 0
    assert "publishing" not in second.output()


def test_once_beside_an_active_producer_exits_1_with_one_line(pipeline: Pipeline) -> None:
    start_producer(pipeline)
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["another producer is active; it publishes what is there"]


# Pruning


def test_published_rows_older_than_the_retention_are_pruned(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 2500)")
    query(source, "UPDATE emp_cdc SET changed_at = now() - interval '1 hour 1 minute' WHERE cdc_id <= 2400")
    start_producer(pipeline, RETENTION="1 hour")
    wait_until(lambda: query(source, "SELECT count(*), min(cdc_id) FROM emp_cdc") == [(100, 2401)])
    assert len(published(pipeline)) == 2_500


def test_a_late_row_older_than_the_retention_is_published_before_it_is_pruned(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RETENTION", "0 seconds")
    a, b, *_ = sessions

    def published_late(emp_id: int) -> bool:
        reader = read()
        query(a, f"BEGIN; INSERT INTO employees (emp_id) VALUES ({emp_id})")
        query(b, INSERT)
        reader.drain()
        query(a, "COMMIT")
        emp_cdc.Pruner(reader.source).prune(reader.position)
        reader.drain()
        return emp_id in {change.emp_id for change in reader.published}

    assert published_late(1_000)
    assert query(a, "SELECT emp_id FROM emp_cdc") == [(1_000,)]
    visible = "AND pg_visible_in_snapshot(oldest.txid, %(snapshot)s)"
    assert visible in emp_cdc.PRUNE
    monkeypatch.setattr(emp_cdc, "PRUNE", emp_cdc.PRUNE.replace(visible, ""))
    assert not published_late(1_001)


def test_rows_beyond_the_offset_are_not_pruned_though_the_snapshot_shows_them(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RETENTION", "0 seconds")
    for _ in range(4):
        query(sessions[0], INSERT)
    reader = read()
    assert reader.poll(2)
    assert emp_cdc.Pruner(reader.source).prune(reader.position) == 2
    assert query(reader.source, "SELECT cdc_id FROM emp_cdc") == [(3,), (4,)]


# Something is missing, or wrong


def test_a_producer_started_before_anything_is_set_up_names_what_to_run_and_goes_on(bare_pipeline: Pipeline) -> None:
    pipeline = bare_pipeline
    script = pipeline.start("producer.py")
    script.wait_for("run python db_setup.py")
    assert pipeline.run("db_setup.py").returncode == 0
    source = pipeline.source()
    query(source, INSERT)
    script.wait_for("run python admin.py", 5)
    create_topic(pipeline)
    wait_until_published(source, 10)


def test_what_is_missing_is_told_once(bare_pipeline: Pipeline) -> None:
    script = bare_pipeline.start("producer.py")
    script.wait_for("run python db_setup.py")
    time.sleep(1)
    assert script.output().count("\n") == 1, script.output()


def test_once_gives_up_when_nobody_sets_anything_up(bare_pipeline: Pipeline) -> None:
    impatient = "Outage = producer.Outage; producer.Outage = lambda stop, give_up_after: Outage(stop, 1)"
    result = bare_pipeline.run(bare_pipeline.sabotaged("import producer", impatient), "--once", seconds=5)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_trigger_is_told(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "DROP TRIGGER employee_cdc_trigger ON employees")
    script = pipeline.start("producer.py")
    script.wait_for("run python db_setup.py", 5)
    assert pipeline.run("db_setup.py").returncode == 0
    query(source, INSERT)
    wait_until_published(source, 10)


@pytest.mark.parametrize("value", ["nonsense", "999999999999 days", "200000 years"])
def test_a_wrong_retention_is_named_in_one_line(shared: Pipeline, value: str) -> None:
    result = shared.run("producer.py", "--once", seconds=5, RETENTION=value)
    assert result.returncode == 2
    assert "RETENTION" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("POLL_INTERVAL", "soon", "POLL_INTERVAL"),
        ("POLL_INTERVAL", "0", "POLL_INTERVAL"),
        ("POLL_INTERVAL", "nan", "POLL_INTERVAL"),
        ("KAFKA_NO_SUCH_SETTING", "1", "no.such.setting"),
        ("KAFKA_BATCH_SIZE", "much", "batch.size"),
        ("SOURCE_DATABASE_URL", "postgres//localhost", "SOURCE_DATABASE_URL"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(shared: Pipeline, name: str, value: str, named: str) -> None:
    result = shared.run("producer.py", "--once", seconds=20, **{name: value})
    assert result.returncode == 2
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1

"""What is wrong with the pipeline, and what to do: from the figures of all stages to lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdc.schema import VERSION
from cdc.text import age, counted, escape
from cdc.waiting import describe_session

STALLED_AFTER = 10.0  # seconds without a move after which changes that wait look stuck
QUIET_AFTER = 30.0  # seconds without a statement after which the producer looks stuck: it asks something every 10 s
REPLICAS = 3  # that a topic should have, where there are as many brokers
HELD_LONG = 60.0  # seconds after which an open transaction that holds changes back is named

STAGES = {"the source": "source", "Kafka": "kafka", "the destination": "destination"}
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Alarm:
    """Something to act upon; an error fails `status --check`, a warning does not."""

    stage: str  # "source", "log", "producer", "topic", "group", "dead letters" or "destination"
    level: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}: {self.do}" if self.do else self.what


def find_alarms(status: dict[str, Any]) -> list[Alarm]:
    """Return what to act upon, errors first."""
    found: list[Alarm] = []
    for stage, name, find in (
        ("source", "source", source_alarms),
        ("kafka", "topic", kafka_alarms),
        ("destination", "destination", destination_alarms),
    ):
        if "error" in status[stage]:
            found.append(Alarm(name, ERROR, status[stage]["error"], ""))
        else:
            found += find(status[stage])
    return sorted(found, key=lambda alarm: alarm.level != ERROR)


def split_advice(line: str) -> tuple[str, str]:
    """Return the two halves of a line "what is wrong; what to do"."""
    what, _, do = line.partition("; ")
    return what, do


def version_alarms(stage: str, found: int | None) -> Iterator[Alarm]:
    what = f"{stage}: the tables are of schema version {found}, these scripts need {VERSION}"
    if found is not None and found != VERSION:
        yield Alarm(stage, ERROR, what, "run python db_setup.py" if found < VERSION else "install newer scripts")


def source_alarms(source: dict[str, Any]) -> Iterator[Alarm]:
    yield from version_alarms("source", source["schema_version"])
    for line in source["capture_gaps"]:
        yield Alarm("source", ERROR, *split_advice(line))
    for line in source["columns_not_captured"]:
        yield Alarm("source", WARNING, line, "a further column cannot be captured")
    for transaction in source["open_transactions"]:
        if (transaction["seconds"] or 0) > HELD_LONG:
            yield held_back(transaction)
    yield from producer_alarms(source)
    active = (source["active_producer"] or "").split()[1:2]  # of "pid 7 at db1"
    for lock in source["advisory_locks"]:
        if lock["lock"] == "asleep" and active != [str(lock["pid"])]:
            holder = describe_session(lock["pid"], lock["user"], lock["application"])
            what = f"the lock of the producer's sleep is held by {holder}; the idle producer cannot sleep"
            yield Alarm("producer", WARNING, what, end_session(lock["pid"]))


def held_back(transaction: dict[str, Any]) -> Alarm:
    pid, gid = transaction["pid"], transaction["prepared_as"]
    since = f"for {age(transaction['seconds'])}"
    if gid is not None:
        what = (
            f"the prepared transaction {escape(gid)} of user {escape(transaction['user'])} holds changes back {since}"
        )
        return Alarm("log", WARNING, what, "COMMIT PREPARED or ROLLBACK PREPARED")
    holder = describe_session(pid, transaction["user"], transaction["application"])
    return Alarm("log", WARNING, f"an open transaction holds changes back {since}: {holder}", end_session(pid))


def producer_alarms(source: dict[str, Any]) -> Iterator[Alarm]:
    script = source["active_producer_script"]
    name = f"script {escape(script)}" if script else source["active_producer"]
    if source["producer_lock_held_by"]:
        what = f"no producer is active; its lock is held by {source['producer_lock_held_by']}"
        yield Alarm("producer", ERROR, what, end_session(None))
    elif not source["active_producer"]:
        yield Alarm("producer", ERROR, "no producer is active", "start python producer.py")
    elif source["producer_stuck"]:
        waiting, oldest = counted(source["unpublished"], "change"), age(source["oldest_unpublished_seconds"])
        what = f"the producer ({name}) publishes nothing; the oldest of {waiting} waits for {oldest}"
        yield Alarm("producer", ERROR, what, "it is stopped, or waits for Kafka: see its log, or start it again")
    elif (source["producer_quiet_seconds"] or 0) > QUIET_AFTER:
        what = f"the producer ({name}) has done nothing for {age(source['producer_quiet_seconds'])}"
        yield Alarm("producer", ERROR, what, "it is stopped, or hangs: see its log, or start it again")


def end_session(pid: int | None) -> str:
    """Return what ends a session; a prepared transaction has none."""
    return f"end it with pg_terminate_backend({pid or 'pid'})"


def kafka_alarms(kafka: dict[str, Any]) -> Iterator[Alarm]:
    partitions = kafka["partitions"]
    if not kafka["members"]:
        yield Alarm("group", ERROR, f"no consumer is in the group {kafka['group']}", "start python consumer.py")
    elif idle := [part for part in partitions if unread_for_long(part) and not part["member"]]:
        yield Alarm("group", ERROR, f"{numbers(idle)}: no consumer reads it", "start python consumer.py again")
    if stuck := [part for part in partitions if part["stuck"]]:
        names = " and ".join(sorted({escape(part["member"]) for part in stuck}))
        oldest = age(max(part["oldest_unread_seconds"] for part in stuck))
        what = f"{numbers(stuck)}: {names} applies nothing, the oldest change waits for {oldest}"
        yield Alarm("group", ERROR, what, "it is stopped, or waits for the destination: see its log, or start it again")
    for line in kafka["strangers"]:
        yield Alarm("group", ERROR, line, "look into the topic without our group")
    if letters := kafka["dead_letters"]:
        yield Alarm("dead letters", ERROR, counted(letters, "dead letter"), "python admin.py dead-letters")
    yield from replica_alarms(kafka)


def replica_alarms(kafka: dict[str, Any]) -> Iterator[Alarm]:
    partitions = kafka["partitions"]
    if lagging := [part for part in partitions if len(part["in_sync_replicas"]) < len(part["replicas"])]:
        missing = sorted({node for part in lagging for node in set(part["replicas"]) - set(part["in_sync_replicas"])})
        what = f"{numbers(lagging)}: fewer replicas than there should be, without broker {', '.join(map(str, missing))}"
        yield Alarm("topic", WARNING, what, "start that broker")
    wanted = min(REPLICAS, kafka["brokers"])
    if few := [part for part in partitions if len(part["replicas"]) < wanted]:
        what = f"{numbers(few)}: fewer replicas than the {wanted} that {counted(kafka['brokers'], 'broker')} could keep"
        yield Alarm("topic", WARNING, what, "kafka-reassign-partitions adds them")


def destination_alarms(destination: dict[str, Any]) -> Iterator[Alarm]:
    yield from version_alarms("destination", destination["schema_version"])
    if destination["rows_differ"]:
        surplus = destination["rows_differ"]
        more = f"{counted(abs(surplus), 'row')} {'more' if surplus > 0 else 'fewer'}"
        what = f"nothing is on its way, and the destination has {more} than the source"
        yield Alarm("destination", ERROR, what, "run python verify.py --repair")


def unread_for_long(partition: dict[str, Any]) -> bool:
    return bool((partition["oldest_unread_seconds"] or 0) > STALLED_AFTER)


def numbers(partitions: list[dict[str, Any]]) -> str:
    listed = ", ".join(str(part["partition"]) for part in partitions)
    return f"partition {listed}" if len(partitions) == 1 else f"partitions {listed}"


# Whether all is in sync


def out_of_sync(status: dict[str, Any]) -> list[str]:
    """Return why the two tables cannot be called equal; an empty list if they are in sync."""
    source, kafka, destination = status["source"], status["kafka"], status["destination"]
    silent = [name for name in STAGES if "error" in status[STAGES[name]]]
    why = [f"no figures of {' and '.join(silent)}"] if silent else []
    if "error" not in source:
        why += ["not all changes are captured"] if source["capture_gaps"] else []
        if waiting := source["unpublished"]:
            why.append(f"{counted(waiting, 'change')} {'is' if waiting == 1 else 'are'} not published")
    if "error" not in kafka:
        if lag := total_lag(kafka):
            why.append(f"{counted(lag, 'message')} {'is' if lag == 1 else 'are'} not applied")
        why += ["another program is or was in the consumer group"] if kafka["strangers"] else []
        why += [counted(kafka["dead_letters"], "dead letter")] if kafka["dead_letters"] else []
    if rows_differ(status):
        why.append(f"{counted(source['rows'], 'row')} at the source, {destination['rows']:,} at the destination")
    return why


def rows_differ(status: dict[str, Any]) -> int:
    """Return how many rows the destination has too many, or too few, while nothing is on its way."""
    source, kafka, destination = status["source"], status["kafka"], status["destination"]
    if any("error" in stage for stage in (source, kafka, destination)) or not both_counted(source, destination):
        return 0
    return 0 if source["unpublished"] or total_lag(kafka) else int(destination["rows"] - source["rows"])


def both_counted(source: dict[str, Any], destination: dict[str, Any]) -> bool:
    return not source["rows_estimated"] and not destination["rows_estimated"]


def total_lag(kafka: dict[str, Any]) -> int:
    return sum(partition["lag"] for partition in kafka["partitions"])

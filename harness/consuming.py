"""The consumer in a test: messages for it, the script, and what it has read."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, closing
from typing import Any

from employee import CDCRecord
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.script import Script
from harness.waiting import wait_until

from confluent_kafka import Consumer, TopicPartition


def change(cdc_id: int, emp_id: int, action: str = "INSERT", **columns: Any) -> str:
    """A message's value as the producer writes it."""
    return CDCRecord(cdc_id, emp_id, **columns, action=action).to_json()


SAME_PLACE = {"KAFKA_GROUP_INSTANCE_ID": "the one"}  # else a killed one's partitions wait for session.timeout.ms


def start_consumer(pipeline: Pipeline, **environment: str) -> Script:
    """A consumer that has its partitions."""
    script = pipeline.start("consumer.py", **environment)
    script.wait_for("partitions assigned")
    return script


def consuming(pipeline: Pipeline, driver: str = "consumer.py", **environment: str) -> AbstractContextManager[Script]:
    return pipeline.running(driver, **{**SAME_PLACE, **environment})


def wait_until_read(pipeline: Pipeline, group: str = "", seconds: float = 20.0) -> None:
    """Return when the group has committed the end of each partition."""
    with closing(Consumer({**client_settings(), "group.id": group or pipeline.name})) as reader:
        topic = reader.list_topics(pipeline.topic, timeout=10).topics[pipeline.topic]
        partitions = [TopicPartition(pipeline.topic, number) for number in topic.partitions]

        def left() -> int:
            committed = {part.partition: part.offset for part in reader.committed(partitions, timeout=10)}
            ends = {part.partition: reader.get_watermark_offsets(part, timeout=10)[1] for part in partitions}
            return sum(ends[number] - max(committed[number], 0) for number in ends)

        wait_until(lambda: left() == 0, seconds, lambda: f"the group has read everything\n{pipeline.outputs()}")


def history(employees: int, changes: int) -> tuple[list[str], list[int]]:
    """A random history in the order of its cdc_ids, each row's salary its cdc_id, and the employees that are left."""
    there: set[int] = set()
    values = []
    for cdc_id in range(1, employees * changes + 1):
        emp_id = random.randint(1, employees)
        action = random.choice(["UPDATE", "UPDATE", "DELETE"]) if emp_id in there else "INSERT"
        (there.discard if action == "DELETE" else there.add)(emp_id)
        values.append(change(cdc_id, emp_id, action, salary=cdc_id))
    return values, sorted(there)


def last_states(values: list[str]) -> list[tuple[int, int]]:
    newest: dict[int, CDCRecord] = {}
    for value in values:
        record = CDCRecord.from_json(value)
        newest[record.emp_id] = record
    return sorted((r.emp_id, r.cdc_id) for r in newest.values() if r.action != "DELETE")


def not_setting(pipeline: Pipeline, name: str) -> str:
    """A consumer that leaves a setting as the database has it."""
    return pipeline.sabotaged("import consumer", "from cdc import session", f"del session.SETTINGS[{name!r}]")

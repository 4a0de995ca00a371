"""Which partition an employee's messages are in."""

from __future__ import annotations

import random

import config
from cdc.publisher import KAFKA_SETTINGS
from cdc.trace.search import partition_of
from employee import INT4
from harness.kafka import all_messages, client_settings, delete_topics

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]


@pytest.mark.usefixtures("stack")
def test_an_employee_s_partition_is_the_one_that_the_producer_chooses(run_seed: int) -> None:
    topic = f"cdc_test_partitions_{run_seed}"
    admin = AdminClient(client_settings())
    (future,) = admin.create_topics([NewTopic(topic, 7, 1)]).values()
    future.result(10)
    try:
        keys = [*INT4, -1, 0, 1, 10, 100, 1000, *random.Random(run_seed).sample(range(*INT4), 2000)]
        producer = Producer({**KAFKA_SETTINGS, **client_settings()})
        for key in keys:
            producer.produce(topic, key=str(key))
        assert producer.flush(30) == 0
        chosen = {int(message.key() or b""): message.partition() for message in all_messages(topic)}
        assert chosen == {key: partition_of(key, list(range(7))) for key in keys}
        assert set(chosen.values()) == set(range(7))
    finally:
        delete_topics(topic)


@pytest.mark.parametrize(("partitioner", "known"), [("murmur2", True), ("consistent", False)])
def test_with_a_partitioner_of_the_user_s_own_any_partition_may_have_it(
    monkeypatch: pytest.MonkeyPatch, partitioner: str, known: bool
) -> None:
    monkeypatch.setitem(config.KAFKA, "partitioner", partitioner)
    assert (partition_of(7, [0, 1, 2]) is not None) == known

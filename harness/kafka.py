"""What a topic holds, read as a stranger would read it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import config
from admin import DEAD_LETTER_SETTINGS, PARTITIONS

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)


def client_settings() -> dict[str, Any]:
    ours = ("bootstrap.servers", "broker.address.family", "security.", "sasl.", "ssl.")
    settings = {key: value for key, value in config.KAFKA.items() if key.startswith(ours)}
    return {**settings, "log_level": 3}  # errors only


def configure(topic: str, name: str, value: str) -> None:
    """Set one of a topic's settings."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(client_settings())
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(10)


def all_messages(topic: str) -> list[Message]:
    """All messages of a topic, partition by partition."""
    reader = Consumer(
        {**client_settings(), "group.id": "reader", "enable.auto.commit": False, "enable.partition.eof": True}
    )
    with closing(reader):
        partitions = set(reader.list_topics(topic, timeout=10).topics[topic].partitions)
        reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[Message] = []
        while partitions:
            for message in reader.consume(10_000, 0.1):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    partitions.discard(message.partition() or 0)
    return sorted(found, key=lambda message: (message.partition() or 0, message.offset() or 0))


def count_messages(topic: str) -> int:
    with closing(Consumer({**client_settings(), "group.id": "counter"})) as reader:
        partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
        bounds = [reader.get_watermark_offsets(TopicPartition(topic, number)) for number in partitions]
        return sum(high - low for low, high in bounds)


def remove_messages(topic: str) -> None:
    """Remove all messages, as Kafka does once they are older than the topic keeps messages."""
    admin = AdminClient(client_settings())
    ends = [TopicPartition(topic, number, OFFSET_END) for number in range(3)]
    for future in admin.delete_records(ends).values():
        future.result(10)


def create_topics(name: str) -> None:
    """Create a topic and its dead-letter topic as `admin.py create` does, which starts a process."""
    create(NewTopic(name, PARTITIONS, 1), NewTopic(f"{name}_dlq", 1, 1, config=DEAD_LETTER_SETTINGS))


def create(*topics: NewTopic) -> None:
    admin = AdminClient(client_settings())
    for future in admin.create_topics(list(topics), operation_timeout=10).values():
        future.result(20)


def delete_topics(*names: str) -> None:
    """Delete those of the topics that exist."""
    admin = AdminClient(client_settings())
    existing = sorted(set(admin.list_topics(timeout=10).topics) & set(names))
    for future in admin.delete_topics(existing).values() if existing else ():
        future.result()

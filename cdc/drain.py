"""When `consumer.py --once` is done: the topic is read to its end, or there is nothing for it to read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import config
from cdc import cli
from cdc.intake import Batch
from cdc.topic import ANSWER_WAIT, partition_numbers, share_of

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

ASK_EVERY = 1.0  # seconds between two questions about the group of a consumer without partitions


@dataclass
class Drain:
    """Which partitions are read to their end, for --once."""

    once: bool
    give_up_after: float  # seconds without progress
    drained: set[int] = field(default_factory=set)
    progress: float = field(default_factory=time.monotonic)
    asked: float = 0.0  # when we last asked about the group (time.monotonic)

    def reopen(self, batch: Batch) -> None:
        """There is more in the partitions of these messages. An end that came after them is yet to be handled."""
        if self.drained:
            self.drained -= {message.partition() or 0 for message in batch.messages}

    def done(self, consumer: Consumer, admin: AdminClient) -> bool:
        """Whether all assigned partitions are read to their end. Exits after give_up_after seconds."""
        if not self.once:
            return False
        assigned = {partition.partition for partition in consumer.assignment()}
        if not assigned:
            self.exit_if_taken(consumer, admin)
        if time.monotonic() - self.progress > self.give_up_after:
            cli.fail(f"topic {config.KAFKA_TOPIC} was not read to its end; gave up after {self.give_up_after:.0f} s")
        return self.drained >= assigned != set()

    def exit_if_taken(self, consumer: Consumer, admin: AdminClient) -> None:
        """Exit with one line if other consumers of the group have all partitions."""
        if time.monotonic() - self.asked > ASK_EVERY and consumer.memberid():
            self.asked = time.monotonic()
            if all_taken(admin, consumer.memberid() or ""):
                cli.fail(
                    f"nothing applied: other consumers of group {config.KAFKA_GROUP_ID} have all partitions of topic "
                    f"{config.KAFKA_TOPIC}; they apply what is there"
                )


def all_taken(admin: AdminClient, ours: str) -> bool:
    """Whether the group has come to rest and we are a member without partitions, while others have all of them."""
    futures: dict[str, Any] = admin.describe_consumer_groups([config.KAFKA_GROUP_ID], request_timeout=ANSWER_WAIT)
    try:
        group = futures[config.KAFKA_GROUP_ID].result()
        numbers = partition_numbers(admin, config.KAFKA_TOPIC)
    except KafkaException:  # it is waited for
        return False
    shares = {member.member_id: share_of(member) for member in group.members}
    taken = set().union(*shares.values())
    at_rest = group.state == ConsumerGroupState.STABLE and ours in shares
    return at_rest and not shares[ours] and bool(numbers) and taken >= set(numbers)

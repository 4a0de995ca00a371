"""The plain design, as a reference: one message, statement and commit per change.

    python -m bench.plain producer
    python -m bench.plain consumer

It polls by cdc_id. It loses rows that are committed late, below its offset, and starts
from offset 0 each time: it is good for comparison only.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import closing
from typing import Any

import config

import psycopg2
from confluent_kafka import Consumer, Producer
from psycopg2.extensions import connection as Connection

COLUMNS = ("cdc_id", "emp_id", "first_name", "last_name", "dob", "city", "salary", "action")
POLL = f"SELECT {', '.join(COLUMNS)} FROM emp_cdc WHERE cdc_id > %s ORDER BY cdc_id"
INSERT = """
INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary)
VALUES (%(emp_id)s, %(first_name)s, %(last_name)s, %(dob)s, %(city)s, %(salary)s)
ON CONFLICT (emp_id) DO NOTHING  -- a consumer that was killed reads some messages again
"""
UPDATE = """
UPDATE employees SET first_name = %(first_name)s, last_name = %(last_name)s, dob = %(dob)s, city = %(city)s,
    salary = %(salary)s WHERE emp_id = %(emp_id)s
"""
DELETE = "DELETE FROM employees WHERE emp_id = %(emp_id)s"
STATEMENTS = {"INSERT": INSERT, "UPDATE": UPDATE, "DELETE": DELETE}
KAFKA: dict[str, Any] = {key: config.KAFKA[key] for key in ("bootstrap.servers", "broker.address.family")}
GROUP = {
    "group.id": config.KAFKA_GROUP_ID,
    "auto.offset.reset": "earliest",
    "session.timeout.ms": 6_000,  # as ours: how long a killed consumer's partitions wait for another one
}
PAUSE = 0.5  # seconds between two polls


def produce() -> None:
    connection = psycopg2.connect(config.SOURCE_DATABASE_URL)
    connection.autocommit = True
    producer, last_offset = Producer(KAFKA), 0
    while True:
        last_offset = poll(connection, producer, last_offset)
        time.sleep(PAUSE)


def poll(connection: Connection, producer: Producer, last_offset: int) -> int:
    """Publish the rows beyond the offset; returns the offset after them."""
    with connection.cursor() as cursor:
        cursor.execute(POLL, (last_offset,))
        for row in cursor:
            record = dict(zip(COLUMNS, row, strict=True))
            producer.produce(config.KAFKA_TOPIC, json.dumps(record, default=str), str(record["emp_id"]))
            producer.poll(0)
            last_offset = record["cdc_id"]
    producer.flush()
    return last_offset


def consume() -> None:
    connection = psycopg2.connect(config.DESTINATION_DATABASE_URL)
    consumer = Consumer({**KAFKA, **GROUP})
    with closing(consumer):  # or the next run's consumer would wait 45 s for its partitions
        consumer.subscribe([config.KAFKA_TOPIC])
        while True:
            message = consumer.poll(1.0)
            if message is None or message.error() is not None:
                continue
            record = json.loads(message.value() or b"")
            with connection.cursor() as cursor:
                cursor.execute(STATEMENTS[record["action"]], record)
            connection.commit()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    {"producer": produce, "consumer": consume}[sys.argv[1]]()

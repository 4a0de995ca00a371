"""The plain design's producer, bench/plain.py's, which also writes each of its polls down.

    python -m lose.poller

A poll reads in the snapshot that is printed with it. So PostgreSQL itself tells whether it saw a row.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import config
from bench import plain

import psycopg2
from confluent_kafka import Producer
from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ

# statement_timestamp() is before the snapshot is taken: what the poll did not see was committed after it.
SNAPSHOT = "SELECT extract(epoch FROM statement_timestamp())::float, pg_current_snapshot()::text"


@dataclass(frozen=True)
class Poll:
    """One poll: when, in which snapshot, and the offset after it."""

    at: float
    snapshot: str
    offset: int

    def saw(self, txid: int) -> bool:
        """Return whether the snapshot shows a transaction, as pg_visible_in_snapshot() would."""
        xmin, xmax, running = self.snapshot.split(":")
        return txid < int(xmin) or (txid < int(xmax) and str(txid) not in running.split(","))


def read_polls(output: Path) -> list[Poll]:
    """Return the polls so far. The Kafka client writes lines of its own there; the last line may be half written."""
    lines = output.read_text(encoding="utf-8").splitlines()
    return [Poll(**json.loads(line)) for line in lines if line.startswith("{") and line.endswith("}")]


def passing_poll(cdc_id: int, txid: int, polls: list[Poll]) -> Poll | None:
    """Return the poll that moved the offset past a row, unless it saw the row."""
    first = next((poll for poll in polls if poll.offset >= cdc_id), None)
    return None if first is None or first.saw(txid) else first


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    connection = psycopg2.connect(config.SOURCE_DATABASE_URL)
    connection.set_session(ISOLATION_LEVEL_REPEATABLE_READ, readonly=True)  # one snapshot for both statements
    producer, offset = Producer(plain.KAFKA), 0
    while True:
        with connection, connection.cursor() as cursor:
            cursor.execute(SNAPSHOT)
            ((at, snapshot),) = cursor.fetchall()
            offset = plain.poll(connection, producer, offset)
        print(json.dumps(asdict(Poll(at, snapshot, offset))), flush=True)
        time.sleep(plain.PAUSE)


if __name__ == "__main__":
    main()

"""A load on the source of the compose files' servers, and how late it arrives."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from harness.database import query
from tests.compose.compose import destination, source, wait_until_equal

import pytest

OLD_ROWS = 500  # there before, for the load's updates and deletes
RATE = 200  # commits a second


@dataclass
class Load:
    """Commits on the source, RATE a second: each a new row, or an update or a delete of one of the old rows."""

    committed: dict[int, float] = field(default_factory=dict)
    failure: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def write(self) -> None:
        try:
            with closing(source()) as connection:
                started = time.monotonic()
                for number in range(1_000_000):
                    if self.over.wait(max(0.0, started + number / RATE - time.monotonic())):
                        return
                    old = {"id": -random.randint(1, OLD_ROWS), "number": number}
                    if number % 4 == 1:
                        query(connection, "UPDATE employees SET salary = %(number)s WHERE emp_id = %(id)s", old)
                    elif number % 40 == 2:
                        query(connection, "DELETE FROM employees WHERE emp_id = %(id)s", old)
                    else:
                        sql = "INSERT INTO employees (city, salary) VALUES ('load', %(number)s) RETURNING emp_id"
                        ((emp_id,),) = query(connection, sql, old)
                        self.committed[emp_id] = time.time()
        except BaseException as failure:
            self.failure = failure

    def delays(self) -> list[float]:
        """Seconds from the commit of each new row to its arrival, ordered."""
        with closing(destination()) as connection:
            rows = query(connection, "SELECT emp_id, extract(epoch FROM at)::float FROM arrival")
        arrived = {row[0]: row[1] for row in rows}
        assert self.committed.keys() <= arrived.keys()
        return sorted(arrived[emp_id] - at for emp_id, at in self.committed.items())


@contextmanager
def load(what: str, capsys: pytest.CaptureFixture[str]) -> Iterator[Load]:
    """Write all the while; at the end nothing may be lost. Prints the longest gap."""
    wait_until_equal()
    with closing(source()) as connection:
        old_rows = "INSERT INTO employees (emp_id, city) SELECT -n, 'old' FROM generate_series(1, %(rows)s) AS n"
        query(connection, f"{old_rows} ON CONFLICT DO NOTHING", {"rows": OLD_ROWS})
    wait_until_equal()
    running = Load()
    writer = threading.Thread(target=running.write)
    writer.start()
    try:
        time.sleep(3)
        yield running
        time.sleep(3)
    finally:
        running.over.set()
        writer.join()
    assert running.failure is None
    wait_until_equal()
    delays = running.delays()
    with capsys.disabled():
        print(
            f"\n{what}: {len(delays):,} new rows, longest gap {delays[-1]:.1f} s, {sum(d > 1 for d in delays):,} "
            f"waited over 1 s, half under {statistics.median(delays) * 1000:.0f} ms"
        )

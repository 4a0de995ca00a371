"""A consumer killed at each point of its loop loses nothing."""

from __future__ import annotations

import signal

from harness.consuming import SAME_PLACE, wait_until_read
from harness.database import query
from harness.pipeline import Pipeline

import pytest

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
DIE = f"lambda *_, **__: {KILL}"
MODULES = "from cdc import apply as applying, destination"
KILLED: dict[str, list[str]] = {
    "between the gate and the commit": [
        "import threading",
        "sleep = f'PERFORM pg_sleep(3); {applying.DELETE}'",
        "applying.TRY_ALL = applying.TRY_ALL.replace(applying.DELETE, sleep)",
        "run = applying.run",
        "def run_to_die(*arguments):",
        f"    threading.Timer(1.0, lambda: {KILL}).start()",
        "    return run(*arguments)",
        "applying.run = run_to_die",
    ],
    "in the middle of a large batch": [
        "from cdc import bulk",
        "bulk.LARGE, copy = 1, bulk.copy",
        f"bulk.copy = lambda *arguments: (copy(*arguments), {KILL})",
    ],
    "after the destination's commit, before Kafka's": [f"consumer.Offsets.commit = {DIE}"],
    "after the offsets were handed to Kafka": [f"consumer.log_applied = {DIE}"],
    "after Kafka's commit": [
        "commit = consumer.Offsets.on_commit",
        f"consumer.Offsets.on_commit = lambda *arguments: (commit(*arguments), {KILL})",
    ],
    "after a dead letter was acknowledged": [
        "send = consumer.DeadLetters.send",
        f"consumer.DeadLetters.send = lambda *arguments: (send(*arguments), {KILL})",
    ],
}


@pytest.mark.parametrize("point", KILLED)
def test_a_consumer_killed_at_any_point_loses_nothing(shared: Pipeline, point: str) -> None:
    source, bad = shared.source(), f"no change: {point}"
    query(source, "INSERT INTO employees (city) SELECT 'new' FROM generate_series(1, 60)")
    query(source, "UPDATE employees SET city = 'updated' WHERE emp_id % 3 = 1")
    query(source, "DELETE FROM employees WHERE emp_id % 3 = 2")
    shared.send(bad)
    published = shared.run("producer.py", "--once")
    assert published.returncode == 0, published.stdout + published.stderr
    sabotaged = shared.start(
        shared.sabotaged(f"{MODULES}; import consumer", *KILLED[point]),
        **SAME_PLACE,
    )
    assert sabotaged.process.wait(30) == -signal.SIGKILL, sabotaged.output()
    restarted = shared.start("consumer.py", **SAME_PLACE)
    restarted.wait_for("partitions assigned")  # before that it does not mind signals yet
    wait_until_read(shared)
    assert shared.equal()
    assert restarted.stop() == 0
    assert bad.encode() in [letter.value() for letter in shared.dead_letters()]
    assert "Traceback" not in sabotaged.output() + restarted.output()

"""Record what README shows: the scripts themselves, at work on a pipeline of their own.

    python -m harness.recordings                 # all, into docs/recordings/
    python -m harness.recordings status          # one of them
    make recordings

A recording is never edited. Two runs differ in numbers and times only.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cdc import cli
from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline
from harness.svg import to_svg
from harness.terminal import INTERRUPT, Key, Recording, record

import psycopg2

FOLDER = ROOT / "docs" / "recordings"
NAME = "cdc_recording"  # of the databases, the topic and the group
COLUMNS, WIDE, ROWS = 80, 120, 26
TRAFFIC = 8.0  # seconds; then all arrives, and status shows it
LARGEST = 150_000  # bytes
EMPLOYEES = """
INSERT INTO employees (first_name, last_name, dob, city, salary) VALUES
    ('Lise', 'Meitner', '1878-11-07', 'Wien', 1300), ('Alan', 'Turing', '1912-06-23', 'London', 1100),
    ('Emmy', 'Noether', '1882-03-23', 'Bern', 1400)
"""
WRITE = "UPDATE employees SET salary = salary + 1 WHERE emp_id <= %(count)s"


@contextmanager
def running_pipeline() -> Iterator[Pipeline]:
    """A pipeline with three employees, whose scripts run and have carried them over."""
    with tempfile.TemporaryDirectory(prefix=NAME) as logs:
        pipeline = Pipeline(NAME, Path(logs))
        pipeline.create()
        try:
            pipeline.set_up()
            pipeline.start("producer.py")
            pipeline.start("consumer.py")
            query(pipeline.source(), EMPLOYEES)
            pipeline.wait_until_equal()
            yield pipeline
        finally:
            pipeline.drop()


@contextmanager
def traffic(pipeline: Pipeline) -> Iterator[None]:
    """Change employees for a while, now more and now fewer of them."""
    done = threading.Event()

    def write() -> None:
        with closing(psycopg2.connect(pipeline.source_url)) as source:
            source.autocommit = True
            end = time.monotonic() + TRAFFIC
            while not done.wait(random.uniform(0, 0.1)) and time.monotonic() < end:
                query(source, WRITE, {"count": random.randint(1, 3)})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


def record_test() -> Recording:
    with running_pipeline() as pipeline:
        assert pipeline.run("test_cdc.py").returncode == 0  # the first change through a new topic is slow
        return record("test_cdc.py", columns=COLUMNS, rows=ROWS, environment=pipeline.environment)


def record_status() -> Recording:
    with running_pipeline() as pipeline:
        assert pipeline.run("verify.py").returncode == 0  # so that status can tell of a comparison
        with traffic(pipeline):
            return record(
                *("admin.py", "status", "--watch"),
                columns=WIDE,
                rows=ROWS,
                keys=[Key("partition", INTERRUPT, TRAFFIC + 2)],
                environment=pipeline.environment,
            )


def record_lose() -> Recording:
    keys = [Key("s left", "h", 4), Key("stays open", "c", 3), Key("were killed", "c", 2), Key("start again", "h", 3)]
    return record("-m", "lose", "--seconds", "16", columns=COLUMNS, rows=ROWS, keys=keys)


RECORDINGS: dict[str, tuple[str, int, Callable[[], Recording]]] = {
    "test_cdc": ("python test_cdc.py", COLUMNS, record_test),
    "status": ("python admin.py status --watch", WIDE, record_status),
    "lose": ("make lose", COLUMNS, record_lose),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECORDINGS)}; default: all")
    names = parser.parse_args().names or list(RECORDINGS)
    if not set(names) <= set(RECORDINGS):
        parser.error(f"give some of {', '.join(RECORDINGS)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        title, columns, make = RECORDINGS[name]
        recording = make()
        picture = to_svg(recording, title, columns, ROWS)
        if recording.code != 0 or len(picture.encode()) > LARGEST:
            cli.fail(f"{title} ended with {recording.code}, {len(picture.encode()):,} bytes:\n{recording.text()}")
        (FOLDER / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(f"docs/recordings/{name}.svg: {len(picture.encode()):,} bytes", flush=True)


if __name__ == "__main__":
    main()

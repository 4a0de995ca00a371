"""A playground: fill the source with invented employees, then change them steadily until Ctrl-C.

    python load.py                           5,000 employees, 50 changes a second
    python load.py --rows 100 --rate 5       other numbers
    python load.py --seconds 60              end after a minute
    python load.py --remove                  delete the invented employees

All of them have the last name Playground. No other employee is touched. Watch them with `python admin.py status`.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from contextlib import closing
from dataclasses import dataclass, field

import config
from cdc import cli
from cdc.postgres import connect_within, explain
from cdc.text import counted
from config import SCHEMA

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

CONNECT_WAIT = 10.0  # seconds for the source to answer
MAX_ROWS, MAX_RATE = 1_000_000, 10_000
CHUNK = 1_000  # employees that are inserted in one transaction
LINE_EVERY = 5.0  # seconds between lines of progress
LATE = 1.0  # seconds of lateness that are made up for; a source that cannot keep up is not flooded when it can

MARK = "Playground"  # the last name of whom this script has invented
SYLLABLES = "a be da el fi go hu i jo ka lu mi no o pe ra su ta u vi we ya zo".split()  # noqa: SIM905
CITIES = ("Arlington", "Bern", "Cork", "Delft", "Essen", "Faro", "Graz", "Haifa", "Izmir", "Jaipur", "Kyoto", "Lima")

FIND = f"SELECT emp_id FROM {SCHEMA}.employees WHERE last_name = %(mark)s"
INSERT = f"""
INSERT INTO {SCHEMA}.employees (first_name, last_name, dob, city, salary)
SELECT first_name, %(mark)s, date '1950-01-01' + (random() * 20000)::int, city, (30 + random() * 90)::int * 1000
FROM unnest(%(first_names)s::text[], %(cities)s::text[]) AS invented (first_name, city) RETURNING emp_id
"""
UPDATE = f"""
UPDATE {SCHEMA}.employees SET city = %(city)s, salary = salary + %(raise)s
WHERE emp_id = %(emp_id)s AND last_name = %(mark)s
"""
DELETE = f"DELETE FROM {SCHEMA}.employees WHERE emp_id = ANY (%(ids)s::int[]) AND last_name = %(mark)s"


@dataclass
class Playground:
    """The invented employees, and what changes them."""

    source: Connection
    rows: int  # that there should be
    ids: list[int] = field(default_factory=list)

    def find(self) -> None:
        with self.source.cursor() as cursor:
            cursor.execute(FIND, {"mark": MARK})
            self.ids = [emp_id for (emp_id,) in cursor.fetchall()]

    def insert(self, count: int) -> None:
        names = ["".join(random.choices(SYLLABLES, k=random.randint(2, 4))).capitalize() for _ in range(count)]
        values = {"mark": MARK, "first_names": names, "cities": random.choices(CITIES, k=count)}
        with self.source.cursor() as cursor:
            cursor.execute(INSERT, values)
            self.ids += [emp_id for (emp_id,) in cursor.fetchall()]

    def update(self) -> None:
        values = {"mark": MARK, "emp_id": random.choice(self.ids), "city": random.choice(CITIES), "raise": 100}
        with self.source.cursor() as cursor:
            cursor.execute(UPDATE, values)

    def delete(self, ids: list[int]) -> None:
        with self.source.cursor() as cursor:
            cursor.execute(DELETE, {"mark": MARK, "ids": ids})

    def change(self) -> None:
        """Insert, update or delete one: in seven of ten changes an update, and the number stays about the same."""
        if self.ids and random.random() < 0.7:
            self.update()
        elif len(self.ids) <= self.rows:
            self.insert(1)
        else:
            self.delete([self.ids.pop(random.randrange(len(self.ids)))])

    def fill(self, stop: cli.Stop) -> None:
        """Insert what is missing, some at a time."""
        missing = self.rows - len(self.ids)
        while missing > 0 and not stop.requested:
            self.insert(min(CHUNK, missing))
            missing = self.rows - len(self.ids)
        log.info("%s invented employees", f"{len(self.ids):,}")


def run(playground: Playground, rate: float, seconds: float, stop: cli.Stop) -> int:
    """Make so many changes a second until a stop is requested or the time is over; returns how many there were."""
    started = due = reported = time.monotonic()
    count = shown = 0
    while not stop.requested and time.monotonic() - started < seconds:
        playground.change()
        count += 1
        now = time.monotonic()
        if now - reported >= LINE_EVERY:
            log.info("%s, %.0f a second", counted(count, "change"), (count - shown) / (now - reported))
            reported, shown = now, count
        due = max(due + 1 / rate, now - LATE)
        stop.sleep(min(due, started + seconds) - now)
    return count


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--rows", type=rows, default=5_000, help="how many invented employees; default 5000")
    parser.add_argument("--rate", type=rate, default=50.0, help="how many changes a second; default 50")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long; default until Ctrl-C")
    parser.add_argument("--remove", action="store_true", help="delete the invented employees, and change nothing")
    return parser.parse_args()


def rows(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:8]) <= MAX_ROWS and len(text) < 8):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_ROWS}")
    return int(text)


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, up to {MAX_RATE}")
    return number


@cli.script
def main() -> None:
    arguments = parse_arguments()
    cli.start_logging()
    stop = cli.stop_on_signals()
    with closing(connect_within("source", config.SOURCE_DATABASE_URL, CONNECT_WAIT, stop)) as source:
        playground = Playground(source, arguments.rows)
        try:
            playground.find()
            if arguments.remove:
                playground.delete(playground.ids)
                print(f"invented employees deleted: {len(playground.ids):,}")
                return
            playground.fill(stop)
            count = run(playground, arguments.rate, arguments.seconds, stop)
        except psycopg2.Error as error:
            cli.fail(explain("source", config.SOURCE_DATABASE_URL, error))
    left = f"{counted(len(playground.ids), 'invented employee')}; python load.py --remove deletes them"
    print(f"{counted(count, 'change')}; {left}")


if __name__ == "__main__":
    main()

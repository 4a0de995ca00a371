"""Show the pipeline at work: INSERT, UPDATE and DELETE an employee on the source and see each at the destination.

    python test_cdc.py

Needs producer.py and consumer.py running. Touches only the employee it inserts, and deletes it however it ends.
Exits 0 (PASS) or 1 (FAIL).
"""

from __future__ import annotations

import sys
import time
from contextlib import closing

import config
from cdc import cli, rows
from cdc.comparison import Comparison, Side
from cdc.postgres import WrongSetting, connect, connect_within, explain
from cdc.text import counted
from config import SCHEMA
from employee import EMPLOYEE_COLUMNS, Employee

import psycopg2
from psycopg2.extensions import connection as Connection
from rich.console import Console

WAIT = 15.0  # seconds for a change to arrive, the first one through scripts that are still starting
GRACE = 5.0  # seconds for the changes of others to arrive before the last comparison counts

COLUMNS = ", ".join(EMPLOYEE_COLUMNS)
# dob as text: PostgreSQL's dates reach further than Python's
SELECT = "SELECT " + COLUMNS.replace("dob", "dob::text") + f" FROM {SCHEMA}.employees"
AROUND = f"""
({SELECT} WHERE emp_id <= %(emp_id)s ORDER BY emp_id DESC LIMIT %(limit)s + 1) UNION ALL
({SELECT} WHERE emp_id > %(emp_id)s ORDER BY emp_id LIMIT %(limit)s)
"""
STEPS = {
    "INSERT": f"""
        INSERT INTO {SCHEMA}.employees (first_name, last_name, dob, city, salary)
        VALUES ('Ada', 'Byron', '1815-12-10', 'London', 1200) RETURNING emp_id""",
    "UPDATE": f"""
        UPDATE {SCHEMA}.employees SET city = 'Ockham', salary = 1300 WHERE emp_id = %(emp_id)s RETURNING emp_id""",
    "DELETE": f"DELETE FROM {SCHEMA}.employees WHERE emp_id = %(emp_id)s RETURNING emp_id",
}
PUBLISHED = f"""
SELECT last_offset >= (SELECT max(cdc_id) FROM {SCHEMA}.emp_cdc WHERE emp_id = %(emp_id)s) FROM {SCHEMA}.cdc_position
"""


def read_employee(connection: Connection, emp_id: int) -> Employee | None:
    with connection.cursor() as cursor:
        cursor.execute(f"{SELECT} WHERE emp_id = %(emp_id)s", {"emp_id": emp_id})
        row = cursor.fetchone()
    return Employee(*row) if row else None


def read_around(connection: Connection, emp_id: int) -> list[Employee]:
    """Return the employee and its neighbours on either side."""
    with connection.cursor() as cursor:
        cursor.execute(AROUND, {"emp_id": emp_id, "limit": rows.NEIGHBOURS})
        return [Employee(*row) for row in cursor.fetchall()]


def change(source: Connection, step: str, emp_id: int) -> int:
    """Run a step on the source; returns the employee it touched."""
    with source.cursor() as cursor:
        cursor.execute(STEPS[step], {"emp_id": emp_id})
        return int(cursor.fetchall()[0][0])


def arrived(source: Connection, destination: Connection, emp_id: int, stop: cli.Stop) -> bool:
    """Wait until the destination shows the employee as the source does; False if it takes too long."""
    end = time.monotonic() + WAIT
    expected = read_employee(source, emp_id)
    while read_employee(destination, emp_id) != expected:
        if stop.requested:
            cli.fail("stopped")
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def advice(source: Connection, emp_id: int) -> str:
    """Return which of the two scripts seems not to be running, judged by how far the change has come."""
    with source.cursor() as cursor:
        cursor.execute(PUBLISHED, {"emp_id": emp_id})
        ((published,),) = cursor.fetchall()
    script = "consumer.py" if published else "producer.py"
    how_far = "published but not applied" if published else "not published"
    return f"the change was {how_far}: is {script} running? (python admin.py status shows more)"


def count_differing(source: Connection, destination: Connection, stop: cli.Stop) -> int:
    """Return how many employees differ, once the changes of others have arrived or GRACE is over."""
    sides = (
        Side("source", config.SOURCE_DATABASE_URL, source),
        Side("destination", config.DESTINATION_DATABASE_URL, destination),
    )
    comparison = Comparison(sides, repair=False, wait=GRACE, limit=0)
    comparison.run(lambda rows: None, stop)
    cli.raise_if_requested(stop)
    return comparison.different


def check(console: Console, source: Connection, destination: Connection, stop: cli.Stop) -> bool:
    """Run all steps; returns whether each arrived and both tables ended equal."""
    emp_id, before = change(source, "INSERT", 0), None
    try:
        for step in STEPS:
            if step != "INSERT":
                change(source, step, emp_id)
            after = read_employee(source, emp_id)
            started = time.monotonic()
            if not arrived(source, destination, emp_id, stop):
                how_far = advice(source, emp_id)
                console.print(f"{step} of employee {emp_id} did not arrive within {WAIT:.0f} s: {how_far}")
                return False
            console.print(f"\n{step} employee {emp_id} → arrived after {(time.monotonic() - started) * 1000:.1f} ms")
            sides = {"source": read_around(source, emp_id), "destination": read_around(destination, emp_id)}
            console.print(rows.render(sides, emp_id, rows.changed_columns(before, after), console.width))
            before = after
        different = count_differing(source, destination, stop)
    finally:
        take_back(emp_id)
    how_many = f"{counted(different, 'employee')} {'differs' if different == 1 else 'differ'}; run python verify.py"
    console.print(f"\n{how_many}" if different else "\nboth tables are equal")
    return different == 0


def take_back(emp_id: int) -> None:
    """Delete the employee if it is still there, over a connection of its own: the other may be lost."""
    try:
        with closing(connect("source", config.SOURCE_DATABASE_URL)) as source, source.cursor() as cursor:
            cursor.execute(STEPS["DELETE"], {"emp_id": emp_id})
    except (psycopg2.Error, WrongSetting, cli.Stopped):
        print(f"employee {emp_id} is left in the source's table: delete it", file=sys.stderr)


@cli.script
def main() -> None:
    cli.make_parser(__doc__).parse_args()
    cli.start_logging()
    stop = cli.stop_on_signals()
    console = Console(highlight=False, markup=False, emoji=False)  # what employees are called is text and nothing else
    with (
        closing(connect_within("source", config.SOURCE_DATABASE_URL, WAIT, stop)) as source,
        closing(connect_within("destination", config.DESTINATION_DATABASE_URL, WAIT, stop)) as destination,
    ):
        try:
            passed = check(console, source, destination, stop)
        except psycopg2.Error as error:
            if error.cursor is not None and error.cursor.connection is destination:
                cli.fail(explain("destination", config.DESTINATION_DATABASE_URL, error))
            cli.fail(explain("source", config.SOURCE_DATABASE_URL, error))
    console.print("PASS" if passed else "FAIL", style="bold green" if passed else "bold red")
    sys.exit(cli.DONE if passed else cli.FAILED)


if __name__ == "__main__":
    main()

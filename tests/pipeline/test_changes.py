"""Values and statements of all kinds, from psql on the source to the destination: all through one running pipeline."""

from __future__ import annotations

import time
from pathlib import Path

from harness.database import ROWS, query
from harness.destination import ROW, Row, ids
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection

VALUES: dict[str, Row] = {
    "nothing but NULLs": (None, None, None, None, None),
    "empty texts": ("", "", None, "", 0),
    "spaces": (" ", "  trailing  ", None, "\u00a0\u2003", 1),
    "unicode": ("Zoë", "漢字かな", "2000-02-29", "Ελλάς עברית العربية", 1),
    "combined and astral characters": ("👩‍👩‍👧‍👦", "e\u0301", "2000-02-29", "\U0010ffff\ufeff\ufffe", 1),
    "quotes": ("O'Neill", '"double"', "2000-02-29", "$$dollar$$ `back`", 1),
    "backslashes": ("\\", "\\\\n \\u0041 \\x41", "2000-02-29", "C:\\temp\\", 1),
    "line ends and control characters": ("a\nb\r\nc\td", "\x01\x1f\x7f\x80", None, "\u2028\u2029", 1),
    "text that looks like JSON": ('{"cdc_id":1}', '},{"emp_id":2,"action":"DELETE"}', None, "[null,true]", 1),
    "text that looks like SQL": ("%s %(deleted)s %%", "'); DROP TABLE employees; --", None, "COMMIT", 1),
    "text that looks like NULL": ("null", "NULL", None, "\\N", 1),
    "100 letters": ("x" * 100, "y" * 100, None, "z" * 100, 1),
    "100 astral characters": ("😀" * 100, "😀" * 100, None, "😀" * 100, 1),
    "the lowest salary": ("a", "b", None, "c", -(2**31)),
    "the highest salary": ("a", "b", None, "c", 2**31 - 1),
    "a date before Christ": ("Gaius", "Caesar", "0044-03-15 BC", "Roma", 1),
    "the first date": ("a", "b", "4714-11-24 BC", "c", 1),
    "the last date": ("a", "b", "5874897-12-31", "c", 1),
    "infinity": ("a", "b", "infinity", "c", 1),
    "minus infinity": ("a", "b", "-infinity", "c", 1),
}


@pytest.fixture(scope="module")
def both_ends(shared_running: Pipeline) -> tuple[Connection, Connection]:
    return shared_running.source(), shared_running.destination()


@pytest.mark.parametrize("what", VALUES)
def test_a_row_arrives_as_it_is(both_ends: tuple[Connection, Connection], what: str) -> None:
    source, destination = both_ends
    query(source, "SET datestyle = 'SQL, DMY'")  # nobody's way of writing dates may matter
    ((emp_id,),) = query(source, "INSERT INTO employees (city) VALUES ('plain') RETURNING emp_id")
    update = "UPDATE employees SET (first_name, last_name, dob, city, salary) = %s WHERE emp_id = %s"
    query(source, update, (VALUES[what], emp_id))
    wait_until(lambda: query(destination, ROW, (emp_id,)) == [VALUES[what]], what="UPDATE arrived")
    query(source, "DELETE FROM employees WHERE emp_id = %s", (emp_id,))
    wait_until(lambda: query(destination, ROW, (emp_id,)) == [], what="DELETE arrived")
    insert = "INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary) VALUES %s"
    query(source, insert, ((emp_id, *VALUES[what]),))
    wait_until(lambda: query(destination, ROW, (emp_id,)) == [VALUES[what]], what="INSERT arrived")


def test_the_limits_of_emp_id_arrive(shared_running: Pipeline) -> None:
    limits = (-(2**31), 0, 2**31 - 1)
    query(shared_running.source(), "INSERT INTO employees (emp_id) SELECT unnest(%s)", (list(limits),))
    shared_running.wait_until_equal()
    assert set(limits) <= set(ids(shared_running.destination()))


STATEMENTS: dict[str, list[str]] = {
    "a row deleted and inserted again in one transaction": [
        "INSERT INTO employees VALUES (10001, 'first')",
        "BEGIN; DELETE FROM employees WHERE emp_id = 10001; INSERT INTO employees VALUES (10001, 'again'); COMMIT",
    ],
    "a row deleted and inserted again in many transactions": [
        "INSERT INTO employees VALUES (10002, 'first')",
        *["DELETE FROM employees WHERE emp_id = 10002", "INSERT INTO employees VALUES (10002, 'again')"] * 20,
    ],
    "a row updated many times in one transaction": [
        "INSERT INTO employees VALUES (10003, 'first')",
        "BEGIN;" + "UPDATE employees SET salary = coalesce(salary, 0) + 1 WHERE emp_id = 10003;" * 50 + "COMMIT",
    ],
    "a changed key": [
        "INSERT INTO employees VALUES (10004, 'moves')",
        "UPDATE employees SET emp_id = 10005, city = 'moved' WHERE emp_id = 10004",
    ],
    "two keys exchanged": [
        "INSERT INTO employees VALUES (10006, 'one'), (10007, 'other')",
        "BEGIN; UPDATE employees SET emp_id = 10008 WHERE emp_id = 10006;"
        "UPDATE employees SET emp_id = 10006 WHERE emp_id = 10007;"
        "UPDATE employees SET emp_id = 10007 WHERE emp_id = 10008; COMMIT",
    ],
    "all keys moved up by one": [
        "INSERT INTO employees SELECT n, 'row ' || n FROM generate_series(10100, 10199) AS n",
        "UPDATE employees SET emp_id = emp_id + 1000 WHERE emp_id BETWEEN 10100 AND 10199",
        "UPDATE employees SET emp_id = emp_id - 1000 WHERE emp_id BETWEEN 11100 AND 11199",
    ],
    "a savepoint rolled back": [
        "BEGIN; INSERT INTO employees VALUES (10009, 'kept'); SAVEPOINT a;"
        "INSERT INTO employees VALUES (10010, 'lost');"
        "UPDATE employees SET city = 'lost' WHERE emp_id = 10009; ROLLBACK TO a;"
        "UPDATE employees SET city = 'kept' WHERE emp_id = 10009; COMMIT",
    ],
    "a transaction rolled back": [
        "INSERT INTO employees VALUES (10011, 'kept')",
        "BEGIN; DELETE FROM employees; INSERT INTO employees VALUES (10012, 'lost'); ROLLBACK",
    ],
    "an upsert and a MERGE": [
        "INSERT INTO employees VALUES (10013, 'first')",
        "INSERT INTO employees VALUES (10013, 'second') ON CONFLICT (emp_id) DO UPDATE SET last_name = 'upserted'",
        "MERGE INTO employees USING (VALUES (10013), (10014)) AS v (id) ON emp_id = id "
        "WHEN MATCHED THEN UPDATE SET city = 'merged' WHEN NOT MATCHED THEN INSERT (emp_id, city) VALUES (id, 'new')",
    ],
}


@pytest.mark.parametrize("what", STATEMENTS)
def test_what_statements_leave_in_the_table_arrives(
    shared_running: Pipeline, both_ends: tuple[Connection, Connection], what: str
) -> None:
    source, destination = both_ends
    if "MERGE" in what and source.server_version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    for statement in STATEMENTS[what]:
        query(source, statement)
    shared_running.wait_until_equal()
    assert not any("lost" in row for row in query(destination, ROWS))


def test_rows_of_copy_arrive(shared_running: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("".join(f"{n}\tname {n}\t\\N\t1999-12-31\ta\\tb\\\\\t{n}\n" for n in range(20_000, 25_000)))
    with shared_running.source().cursor() as cursor, file.open() as rows:
        cursor.copy_expert("COPY employees FROM STDIN", rows)
    shared_running.wait_until_equal()
    assert query(shared_running.destination(), ROW, (24_999,)) == [("name 24999", None, "1999-12-31", "a\tb\\", 24_999)]


def test_truncate_empties_the_destination_whatever_partition_a_row_is_on(shared_running: Pipeline) -> None:
    source = shared_running.source()
    query(source, "INSERT INTO employees SELECT n, 'row ' || n FROM generate_series(30001, 42000) AS n")
    query(source, "TRUNCATE employees")
    query(source, "INSERT INTO employees (emp_id, city) VALUES (1, 'again')")
    shared_running.wait_until_equal()
    assert query(shared_running.destination(), ROWS) == [(1, None, None, None, "again", None)]
    query(source, "TRUNCATE employees")
    shared_running.wait_until_equal()
    assert ids(shared_running.destination()) == []
    partitions = {message.partition() for message in shared_running.messages()}
    assert len(partitions) == 3


def test_a_single_change_is_named_and_many_are_summed_up(shared_running: Pipeline) -> None:
    source, script = shared_running.source(), shared_running.scripts[1]

    def named() -> bool:
        ((emp_id,),) = query(source, "INSERT INTO employees (city) VALUES ('told') RETURNING emp_id")
        time.sleep(0.3)  # right after a load a single change is still summed up with the rest
        return f"INSERT employee {emp_id} → applied, log offset " in script.output()

    wait_until(named, what=script.output)
    output = script.output()
    query(source, "INSERT INTO employees (city) SELECT 'told' FROM generate_series(1, 1000)")
    wait_until(lambda: " changes up to log offset " in script.output().removeprefix(output), what=script.output)

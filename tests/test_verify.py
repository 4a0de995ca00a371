"""verify.py: finds every difference and no other, under traffic too; --repair mends them through the pipeline.

CDC_VERIFY_ROWS=1000000 pytest -s -k large measures time and memory with a million rows.
"""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

import config
from harness import ROOT
from harness.database import ROWS, WAITING, administer, database_url, query
from harness.pipeline import Pipeline, new_pipeline
from harness.seed import CLOCK_SEED
from harness.waiting import wait_until

MANY = 50_000  # rows: some pages
PEAK = (  # the peak of the script's memory in kB, for Pipeline.sabotaged()
    "import atexit",
    "atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr))",
)
LARGE = int(os.environ.get("CDC_VERIFY_ROWS", MANY))
FILL = """
INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary)
SELECT id, 'First' || id, 'Last' || id * 7, date '1950-01-01' + id %% 20000, 'City ' || id %% 1000, id %% 200000
FROM generate_series(1, %(rows)s) AS id
"""
SPECIAL = """
INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary) VALUES
(-2147483648, 'first', 'key', 'infinity', 'Ωmega', -2147483648), (2147483647, 'last', 'key', '-infinity', '', NULL),
(-7, NULL, '', '4714-11-24 BC', E'tab\\t"quote"\\\\\\n[/red]', 0), (0, NULL, NULL, NULL, NULL, NULL)
"""
WITHOUT_LOG = "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger"
WITH_LOG = "ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger"


def verify(pipeline: Pipeline, *options: str, wait: int = 5, script: str = "verify.py") -> dict[str, Any]:
    """Run verify.py --json; returns what it found."""
    result = pipeline.run(script, "--json", "--wait", str(wait), "--limit", "1000", *options)
    assert result.stdout, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if found["equal"] else 1), result.stderr
    return found


def differing(found: dict[str, Any]) -> list[int]:
    return sorted(difference["emp_id"] for difference in found["differences"])


def truth(pipeline: Pipeline) -> list[int]:
    """The employees that differ, told by reading all rows."""
    here, there = ({row[0]: row for row in query(side, ROWS)} for side in (pipeline.source(), pipeline.destination()))
    return sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


def fill_both(pipeline: Pipeline, rows: int) -> None:
    """Fill both sides with the same rows, not through the pipeline."""
    query(pipeline.source(), f"{WITHOUT_LOG}; {FILL}; {WITH_LOG}", {"rows": rows})
    query(pipeline.destination(), FILL, {"rows": rows})


@pytest.fixture(scope="module")
def module_pipeline(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path_factory.mktemp("verify")) as pipeline:
        pipeline.set_up()
        query(pipeline.source(), SPECIAL)
        query(pipeline.source(), FILL, {"rows": MANY})
        pipeline.drain()
        query(pipeline.destination(), "CREATE TABLE kept AS TABLE employees")
        yield pipeline


@pytest.fixture
def filled(module_pipeline: Pipeline) -> Iterator[Pipeline]:
    """A drained pipeline with many rows and some special ones. The test may change the destination."""
    yield module_pipeline
    query(module_pipeline.destination(), "TRUNCATE employees; INSERT INTO employees TABLE kept")


INSERT = "INSERT INTO employees (emp_id) VALUES (%(key)s) ON CONFLICT DO NOTHING"
UPDATE = "UPDATE employees SET salary = %(salary)s WHERE emp_id = %(key)s"
DELETE = "DELETE FROM employees WHERE emp_id = %(key)s"


@contextmanager
def writers(pipeline: Pipeline, hot: int, first: int = 0, last: int = 0) -> Iterator[None]:
    """Update one employee of the source all the time, and change those from first to last at random."""
    stop, errors = threading.Event(), []

    def write(chosen: random.Random, keys: range, statements: tuple[str, ...]) -> None:
        try:
            with closing(psycopg2.connect(pipeline.source_url)) as source:
                source.autocommit = True
                while not stop.wait(0.002):
                    values = {"key": chosen.choice(keys), "salary": chosen.randint(0, 1_000_000)}
                    query(source, chosen.choice(statements), values)
        except psycopg2.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(random.Random(0), range(hot, hot + 1), (UPDATE,)))]
    for seed in range(1, 4) if last else ():
        arguments = (random.Random(seed), range(first, last + 1), (INSERT, UPDATE, UPDATE, DELETE))
        threads.append(threading.Thread(target=write, args=arguments))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors


# What it finds


def test_equal_tables_are_equal_and_it_says_so(filled: Pipeline) -> None:
    result = filled.run("verify.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"EQUAL; 50,004 rows compared in [\d.]+ s\n", result.stdout)


@pytest.mark.parametrize(
    ("planted", "keys"),
    [
        ("UPDATE employees SET salary = salary + 1 WHERE emp_id = 20000", [20000]),
        ("DELETE FROM employees WHERE emp_id IN (1, 40000)", [1, 40000]),
        ("INSERT INTO employees (emp_id) VALUES (-8), (60000), (2147483646)", [-8, 60000, 2147483646]),
        ("UPDATE employees SET first_name = '' WHERE emp_id = -7", [-7]),
        ("UPDATE employees SET last_name = NULL WHERE emp_id = -7", [-7]),
        ("UPDATE employees SET first_name = 'null' WHERE emp_id = 0", [0]),
        ("UPDATE employees SET salary = 0 WHERE emp_id = 0", [0]),
        ("UPDATE employees SET dob = '-infinity' WHERE emp_id = -2147483648", [-2147483648]),
        ("UPDATE employees SET dob = 'infinity' WHERE emp_id = 2147483647", [2147483647]),
        ("UPDATE employees SET dob = '4713-11-24 BC' WHERE emp_id = -7", [-7]),
        ("UPDATE employees SET dob = NULL WHERE emp_id = 2147483647", [2147483647]),
        ("UPDATE employees SET city = city || ' ' WHERE emp_id = 50000", [50000]),
        ("UPDATE employees SET city = replace(city, 'Ω', U&'\\2126') WHERE emp_id = -2147483648", [-2147483648]),
        ("UPDATE employees SET first_name = last_name, last_name = first_name WHERE emp_id = 3", [3]),
        ("DELETE FROM employees WHERE emp_id IN (-2147483648, 2147483647)", [-2147483648, 2147483647]),
        ("UPDATE employees SET emp_id = 50001 WHERE emp_id = 50000", [50000, 50001]),
    ],
)
def test_each_kind_of_difference_is_found_and_nothing_else(filled: Pipeline, planted: str, keys: list[int]) -> None:
    query(filled.destination(), planted)
    found = verify(filled)
    assert differing(found) == keys
    assert (found["different"], found["on_their_way"], found["repaired"]) == (len(keys), 0, 0)


def test_a_difference_is_shown_with_both_rows(filled: Pipeline) -> None:
    query(filled.destination(), "UPDATE employees SET city = NULL, dob = 'infinity' WHERE emp_id = 7")
    query(filled.destination(), "DELETE FROM employees WHERE emp_id = -7; INSERT INTO employees VALUES (-9, '')")
    found = {difference["emp_id"]: difference for difference in verify(filled)["differences"]}
    assert found[7]["source"]["city"] == "City 7"
    assert found[7]["destination"] == found[7]["source"] | {"city": None, "dob": "infinity"}
    assert found[-7]["source"]["dob"] == "4714-11-24 BC"
    assert found[-7]["destination"] is found[-9]["source"] is None
    assert found[-9]["destination"]["first_name"] == ""
    table = filled.run("verify.py", COLUMNS="200").stdout
    for line in (
        r'7 +│ dob "1950-01-08", city "City 7" +│ dob "infinity", city NULL ',
        r'-9 +│ no such row +│ first_name "", last_name NULL, ',
        r'-7 +│ first_name NULL, .*"tab\\t\\"quote\\"\\\\\\n\[/red\]".*│ no such row ',
        r"DIFFERENT: 3 employees; ",
    ):
        assert re.search(line, table), line


def test_many_differences_are_counted_and_some_shown(filled: Pipeline) -> None:
    query(filled.destination(), "UPDATE employees SET city = 'elsewhere'")
    result = filled.run("verify.py", "--limit", "3")
    assert result.returncode == 1
    assert result.stdout.count("elsewhere") == 3
    assert "and 50,001 more\n" in result.stdout
    assert "DIFFERENT: 50,004 employees; " in result.stdout


@pytest.mark.parametrize("seed", [1, CLOCK_SEED])
def test_random_differences_are_found_exactly_whatever_the_size_of_pages(pipeline: Pipeline, seed: int) -> None:
    print(f"seed {seed}")
    chosen = random.Random(seed)
    keys = chosen.sample(range(-300, 300), 200) + chosen.sample(range(-(2**31), 2**31), 100)
    for side, share in ((pipeline.source(), 0.7), (pipeline.destination(), 0.7)):
        rows = [(key, chosen.choice([None, "", "x"])) for key in keys if chosen.random() < share]
        query(side, "SET session_replication_role = replica")
        if side is pipeline.connections[0]:
            query(side, WITHOUT_LOG)
        with side.cursor() as cursor:
            cursor.executemany("INSERT INTO employees (emp_id, city) VALUES (%s, %s)", rows)
    for page, part, suspects in ((1, 1, 1), (7, 3, 10), (1000, 20, 1000)):
        small = f"verify.PAGE, verify.PART, verify.SUSPECTS = {page}, {part}, {suspects}"
        found = verify(pipeline, script=pipeline.sabotaged("import verify", small))
        assert differing(found) == truth(pipeline), (page, part)
        assert found["different"] == len(truth(pipeline)) > 100


def test_empty_tables_are_equal_and_one_empty_side_differs_from_a_full_one(pipeline: Pipeline) -> None:
    assert verify(pipeline)["rows"] == 0
    query(pipeline.destination(), FILL, {"rows": MANY})
    found = verify(pipeline)
    assert (found["rows"], found["different"], found["on_their_way"]) == (MANY, MANY, 0)
    query(pipeline.destination(), "TRUNCATE employees")
    query(pipeline.source(), f"{WITHOUT_LOG}; {FILL}", {"rows": MANY})
    found = verify(pipeline)
    assert (found["rows"], found["different"], found["on_their_way"]) == (MANY, MANY, 0)
    assert found["differences"][0]["destination"] is None


def test_neither_settings_nor_encodings_of_the_databases_matter(bare_pipeline: Pipeline) -> None:
    name = f"{bare_pipeline.name}_copy"
    administer(config.DESTINATION_DATABASE_URL, f"DROP DATABASE {name}")
    administer(
        config.DESTINATION_DATABASE_URL,
        f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    for setting in ("datestyle = 'SQL, DMY'", "extra_float_digits = -3", "client_encoding = 'UTF8'"):
        administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {name} SET {setting}")
    administer(config.SOURCE_DATABASE_URL, f"ALTER DATABASE {bare_pipeline.name} SET datestyle = 'German'")
    bare_pipeline.set_up()
    query(bare_pipeline.source(), "INSERT INTO employees VALUES (1, 'José', 'Ærø', '1999-02-01', 'Zürich', -5)")
    query(bare_pipeline.source(), SPECIAL.replace("Ωmega", "Omega"))
    bare_pipeline.drain()
    by_checksums = bare_pipeline.sabotaged("import verify", "verify.ROWS = 'SELECT 1 / 0'")
    assert verify(bare_pipeline, script=by_checksums)["equal"]
    query(bare_pipeline.destination(), "UPDATE employees SET city = 'Zurich' WHERE emp_id = 1")
    assert differing(verify(bare_pipeline)) == [1]


# Under traffic


def test_a_change_on_its_way_is_waited_for(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) SELECT generate_series(1, 100)")
    verifying = pipeline.start("verify.py")
    verifying.wait_for("waiting for changes of 100 employees")
    pipeline.start("producer.py")
    pipeline.start("consumer.py")
    assert verifying.process.wait(30) == 0, verifying.output()
    assert "EQUAL; 100 rows" in verifying.output()


def test_what_stays_on_its_way_is_told_with_the_script_that_seems_not_to_run(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    pipeline.drain()
    query(pipeline.source(), "UPDATE employees SET city = 'Rome'; INSERT INTO employees (emp_id) VALUES (2)")
    found = verify(pipeline, wait=1)
    assert (found["different"], found["on_their_way"], differing(found)) == (2, 2, [1, 2])
    assert all(difference["on_its_way"] for difference in found["differences"])
    result = pipeline.run("verify.py", "--wait", "0")
    assert "2 of them wait for a change that is not published; does python producer.py run?" in result.stdout
    assert pipeline.run("producer.py", "--once").returncode == 0
    result = pipeline.run("verify.py", "--wait", "0")
    assert "published but not applied; does python consumer.py run?" in result.stdout


def test_traffic_makes_no_difference_and_hides_none(running: Pipeline) -> None:
    fill_both(running, MANY)
    with writers(running, 40_500, 1, 30_000):
        time.sleep(0.5)
        for _ in range(3):
            assert verify(running)["equal"]
        query(running.destination(), "UPDATE employees SET city = 'planted' WHERE emp_id = 40000")
        query(running.destination(), "DELETE FROM employees WHERE emp_id = 40001")
        query(running.destination(), "INSERT INTO employees (emp_id) VALUES (70000)")
        for _ in range(3):
            found = verify(running)
            assert (differing(found), found["on_their_way"]) == ([40000, 40001, 70000], 0)


def test_changes_between_the_looks_at_the_two_sides_make_no_difference(running: Pipeline) -> None:
    slow = running.sabotaged(
        "import verify",
        "import time",
        "rows = verify.Side.rows",
        "verify.Side.rows = lambda *arguments, **values: (rows(*arguments, **values), time.sleep(0.2))[0]",
    )
    with writers(running, 1001, 1, 1000):
        time.sleep(1)
        for _ in range(2):
            assert verify(running, script=slow)["equal"]


def test_a_row_that_never_rests_is_no_difference(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    with writers(running, 1):
        for _ in range(5):
            assert verify(running, wait=2)["equal"]


def test_a_row_that_never_rests_is_found_if_the_destination_does_not_keep_what_it_is_given(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome')")
    running.wait_until_equal()
    destination = running.destination()
    query(
        destination,
        """
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.city = upper(NEW.city); RETURN NEW; END $$;
        CREATE TRIGGER spoil BEFORE UPDATE ON employees FOR EACH ROW EXECUTE FUNCTION spoil();
        """,
    )
    with writers(running, 1):
        wait_until(lambda: query(destination, "SELECT 1 FROM employees WHERE city = 'ROME'"))
        assert differing(verify(running, wait=1)) == [1]


# Repair


def test_repair_mends_all_kinds_of_differences_while_writers_run(running: Pipeline) -> None:
    fill_both(running, MANY)
    destination = running.destination()
    with writers(running, 40_500, 1, 30_000):
        query(destination, "UPDATE employees SET city = 'planted' WHERE emp_id % 100 = 0")
        query(destination, "DELETE FROM employees WHERE emp_id % 1000 = 1")
        query(destination, "INSERT INTO employees (emp_id) SELECT generate_series(-50, -11)")
        found = verify(running, "--repair")
        assert found["equal"]
        assert found["repaired"] > 200  # those that the writers leave alone
        found = verify(running)
        assert (found["equal"], found["repaired"]) == (True, 0)
    running.wait_until_equal()


def test_repair_sends_nothing_but_what_differs(running: Pipeline) -> None:
    source = running.source()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 20)")
    running.wait_until_equal()
    ((before,),) = query(source, "SELECT max(cdc_id) FROM emp_cdc")
    query(
        running.destination(),
        "UPDATE employees SET city = 'x' WHERE emp_id = 3; DELETE FROM employees WHERE emp_id = 4",
    )
    query(running.destination(), "INSERT INTO employees (emp_id) VALUES (21)")
    assert verify(running, "--repair")["repaired"] == 3
    sent = query(source, "SELECT emp_id, action FROM emp_cdc WHERE cdc_id > %s ORDER BY emp_id", (before,))
    assert sent == [(3, "UPDATE"), (4, "UPDATE"), (21, "DELETE")]


def test_repair_works_where_the_log_has_been_pruned_or_was_bypassed(running: Pipeline) -> None:
    source = running.source()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 10)")
    running.wait_until_equal()
    query(source, "DELETE FROM emp_cdc")
    query(source, WITHOUT_LOG)
    query(source, "UPDATE employees SET city = 'x' WHERE emp_id = 1; DELETE FROM employees WHERE emp_id = 2")
    query(source, WITH_LOG)
    query(running.destination(), "UPDATE employees SET city = 'y' WHERE emp_id = 3")
    found = verify(running)
    assert (differing(found), found["on_their_way"]) == ([1, 2, 3], 0)
    assert verify(running, "--repair")["equal"]
    assert running.equal()


def test_repair_brings_a_restored_destination_up_to_date(running: Pipeline) -> None:
    """Its changes have been read from the topic: they would not come by themselves."""
    source, destination = running.source(), running.destination()
    query(source, "INSERT INTO employees (emp_id, city) SELECT generate_series(1, 10), 'old'")
    running.wait_until_equal()
    query(destination, "CREATE TABLE backup AS TABLE employees; CREATE TABLE gates AS TABLE cdc_applied")
    query(
        source, "UPDATE employees SET city = 'new' WHERE emp_id BETWEEN 1 AND 5; DELETE FROM employees WHERE emp_id = 6"
    )
    running.wait_until_equal()
    query(destination, "TRUNCATE employees, cdc_applied")
    query(destination, "INSERT INTO employees TABLE backup; INSERT INTO cdc_applied TABLE gates")
    found = verify(running, wait=1)
    assert (differing(found), found["on_their_way"]) == ([1, 2, 3, 4, 5, 6], 6)
    found = verify(running, "--repair", wait=2)
    assert (found["equal"], found["repaired"]) == (True, 6)
    assert running.equal()


def test_repair_of_what_the_destination_refuses_ends_and_says_so(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome')")
    running.wait_until_equal()
    query(running.destination(), "ALTER TABLE employees ADD CONSTRAINT known CHECK (city <> 'Atlantis')")
    query(running.source(), "UPDATE employees SET city = 'Atlantis' WHERE emp_id = 1")
    for _ in range(2):
        found = verify(running, "--repair", wait=1)
        assert (differing(found), found["on_their_way"], found["repaired"]) == ([1], 1, 0)
    query(running.destination(), "ALTER TABLE employees DROP CONSTRAINT known")
    assert verify(running, "--repair", wait=1)["repaired"] == 1


def test_repair_does_not_send_what_is_yet_to_be_published(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    assert verify(pipeline, "--repair", wait=1)["on_their_way"] == 1
    assert query(pipeline.source(), "SELECT count(*) FROM emp_cdc") == [(1,)]


def test_repair_without_a_pipeline_ends_and_what_it_sent_arrives_later(pipeline: Pipeline) -> None:
    query(pipeline.destination(), "INSERT INTO employees (emp_id) VALUES (1)")
    found = verify(pipeline, "--repair", wait=1)
    assert (found["different"], found["on_their_way"]) == (1, 1)
    pipeline.drain()
    assert verify(pipeline)["equal"]


def test_a_row_that_the_source_is_inserting_is_not_deleted_by_repair(running: Pipeline) -> None:
    query(running.destination(), "INSERT INTO employees (emp_id, city) VALUES (9, 'stray')")
    watcher, inserting = running.source(), running.source()
    query(inserting, "BEGIN")
    query(inserting, "INSERT INTO employees (emp_id, city) VALUES (9, 'Rome')")
    repairing = running.start("verify.py", "--repair", "--wait", "5")
    wait_until(lambda: query(watcher, WAITING) == [(1,)], what="repair waits for who writes")
    query(inserting, "COMMIT")
    assert repairing.process.wait(20) == 0, repairing.output()
    running.wait_until_equal()
    assert query(running.destination(), "SELECT city FROM employees WHERE emp_id = 9") == [("Rome",)]


def test_repair_holds_nobody_up_while_a_long_transaction_is_open(running: Pipeline) -> None:
    source, long, destination = running.source(), running.source(), running.destination()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 10)")
    running.wait_until_equal()
    query(destination, "UPDATE employees SET city = 'x' WHERE emp_id <= 10")
    query(destination, "INSERT INTO employees (emp_id) VALUES (11)")
    query(long, "BEGIN")
    query(long, "UPDATE employees SET salary = 5 WHERE emp_id = 5")
    repairing = running.start("verify.py", "--repair", "--wait", "20")
    wait_until(lambda: query(destination, "SELECT count(*) FROM employees WHERE city = 'x'") == [(1,)])
    slowest = 0.0
    query(source, "SET statement_timeout = '5s'")
    for salary in range(150):
        started = time.monotonic()
        query(source, "UPDATE employees SET salary = %s WHERE emp_id = 6", (salary,))
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.02)
    assert repairing.process.poll() is None
    assert query(destination, "SELECT city FROM employees WHERE emp_id IN (5, 11) ORDER BY emp_id") == [("x",), (None,)]
    query(long, "COMMIT")
    assert repairing.process.wait(30) == 0, repairing.output()
    running.wait_until_equal()
    assert slowest < 1.0


def test_repair_gives_up_on_what_stays_locked(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    running.wait_until_equal()
    query(running.destination(), "UPDATE employees SET city = 'x' WHERE emp_id = 1")
    query(running.destination(), "INSERT INTO employees (emp_id) VALUES (2)")
    long = running.source()
    query(long, "BEGIN")
    query(long, "SELECT FROM employees WHERE emp_id = 1 FOR UPDATE")
    query(long, "LOCK TABLE employees IN ROW EXCLUSIVE MODE")
    found = verify(running, "--repair", wait=1)
    assert (differing(found), found["on_their_way"]) == ([1, 2], 0)


# A source that went back in time


@pytest.fixture
def back_in_time(running: Pipeline) -> Pipeline:
    """The destination has applied what the source has lost: rows 1 to 3 differ, 4 and 5 happen to be the same."""
    query(running.source(), "INSERT INTO employees (emp_id, city) SELECT generate_series(1, 10), 'Rome'")
    running.wait_until_equal()
    query(running.destination(), "UPDATE cdc_applied SET cdc_id = cdc_id + 1000 WHERE emp_id <= 5")
    query(running.destination(), "UPDATE employees SET city = 'Oslo' WHERE emp_id IN (1, 2)")
    query(running.destination(), "DELETE FROM employees WHERE emp_id = 3")
    return running


def test_repair_moves_the_log_past_what_the_destination_has_applied(back_in_time: Pipeline) -> None:
    found = verify(back_in_time)
    assert (differing(found), found["on_their_way"], found["source_went_back_in_time"]) == ([1, 2, 3], 0, True)
    found = verify(back_in_time, "--repair")
    assert (found["equal"], found["repaired"]) == (True, 3)
    query(back_in_time.source(), "UPDATE employees SET city = 'Bern' WHERE emp_id IN (4, 6)")
    query(back_in_time.source(), "DELETE FROM employees WHERE emp_id = 5")
    back_in_time.wait_until_equal()
    assert verify(back_in_time)["equal"]


def test_equal_tables_do_not_hide_that_the_source_went_back_in_time(back_in_time: Pipeline) -> None:
    verify(back_in_time, "--repair")
    query(back_in_time.destination(), "UPDATE cdc_applied SET cdc_id = 5000 WHERE emp_id = 4")
    result = back_in_time.run("verify.py")
    assert result.returncode == 1
    assert "the source went back in time: its log is at offset 1,0" in result.stderr
    assert "the destination at 5,000; run python verify.py --repair" in result.stderr


def test_a_log_that_starts_again_at_its_first_offset_is_moved_too(running: Pipeline) -> None:
    query(running.source(), "TRUNCATE emp_cdc RESTART IDENTITY")
    query(running.destination(), "UPDATE cdc_applied SET cdc_id = 1")
    assert verify(running)["source_went_back_in_time"]
    assert verify(running, "--repair")["equal"]
    query(running.source(), "UPDATE employees SET city = 'Bern'")
    running.wait_until_equal()


def test_the_log_is_not_moved_while_somebody_writes_to_it(back_in_time: Pipeline) -> None:
    long = back_in_time.source()
    query(long, "BEGIN")
    query(long, "UPDATE employees SET city = 'Bern' WHERE emp_id = 10")
    result = back_in_time.run("verify.py", "--repair", "--wait", "1")
    assert result.returncode == 1
    assert "a long transaction holds emp_cdc; run python verify.py --repair" in result.stderr
    query(long, "COMMIT")
    assert verify(back_in_time, "--repair")["equal"]


def test_an_offset_that_no_log_reaches_does_not_wear_out_the_sequence(back_in_time: Pipeline) -> None:
    query(back_in_time.destination(), "UPDATE cdc_applied SET cdc_id = 9223372036854775807 WHERE emp_id = 4")
    result = back_in_time.run("verify.py", "--repair")
    assert result.returncode == 1
    (advice,) = re.findall("DELETE FROM cdc_applied WHERE cdc_id > [0-9]+", result.stderr)
    query(back_in_time.destination(), advice)
    assert verify(back_in_time, "--repair")["equal"]
    query(back_in_time.source(), "UPDATE employees SET city = 'Bern'")
    back_in_time.wait_until_equal()


# At the command line


def test_wrong_use_is_refused(stack: None, bare_pipeline: Pipeline) -> None:
    for options in (("--limit", "-1"), ("--limit", "x"), ("--wait", ""), ("--wait", "1.5"), ("--fix",), ("employees",)):
        result = bare_pipeline.run("verify.py", *options)
        assert (result.returncode, result.stdout) == (2, ""), options


def test_a_missing_table_or_server_is_told_in_one_line(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("verify.py", "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"source at localhost:\d+: .*; run python db_setup.py\n", result.stderr)
    away = database_url("postgresql://postgres:postgres@localhost:1/postgres", bare_pipeline.name)
    result = bare_pipeline.run("verify.py", "--json", DESTINATION_DATABASE_URL=away)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"destination at localhost:1: .*; gave up after \d+ s\n", result.stderr)


def test_a_server_that_goes_away_is_told_in_one_line(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    verifying = pipeline.start("verify.py")
    verifying.wait_for("waiting for changes")
    query(
        pipeline.destination(),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'employee-cdc'",
    )
    assert verifying.process.wait(20) == 1
    assert re.fullmatch(r"waiting for changes of 1 employees\ndestination at localhost:\d+: .*\n", verifying.output())


def test_ctrl_c_ends_it(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    verifying = pipeline.start("verify.py")
    verifying.wait_for("waiting for changes")
    assert verifying.stop(2) == 1
    assert verifying.output().endswith("stopped before all was compared\n")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(filled: Pipeline) -> None:
    often = filled.sabotaged("import verify", "verify.LINE_EVERY = 0")
    result = filled.run(often, "--json")
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"20,001 of 50,004 rows, [\d,]+/s, \d+ s left", lines[0].replace("20,000 of", "20,001 of"))
    assert lines[-1].startswith("50,004 of 50,004 rows, ")
    assert json.loads(result.stdout)["equal"]

    terminal, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "verify.py")],
        env={**os.environ, **filled.environment, "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=inner,
    ) as process:
        output, _ = process.communicate(timeout=30)
    os.close(inner)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert output.startswith(b"EQUAL; ")
    assert "━━" in shown
    assert re.search(r"of 50,004 rows, [\d,]+/s", shown)


def test_a_large_table_takes_little_memory_and_no_long_transaction(pipeline: Pipeline) -> None:
    fill_both(pipeline, LARGE)
    measured = pipeline.sabotaged("import verify", *PEAK)
    base, longest, done = 0.0, 0.0, threading.Event()

    def watch(url: str) -> None:
        nonlocal longest
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            while not done.wait(0.05):
                ((seconds,),) = query(
                    connection,
                    "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float"
                    " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'employee-cdc'",
                )
                longest = max(longest, seconds)

    watchers = [threading.Thread(target=watch, args=(url,)) for url in (pipeline.source_url, pipeline.destination_url)]
    for watcher in watchers:
        watcher.start()
    try:
        for what, plant in (
            ("equal", "SELECT"),
            ("one in a thousand differs", "UPDATE employees SET city = 'x' WHERE emp_id % 1000 = 0"),
            ("all differ", "UPDATE employees SET city = 'x'"),
        ):
            query(pipeline.destination(), plant)
            started = time.monotonic()
            result = pipeline.run(measured, seconds=900)
            seconds, peak = time.monotonic() - started, int(result.stderr.split()[-1]) / 1024
            base = base or peak
            print(f"{LARGE:,} rows, {what}: {seconds:.1f} s, peak {peak:.0f} MB")
            assert peak < base + 30
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()
    print(f"longest transaction {longest:.2f} s")
    assert longest < 1.0 + LARGE / 500_000

"""verify.py under traffic: what is on its way is no difference."""

from __future__ import annotations

import time

from harness.database import query
from harness.pipeline import Pipeline
from harness.verifying import MANY, differing, fill_both, verify, writers
from harness.waiting import wait_until


def test_a_change_on_its_way_is_waited_for(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) SELECT generate_series(1, 100)")
    verifying = pipeline.start("verify.py")
    verifying.wait_for("waiting for changes of 100 employees")
    pipeline.start("producer.py")
    pipeline.start("consumer.py")
    assert verifying.process.wait(30) == 0, verifying.output()
    assert "EQUAL; 100 rows" in verifying.output()


def test_what_stays_on_its_way_is_reported_with_the_script_that_seems_not_to_run(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    pipeline.drain()
    query(pipeline.source(), "UPDATE employees SET city = 'Rome'; INSERT INTO employees (emp_id) VALUES (2)")
    found = verify(pipeline, wait=1)
    assert (found["different"], found["on_their_way"], differing(found)) == (2, 2, [1, 2])
    assert all(difference["on_its_way"] for difference in found["differences"])
    result = pipeline.run("verify.py", "--wait", "0")
    assert "2 of them wait for a change that is not published; is producer.py running?" in result.stdout
    assert pipeline.run("producer.py", "--once").returncode == 0
    result = pipeline.run("verify.py", "--wait", "0")
    assert "published but not applied; is consumer.py running?" in result.stdout


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

"""A row that the destination refuses becomes a dead letter; an outage, whatever its error, does not make one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import config
from harness.consuming import change, consuming, wait_until_read
from harness.database import administer, query
from harness.destination import ids, wait_for_rows
from harness.pipeline import Pipeline, new_pipeline
from harness.waiting import wait_until

import pytest

# By its SQLSTATE, what a trigger does to refuse a row. Any other is raised.
REFUSED = {
    "20000": "CASE WHEN false THEN NULL; END CASE;",
    "21000": "PERFORM (SELECT generate_series(1, 2));",
    "22012": "PERFORM 1 / 0;",
    "23514": "",
    "38000": "",
    "42501": "",
    "42P01": "PERFORM * FROM no_such_table;",
    "42703": "PERFORM no_such_column;",
    "42883": "PERFORM no_such_function();",
    "44000": "",
    "45000": "",
    "54000": "",
    "0A000": "",
    "E0001": "",
    "P0001": "RAISE EXCEPTION E'login failed: %\\nsecond line', NEW.city;",
    "P0002": "SELECT city INTO STRICT NEW.city FROM public.employees WHERE false;",
    "P0004": "ASSERT false;",
}
# Never a row's fault, also where a trigger gives it as its reason. It ends when the trigger is gone.
WAITED_FOR = [
    "08006",
    "25006",
    "40001",
    "40P01",
    "53100",
    "53200",
    "53300",
    "55P03",
    "57014",
    "57P03",
    "58030",
    "XX000",
]

TRIGGER = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.city = 'refused' THEN {refuse} END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER refuse BEFORE INSERT OR UPDATE ON employees FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def refuse(state: str) -> str:
    raising = f"RAISE EXCEPTION 'not here' USING ERRCODE = '{state}';"
    return TRIGGER.replace(
        "CREATE OR REPLACE TRIGGER", "DROP TRIGGER IF EXISTS refuse ON employees; CREATE TRIGGER"
    ).format(refuse=REFUSED.get(state) or raising)


def reasons(pipeline: Pipeline) -> list[bytes]:
    return [dict(letter.headers() or [])["error"] for letter in pipeline.dead_letters()]  # type: ignore[misc]


@pytest.fixture(scope="module")
def module_pipeline(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path_factory.mktemp("refused")) as pipeline:
        pipeline.set_up()
        yield pipeline


def test_a_row_refused_with_any_error_of_its_own_becomes_a_dead_letter_and_the_rest_goes_on(
    module_pipeline: Pipeline,
) -> None:
    pipeline, destination = module_pipeline, module_pipeline.destination()
    expected: list[int] = []
    with consuming(pipeline) as script:
        for number, state in enumerate(REFUSED, 1):
            query(destination, refuse(state))
            good, bad = 10 * number, 10 * number + 1
            pipeline.send(change(1, good), change(2, bad, city="refused"), change(3, bad + 1), partition=0)
            expected += [good, bad + 1]
            wait_for_rows(pipeline, expected)
            wait_until_read(pipeline)
            assert len(pipeline.dead_letters()) == number, f"{state}\n{script.output()}"
        assert "waiting" not in script.output()
    assert reasons(pipeline)[list(REFUSED).index("P0001")] == b"login failed: refused second line"


def test_an_error_that_is_no_rows_fault_is_waited_for(module_pipeline: Pipeline) -> None:
    pipeline, destination = module_pipeline, module_pipeline.destination()
    query(destination, "DROP TRIGGER IF EXISTS refuse ON employees; TRUNCATE employees, cdc_applied")
    letters = len(pipeline.dead_letters())
    with consuming(pipeline) as script:
        for number, state in enumerate(WAITED_FOR, 1):
            query(destination, refuse(state))
            pipeline.send(change(number, 1, city="refused"), change(number, 2, salary=number), partition=1)
            wait_until(
                lambda number=number: script.output().count("; waiting") >= number,  # type: ignore[misc]
                what=lambda: script.output(),
            )
            time.sleep(0.3)  # some more tries
            query(destination, "DROP TRIGGER refuse ON employees")
            wait_until_read(pipeline)
            assert query(destination, "SELECT salary FROM employees ORDER BY emp_id") == [(None,), (number,)], state
    assert len(pipeline.dead_letters()) == letters


def test_an_older_state_is_applied_where_the_newest_is_refused(module_pipeline: Pipeline) -> None:
    pipeline, destination = module_pipeline, module_pipeline.destination()
    query(destination, f"TRUNCATE employees, cdc_applied; {refuse('45000')}")
    pipeline.send(change(1, 1, city="good"), change(2, 1, "UPDATE", city="refused"), change(3, 2), partition=2)
    with consuming(pipeline):
        wait_until_read(pipeline)
    assert query(destination, "SELECT emp_id, city FROM employees ORDER BY 1") == [(1, "good"), (2, None)]


def test_a_constraint_that_is_checked_at_the_commit_refuses_its_row_only(module_pipeline: Pipeline) -> None:
    pipeline, destination = module_pipeline, module_pipeline.destination()
    query(destination, "DROP TRIGGER IF EXISTS refuse ON employees; TRUNCATE employees, cdc_applied")
    query(destination, "ALTER TABLE employees ADD CONSTRAINT city UNIQUE (city) DEFERRABLE INITIALLY DEFERRED")
    try:
        pipeline.send(change(1, 1, city="Rome"), change(2, 2, city="Rome"), change(3, 3, city="Oslo"), partition=0)
        with consuming(pipeline):
            wait_for_rows(pipeline, [1, 3])
            wait_until_read(pipeline)
    finally:
        query(destination, "ALTER TABLE employees DROP CONSTRAINT city")


@pytest.mark.parametrize("what", ["TABLE public.cdc_applied", "COLUMN public.employees.city"])
def test_a_row_is_not_blamed_for_what_an_empty_batch_misses_too(module_pipeline: Pipeline, what: str) -> None:
    pipeline, destination = module_pipeline, module_pipeline.destination()
    query(destination, f"TRUNCATE employees, cdc_applied; {refuse('45000')}")
    letters = len(pipeline.dead_letters())
    rename = {
        "TABLE public.cdc_applied": (
            "ALTER TABLE cdc_applied RENAME TO away",
            "ALTER TABLE away RENAME TO cdc_applied",
        ),
        "COLUMN public.employees.city": (
            "ALTER TABLE employees RENAME city TO away; DROP TRIGGER refuse ON employees",
            "ALTER TABLE employees RENAME away TO city",
        ),
    }[what]
    with consuming(pipeline) as script:
        script.wait_for("partitions assigned")
        query(destination, rename[0])
        pipeline.send(change(1, 1), change(2, 2), partition=0)
        script.wait_for("run python db_setup.py; waiting")
        query(destination, rename[1])
        wait_for_rows(pipeline, [1, 2])
    assert len(pipeline.dead_letters()) == letters


def test_a_character_that_the_destinations_encoding_lacks_refuses_its_row_only(bare_pipeline: Pipeline) -> None:
    pipeline = bare_pipeline
    administer(config.DESTINATION_DATABASE_URL, f"DROP DATABASE {pipeline.name}_copy")
    create = f"CREATE DATABASE {pipeline.name}_copy ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    administer(config.DESTINATION_DATABASE_URL, create)
    pipeline.set_up()
    pipeline.send(*(change(n, n, city="😀" if n == 3 else "Zürich") for n in range(1, 6)), partition=0)
    with consuming(pipeline):
        wait_for_rows(pipeline, [1, 2, 4, 5])
        wait_until(lambda: len(pipeline.dead_letters()) == 1)
    assert ids(pipeline.destination()) == [1, 2, 4, 5]

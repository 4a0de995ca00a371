"""The source's tables in a test: set up, and what the triggers have logged."""

from __future__ import annotations

import subprocess
from typing import Any

from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline

from psycopg2.extensions import connection as Connection

LOG = "SELECT emp_id, city, salary, action FROM emp_cdc ORDER BY cdc_id"


# A log as it was specified, and its trigger.
SPECIFIED = """
CREATE TABLE employees (
    emp_id SERIAL PRIMARY KEY, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT
);
CREATE TABLE emp_cdc (
    cdc_id SERIAL PRIMARY KEY, emp_id INT, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE,
    city VARCHAR(100), salary INT, action VARCHAR(100)
);
CREATE FUNCTION employee_cdc_trigger_func() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (OLD.emp_id, OLD.first_name, OLD.last_name, OLD.dob, OLD.city, OLD.salary, TG_OP);
        RETURN OLD;
    END IF;
    INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
    VALUES (NEW.emp_id, NEW.first_name, NEW.last_name, NEW.dob, NEW.city, NEW.salary, TG_OP);
    RETURN NEW;
END
$$;
CREATE TRIGGER employee_cdc_trigger AFTER INSERT OR UPDATE OR DELETE ON employees
    FOR EACH ROW EXECUTE FUNCTION employee_cdc_trigger_func();
"""
SOURCE = (ROOT / "sql" / "source.sql").read_text(encoding="utf-8")
COLUMNS = "first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT"


def db_setup(pipeline: Pipeline, **environment: str) -> subprocess.CompletedProcess[str]:
    result: subprocess.CompletedProcess[str] = pipeline.run("db_setup.py", seconds=90, **environment)
    return result


def set_up(pipeline: Pipeline) -> None:
    result = db_setup(pipeline)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""


def newest_in_log(source: Connection) -> list[tuple[Any, ...]]:
    """What the destination will hold: of each employee what its newest change left."""
    return query(
        source,
        """
        SELECT emp_id, salary FROM (SELECT DISTINCT ON (emp_id) * FROM emp_cdc ORDER BY emp_id, cdc_id DESC) AS newest
        WHERE action <> 'DELETE' ORDER BY emp_id
        """,
    )

"""Functions that somebody with rights in `public` plants are not run by our sessions."""

from __future__ import annotations

from harness.database import query
from harness.pipeline import Pipeline

import pytest

# As anybody can up to PostgreSQL 14, where they may create in public. Each of these fits one of our calls better than
# PostgreSQL's own does.
PLANTED = """
CREATE FUNCTION public.planted() RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''a planted function has run''; END';
CREATE FUNCTION public.format(text, int, text) RETURNS text LANGUAGE sql AS 'SELECT planted()::text';
CREATE FUNCTION public.format(text, xid8) RETURNS text LANGUAGE sql AS 'SELECT planted()::text';
CREATE FUNCTION public.setval(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT planted(); SELECT 1::bigint';
CREATE FUNCTION public.setval(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT planted(); SELECT 1::bigint';
CREATE FUNCTION public.pg_visible_in_snapshot(xid8, text) RETURNS boolean
    LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE FUNCTION public.unnest(int[]) RETURNS SETOF int LANGUAGE sql AS 'SELECT planted(); SELECT 1';
CREATE FUNCTION public.json_build_array(int, varchar, varchar, date, varchar, int) RETURNS json
    LANGUAGE sql AS 'SELECT planted(); SELECT ''[]''::json';
CREATE FUNCTION public.planted(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE FUNCTION public.planted(oid, int) RETURNS boolean LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = int, FUNCTION = public.planted);
CREATE FUNCTION public.planted(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.planted);
CREATE FUNCTION public.planted(int[], int) RETURNS int[] LANGUAGE sql AS 'SELECT planted(); SELECT $1';
CREATE AGGREGATE public.array_agg(int) (SFUNC = public.planted, STYPE = int[], INITCOND = '{}')
"""
RESTORED = "UPDATE cdc_position SET system_identifier = 1; ALTER SEQUENCE emp_cdc_cdc_id_seq RESTART"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("admin.py", ["status"]),
        ("producer.py", ["--once"]),
        ("consumer.py", ["--once"]),
        ("verify.py", []),
        ("verify.py", ["--repair"]),
        ("test_cdc.py", []),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_planted_function_is_never_run(pipeline: Pipeline, script: str, arguments: list[str]) -> None:
    source, destination = pipeline.source(), pipeline.destination()
    query(source, "INSERT INTO employees (emp_id) VALUES (1), (2), (3)")
    query(source, "DELETE FROM employees WHERE emp_id = 1")
    pipeline.drain()
    query(destination, "DELETE FROM cdc_applied")  # so that the consumer has to register the keys that it finds
    query(source, "UPDATE employees SET city = 'new'; DELETE FROM employees WHERE emp_id = 2")
    if script != "producer.py":
        assert pipeline.run("producer.py", "--once").returncode == 0
    for connection in (source, destination):
        query(connection, PLANTED)
    if script == "producer.py":
        query(source, RESTORED)
    if script == "verify.py":
        query(destination, "INSERT INTO employees (emp_id) VALUES (4)")
    if script in ("admin.py", "test_cdc.py") or "--repair" in arguments:
        pipeline.start("producer.py").wait_for("publishing")
    if script in ("verify.py", "test_cdc.py"):
        pipeline.start("consumer.py").wait_for("partitions assigned")
    result = pipeline.run(script, *arguments)
    output = result.stdout + result.stderr + "".join(script.output() for script in pipeline.scripts)
    assert "planted" not in output
    if script == "producer.py":
        assert "position rebased" in output
        assert "WENT BACK IN TIME" in output
    assert result.returncode == (1 if (script, arguments) == ("verify.py", []) else 0), output


def test_a_trigger_function_of_somebody_elses_needs_a_search_path_of_its_own(pipeline: Pipeline) -> None:
    destination = pipeline.destination()
    query(
        destination,
        """
        CREATE TABLE audit (emp_id INT);
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO audit VALUES (NEW.emp_id); RETURN NEW; END';
        CREATE TRIGGER audit BEFORE INSERT ON employees FOR EACH ROW EXECUTE FUNCTION audit();
        """,
    )
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    pipeline.start("producer.py")
    with pipeline.running("consumer.py") as script:
        script.wait_for('→ dead letter: relation "audit" does not exist')
        query(destination, "ALTER FUNCTION audit SET search_path = public")
        assert pipeline.run("admin.py", "dead-letters", "--replay").returncode == 0
        pipeline.wait_until_equal()
    assert query(destination, "SELECT * FROM audit") == [(1,)]

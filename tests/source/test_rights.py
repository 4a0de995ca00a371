"""The rights in PostgreSQL that we grant: with exactly these each script works, without one it cannot.

The statements are read out of sql/*_roles.sql and docs/operations.md, so that these cannot tell anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import config
from employee import CDCRecord
from harness import ROOT
from harness.database import administer, query
from harness.pipeline import Pipeline, new_pipeline
from harness.waiting import wait_until

import psycopg2
import pytest

SIDES = ("source", "destination")
PASSWORD = "secret"
REFUSED = "permission denied"


@dataclass(frozen=True)
class Grant:
    """One right on one thing for one role."""

    side: str
    role: str
    right: str
    kind: str  # DATABASE, SCHEMA, SEQUENCE, or nothing for a table
    name: str

    def __str__(self) -> str:
        return f"{self.role} at the {self.side} without {self.right} on {self.kind or 'TABLE'} {self.name}"

    def refusal(self) -> str:
        """What PostgreSQL says where it is missing, as a pattern."""
        if self.name == "cdc_verified":  # what is stored there is not needed for anything else
            return "this role may not use the table cdc_verified"
        if self.kind == "SCHEMA":  # without USAGE a name that is given without its schema is not found
            return f"{REFUSED} for schema|relation .* does not exist|no schema has been selected"
        return f"{REFUSED} for {self.kind.lower() or 'table'} " + ("" if self.kind == "DATABASE" else self.name)


def statements() -> dict[str, list[str]]:
    """The statements of the document, and the grants to the roles of db_setup.py --roles, by side."""
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("\n## Rights\n")[1].split("\n## ")[0]
    by_hand = dict(zip(SIDES, section.split("\nand the destination:\n"), strict=True))
    return {
        side: re.findall(r"^    ((?:GRANT|REVOKE) .*;)$", text, re.MULTILINE) + granted_to_roles(side)
        for side, text in by_hand.items()
    }


def granted_to_roles(side: str) -> list[str]:
    text = (ROOT / "sql" / f"{side}_roles.sql").read_text(encoding="utf-8")
    lines: list[str] = re.findall(r"^(GRANT .*;)$", text, re.MULTILINE)
    return [line.replace("public.", "").replace(':"DBNAME"', "postgres") for line in lines]


def grants() -> list[Grant]:
    """The same, taken apart."""
    found = []
    for side, lines in statements().items():
        for line in lines:
            if match := re.fullmatch(r"GRANT (.+) ON (?:(DATABASE|SCHEMA|SEQUENCE) )?(.+) TO (.+);", line):
                rights, kind, names, roles = match.groups()
                found += [
                    Grant(side, role, right, kind or "", name)
                    for role in roles.split(", ")
                    for name in names.split(", ")
                    for right in rights.split(", ")
                ]
    return found


GRANTS = grants()
ROLES = sorted({grant.role for grant in GRANTS})


@dataclass
class Doors:
    """A pipeline, and the roles that rights are granted to, under names of this run."""

    pipeline: Pipeline
    prefix: str

    def role(self, role: str) -> str:
        return f"{self.prefix}_{role}"

    def url(self, side: str, role: str) -> str:
        url: str = getattr(self.pipeline, f"{side}_url")
        return re.sub("//.*@", f"//{self.role(role)}:{PASSWORD}@", url)

    def urls(self, role: str) -> dict[str, Any]:
        """For the environment of a script that runs as this role."""
        return {f"{side.upper()}_DATABASE_URL": self.url(side, role) for side in SIDES}

    def as_superuser(self, side: str, statement: str, values: Any = None) -> list[tuple[Any, ...]]:
        with psycopg2.connect(getattr(self.pipeline, f"{side}_url")) as connection:
            rows = query(connection, statement, values)
        connection.close()
        return rows

    def database(self, side: str) -> str:
        return str(getattr(self.pipeline, f"{side}_url").rpartition("/")[2])

    def lock(self, only: str = "") -> None:
        """Run the statements, or those that name one role."""
        for side, lines in statements().items():
            for line in lines:
                if line.startswith("GRANT") and only not in line:
                    continue
                names = re.sub(rf"\b({'|'.join(ROLES)})\b", lambda match: self.role(match[1]), line)
                self.as_superuser(side, names.replace("DATABASE postgres", f"DATABASE {self.database(side)}"))

    @contextmanager
    def without(self, grant: Grant) -> Iterator[None]:
        name = self.database(grant.side) if grant.kind == "DATABASE" else grant.name
        what = f"{grant.right} ON {grant.kind} {name}"
        self.as_superuser(grant.side, f"REVOKE {what} FROM {self.role(grant.role)}")
        try:
            yield
        finally:
            self.as_superuser(grant.side, f"GRANT {what} TO {self.role(grant.role)}")

    def run(self, role: str, script: str, *arguments: str) -> Any:
        return self.pipeline.run(script, *arguments, seconds=30.0, **self.urls(role))

    def watch(self, role: str, script: str, done: Callable[[], bool], **environment: str) -> tuple[bool, str]:
        """Run a script that waits for ever until it is done, or says that it is not let in."""
        started = self.pipeline.start(script, **self.urls(role), **environment)
        wait_until(
            lambda: done() or "; waiting" in started.output(),
            what=lambda: f"either in:\n{started.output()}",
        )
        finished = done()
        started.stop()
        return finished, started.output()


@pytest.fixture(scope="module")
def doors(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A pipeline that cdc_setup has set up, that has carried two employees and has these rights."""
    with new_pipeline(tmp_path_factory.mktemp("rights")) as pipeline:
        doors = Doors(pipeline, pipeline.name)
        names = [doors.role(role) for role in ROLES]
        for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
            administer(url, "; ".join(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'" for name in names))
        try:
            doors.lock("cdc_setup")
            for result in (doors.run("cdc_setup", "db_setup.py"), pipeline.run("admin.py")):
                assert result.returncode == 0, result.stdout + result.stderr
            doors.as_superuser("source", "INSERT INTO employees (city) VALUES ('Oslo'), ('Bern')")
            pipeline.drain()
            doors.lock()
            yield doors
        finally:
            pipeline.drop()
            for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
                administer(url, f"DROP ROLE {', '.join(names)}")


# What each role does: all that its script may have to do, in one run if it can. Returns whether that was done, and what
# the script said.


def write(doors: Doors) -> tuple[bool, str]:
    try:
        with psycopg2.connect(doors.url("source", "app")) as connection:
            query(connection, "INSERT INTO employees (city) VALUES ('Rome')")
            query(connection, "UPDATE employees SET city = 'Paris' WHERE city = 'Rome'")
            query(connection, "DELETE FROM employees WHERE city = 'Paris'")
            query(connection, "TRUNCATE employees")
            connection.rollback()
    except psycopg2.Error as error:
        return False, f"source: {error}"
    return True, ""


def publish(doors: Doors) -> tuple[bool, str]:
    """Publish, save the position and prune, after a restore that left the log back in time, on another server."""
    doors.as_superuser("source", "INSERT INTO employees (emp_id) VALUES (-3) ON CONFLICT DO NOTHING")
    doors.as_superuser("source", "UPDATE employees SET salary = 1 WHERE emp_id = -3")
    doors.as_superuser("source", "UPDATE cdc_position SET system_identifier = 1")
    ((drawn,),) = doors.as_superuser("source", "SELECT last_value FROM emp_cdc_cdc_id_seq")
    doors.pipeline.send(CDCRecord(drawn + 5, -1, action="DELETE").to_json())

    def done() -> bool:
        return doors.as_superuser("source", "SELECT count(*) FROM emp_cdc") == [(0,)]

    return doors.watch("cdc_producer", "producer.py", done, RETENTION="0 s")


def consume(doors: Doors) -> tuple[bool, str]:
    """Apply an INSERT, an UPDATE of a known employee, and a DELETE."""
    ((newest,),) = doors.as_superuser("destination", "SELECT max(cdc_id) FROM cdc_applied")
    changes = [
        CDCRecord(newest + 1000, newest + 1000, city="Rome", action="INSERT"),
        CDCRecord(newest + 1001, 1, city=f"Rome {newest}", action="UPDATE"),
        CDCRecord(newest + 1002, 2, action="DELETE"),
    ]
    doors.as_superuser("destination", "INSERT INTO employees (emp_id) VALUES (2) ON CONFLICT DO NOTHING")
    doors.pipeline.send(*(change.to_json() for change in changes))

    def done() -> bool:
        rows = dict(doors.as_superuser("destination", "SELECT emp_id, city FROM employees"))
        return newest + 1000 in rows and rows.get(1) == f"Rome {newest}" and 2 not in rows

    return doors.watch("cdc_consumer", "consumer.py", done)


def look(doors: Doors) -> tuple[bool, str]:
    """By `status` and by `trace`."""
    result = doors.run("cdc_monitor", "admin.py", "status", "--json")
    found = json.loads(result.stdout)
    errors = [found[side]["error"] for side in SIDES if "error" in found[side]]
    if unknown := found["destination"].get("comparison_unknown"):
        errors.append(f"destination: {unknown}")
    traced = doors.run("cdc_monitor", "admin.py", "trace", "1", "--json")
    errors += json.loads(traced.stdout)["errors"].values()
    return not errors, "\n".join([result.stderr, traced.stderr, *errors])


def impatient(doors: Doors, module: str, setting: str) -> str:
    return doors.pipeline.sabotaged(f"import {module}", f"{module}.{setting} = 0.3")


def differ(doors: Doors) -> None:
    """A row that the destination lacks, one that it has too many, and changes applied that no log has drawn."""
    doors.as_superuser("source", "INSERT INTO employees (emp_id) VALUES (-4) ON CONFLICT DO NOTHING")
    doors.as_superuser("destination", "DELETE FROM employees WHERE emp_id = -4")
    doors.as_superuser("destination", "INSERT INTO employees (emp_id) VALUES (-1) ON CONFLICT DO NOTHING")
    ((drawn,),) = doors.as_superuser("source", "SELECT last_value FROM emp_cdc_cdc_id_seq")
    beyond = "INSERT INTO cdc_applied VALUES (-2, %(id)s) ON CONFLICT (emp_id) DO UPDATE SET cdc_id = %(id)s"
    doors.as_superuser("destination", beyond, {"id": drawn + 5000})


def monitor(doors: Doors) -> tuple[bool, str]:
    done, said = look(doors)
    if not done:
        return done, said
    differ(doors)
    result = doors.run("cdc_monitor", impatient(doors, "verify", "CONNECT_WAIT"), "--wait", "0")
    return "DIFFERENT: " in result.stdout, result.stdout + result.stderr


def repair(doors: Doors) -> tuple[bool, str]:
    differ(doors)
    result = doors.run("cdc_repair", impatient(doors, "verify", "CONNECT_WAIT"), "--repair", "--wait", "0")
    if REFUSED in result.stderr:
        return False, result.stdout + result.stderr
    with doors.pipeline.running("producer.py"), doors.pipeline.running("consumer.py"):
        result = doors.run("cdc_repair", "verify.py", "--repair", "--wait", "20")
    return result.returncode == 0, result.stdout + result.stderr


def demonstrate(doors: Doors) -> tuple[bool, str]:
    """At first without the pipeline, and see what it says then."""
    result = doors.run("cdc_demo", impatient(doors, "test_cdc", "WAIT"))
    if "did not arrive" not in result.stdout:
        return False, result.stdout + result.stderr
    doors.pipeline.drain()  # what others have left
    for side in SIDES:
        doors.as_superuser(side, "TRUNCATE employees")
    with doors.pipeline.running("producer.py"), doors.pipeline.running("consumer.py"):
        result = doors.run("cdc_demo", "test_cdc.py")
    return result.returncode == 0, result.stdout + result.stderr


WORK = {
    "app": write,
    "cdc_producer": publish,
    "cdc_consumer": consume,
    "cdc_monitor": monitor,
    "cdc_repair": repair,
    "cdc_demo": demonstrate,
}
OF_SCRIPTS = [grant for grant in GRANTS if grant.role in WORK]


@pytest.mark.parametrize("role", WORK)
def test_with_exactly_its_rights_a_role_does_its_work(doors: Doors, role: str) -> None:
    done, said = WORK[role](doors)
    assert done, said
    assert REFUSED not in said


@pytest.mark.long
@pytest.mark.parametrize("grant", OF_SCRIPTS, ids=str)
def test_without_one_right_the_work_is_not_done_and_one_line_names_what_is_refused(doors: Doors, grant: Grant) -> None:
    with doors.without(grant):
        done, said = WORK[grant.role](doors)
    assert not done, said
    assert [line for line in said.splitlines() if grant.side in line and re.search(grant.refusal(), line)], said
    assert "Traceback" not in said


def test_a_script_that_waits_for_a_right_goes_on_once_it_is_granted(doors: Doors) -> None:
    missing = next(grant for grant in GRANTS if (grant.role, grant.name) == ("cdc_producer", "emp_cdc"))
    with doors.without(missing):
        producer = doors.pipeline.start("producer.py", **doors.urls("cdc_producer"))
        producer.wait_for(f"{REFUSED} for table emp_cdc; waiting")
    doors.as_superuser("source", "INSERT INTO employees (emp_id) VALUES (-5) ON CONFLICT DO NOTHING")
    producer.wait_for("published")
    assert producer.stop() == 0


def test_the_application_reaches_nothing_but_employees(doors: Doors) -> None:
    for statement in (
        "SELECT FROM emp_cdc",
        "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'DELETE')",
        "SELECT nextval('emp_cdc_cdc_id_seq')",
        "UPDATE cdc_position SET last_offset = 0",
        "CREATE TABLE mine ()",
        "CREATE TEMP TABLE mine ()",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), psycopg2.connect(doors.url("source", "app")) as app:
            query(app, statement)


def test_the_table_of_status_does_not_call_a_server_that_refuses_one_that_does_not_answer(doors: Doors) -> None:
    missing = next(grant for grant in GRANTS if (grant.role, grant.name) == ("cdc_monitor", "emp_cdc"))
    with doors.without(missing):
        shown = doors.pipeline.run("admin.py", "status", COLUMNS="200", **doors.urls("cdc_monitor")).stdout
    assert re.search(rf"^! source at .*{REFUSED} for table emp_cdc$", shown, re.MULTILINE), shown
    assert "not answering" not in shown


def test_status_shows_where_the_producer_runs_to_a_role_that_may_read_it(doors: Doors) -> None:
    def shown() -> str:
        return str(
            json.loads(doors.run("cdc_monitor", "admin.py", "status", "--json").stdout)["source"]["active_producer"]
        )

    with doors.pipeline.running("producer.py") as producer:
        producer.wait_for("publishing from")
        assert re.fullmatch(r"pid \d+", shown())
        doors.as_superuser("source", f"GRANT pg_read_all_stats TO {doors.role('cdc_monitor')}")
        assert re.fullmatch(r"pid \d+ at \S+", shown())


@pytest.fixture
def setting_up(doors: Doors, bare_pipeline: Pipeline) -> Doors:
    """Two empty databases with the rights of cdc_setup."""
    empty = Doors(bare_pipeline, doors.prefix)
    empty.lock("cdc_setup")
    return empty


def set_up(doors: Doors) -> tuple[bool, str]:
    result = doors.run("cdc_setup", impatient(doors, "db_setup", "WAIT"))
    return result.returncode == 0, result.stdout + result.stderr


def test_with_exactly_its_rights_db_setup_works_and_again_as_the_owner(setting_up: Doors) -> None:
    for _ in range(2):
        done, said = set_up(setting_up)
        assert done, said


@pytest.mark.parametrize("grant", [grant for grant in GRANTS if grant.role == "cdc_setup"], ids=str)
def test_without_one_right_db_setup_does_not_work_and_one_line_says_why(setting_up: Doors, grant: Grant) -> None:
    with setting_up.without(grant):
        done, said = set_up(setting_up)
    assert not done, said
    assert [line for line in said.splitlines() if grant.side in line and re.search(grant.refusal(), line)], said
    assert "Traceback" not in said


def test_db_setup_needs_to_be_of_the_role_that_owns_a_table_employees_from_before(setting_up: Doors) -> None:
    schema = (ROOT / "sql" / "destination.sql").read_text(encoding="utf-8")
    (table,) = re.findall(r"CREATE TABLE IF NOT EXISTS public.employees .*?;", schema, re.DOTALL)
    owner = setting_up.role("app")
    for side in SIDES:
        setting_up.as_superuser(side, f"{table} ALTER TABLE employees OWNER TO {owner}")
    done, said = set_up(setting_up)
    assert not done
    assert re.search(rf"^source at .*{REFUSED} for table employees", said, re.MULTILINE), said
    setting_up.as_superuser("source", f"GRANT {owner} TO {setting_up.role('cdc_setup')}")
    try:
        done, said = set_up(setting_up)
    finally:
        setting_up.as_superuser("source", f"REVOKE {owner} FROM {setting_up.role('cdc_setup')}")
    assert done, said

"""The verdict: what the source logged, what went through Kafka, and what the destination has seen."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from harness.database import query
from harness.waiting import wait_until
from proofs.replay import LOG as LOG_ROWS
from proofs.replay import Broken, Logged, replay
from tests.chaos.run import PATIENCE, Run, autocommit, console, say, stop, watch

from rich.table import Table

# At the destination: every state that an employee had, with the change that cdc_applied names for it.
WITNESS = """
CREATE TABLE seen (number BIGSERIAL PRIMARY KEY, emp_id INT, state TEXT, cdc_id BIGINT);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen (emp_id, state, cdc_id)
    VALUES (coalesce(NEW.emp_id, OLD.emp_id), NEW::text,
            (SELECT cdc_id FROM public.cdc_applied WHERE emp_id = coalesce(NEW.emp_id, OLD.emp_id)));
    RETURN NULL;
END $$;
CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON employees FOR EACH ROW EXECUTE FUNCTION see();
ALTER TABLE employees ENABLE ALWAYS TRIGGER see;

CREATE TABLE lowered (emp_id INT, was BIGINT, became BIGINT);
CREATE FUNCTION see_lowered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.lowered VALUES (OLD.emp_id, OLD.cdc_id, NEW.cdc_id);
    RETURN NULL;
END $$;
CREATE TRIGGER see_lowered AFTER UPDATE ON cdc_applied FOR EACH ROW
    WHEN (NEW.cdc_id <= OLD.cdc_id) EXECUTE FUNCTION see_lowered();
ALTER TABLE cdc_applied ENABLE ALWAYS TRIGGER see_lowered;
"""
SEEN = "SELECT emp_id, state, cdc_id FROM seen ORDER BY number"
LOG = """
SELECT cdc_id, emp_id, CASE WHEN action <> 'DELETE' THEN (emp_id, first_name, last_name, dob, city, salary)::text END
FROM emp_cdc
"""


@dataclass
class Verdict:
    changes: int
    states: int
    lost: int
    backwards: int
    repeated: int
    dead_letters: int


def judge(run: Run) -> Verdict:
    """Compare what the source logged, what went through Kafka, and what the destination has seen and shows."""
    with (
        closing(autocommit(run.pipeline.source_url)) as source,
        closing(autocommit(run.pipeline.destination_url)) as there,
    ):
        logged = {cdc_id: (emp_id, state) for cdc_id, emp_id, state in query(source, LOG)}
        seen = query(there, SEEN)
        backwards = query(there, "SELECT count(*) FROM lowered")[0][0]
    newest: dict[int, int] = {}
    for emp_id, state, cdc_id in seen:
        ours = logged.get(cdc_id) == (emp_id, state) or (emp_id, state) in run.known.get(cdc_id, ())
        if cdc_id is None or cdc_id <= newest.get(emp_id, 0) or not ours:
            backwards += 1
        newest[emp_id] = max(newest.get(emp_id, 0), cdc_id or 0)
    published = Counter(json.loads(message.value() or b"")["cdc_id"] for message in run.pipeline.messages())
    return Verdict(
        changes=len(logged),
        states=len(seen),
        lost=len(logged.keys() - published.keys()),
        backwards=backwards,
        repeated=published.total() - len(published),
        dead_letters=len(run.pipeline.dead_letters()),
    )


def check(run: Run) -> Verdict:
    """Wait until what is on its way has arrived, stop the scripts, and note what is not as it must be."""
    with contextlib.suppress(AssertionError):
        wait_until(run.pipeline.equal, PATIENCE)
    watch(run)
    for role in list(run.running):
        stop(run, role)
    if not run.pipeline.equal():
        run.problem("the tables differ")
    found = judge(run)
    if run.polls:
        replay_polls(run, run.polls)
    if found.lost:
        run.problem(f"{found.lost} changes were never published")
    if found.backwards:
        run.problem(f"{found.backwards} states at the destination went backwards, or are none that the source had")
    if found.dead_letters:
        run.problem(f"{found.dead_letters} dead letters")
    for script in run.pipeline.scripts:
        if "Traceback" in script.output():
            run.problem(f"a traceback in {script.log.name}")
    return found


def replay_polls(run: Run, polls: Path) -> None:
    """Let the model of reading judge what the producers have read, saved and published."""
    with closing(autocommit(run.pipeline.source_url)) as source, polls.open(encoding="utf-8") as lines:
        log = [Logged(*row) for row in query(source, LOG_ROWS)]
        try:
            pages = replay(lines, log)
        except Broken as error:
            run.problem(f"the polls are not those of the model: {error}")
        else:
            say(f"{pages:,} pages replayed through the model of reading")


def report(run: Run, found: Verdict) -> None:
    table = Table("fault", "times", "in sync after, at most", title="Faults", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, took in sorted(run.took.items(), key=lambda item: -max(item[1])):
        style = "bold red" if max(took) > run.limit else ""
        table.add_row(kind, str(len(took)), f"{max(took):.1f} s", style=style)
    table.add_section()
    table.add_row("all", str(sum(map(len, run.took.values()))), f"{max(map(max, run.took.values()), default=0):.1f} s")
    console.print(table)
    console.print(
        f"{found.changes:,} changes, {found.states:,} states seen at the destination: {found.lost} lost, "
        f"{found.backwards} went backwards, {found.dead_letters} dead letters; {found.repeated:,} messages came twice"
    )

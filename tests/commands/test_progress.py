"""Long work shows how far it has come: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import re

from harness import ROOT
from harness.database import query
from harness.dead_letters import send_dead_letters
from harness.pipeline import Pipeline
from harness.terminal import Recording, Screen, record

import pytest

ROWS = 60_000
INSERT = "INSERT INTO employees (city) SELECT 'Wien' FROM generate_series(1, %(rows)s)"
OFTEN = "from cdc import bar; bar.LINE_EVERY = 0"
BAR = re.compile(r"━+ +([\d,]+) of ([\d,]+) changes (?:published|applied), [\d,]+/s, [\d,]+ s left")


def bars(recording: Recording) -> list[tuple[int, int]]:
    """How far it had come, of how much, in each bar that was seen."""
    found = [BAR.search(Screen(lines).text()) for _, lines in recording.frames]
    return [(int(bar[1].replace(",", "")), int(bar[2].replace(",", ""))) for bar in found if bar]


@pytest.mark.timing
def test_a_backlog_is_a_bar_on_a_terminal_and_one_line_in_the_end(shared: Pipeline) -> None:
    query(shared.source(), INSERT, {"rows": ROWS})
    for script, verb in (("producer.py", "published"), ("consumer.py", "applied")):
        recording = record(str(ROOT / script), "--once", columns=100, environment=shared.environment)
        assert recording.code == 0
        seen = bars(recording)
        assert seen, recording.text()
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert [place for place in seen if not 0 < place[0] < place[1] <= ROWS] == []
        last = recording.text()
        assert BAR.search(last) is None
        assert f"{verb} {ROWS:,} changes in all" in last
        # A first batch that is not full has a line of its own: it shows no backlog yet.
        assert len(re.findall(rf"{verb} [\d,]+ changes up to log offset", last)) <= 3
    assert shared.equal()


def test_replay_shows_how_far_it_has_come(shared: Pipeline) -> None:
    for number in range(150):
        send_dead_letters(shared, "nonsense", key=str(number))
    often = shared.sabotaged("import admin", OFTEN)
    result = shared.run(often, "dead-letters", "--replay")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "dead letters sent again: 150\n"
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"[\d,]+ of 150 dead letters, [\d,]+/s, [\d,]+ s left", lines[0])
    assert lines[-1].startswith("150 of 150 dead letters, ")


def test_many_late_rows_are_reported_before_they_are_through(shared: Pipeline) -> None:
    late, source = shared.source(), shared.source()
    query(late, "BEGIN")
    query(late, INSERT, {"rows": 25_000})
    query(source, INSERT, {"rows": 1})
    assert shared.run("producer.py", "--once").returncode == 0
    query(late, "COMMIT")
    result = shared.run(shared.sabotaged("from cdc import emp_cdc; emp_cdc.LINE_EVERY = 0; import producer"), "--once")
    assert result.returncode == 0, result.stderr
    assert re.findall(r"([\d,]+) late rows published so far", result.stdout) == ["10,000", "20,000", "25,000"]
    assert "published 25,000 changes in all" in result.stdout


EMPLOYEES = """
CREATE TABLE employees (emp_id INT PRIMARY KEY, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE,
                        city VARCHAR(100), salary INT);
INSERT INTO employees (emp_id) SELECT generate_series(1, 110000);
INSERT INTO employees (emp_id) SELECT 2000000000 + generate_series(1, 40000);
INSERT INTO employees (emp_id) VALUES (-2147483648), (2147483647)
"""


def test_the_rows_from_before_the_set_up_are_logged_in_slices_that_it_reports(bare_pipeline: Pipeline) -> None:
    source = bare_pipeline.source()
    query(source, EMPLOYEES)
    result = bare_pipeline.run(bare_pipeline.sabotaged("import db_setup", OFTEN))
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if re.match(r"[\d,]+ of 150,002 rows logged, [\d,]+/s", line)]
    assert lines == result.stderr.splitlines()
    assert len(lines) >= 40
    assert lines[-1].startswith("150,002 of 150,002 rows logged")
    assert "source: 150002 rows from before the triggers logged as INSERT\n" in result.stdout
    assert "cdc.progress" not in result.stdout
    in_order = "SELECT array_agg(emp_id ORDER BY cdc_id) = array_agg(emp_id ORDER BY emp_id), count(*) FROM emp_cdc"
    assert query(source, in_order) == [(True, 150_002)]
    again = bare_pipeline.run("db_setup.py")
    assert (again.returncode, again.stderr) == (0, "")
    assert query(source, "SELECT count(*) FROM emp_cdc") == [(150_002,)]

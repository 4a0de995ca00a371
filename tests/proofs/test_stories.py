"""The stories that the explorer tells, played with two sessions on a real source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline, new_pipeline
from proofs.explore import Step
from proofs.protocol import Page, State
from proofs.wrong import WRONG, Wrong

import pytest

TRIES = 20  # a stranger on the same server who commits in between puts another snapshot into the story
HEAD = "SELECT coalesce(max(cdc_id), 0) FROM emp_cdc"
ALONE = [wrong for wrong in WRONG if not wrong.protocol.fence]  # a fence waits for whatever runs on the server


@pytest.fixture(scope="module")
def source(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path_factory.mktemp("stories")) as pipeline:
        with closing(pipeline.source()) as connection:
            query(connection, (ROOT / "sql" / "source.sql").read_text(encoding="utf-8"))
        yield pipeline


class Stage:
    """Two sessions and a producer that reads as it should not."""

    def __init__(self, pipeline: Pipeline, wrong: Wrong) -> None:
        self.sessions, self.reader = [pipeline.source(), pipeline.source()], pipeline.source()
        self.wrong = wrong
        ((self.base, snapshot),) = query(self.reader, f"SELECT ({HEAD}), pg_current_snapshot()::text")
        self.position = {"offset": self.base, "snapshot": snapshot}
        self.employees: dict[int, int] = {}  # by cdc_id
        self.found: list[int] = []
        self.snapshot = snapshot
        self.published: list[int] = []

    def poll(self) -> list[int]:
        """What the wrong query finds, as numbers of the story."""
        where = self.wrong.reads.format(**self.position)
        rows = query(self.reader, f"SELECT cdc_id, pg_current_snapshot()::text FROM emp_cdc {where}")
        self.snapshot = rows[0][1] if rows else self.snapshot
        return [cdc_id - self.base for cdc_id, _ in rows]

    def play(self, step: Step[State]) -> None:
        match step.event:
            case ("begin", int(number)):
                query(self.sessions[number - 1], "BEGIN; SELECT pg_current_xact_id()")
            case ("draw", int(number), int(cdc_id), after):
                self.change(number, cdc_id, after)
            case ("committed", int(number)):
                query(self.sessions[number - 1], "COMMIT")
            case ("read", Page() as page):
                self.found = self.poll()[: len(page.ids)]
                if not self.wrong.protocol.save_last:
                    self.advance(page)
            case ("publish", Page() as page):
                self.published += self.found
                self.advance(page)
            case ("crash", _):
                self.found = []
            case _:
                raise AssertionError(f"how to play {step.event}?")

    def change(self, number: int, cdc_id: int, after: object) -> None:
        employee = self.employees[after] if isinstance(after, int) else self.base * 10 + cdc_id
        self.employees[cdc_id] = employee
        insert = "INSERT INTO employees (emp_id) VALUES (%(id)s) ON CONFLICT (emp_id) DO UPDATE SET salary = 1"
        query(self.sessions[number - 1], insert, {"id": employee})

    def advance(self, page: Page) -> None:
        self.position = {"offset": self.base + page.position.last_offset, "snapshot": self.snapshot}

    def close(self) -> None:
        for session in (*self.sessions, self.reader):
            session.close()


def play(pipeline: Pipeline, wrong: Wrong, way: list[Step[State]]) -> bool:
    """Whether the row is lost, or the newer change of an employee is published first, as the story says."""
    with closing(Stage(pipeline, wrong)) as stage:
        for step in way:
            stage.play(step)
        rows = query(stage.reader, f"SELECT cdc_id FROM emp_cdc WHERE cdc_id > {stage.base} ORDER BY cdc_id")
        committed = [cdc_id - stage.base for (cdc_id,) in rows]
        assert committed == [cdc_id for cdc_id, _ in way[-1].state.poll().rows]
        if "lost" not in way[-1].wrong:
            first, second = stage.published[-2:]
            return first > second and stage.employees[first] == stage.employees[second]
        lost = set(committed) - set(stage.published) - set(stage.poll())
        return f"cdc_id {min(lost, default=0)} is lost" == way[-1].wrong


@pytest.mark.parametrize("wrong", ALONE, ids=lambda wrong: wrong.name)
def test_the_story_is_true_on_a_real_server(source: Pipeline, wrong: Wrong) -> None:
    way = wrong.explore().way
    assert any(play(source, wrong, way) for _ in range(TRIES))

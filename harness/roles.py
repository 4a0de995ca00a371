"""A role of a test's own, which the scripts log in as."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import config
from harness.database import administer
from harness.pipeline import Pipeline, new_pipeline

PASSWORD = "only-for-tests"


def on_both(statement: str) -> None:
    for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
        administer(url, statement)


@contextmanager
def a_role(logs: Path, attributes: str) -> Iterator[tuple[Pipeline, str]]:
    """A pipeline that is set up, whose scripts log in as a role of their own, and that role."""
    with new_pipeline(logs) as pipeline:
        role = f"{pipeline.name}_role"
        pipeline.roles.append(role)
        on_both(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' {attributes}")
        pipeline.set_up()
        for side in ("SOURCE", "DESTINATION"):
            url = pipeline.environment[f"{side}_DATABASE_URL"]
            pipeline.environment[f"{side}_DATABASE_URL"] = f"postgresql://{role}:{PASSWORD}@{url.split('@')[-1]}"
        yield pipeline, role

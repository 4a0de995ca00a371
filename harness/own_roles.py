"""The roles of `db_setup.py --roles` under names of a run: other runs use the same servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline, new_pipeline

import psycopg2
from psycopg2.extensions import connection as Connection

PASSWORD = 'it\'s % a "secret"'
NAMES = ("cdc_producer", "cdc_consumer", "cdc_monitor")
SIDES = ("source", "destination")


@dataclass
class Roles:
    """A pipeline whose roles have names of this run: other runs use the same servers."""

    pipeline: Pipeline

    def name(self, role: str) -> str:
        return f"{self.pipeline.name}_{role}"

    def set_up(self, *arguments: str, password: str = PASSWORD, **environment: Any) -> CompletedProcess[str]:
        """Run db_setup.py --roles, with these names in place of its own."""
        folder = self.pipeline.logs / "sql"
        folder.mkdir(exist_ok=True)
        for side in SIDES:
            text = (ROOT / "sql" / f"{side}_roles.sql").read_text(encoding="utf-8")
            names = re.sub(rf"\b({'|'.join(NAMES)})\b", lambda match: self.name(match[1]), text)
            (folder / f"{side}_roles.sql").write_text(names, encoding="utf-8")
        script = self.pipeline.sabotaged(
            "import db_setup",
            "from pathlib import Path",
            "from cdc import roles",
            f"roles.SQL = Path({str(folder)!r})",
            f"named = lambda role: {self.name('')!r} + role",
            "roles.ROLES = {side: tuple(map(named, roles.ROLES[side])) for side in roles.ROLES}",
        )
        passwords: dict[str, Any] = {f"{self.name(role)}_PASSWORD".upper(): password for role in NAMES if password}
        result: CompletedProcess[str] = self.pipeline.run(script, "--roles", *arguments, **passwords, **environment)
        return result

    def url(self, side: str, role: str) -> str:
        url: str = getattr(self.pipeline, f"{side}_url")
        return re.sub("//.*@", f"//{self.name(role)}@", url)

    def settings(self, role: str) -> dict[str, Any]:
        return {"PGPASSWORD": PASSWORD, **{f"{side.upper()}_DATABASE_URL": self.url(side, role) for side in SIDES}}

    def connect(self, side: str, role: str) -> Connection:
        connection: Connection = psycopg2.connect(self.url(side, role), password=PASSWORD)
        connection.autocommit = True
        self.pipeline.connections.append(connection)
        return connection


@contextmanager
def new_roles(logs: Path) -> Iterator[Roles]:
    """An application's role, which may write employees, and nothing set up."""
    with new_pipeline(logs) as pipeline:
        roles = Roles(pipeline)
        pipeline.roles += [roles.name(role) for role in (*NAMES, "app", "stranger")]
        query(pipeline.source(), f"CREATE ROLE {roles.name('app')} LOGIN PASSWORD %s", (PASSWORD,))
        yield roles


APPLICATION = """
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON employees TO {0};
GRANT USAGE ON SEQUENCE employees_emp_id_seq TO {0}
"""

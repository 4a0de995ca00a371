"""The rights in PostgreSQL that we grant, read out of where they stand, and a pipeline that has exactly these."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2

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


def impatient(doors: Doors, module: str, setting: str) -> str:
    return doors.pipeline.sabotaged(f"import {module}", f"{module}.{setting} = 0.3")

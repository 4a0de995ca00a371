"""Run the commands of docs/tour.md, and compare what they print, or write it there again.

    python -m harness.tour          # run all of it, and put the real output into docs/tour.md
    make tour                       # the same

In a block of the language `console`, a line with a prompt is typed and the lines below it are its output:

    $ python admin.py               in the shell
    A$ psql "$SOURCE_DATABASE_URL"  in a second terminal, A
    A=# SELECT 1;                   in psql, which runs there
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

import config
from harness import ROOT
from harness.database import administer
from harness.kafka import delete_topics

TOUR = ROOT / "docs" / "tour.md"
PROMPT = re.compile(r"(?P<terminal>\w*)(?P<program>\$|=#) (?P<typed>.*)")
HEREDOC = re.compile(r"<<'(\w+)'")
END = "end of the output"
PATIENCE = 60.0  # seconds for a command

# What is another one in each run. Offsets and ids of the tour's own few rows are the same, and are compared.
VARIES = [
    (r"\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d)?", "TIME"),
    (r"\d{4}-\d\d-\d\d", "DAY"),
    (r"\b\d+:\d+:(\d+(,\d+)*)?(?![\d:])", "SNAPSHOT"),
    (r"\d+(\.\d+)? (ms|s)\b", "SPAN"),
    (r"(?i)\bpid \d+", "pid N"),
    (r"[-+─━═]{3,}|[ \t]{2,}", " "),  # as wide as what varies
]


@dataclass
class Command:
    """A line with a prompt, and what stands below it."""

    terminal: str
    typed: str
    output: list[str] = field(default_factory=list)
    line: int = 0  # of the document, the first below the command


@dataclass
class Terminal:
    """A shell; psql may run in it."""

    process: subprocess.Popen[str]
    lines: Queue[str] = field(default_factory=Queue)
    in_psql: bool = False

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def run(self, command: str) -> list[str]:
        """Type a command; return what it prints."""
        assert self.process.stdin
        self.in_psql = self.in_psql or bool(re.match(r"psql (?!.*-c )", command))
        self.process.stdin.write(f"{command}\n{chr(92) if self.in_psql else ''}echo {END}\n")
        self.process.stdin.flush()
        printed = []
        try:
            while (line := self.lines.get(timeout=PATIENCE)) != END:
                printed.append(line.rstrip())
            while printed and not printed[-1]:  # psql ends a table with an empty line
                printed.pop()
        except Empty:
            raise AssertionError(f"no end of {command!r} after {PATIENCE:.0f} s; so far: {printed}") from None
        return printed


def commands(document: str) -> list[Command]:
    """Return the commands of a document in their order."""
    found: list[Command] = []
    heredoc, inside = "", False
    for number, line in enumerate(document.splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and heredoc:
            found[-1].typed += "\n" + line
            found[-1].line = number + 1
            heredoc = "" if line == heredoc else heredoc
        elif inside and (match := PROMPT.fullmatch(line)):
            found.append(Command(match["terminal"], match["typed"], line=number + 1))
            starts = HEREDOC.search(line)
            heredoc = starts[1] if starts else ""
        elif inside:
            found[-1].output.append(line)
    return found


def alike(output: list[str]) -> list[str]:
    """Return the output without what varies from run to run."""
    text = "\n".join(line for line in output if line.strip())
    for pattern, stands_for in VARIES:
        text = re.sub(pattern, stands_for, text)
    return [line.strip() for line in text.splitlines()]


@contextmanager
def terminals(names: Iterable[str]) -> Iterator[dict[str, Terminal]]:
    """Open a shell for each name; in the end everything that runs there has ended."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
    opened = {
        name: Terminal(
            subprocess.Popen(
                ["bash", "--norc"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        for name in names
    }
    try:
        yield opened
    finally:
        for terminal in opened.values():
            with suppress(ProcessLookupError):
                os.killpg(terminal.process.pid, 9)
            terminal.process.wait()


@contextmanager
def places(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield what stands in the document, and what is used in its place: databases, topics and a folder of our own."""
    source, destination = (
        url.rsplit("/", 1)[0] for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL)
    )
    try:
        yield {
            "/tmp/tour": str(folder),
            "postgresql://postgres:postgres@localhost:5433": source,
            "postgresql://postgres:postgres@localhost:5434": destination,
            r"\btour\b": name,
        }
    finally:
        for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
            administer(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        delete_topics(name, f"{name}_dlq")


def take(document: str, name: str, folder: Path) -> Iterator[tuple[Command, list[str]]]:
    """Run all commands of a document; yield each with what it has printed."""
    todo = commands(document)
    with places(name, folder) as used, terminals({command.terminal for command in todo}) as opened:
        for command in todo:
            typed = command.typed
            for here, there in used.items():
                typed = re.sub(here, there, typed)
            printed = opened[command.terminal].run(typed)
            for here, there in used.items():
                printed = [line.replace(there, here.replace(r"\b", "")) for line in printed]
            yield command, printed


def rewrite(document: str, name: str, folder: Path) -> str:
    """Return the document with the real output below each command. What is alike stays as it was."""
    lines = document.splitlines()
    for command, printed in reversed(list(take(document, name, folder))):
        if alike(command.output) != alike(printed):
            lines[command.line - 1 : command.line - 1 + len(command.output)] = printed
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tour") as folder:
        document = TOUR.read_text(encoding="utf-8")
        written = rewrite(document, f"cdc_tour_{os.getpid()}", Path(folder))
    TOUR.write_text(written, encoding="utf-8")
    print("docs/tour.md: as before" if written == document else "docs/tour.md: written again; look at the difference")


if __name__ == "__main__":
    main()

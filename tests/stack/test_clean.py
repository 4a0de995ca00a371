"""`make clean`: what was started in a clone is stopped, what was fetched and made in it is removed, the rest stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import ROOT
from stack.artifacts import STATE
from stack.folders import reachable
from stack.pid_file import started

import pytest

OFFSET = 6300  # of the port of the server here
START = f"""
from stack import servers
(source,) = (server for server in servers.servers({OFFSET}) if server.name == "source")
servers.up([source])
print(source.state, servers.pid(source))
"""


@pytest.fixture
def clone(stack: None, tmp_path: Path) -> Path:
    """A clone in which a server runs, with the programs that are here."""
    folder = tmp_path / "clone"
    (folder / "stack").mkdir(parents=True)
    for path in [*ROOT.glob("stack/*.py"), ROOT / "stack" / "pom.xml"]:
        (folder / "stack" / path.name).write_bytes(path.read_bytes())
    return folder


def python(clone: Path, *arguments: str) -> str:
    result = subprocess.run([sys.executable, *arguments], cwd=clone, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def state_of(clone: Path) -> Path:
    return Path(python(clone, "-c", "from stack.folders import *; print(reachable(STATE))").strip())


def test_clean_stops_what_runs_and_leaves_what_is_not_made_here(clone: Path) -> None:
    state, library = state_of(clone), reachable(STATE) / "lib"
    if library.is_dir():  # else Maven fetches the programs
        state.mkdir(parents=True, exist_ok=True)
        (state / "lib").symlink_to(library)
    *_, folder, process = python(clone, "-c", START).split()
    assert started(int(process))
    for name in (".venv/bin", ".mypy_cache", "cdc/__pycache__", "bench/results"):
        (clone / name).mkdir(parents=True)
    (clone / ".env").touch()

    said = python(clone, "-m", "stack.clean")

    assert not started(int(process))  # a process that nobody has waited for has ended, too
    assert "removed stack/.state, .venv and caches: " in said
    assert not state.exists()
    assert not Path(folder).exists()
    assert sorted(path.name for path in clone.iterdir()) == [".env", "bench", "cdc", "stack"]
    assert (clone / "bench" / "results").is_dir()
    assert not list(clone.rglob("__pycache__"))
    if library.is_dir():  # there was a link to it: it is another clone's
        assert list(library.iterdir())


def test_clean_in_a_clone_where_nothing_was_made_is_no_error(clone: Path) -> None:
    assert "removed" in python(clone, "-m", "stack.clean")
    assert "removed" in python(clone, "-m", "stack.clean")

"""Folders, and the user that PostgreSQL runs as, who must be able to reach them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stack import Trouble

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "stack" / ".state"


def account() -> pwd.struct_passwd | None:
    """Return the user for PostgreSQL, which refuses to run as root; None: ourselves."""
    if os.geteuid() != 0:
        return None
    for name in "postgres", "_postgres", "nobody":
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Trouble("PostgreSQL does not run as root, and there is no user postgres: run this as another user")


def as_account() -> dict[str, Any]:
    """Return subprocess's arguments to run PostgreSQL as that user.

    Our locale and PG* variables are kept from it.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    user = account()
    return {"env": environment} | ({"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {})


def make(folder: Path) -> Path:
    """Make the folder and those above it, open to PostgreSQL's user."""
    if not folder.is_dir():
        make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o755)
    return folder


def reachable(folder: Path) -> Path:
    """Return the folder, or one in /var/tmp if PostgreSQL's user cannot reach it."""
    folder = Path(os.path.abspath(folder))
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not account() or subprocess.run(["test", "-x", str(there)], **as_account()).returncode == 0:
        return folder
    other = make(Path("/var/tmp", "employee-cdc" + str(folder).replace("/", "-")))
    if other.is_symlink() or other.stat().st_uid != os.geteuid():  # anybody may write to /var/tmp
        raise Trouble(f"{other} is somebody else's: remove it, or choose a folder with --state")
    return other


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; wait for one that is in it."""
    with open(make(folder) / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works in {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def megabytes(folder: Path) -> int:
    """Return what the folder takes on the disk, as du counts it."""
    result = subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True)
    return round(int(result.stdout.split()[0]) / 1024) if result.stdout else 0

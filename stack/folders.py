"""Where things lie, and a user and a folder that PostgreSQL accepts."""

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
    """The user for PostgreSQL, which refuses to run as root; None: we are not root, it is ourselves."""
    if os.geteuid() != 0:
        return None
    for name in "postgres", "_postgres", "nobody":
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Trouble("PostgreSQL does not run as root, and there is no user postgres: run this as another user")


def as_account() -> dict[str, Any]:
    """The arguments with which subprocess runs PostgreSQL: as that user, and away from our locale and PG* variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    user = account()
    return {"env": environment} | ({"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {})


def make(folder: Path) -> Path:
    """The folder, made with those above it where missing, and open to PostgreSQL's user whatever our umask."""
    if not folder.is_dir():
        make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o755)
    return folder


def reachable(folder: Path) -> Path:
    """The folder, or one in /var/tmp named after it where PostgreSQL's user has no way to the folder."""
    folder = Path(os.path.abspath(folder))
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not account() or subprocess.run(["test", "-x", str(there)], **as_account()).returncode == 0:
        return folder
    other = make(Path("/var/tmp", "employee-cdc" + str(folder).replace("/", "-")))
    if other.is_symlink() or other.stat().st_uid != os.geteuid():  # /var/tmp is everybody's
        raise Trouble(f"{other} is somebody else's: remove it, or choose a folder with --state")
    return other


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in this folder."""
    with open(make(folder) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

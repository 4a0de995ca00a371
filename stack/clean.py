"""Stop what was started in this clone, and remove what was fetched and made in it.

    python -m stack.clean

.env and bench/results stay, and Maven's cache, which other projects use, too.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stack import Trouble
from stack.folders import ROOT, STATE, megabytes, reachable
from stack.servers import down

CACHES = [".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"]
MAVEN_CACHE = Path.home() / ".m2" / "repository"


def clean() -> None:
    state, environment = reachable(STATE), ROOT / ".venv"
    for folder in sorted(state.glob("offset-*/")):
        down(folder)
    caches = [ROOT / name for name in CACHES]
    caches += [path for path in ROOT.rglob("__pycache__") if environment not in path.parents]
    folders = [path for path in dict.fromkeys([state, STATE, environment, *caches]) if path.exists()]
    freed = sum(megabytes(path) for path in folders)
    for path in folders:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    print(f"removed stack/.state, .venv and caches: {freed} MB")
    if MAVEN_CACHE.exists():
        print(f"Maven's cache stays, {MAVEN_CACHE}: {megabytes(MAVEN_CACHE)} MB with what other projects have there")


if __name__ == "__main__":
    try:
        clean()
    except (Trouble, OSError) as error:
        sys.exit(str(error))

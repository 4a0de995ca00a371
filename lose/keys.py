"""Single keys from a terminal, without waiting for one."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[None]:
    """Let each key arrive at once and unshown; Ctrl-C stays a signal."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def pressed() -> str:
    """Return the keys pressed since the last call."""
    waiting = select.select([sys.stdin], [], [], 0)[0]
    return os.read(sys.stdin.fileno(), 64).decode("ascii", "ignore") if waiting else ""

"""Tell systemd that the script is up, that its loop turns, and that it ends: a unit of Type=notify with WatchdogSec.

Nothing is sent where NOTIFY_SOCKET is not set.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

ADDRESS = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)  # @: of the abstract name space
PERIOD = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6  # seconds after which systemd takes a silent script for hung

_sent = float("-inf")  # when the last state was sent (time.monotonic)


def turn(now: float) -> None:
    """Tell at the first turn of a loop that the script is up, then that it turns, four times in a period."""
    global _sent
    if ADDRESS and now - _sent > PERIOD / 4:
        if _sent == float("-inf"):
            tell("READY=1")
        if PERIOD:
            tell("WATCHDOG=1")
        _sent = now if PERIOD else float("inf")


def stopping() -> None:
    if ADDRESS:
        tell("STOPPING=1")


def tell(state: str) -> None:
    """Send a datagram. One that does not arrive is no reason to end: the next one comes."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        client.sendto(state.encode(), ADDRESS)

"""What every script does at its command line: options, log lines, stopping, questions, exit codes.

Exit codes: 0 done, 1 failed, 2 wrong use or wrong setting.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from cdc import __version__

DONE, FAILED, WRONG_USE = 0, 1, 2

# Objects made between two runs of Python's search for cycles; 700 by default. A batch is tens of thousands of objects,
# none of them in a cycle. Searching them again and again took a seventh of the consumer's time.
FEW_COLLECTIONS = 500_000


def make_parser(doc: str | None, verbose: str = "") -> argparse.ArgumentParser:
    """Return a parser whose help is the script's own docstring, with --version.

    verbose: what --verbose logs; without it the script has no such option.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if verbose:
        parser.add_argument("-v", "--verbose", action="store_true", help=verbose)
    parser.add_argument("--version", action="version", version=f"Employee CDC {__version__}")
    return parser


def start_logging(verbose: bool = False) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
        force=True,
    )
    # We report outages ourselves, once. The client repeats its own lines with every try.
    logging.getLogger("librdkafka").setLevel(logging.DEBUG if verbose else logging.CRITICAL + 1)


@dataclass
class Stop:
    """Whether Ctrl-C or SIGTERM came. The batch in hand is then finished, and the script ends.

    A second signal ends the script at once, which is safe at any point.
    """

    requested: bool = False

    def sleep(self, seconds: float) -> None:
        """Wait, but for no more than a tenth of a second once a stop is requested."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


class Stopped(Exception):
    """A stop was requested while a server was down. The work in hand is unfinished and will be done again."""


def stop_on_signals() -> Stop:
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def raise_if_requested(stop: Stop) -> None:
    if stop.requested:
        raise Stopped


def confirm(question: str, option: str) -> bool:
    """Ask on the terminal; False for anything but yes. Without a terminal, exit and name --yes."""
    if not sys.stdin.isatty():
        fail(f"{option} asks first; without a terminal give --yes", WRONG_USE)
    try:
        answer = input(f"{question} [y/N] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print one line that says what is wrong and what to do, and exit."""
    print(message, file=sys.stderr)
    sys.exit(code)

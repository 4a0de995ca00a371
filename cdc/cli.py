"""What every script does at its command line: options, log lines, stopping, questions, exit codes.

Exit codes: 0 done, 1 failed, 2 wrong use or wrong setting.
"""

from __future__ import annotations

import argparse
import codecs
import functools
import gc
import io
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TextIO

import config
from cdc import __version__, bar, logs, supervisor
from cdc.health import HEALTH

DONE, FAILED, WRONG_USE = 0, 1, 2

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_WAIT = 4.5  # seconds for the work in hand to end after the first of them

# Objects made between two runs of Python's search for cycles; 700 by default. A batch is tens of thousands of objects,
# none of them in a cycle. Searching them again and again took a seventh of the consumer's time.
FEW_COLLECTIONS = 500_000
# Seconds after which one thread gives Python's lock to another one that waits for it; 0.005 by default. The thread that
# applies a large batch wants it after each answer, while the main thread reads ahead. That one lets go of the lock for
# a moment at each chunk of messages; who is woken by that comes too late, and waits a turn from its beginning. So a
# turn must be shorter than a chunk takes.
SHORT_TURNS = 0.0001


# What our own lines have, for an encoding that has none of it.
PLAIN = {"→": "->", "…": "...", "·": ".", **dict(zip("▁▂▃▄▅▆▇█", "__--==##", strict=True))}


def script(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a script's main(): any text can be printed, and a stop or a closed pipe is no traceback."""

    @functools.wraps(main)
    def run() -> None:
        codecs.register_error("plain", encode_plainly)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="plain")
        try:
            try:
                main()
            finally:
                bar.clear()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # Python's own end runs no thread that takes them
                sys.stdout.flush()
        except (Stopped, KeyboardInterrupt):
            fail("stopped")
        except BrokenPipeError:
            close_stdout()
            sys.exit(FAILED)

    return run


def encode_plainly(error: UnicodeError) -> tuple[str, int]:
    """Stand in for what the output's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(
        PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in text
    ), error.end


def close_stdout() -> None:
    """Print to nowhere from now on: nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class LogHandler(logging.StreamHandler[TextIO]):
    """Logs to stdout; requests a stop when nobody reads it."""

    def emit(self, record: logging.LogRecord) -> None:
        bar.clear()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            close_stdout()
            STOP.request()
        else:
            super().handleError(record)


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
    handler = LogHandler(sys.stdout)
    handler.setFormatter(logs.formatter())
    level = "DEBUG" if verbose else config.LOG_LEVEL
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # We report outages ourselves, once. The client repeats its own lines with every try.
    logging.getLogger("librdkafka").setLevel(logging.DEBUG if level == "DEBUG" else logging.CRITICAL + 1)


def tune_python() -> None:
    """Set what a script wants that handles tens of thousands of objects at a time."""
    gc.set_threshold(FEW_COLLECTIONS)
    sys.setswitchinterval(SHORT_TURNS)


@dataclass
class Stop:
    """Whether Ctrl-C or SIGTERM came. The batch in hand is then finished, and the script ends."""

    requested: bool = False
    since: float = 0.0  # when it was requested (time.monotonic)

    def request(self) -> None:
        self.since = self.since or time.monotonic()
        self.requested = True
        supervisor.stopping()

    def overdue(self, grace: float) -> bool:
        """Whether a stop was requested more than grace seconds ago."""
        return self.requested and time.monotonic() - self.since > grace

    def time_left(self) -> float:
        """Return the seconds until STOP_WAIT is over; all of it where no stop is requested."""
        return max(0.0, self.since + STOP_WAIT - time.monotonic()) if self.requested else STOP_WAIT

    def sleep(self, seconds: float) -> None:
        """Wait, but for no more than a tenth of a second once a stop is requested."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            HEALTH.turn()
            time.sleep(min(left, 0.1))


STOP = Stop()  # of this process


class Stopped(Exception):
    """A stop was requested before the work in hand was done. It will be done again."""


def stop_on_signals() -> Stop:
    """Have Ctrl-C and SIGTERM request a stop.

    A second signal ends the script at once, which is safe at any point. So does the end of STOP_WAIT.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=take_signals, daemon=True).start()
    return STOP


def take_signals() -> None:
    """Wait for the signals, in a thread: Python's handlers do not run while libpq or librdkafka have the main one."""
    signal.sigwait(SIGNALS)
    STOP.request()
    timer = threading.Timer(STOP_WAIT, end_now)
    timer.daemon = True
    timer.start()
    number = signal.sigwait(SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.raise_signal(number)
    os._exit(128 + number)  # a container's first process does not die of a signal


def end_now() -> None:
    """End the process in the middle of a call that nothing else can end."""
    if select.select([], [2], [], 0)[1]:  # nobody may be reading
        text = "stopped while a server did not answer; the work in hand will be done again"
        os.write(2, f"{logs.as_line(text)}\n".encode())
    os._exit(FAILED)


def raise_if_requested(stop: Stop) -> None:
    HEALTH.turn()
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


class Failure(SystemExit):
    """The end of a script that failed: its exit code, and the line that said why."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print one line that says what is wrong and what to do, and exit."""
    bar.clear()
    print(logs.as_line(message), file=sys.stderr)
    raise Failure(message, code)

"""A script on a terminal: a pseudo-terminal that types keys, and what stands on its screen at each moment."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from harness import ROOT

from rich.text import Text

TOKEN = re.compile(r"\r|\n|\x1b\[[0-9;?]*[A-Za-z]|[^\r\n\x1b]+")
UNFINISHED = re.compile(r"\x1b(\[[0-9;?]*)?$")
INTERRUPT = "\x03"  # Ctrl-C
QUIET = 0.03  # seconds without output after which the screen is looked at


@dataclass
class Screen:
    """The lines that a terminal shows, each with its colours. It knows what rich writes: no more of a terminal."""

    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    at_start: bool = True  # of the row: text replaces what is there
    rest: str = ""  # a control sequence that is not whole yet
    covered: list[str] = field(default_factory=list)  # by a second screen, as of a program that fills the terminal

    def feed(self, text: str) -> None:
        text, self.rest = self.rest + text, ""
        if unfinished := UNFINISHED.search(text):
            text, self.rest = text[: unfinished.start()], unfinished[0]
        for token in TOKEN.findall(text):
            if token == "\n":
                self._move(self.row + 1)
            elif token == "\r":
                self.at_start = True
            elif token.startswith("\x1b[") and not token.endswith("m"):
                self._control(token[2:-1], token[-1])
            else:
                self.lines[self.row] = token if self.at_start else self.lines[self.row] + token
                self.at_start = False

    def _move(self, row: int) -> None:
        self.row, self.at_start = max(0, row), True
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def _control(self, number: str, letter: str) -> None:
        if letter == "A":
            self._move(self.row - int(number or 1))
        elif letter == "H":
            self._move(0)
        elif letter == "K":
            self.lines[self.row], self.at_start = "", True
        elif letter == "J":
            self.lines = [*self.lines[: self.row], ""]
        elif number == "?1049" and letter == "h":
            self.covered, self.lines, self.row = self.lines, [""], 0
        elif number == "?1049" and letter == "l":
            self.lines = self.covered
            self._move(len(self.lines) - 1)

    def text(self) -> str:
        return "\n".join(Text.from_ansi(line).plain.rstrip() for line in self.lines)


@dataclass(frozen=True)
class Key:
    """A key to press some seconds after a text has come to the screen."""

    text: str
    key: str
    after: float = 0.0


@dataclass
class Recording:
    """What stood on the screen from each moment on, and how the script ended."""

    frames: list[tuple[float, list[str]]]
    code: int

    def text(self) -> str:
        """Return the last screen."""
        return Screen(self.frames[-1][1]).text()


def record(
    *arguments: str,
    columns: int = 80,
    rows: int = 40,
    keys: Sequence[Key] = (),
    seconds: float = 90.0,
    environment: Mapping[str, str] | None = None,
) -> Recording:
    """Run Python with these arguments on a terminal of its own, and press keys in their order."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    about = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(columns), "LINES": str(rows)}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **about, **(environment or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)

    def press(key: str) -> None:
        if key == INTERRUPT:  # the terminal is not the process's controlling one, and would send it nothing
            process.send_signal(signal.SIGINT)
        else:
            os.write(ours, key.encode())

    try:
        frames = watch(ours, list(keys), seconds, press)
        return Recording(frames, process.wait(10))
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def watch(
    terminal: int, keys: list[Key], seconds: float, press: Callable[[str], None]
) -> list[tuple[float, list[str]]]:
    """Return the screens until the program closes its terminal."""
    began, screen, decoder = time.monotonic(), Screen(), codecs.getincrementaldecoder("utf-8")("replace")
    frames: list[tuple[float, list[str]]] = []
    typed: list[tuple[float, str]] = []  # when which key is due
    while True:
        now = time.monotonic() - began
        assert now < seconds, f"still running after {seconds:.0f} s:\n{screen.text()}"
        if not select.select([terminal], [], [], QUIET)[0]:
            if not frames or frames[-1][1] != screen.lines:
                frames.append((now, list(screen.lines)))
            if keys and keys[0].text in screen.text():
                key = keys.pop(0)
                typed.append((now + key.after, key.key))
            while typed and now >= typed[0][0]:
                press(typed.pop(0)[1])
            continue
        piece = b""
        with suppress(OSError):  # the program has ended
            piece = os.read(terminal, 65536)
        if not piece:
            return [*frames, (now, list(screen.lines))]
        screen.feed(decoder.decode(piece))

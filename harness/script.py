"""A script of the product as a running process, with its output and its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT
from harness.waiting import wait_until

PEAK = (  # prints the peak of the script's memory in kB at its end, for Pipeline.sabotaged()
    "import atexit",
    "atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr))",
)


def peak_memory(process: int) -> float:
    """The most memory that a process has had resident, in MB."""
    with suppress(FileNotFoundError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float("nan")


@dataclass
class Script:
    """A running script; its output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        wait_until(lambda: text in self.output(), seconds, lambda: f"{text!r} in the output:\n{self.output()}")

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


@contextmanager
def halted(script: Script) -> Iterator[None]:
    """The script is there but does nothing."""
    script.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        script.process.send_signal(signal.SIGCONT)


def launch(log: Path, *arguments: str, **environment: str) -> Script:
    """Start Python with these arguments beside us, its output in a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Script(process, log)

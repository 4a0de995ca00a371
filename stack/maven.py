"""Run Maven, and show how far it has come."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stack import Trouble

INSTALL = "install Java 17 or later and Maven (Debian, Ubuntu: apt-get install openjdk-17-jre-headless maven)"
if sys.platform == "darwin":
    INSTALL = (
        "install Java 17 or later and Maven: brew install openjdk@17 maven,"
        ' then export PATH="$(brew --prefix openjdk@17)/bin:$PATH"'
    )

POM = Path(__file__).with_name("pom.xml")
GOAL = "org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies"
PROGRESS_EVERY = 5.0  # seconds


@dataclass
class Progress:
    """What Maven's own lines say about its downloads, in megabytes."""

    finished: float = 0.0
    current: float = 0.0
    lines: list[str] = field(default_factory=list)

    def read(self, output: Iterable[str]) -> None:
        for line in output:
            line = re.sub("\x1b\\[[0-9;]*m", "", line).strip()
            if line.startswith("Progress ("):  # Progress (2): 0.2/4.7 MB | 82/292 kB
                self.current = megabytes_in(line)
                continue
            if line.startswith("Downloaded from"):  # … kafka-clients-3.9.1.jar (9.2 MB at 21 MB/s)
                self.finished += megabytes_in(line.rpartition("(")[2].partition(" at ")[0])
                self.current = 0.0
            self.lines.append(line)

    def megabytes(self) -> float:
        return self.finished + self.current

    def error(self) -> str:
        """Return Maven's first error, or its last lines if it names none."""
        return next((line for line in self.lines if "ERROR" in line), "\n".join(self.lines[-3:]))


def megabytes_in(line: str) -> float:
    """Add up what is there of each file: 0.2 of `0.2/4.7 MB`."""
    parts = re.findall(r"([\d.]+)(?:/[\d.]+)? ([kM]?)B", line)
    return sum(float(number) * {"": 1e-6, "k": 1e-3, "M": 1.0}[unit] for number, unit in parts)


def copy_dependencies(title: str, expected: int, profile: str, settings: dict[str, str]) -> None:
    """Copy the jars of a profile of pom.xml, and download what Maven's cache lacks.

    expected: the megabytes to download if the cache is empty.
    """
    maven = shutil.which("mvn")
    if not maven:
        raise Trouble(f"Maven is missing: {INSTALL}")
    print(f"{title}: Maven fetches what its cache lacks of about {expected} MB", flush=True)
    # Not --batch-mode: with it Maven does not say how much it has of a file.
    command = [maven, "-f", str(POM), "-P", profile, GOAL, *(f"-D{name}={value}" for name, value in settings.items())]
    began, progress = time.monotonic(), Progress()
    if run(command, title, progress) != 0:
        raise Trouble(
            f"Maven could not fetch {title}. Is its repository reachable, and does it have this version for"
            f" {settings['platform']}? Maven says:\n{progress.error()}"
        )
    print(f"{title}: there after {time.monotonic() - began:.0f} s, {progress.finished:.0f} MB fetched", flush=True)


def run(command: list[str], title: str, progress: Progress) -> int:
    """Run Maven, print the progress every few seconds, and return the exit code."""
    began = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # Maven ends its lines of progress with \r: they are lines here, too
        errors="replace",
    ) as child:
        assert child.stdout
        reader = threading.Thread(target=progress.read, args=(child.stdout,))
        reader.start()
        try:
            while reader.is_alive():
                reader.join(PROGRESS_EVERY)
                if reader.is_alive():
                    seconds = time.monotonic() - began
                    print(f"{title}: {progress.megabytes():.0f} MB after {seconds:.0f} s", flush=True)
        finally:
            child.terminate()  # it has ended, unless we were interrupted
        return child.wait()

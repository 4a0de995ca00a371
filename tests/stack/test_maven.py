"""What we read out of Maven's lines: how far a download has come, and what went wrong."""

from __future__ import annotations

from stack.maven import Progress

import pytest

# As Maven 3.8 prints them; its lines of progress end with \r, which Python takes for the end of a line.
DOWNLOAD = [
    "[INFO] Scanning for projects...\n",
    "Downloading from central: https://example.org/kafka-clients-3.9.1.jar\n",
    "Progress (1): 0.5/9.2 MB\n",
    "Progress (2): 4.0/9.2 MB | 82/500 kB\n",
]
FINISHED = ["Downloaded from central: https://example.org/kafka-clients-3.9.1.jar (9.2 MB at 21 MB/s)\n"]


@pytest.mark.parametrize(
    ("lines", "finished", "megabytes"),
    [
        (DOWNLOAD[:2], 0.0, 0.0),
        (DOWNLOAD, 0.0, 4.082),
        (DOWNLOAD + FINISHED, 9.2, 9.2),
        (DOWNLOAD + FINISHED + ["Progress (1): 512 B\n"], 9.2, 9.200512),
        (DOWNLOAD + FINISHED * 2, 18.4, 18.4),
    ],
)
def test_progress_adds_up_what_is_there_of_each_file(lines: list[str], finished: float, megabytes: float) -> None:
    progress = Progress()
    progress.read(lines)
    assert progress.finished == pytest.approx(finished)
    assert progress.megabytes() == pytest.approx(megabytes)


def test_the_first_error_is_mavens_reason_and_without_one_its_last_lines_are() -> None:
    progress = Progress()
    progress.read(["[INFO] one\n", "two\n", "three\n", "four\n"])
    assert progress.error() == "two\nthree\nfour"
    progress.read(["\x1b[1;31m[ERROR]\x1b[m Could not find artifact\n", "[ERROR] after it\n"])
    assert progress.error() == "[ERROR] Could not find artifact"

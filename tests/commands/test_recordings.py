"""The recordings that README shows: what a terminal shows becomes a picture, and the pictures are there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from harness import ROOT
from harness.recordings import FOLDER, LARGEST, RECORDINGS, ROWS
from harness.svg import to_svg
from harness.terminal import INTERRUPT, Key, Recording, Screen, record

import pytest

SVG = "{http://www.w3.org/2000/svg}"
# A table that changes in place, as lose and status --watch draw theirs; "full" has the whole screen.
LIVE = """
import sys, time
from rich.live import Live
from rich.table import Table
def table(number):
    made = Table("stage", "rows")
    made.add_row("log", f"[red]{number} < 9[/red]")
    return made
full = "full" in sys.argv
print("" if full else "begun")
try:
    with Live(table(1), auto_refresh=False, screen=full) as live:
        for number in 2, 3:
            time.sleep(0.3)
            live.update(table(number), refresh=True)
        time.sleep(60 if full else 0)
except KeyboardInterrupt:
    sys.exit(7)
"""


def texts_at_rest(picture: str) -> list[ET.Element]:
    """What stands there where nothing moves."""
    hidden = set(re.findall(r"\.(g\d+)\{visibility:hidden", picture))
    groups = [group for group in ET.fromstring(picture).iter(f"{SVG}g") if group.get("class") not in hidden]
    return [text for group in groups for text in group.iter(f"{SVG}text")]


def at_rest(picture: str) -> str:
    return " ".join(text.text or "" for text in texts_at_rest(picture))


def at(picture: str, moment: float) -> list[str]:
    """The rows at a moment, a part of the whole, as the style sheet's clocks have it."""
    shown: dict[int, str] = {}
    for group in ET.fromstring(picture).iter(f"{SVG}g"):
        number = (group.get("class") or "")[1:]
        clock = re.search(rf"@keyframes k{number}\{{((?:[\d.]+%\{{\w+:\w+\}})*)\}}", picture)
        steps = re.findall(r"([\d.]+)%\{visibility:(\w+)\}", clock[1]) if clock else [("0", "visible")]
        if [state for begins, state in steps if float(begins) / 100 <= moment][-1] == "visible":
            for text in group.iter(f"{SVG}text"):
                row = int(text.get("y") or 0)
                assert row not in shown, "two lines in one row"
                shown[row] = text.text or ""
    return [shown[row] for row in sorted(shown)]


def test_at_each_moment_the_picture_shows_what_stood_on_the_screen() -> None:
    screens = [["one"], ["one", "two"], ["three", "two"], ["one", "four"]]
    picture = to_svg(Recording([(float(number), lines) for number, lines in enumerate(screens)], 0), "x", 40, 10)
    middles = [0.5 / 9, 1.5 / 9, 2.5 / 9, 6.0 / 9]  # a second each, and 6 for the last one
    assert [at(picture, middle) for middle in middles] == screens


def test_a_table_that_changes_in_place_is_one_table_at_each_moment() -> None:
    recording = record("-c", LIVE, columns=40, rows=20)
    screens = ["\n".join(lines) for _, lines in recording.frames]
    assert recording.code == 0
    assert all(screen.count("stage") <= 1 for screen in screens)
    assert [number for number in "123" if any(f"{number} < 9" in screen for screen in screens)] == ["1", "2", "3"]
    assert recording.text().startswith("begun\n")
    picture = to_svg(recording, "live", 40, 20)
    assert "3 < 9" in at_rest(picture)
    assert "1 < 9" not in at_rest(picture)
    assert "1 &lt; 9" in picture
    assert "rows" in at_rest(picture)


def test_a_program_with_the_whole_screen_ends_by_ctrl_c_and_its_last_screen_stays_in_the_picture() -> None:
    recording = record("-c", LIVE, "full", columns=40, rows=20, keys=[Key("3 < 9", INTERRUPT)])
    assert recording.code == 7
    assert "stage" not in recording.text()
    assert "3 < 9" in at_rest(to_svg(recording, "live", 40, 20))


def test_only_the_last_rows_are_shown_as_on_a_terminal_that_scrolls() -> None:
    lines = [f"line {number}" for number in range(30)]
    picture = to_svg(Recording([(0.0, lines[:5]), (1.0, lines)], 0), "long", 40, 10)
    assert re.findall(r"line \d+", at_rest(picture)) == lines[-10:]


def test_a_control_sequence_that_comes_in_two_pieces_is_one() -> None:
    screen = Screen()
    for piece in ("one\r\ntwo\x1b", "[1A\x1b[2", "K\rnew"):
        screen.feed(piece)
    assert screen.text() == "new\ntwo"


@pytest.mark.parametrize("name", RECORDINGS)
def test_readme_shows_each_recording_and_none_is_large(name: str) -> None:
    picture = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert f"](docs/recordings/{name}.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(picture.encode()) < LARGEST
    assert RECORDINGS[name][0] in (ET.fromstring(picture).findtext(f"{SVG}title") or "")
    assert at_rest(picture)


def words(picture: str, first_column: bool = False) -> set[str]:
    """The words that stand there where nothing moves; those of the first column alone are the names of its rows."""
    texts = texts_at_rest(picture)
    if first_column:
        head = next(text for text in texts if text.text == "stage")
        texts = [text for text in texts if text.get("x") == head.get("x") and below(text, head)]
    return {word for text in texts for word in re.findall(r"[A-Za-z_]{3,}", text.text or "")}


def below(text: ET.Element, head: ET.Element) -> bool:
    return int(text.get("y") or 0) > int(head.get("y") or 0)


@pytest.mark.long
def test_readme_shows_what_the_scripts_look_like_today(stack: None) -> None:
    for name in "test_cdc", "status":  # one after the other: their databases have the same name
        title, columns, make = RECORDINGS[name]
        today, shown = to_svg(make(), title, columns, ROWS), (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert words(today, name == "status") == words(shown, name == "status"), "run make recordings"

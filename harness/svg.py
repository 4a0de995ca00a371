"""A recording of a terminal as an SVG picture that moves: without a script, and without a font of its own.

Each line is drawn once for as long as it stands unchanged in its row, and is shown and hidden by CSS. Where nothing
moves (no CSS animation, or a reader who wants no motion) the last screen stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from io import StringIO
from itertools import pairwise

from harness.terminal import Recording

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI as THEME
from rich.text import Text

CELL, LINE, EDGE, BAR = 8.4, 17, 12, 34  # pixels: a character, a row, the margin, the title bar
LONGEST = 1.5  # seconds for which a screen stands, however long it stood
SHORTEST = 0.25  # seconds; screens that follow each other faster are left out
LAST = 6.0  # seconds for the last screen, before all begins again
INK, PAPER, FRAME = "#d6d6d6", "#191b20", "#2b2e36"

WORDS = re.compile(r"\S+(?: \S+)*")
CONSOLE = Console(file=StringIO())  # what knows the names of styles
Spans = tuple[tuple[float, float], ...]  # from when to when a line is shown, as parts of the whole


@dataclass(frozen=True)
class Frame:
    lines: list[str]
    begins: float
    ends: float


def to_svg(recording: Recording, title: str, columns: int, rows: int) -> str:
    """Return the picture: what stood on the last so many rows, from the first screen to the last."""
    frames, total = in_time(recording, rows)
    rows = max(len(frame.lines) for frame in frames)
    groups = group_by_time(frames, total)
    width, height = columns * CELL + 2 * EDGE, rows * LINE + BAR + EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{escape(title)}</title><style>{styles(list(groups), total)}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="{PAPER}" stroke="{FRAME}"/>',
        f'<text x="{EDGE}" y="22" class="d">$ {escape(title)}</text>',
    ]
    for number, lines in enumerate(groups.values()):
        drawn = "".join(draw(line, row) for row, line in lines)
        parts.append(f'<g class="g{number}">{drawn}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def in_time(recording: Recording, rows: int) -> tuple[list[Frame], float]:
    """Return the screens to show, and how long all of it takes: neither flicker nor boredom."""
    kept: list[tuple[float, list[str]]] = []
    for at, lines in recording.frames:
        shown = visible(lines, rows)
        if not shown:  # before the first line, and after a program that had the whole screen
            continue
        if kept and at - kept[-1][0] < SHORTEST:
            kept[-1] = (kept[-1][0], shown)
        elif not kept or shown != kept[-1][1]:
            kept.append((at, shown))
    frames, now = [], 0.0
    for (at, lines), (then, _) in zip(kept, [*kept[1:], (float("inf"), [])], strict=True):
        lasts = min(then - at, LONGEST) if then != float("inf") else LAST
        frames.append(Frame(lines, now, now + lasts))
        now += lasts
    return frames, now


def visible(lines: list[str], rows: int) -> list[str]:
    """Return the last rows, as a terminal that scrolls shows them."""
    last = len(lines)
    while last and not Text.from_ansi(lines[last - 1]).plain.strip():
        last -= 1
    return lines[max(0, last - rows) : last]


def group_by_time(frames: list[Frame], total: float) -> dict[Spans, list[tuple[int, str]]]:
    """Return the lines with their rows, by the times at which they are shown."""
    times: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for frame in frames:
        for row, line in enumerate(frame.lines):
            spans = times.setdefault((row, line), [])
            if spans and spans[-1][1] == frame.begins:
                spans[-1] = (spans[-1][0], frame.ends)
            else:
                spans.append((frame.begins, frame.ends))
    groups: dict[Spans, list[tuple[int, str]]] = {}
    for place, spans in times.items():
        groups.setdefault(tuple((begins / total, ends / total) for begins, ends in spans), []).append(place)
    return groups


def styles(groups: list[Spans], total: float) -> str:
    """Return the style sheet: a clock for each group of lines."""
    sheet = [
        f"text{{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:{INK}}}",
        ".b{font-weight:bold}.d{opacity:.6}.i{font-style:italic}",
    ]
    for number, spans in enumerate(groups):
        if spans == ((0.0, 1.0),):
            continue
        steps = [] if spans[0][0] == 0 else ["0%{visibility:hidden}"]
        for begins, ends in spans:
            steps.append(f"{begins:.2%}{{visibility:visible}}")
            steps += [f"{ends:.2%}{{visibility:hidden}}"] if ends < 0.9999 else []
        at_rest = "visible" if spans[-1][1] > 0.9999 else "hidden"
        sheet.append(
            f"@keyframes k{number}{{{''.join(steps)}}}"
            f".g{number}{{visibility:{at_rest};animation:k{number} {total:.1f}s step-end infinite}}"
        )
    sheet.append("@media(prefers-reduced-motion:reduce){g{animation:none!important}}")
    return "".join(sheet)


def draw(line: str, row: int) -> str:
    """Return the line's pieces, each of one style and at its own column, whatever font there is."""
    text, drawn, column = Text.from_ansi(line), [], 0
    y = BAR + LINE * row + 13
    for piece, style in pieces(text):
        for words in WORDS.finditer(piece):  # a run of spaces is drawn by none: not every program keeps it
            x, count = EDGE + (column + words.start()) * CELL, len(words[0])
            width = f' textLength="{count * CELL:.1f}" lengthAdjust="spacingAndGlyphs"' if count > 1 else ""
            drawn.append(f'<text x="{x:.1f}" y="{y}"{width}{look(style)}>{escape(words[0], False)}</text>')
        column += len(piece)
    return "".join(drawn)


def pieces(text: Text) -> list[tuple[str, Style]]:
    """Return the text in pieces of one style."""
    bounds = sorted({0, len(text), *(place for span in text.spans for place in (span.start, span.end))})
    found = []
    for begins, ends in pairwise(bounds):
        found.append((text.plain[begins:ends], text.get_style_at_offset(CONSOLE, begins)))
    return found


def look(style: Style) -> str:
    """Return the attributes of a style."""
    names = [name for name, on in (("b", style.bold), ("d", style.dim), ("i", style.italic)) if on]
    color = f' fill="{style.color.get_truecolor(THEME).hex}"' if style.color and not style.color.is_default else ""
    # As a style: the style sheet's colour would go before an attribute.
    return (f' class="{" ".join(names)}"' if names else "") + color.replace("fill=", 'style="fill:').replace(':"', ":")

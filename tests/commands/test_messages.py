"""The table of messages in docs/operations.md: a script can say each of them, word by word."""

from __future__ import annotations

import ast
import re
from functools import cache

from harness import ROOT

import pytest

SERVERS_OWN = ("permission denied for", "Connection refused")  # PostgreSQL's and the system's words
VALUE = re.compile(r"…|%\.?\d*[sdfr]|\{[^}]*\}")  # what stands for a value, in the document or in the source
EXAMPLE = re.compile(r"…|\b\d+\b|\bbob\b|\bREAD\b")  # an example of a value in the document


def messages() -> list[str]:
    """What stands in the first column, message by message."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.split("\n## What you see, and what to do\n")[1].split("\n\nExit codes")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


@cache
def said() -> list[str]:
    """The texts in the source, cut where a value is put in; the longest first."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "sql").glob("*.sql")]
    for path in [*ROOT.glob("*.py"), *(ROOT / "cdc").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return sorted({part for text in texts for part in VALUE.split(text) if part.strip()}, key=len, reverse=True)


def is_said(text: str) -> bool:
    """Whether the source says this text, in one piece or in several that stand beside each other."""
    text = text.strip(" ,;:.")
    return not text or any(text in part for part in said()) or is_put_together(text)


def is_put_together(text: str) -> bool:
    """Whether the text is the end of one piece and the beginning of another, maybe with a whole piece between them."""
    places = [match.start() for match in re.finditer(" ", text)]
    if any(ends(text[:place]) and begins(text[place:]) for place in places):
        return True
    for part in said():
        whole = part.strip(" ,;:.")
        if len(whole) >= 10 and whole in text:
            before, after = text.split(whole, 1)
            return (ends(before) or is_put_together(before)) and (begins(after) or is_put_together(after))
    return False


def ends(text: str) -> bool:
    return any(part.rstrip(" ,;:.").endswith(text.strip(" ,;:.")) for part in said())


def begins(text: str) -> bool:
    return any(part.lstrip(" ,;:.").startswith(text.strip(" ,;:.")) for part in said())


@pytest.mark.parametrize("message", messages())
def test_a_script_can_say_it(message: str) -> None:
    for own in SERVERS_OWN:
        message = message.replace(own, "…")
    assert all(is_said(piece) for piece in EXAMPLE.split(message))


def test_what_no_script_says_is_noticed() -> None:
    assert len(messages()) > 40
    assert not is_said("the log holds rows of a further server")
    assert not is_said("does another producer run with our KAFKA_GROUP_INSTANCE_ID?")

"""Text of others on our lines: nothing in it may act upon a terminal, or be taken for a line of ours."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return text as one line, with the characters escaped that a terminal would act upon.

    These are control characters, escape sequences and marks that turn the direction of writing.
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)

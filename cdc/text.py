"""Words on our lines: numbers with their nouns, ages; and texts of others, which may not act upon a terminal."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return text as one line, with the characters escaped that a terminal would act upon.

    These are control characters, escape sequences and marks that turn the direction of writing.
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def counted(number: int, noun: str) -> str:
    """Return "1 row" or "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def age(seconds: float) -> str:
    """Return a span of time in its largest unit of which there are two."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"

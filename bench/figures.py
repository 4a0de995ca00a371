"""Medians, percentiles and ratios, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def median_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the pair with the median ratio, of an even number the lower one.

    A ratio is printed with the two figures that give it. The median of each figure
    would give another ratio than the median of the ratios.
    """
    return sorted(pairs, key=lambda pair: pair[0] / pair[1])[(len(pairs) - 1) // 2]


def text(value: float | None, form: str = ",.0f") -> str:
    """Return the figure as it is printed; a dash for none."""
    return "–" if value is None or value != value else format(value, form)

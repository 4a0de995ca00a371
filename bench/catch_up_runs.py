"""The runs of catch_up.py, and the tables made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench import figures, output
from bench.figures import shown


@dataclass
class Run:
    """One system carrying one load."""

    system: str
    load: str
    changes: int
    consumers: int
    seconds: float  # from the first to the last row visible
    rate: float  # changes per second in that time, without the changes that came with the first row
    start_up: float  # seconds from the start of the processes to the first row visible
    rate_with_start_up: float
    began: float  # time.time() at the start of the processes
    published: float | None = None  # seconds until the last page was published: does that overlap with applying?
    cpu: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds, without the start of the scripts
    memory: dict[str, float] = field(default_factory=dict)  # MB at its peak


def title(run: Run) -> str:
    return run.system + (f", {run.consumers} consumer{'s' * (run.consumers > 1)}" if run.system == "ours" else "")


def report(load: str, pairs: list[list[Run]]) -> dict[str, Any]:
    """Print the tables of one load; returns its medians."""
    systems = {title(run): run for run in sorted(pairs[0], key=lambda run: (run.system != "ours", run.consumers))}
    medians: dict[str, Any] = {}
    for name in systems:
        runs = [run for pair in pairs for run in pair if title(run) == name]
        medians[name] = {
            "changes": runs[0].changes,
            "rate": figures.median([run.rate for run in runs]),
            "to_native": ratio(name, "native", pairs),
            "to_plain": ratio(name, "plain", pairs),
            "start_up": figures.median([run.start_up for run in runs]),
            "rate_with_start_up": figures.median([run.rate_with_start_up for run in runs]),
            "cpu_per_million": {
                who: figures.median([sum(run.cpu.get(who, {}).values()) / run.changes * 1e6 for run in runs])
                for who in ("producer", "consumer", "source", "destination", "Kafka")
                if who in runs[0].cpu
            },
            "memory": {who: max(run.memory[who] for run in runs) for who in runs[0].memory},
        }
    output.print_table(
        f"Catch-up, {load} load, {systems[next(iter(systems))].changes:,} changes: medians of {len(pairs)} pairs",
        ("", "changes/s", "of native", "of plain", "start-up s", "changes/s with start-up"),
        [
            (
                name,
                shown(m["rate"]),
                shown(m["to_native"], ".2f"),
                shown(m["to_plain"], ".0f"),
                shown(m["start_up"], ".2f"),
                shown(m["rate_with_start_up"]),
            )
            for name, m in medians.items()
        ],
    )
    output.print_table(
        "CPU seconds per million changes, and peak memory (of the largest)",
        ("", "producer", "consumers", "source", "destination", "Kafka", "all", "producer MB", "consumer MB"),
        [
            (
                name,
                *(
                    shown(m["cpu_per_million"].get(who), ".1f")
                    for who in ("producer", "consumer", "source", "destination", "Kafka")
                ),
                shown(sum(m["cpu_per_million"].values()), ".1f"),
                shown(m["memory"].get("producer")),
                shown(m["memory"].get("consumer")),
            )
            for name, m in medians.items()
        ],
    )
    return medians


def ratio(name: str, reference: str, pairs: list[list[Run]]) -> float:
    """The median of a system's rates over the reference's rates of the same pair."""
    rates = [{title(run): run.rate for run in pair} for pair in pairs]
    return figures.median([pair[name] / pair[reference] for pair in rates if reference in pair and name in pair])

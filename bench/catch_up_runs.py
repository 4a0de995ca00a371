"""The runs of catch_up.py, and the tables made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.figures import median, median_pair, text
from bench.output import print_table

PROCESSES = {
    "producer": "producer",
    "consumer": "consumers",
    "source": "source",
    "destination": "destination",
    "Kafka": "Kafka",
}

Medians = dict[str, dict[str, Any]]  # by system


@dataclass
class Run:
    """One system that carried one load."""

    system: str
    load: str
    changes: int
    consumers: int
    seconds: float  # from the first to the last row visible
    rate: float  # changes per second in that time, without those that came with the first row
    start_up: float  # seconds from the start of the processes to the first row visible
    rate_with_start_up: float
    began: float  # time.time() at the start of the processes
    published: float | None = None  # seconds until the last page was published
    cpu: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds, without the scripts' start
    memory: dict[str, float] = field(default_factory=dict)  # MB at its peak

    @property
    def title(self) -> str:
        if self.system != "ours":
            return self.system
        return f"ours, {self.consumers} consumer{'s' * (self.consumers > 1)}"


Pair = dict[str, Run]  # each system's run, by title


def report(load: str, pairs: list[Pair]) -> Medians:
    """Print the tables of a load, and return their figures."""
    order = sorted(pairs[0].values(), key=lambda run: (run.system != "ours", run.consumers))
    medians = {run.title: summary(run.title, pairs) for run in order}
    print_rates(load, order[0].changes, len(pairs), medians)
    print_costs(medians)
    return medians


def summary(title: str, pairs: list[Pair]) -> dict[str, Any]:
    """Return the figures of one system over all pairs."""
    runs = [pair[title] for pair in pairs]
    middle = middle_pair(title, pairs)
    return {
        "changes": runs[0].changes,
        "of_native": ratio(title, "native", pairs),
        "of_native_in_each_pair": ratios(title, "native", pairs),
        "rate": middle[title].rate,
        "native_rate": middle["native"].rate if "native" in middle else None,
        "of_plain": ratio(title, "plain", pairs),
        "start_up": middle[title].start_up,
        "rate_with_start_up": middle[title].rate_with_start_up,
        "cpu_per_million": {
            process: median([sum(run.cpu[process].values()) / run.changes * 1e6 for run in runs])
            for process in PROCESSES
            if process in runs[0].cpu
        },
        "memory": {process: max(run.memory[process] for run in runs) for process in runs[0].memory},
    }


def middle_pair(title: str, pairs: list[Pair]) -> Pair:
    """Return the pair with the system's median ratio to native.

    Without native it is the pair with the median rate.
    """

    def key(pair: Pair) -> tuple[float, float]:
        return pair[title].rate / pair["native"].rate if "native" in pair else 0.0, pair[title].rate

    return sorted(pairs, key=key)[(len(pairs) - 1) // 2]


def ratios(title: str, reference: str, pairs: list[Pair]) -> list[float]:
    return [pair[title].rate / pair[reference].rate for pair in pairs if reference in pair]


def ratio(title: str, reference: str, pairs: list[Pair]) -> float | None:
    """Return the median of the ratios to the reference, each within its pair."""
    rates = [(pair[title].rate, pair[reference].rate) for pair in pairs if reference in pair]
    if not rates:
        return None
    rate, reference_rate = median_pair(rates)
    return rate / reference_rate


def print_rates(load: str, changes: int, pairs: int, medians: Medians) -> None:
    print_table(
        f"Catch-up, {load} load, {changes:,} changes: each row from its pair of runs with the median ratio, of {pairs}",
        ("", "of native", "changes/s", "native's", "of plain", "start-up s", "changes/s with start-up"),
        [
            (
                title,
                text(values["of_native"], ".2f"),
                text(values["rate"]),
                text(values["native_rate"]),
                text(values["of_plain"], ".0f"),
                text(values["start_up"], ".2f"),
                text(values["rate_with_start_up"]),
            )
            for title, values in medians.items()
            if title != "native" or len(medians) == 1
        ],
    )


def print_costs(medians: Medians) -> None:
    print_table(
        "CPU seconds per million changes, and peak memory (of the largest)",
        ("", *PROCESSES.values(), "all", "producer MB", "consumer MB"),
        [
            (
                title,
                *(text(values["cpu_per_million"].get(process), ".1f") for process in PROCESSES),
                text(sum(values["cpu_per_million"].values()), ".1f"),
                text(values["memory"].get("producer")),
                text(values["memory"].get("consumer")),
            )
            for title, values in medians.items()
        ],
    )

"""Draw docs/catch-up.svg and docs/latency.svg from bench/results/.

    python -m bench.plot
    python -m bench.plot --to some/folder --format png

The results are those of catch_up.py and latency.py. Needs requirements-bench.txt.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from cdc import cli

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
COLORS = {"ours": "#1f6fb4", "native": "#8c8c8c", "plain": "#c9b48f"}
NAMES = {"ours": "Employee CDC", "native": "native logical replication", "plain": "plain design"}
LOADS = {"mixed": "60 % INSERT, 30 % UPDATE, 10 % DELETE", "hot": "90 % updates of 10,000 rows"}
MARKERS = {"p50": "o", "p95": "D", "p99": "|"}
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",  # readable in a dark page, too
    "svg.hashsalt": "employee-cdc",  # the same figures give the same file
}


def results(name: str) -> tuple[dict[str, Any], str]:
    """Return what a benchmark wrote, and a line that says where it ran."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        cli.fail(f"{file.relative_to(ROOT)} is not there; run python -m bench.{name}")
    content = json.loads(file.read_text(encoding="utf-8"))
    about = content["about"]
    servers = " and ".join(dict.fromkeys(f"PostgreSQL {about[side]}" for side in ("source", "destination")))
    return content[name]["medians"], f"{servers}, {about['cores']} cores for everything, {about['at'][:10]}"


def label(title: str) -> str:
    """Return "ours, 2 consumers" with the system's full name."""
    system, _, rest = title.partition(", ")
    return NAMES[system] + (f", {rest}" if rest else "")


def draw_catch_up(plot: Any) -> Any:
    """Draw a panel for each load: bars of the ratio to native."""
    medians, where = results("catch_up")
    if any(bars.get("native") is None for bars in medians.values()):
        cli.fail("bench/results/catch_up.json has no native run to compare with; run python -m bench.catch_up")
    figure, panels = plot.subplots(
        len(medians), 1, figsize=(8, 0.8 + 0.42 * sum(len(bars) + 1.3 for bars in medians.values())), squeeze=False,
        gridspec_kw={"height_ratios": [len(bars) for bars in medians.values()]}, sharex=True,
    )  # fmt: skip
    highest = max(max(values["of_native_in_each_pair"]) for bars in medians.values() for values in bars.values())
    for axes, (load, bars) in zip(panels[:, 0], medians.items(), strict=True):
        draw_bars(axes, bars, 1.04 * highest)
        waiting = max(values["changes"] for values in bars.values())
        axes.set_title(f"{LOADS[load]}, {waiting:,} changes waiting")
    panels[-1, 0].set_xlim(0, 1.7 * highest)  # with room for the text
    panels[-1, 0].set_xticks([0.25 * number for number in range(int(highest / 0.25) + 1)])
    panels[-1, 0].set_xlabel(
        "changes per second, as a part of native's in the same pair of runs; bar: the median pair, dots: each pair\n"
        + where
    )
    return figure


def draw_bars(axes: Any, bars: dict[str, dict[str, Any]], text_from: float) -> None:
    order = sorted(bars, key=lambda title: -bars[title]["of_native"])
    ratios = [bars[title]["of_native"] for title in order]
    axes.barh([label(title) for title in order], ratios, color=[color(title) for title in order], height=0.65)
    axes.axvline(1.0, color=COLORS["native"], linewidth=0.8, linestyle=":")
    for row, title in enumerate(order):
        values = bars[title]
        text = f"{values['of_native']:.2f}"
        if title != "native":
            pairs = values["of_native_in_each_pair"]
            axes.plot(pairs, [row] * len(pairs), ".", color="black", markersize=4)
            text += f"  ({values['rate']:,.0f}/s, native {values['native_rate']:,.0f}/s)"
        axes.annotate(text, (text_from, row), va="center")
    axes.invert_yaxis()


def draw_latency(plot: Any) -> Any:
    """Draw a row for each rate and system: three marks on a logarithmic axis."""
    medians, where = results("latency")
    rows = [
        (f"{int(rate):,}/s", system, values)
        for rate, systems in medians["rates"].items()
        for system, values in systems.items()
    ]
    figure, axes = plot.subplots(figsize=(8, 1.2 + 0.36 * len(rows)))
    for row, (_, system, values) in enumerate(rows):
        draw_dots(axes, row, system, values)
    for name, marker in MARKERS.items():
        meaning = f"{name}: {name[1:]} % are not slower"
        axes.plot([], [], linestyle="", marker=marker, color="black", markersize=6, markeredgewidth=2, label=meaning)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncol=len(MARKERS), frameon=False, handletextpad=0.2)
    axes.set_yticks(range(len(rows)), [f"{NAMES[system]}, {rate}" for rate, system, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values["p50"] for _, _, values in rows) / 2, max(values["p99"] for _, _, values in rows) * 2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.set_title("From commit to visible at the destination, single-row commits at this rate", pad=22)
    axes.set_xlabel(f"milliseconds, logarithmic; medians of the pairs of runs\n{where}")
    return figure


def draw_dots(axes: Any, row: int, system: str, values: dict[str, float]) -> None:
    color = COLORS[system]
    axes.plot([values["p50"], values["p99"]], [row, row], color=color, linewidth=1)
    for name, marker in MARKERS.items():
        axes.plot(
            values[name],
            row,
            marker,
            color=color,
            markersize=11 if marker == "|" else 7,
            markeredgewidth=2 if marker == "|" else 1,
        )
    text = {"textcoords": "offset points", "va": "center"}
    axes.annotate(f"{values['p50']:,.1f}", (values["p50"], row), (-7, 0), ha="right", **text)
    axes.annotate(f"{values['p99']:,.1f}", (values["p99"], row), (7, 0), **text)


def color(title: str) -> str:
    return COLORS[title.partition(", ")[0]]


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__, formatter_class=formatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs", metavar="DIR")
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    arguments = parser.parse_args()
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        plot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        cli.fail("matplotlib is not here; run python -m pip install -r requirements-bench.txt")
    plot.rcParams.update(STYLE)
    for name, draw in {"catch-up": draw_catch_up, "latency": draw_latency}.items():
        file = arguments.to / f"{name}.{arguments.format}"
        metadata = {"Date": None} if arguments.format == "svg" else None
        draw(plot).savefig(file, bbox_inches="tight", dpi=150, metadata=metadata)
        print(f"{file} drawn")


if __name__ == "__main__":
    main()

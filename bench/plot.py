"""Draw docs/catch-up.svg and docs/latency.svg from what catch_up.py and latency.py wrote; needs requirements-bench.txt.

python bench/plot.py
python bench/plot.py --to some/folder --format png
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
COLORS = {"ours": "#1f6fb4", "native": "#8c8c8c", "plain": "#c9b48f"}
NAMES = {"ours": "Employee CDC", "native": "native logical replication", "plain": "plain design"}
LOADS = {"mixed": "60 % INSERT, 30 % UPDATE, 10 % DELETE", "hot": "90 % updates of 10,000 rows"}
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
    """What a benchmark wrote, and a line that says where it ran."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        cli.fail(f"{file.relative_to(ROOT)} is not there; run python bench/{name}.py")
    written = json.loads(file.read_text(encoding="utf-8"))
    about = written["about"]
    servers = " and ".join(dict.fromkeys(f"PostgreSQL {about[side]}" for side in ("source", "destination")))
    return written[name]["medians"], f"{servers}, {about['cores']} cores for everything, {about['at'][:10]}; medians"


def label(name: str) -> str:
    """ "ours, 2 consumers" with the system's full name."""
    system, _, rest = name.partition(", ")
    return NAMES[system] + (f", {rest}" if rest else "")


def draw_catch_up(plot: Any) -> Any:
    medians, where = results("catch_up")
    figure, panels = plot.subplots(
        len(medians), 1, figsize=(8, 0.8 + 0.42 * sum(len(bars) + 1.3 for bars in medians.values())), squeeze=False,
        gridspec_kw={"height_ratios": [len(bars) for bars in medians.values()]}, sharex=True,
    )  # fmt: skip
    for axes, (load, bars) in zip(panels[:, 0], medians.items(), strict=True):
        waiting = max(bar["changes"] for bar in bars.values())
        rates = {name: bar["rate"] for name, bar in sorted(bars.items(), key=lambda item: -item[1]["rate"])}
        axes.barh(
            [label(name) for name in rates], list(rates.values()), color=[color(name) for name in rates], height=0.65
        )
        for row, (name, rate) in enumerate(rates.items()):
            to_native = bars[name]["to_native"]
            ratio = f" = {to_native:.2f} of native" if to_native and name != "native" else ""
            fewer = f" ({bars[name]['changes']:,} waiting)" if bars[name]["changes"] != waiting else ""
            axes.annotate(f"{rate:,.0f}{ratio}{fewer}", (rate, row), (4, 0), textcoords="offset points", va="center")
        axes.invert_yaxis()
        axes.set_title(f"{LOADS[load]}, {waiting:,} changes waiting")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.margins(x=0.28)
    panels[-1, 0].set_xlabel(f"changes per second, from the first to the last row at the destination\n{where}")
    return figure


def draw_latency(plot: Any) -> Any:
    medians, where = results("latency")
    rows = [
        (f"{int(rate):,}/s", system, values)
        for rate, systems in medians["rates"].items()
        for system, values in systems.items()
    ]
    figure, axes = plot.subplots(figsize=(8, 1.2 + 0.36 * len(rows)))
    for row, (_, system, values) in enumerate(rows):
        axes.plot([values["p50"], values["p99"]], [row, row], color=COLORS[system], linewidth=7, solid_capstyle="butt")
        axes.plot([values["p50"], values["p95"]], [row, row], color=COLORS[system], linewidth=11, solid_capstyle="butt")
        text = f"{values['p50']:,.1f} · {values['p95']:,.1f} · {values['p99']:,.1f} ms"
        axes.annotate(text, (values["p99"], row), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [f"{NAMES[system]}, {rate}" for rate, system, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values["p50"] for _, _, values in rows) / 1.5, max(values["p99"] for _, _, values in rows) * 10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.set_title("From commit to visible at the destination: p50 · p95 · p99, single-row commits")
    axes.set_xlabel(f"milliseconds, logarithmic\n{where}")
    return figure


def color(name: str) -> str:
    return COLORS[name.partition(", ")[0]]


def main() -> None:
    parser = cli.parser(__doc__)
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

"""A picture of a benchmark's result: bars of medians with their spread, or what the benchmark itself draws.

Invariant: a picture shows only figures that are in the result file beside it; without matplotlib there is none, and
the run says how to get it. Colours are Okabe and Ito's, told apart by all usual kinds of colour vision, and never
carry a meaning alone: a baseline's bars are hatched and its points hollow, and each series has its own marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BASELINE_COLOUR = "#999999"
HOW_TO = "no picture without matplotlib; `.venv/bin/pip install -e .[bench]` brings it"
WIDTH_IN, DPI = 11.0, 130
MAX_PANELS = 4


def draw(name: str, benchmark: Any, result: dict[str, Any], folder: Path) -> Path | None:
    """Write ``NAME.png``; None if there is no matplotlib, or nothing to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    own = getattr(benchmark, "plot", None)
    columns = [c for c in benchmark.COLUMNS if any(c.figure in case["figures"] for case in result["cases"])]
    if not columns:
        return None
    height_in = getattr(benchmark, "PLOT_HEIGHT_IN", 5.0) if own else max(2.5, 0.32 * len(result["cases"]) + 1.6)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    if own:
        own(figure, result)
    else:
        bars(figure, result, columns[:MAX_PANELS])
    figure.suptitle(_title(name, result), fontsize="medium")
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=DPI)
    return path


def bars(figure: Any, result: dict[str, Any], columns: Sequence[Any]) -> None:
    """A panel for each column, a bar for each case: its median, with a line from the lowest to the highest."""
    cases = result["cases"]
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for row, case in enumerate(cases):
            found = case["figures"].get(column.figure)
            if found is None:
                continue
            middle, low, high = (found[key] for key in ("median", "low", "high"))
            baseline = case["is_baseline"]
            axes.barh(
                row,
                middle,
                xerr=[[middle - low], [high - middle]],
                color=BASELINE_COLOUR if baseline else COLOURS[0],
                hatch="//" if baseline else None,
                edgecolor="white",
                capsize=3,
            )
            text = f" {middle:,.{column.digits}f}"
            axes.annotate(text, (high, row), va="center", fontsize="x-small", annotation_clip=False)
        axes.set_xlabel(column.title)
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(cases)), [("* " if c["is_baseline"] else "") + c["case"] for c in cases])
    panels[0].invert_yaxis()


def mark(number: int, *, is_baseline: bool = False) -> dict[str, Any]:
    """How to draw the points of series ``number``: a colour and a marker of its own, hollow for a baseline."""
    shown = {"fmt": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)]}
    return shown | ({"markerfacecolor": "white"} if is_baseline else {})


def plain_numbers(axis: Any) -> None:
    """10, 20, 50, 100 along a logarithmic axis, in place of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Any) -> None:
    """Small, each series followed by what is expected of it: in the order of their names."""
    found = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1])
    if found:
        axes.legend([handle for handle, _ in found], [label for _, label in found], fontsize="small")


def _title(name: str, result: dict[str, Any]) -> str:
    tiny = "TINY, its figures mean nothing; " if result["tiny"] else ""
    spread = f"medians, lines from lowest to highest of up to {result['repeat']}" if result["repeat"] > 1 else "one run"
    return f"{name} ({tiny}{result['machine']['cpu']}, {spread})"

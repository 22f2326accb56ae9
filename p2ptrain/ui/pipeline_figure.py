"""A pipeline plan's timeline as a picture. Needs matplotlib, which nothing else of the package does.

Invariant: draws what ``play`` found, to scale; writes one PNG file and leaves matplotlib's global state alone.
"""

from __future__ import annotations

from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.planning.pipeline.comparison import SINGLE, Comparison
from p2ptrain.words import clean

COLOURS = {"forward": "#7fb3d5", "backward": "#f0b27a", "update": "#82c99d"}
MIN_LABEL_SHARE = 0.012
"""Bars narrower than this share of the round carry no number."""


def check_matplotlib() -> None:
    """Raises ``UserError`` where there is no matplotlib, before any work is done."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(
            "--png needs matplotlib; install it with: pip install 'p2ptrain[bench]' (the text needs nothing)"
        ) from None


def draw(comparison: Comparison, path: Path) -> None:
    """Write the timeline to ``path``. Raises ``UserError`` where that can't be done."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    plan, timeline = comparison.planned.plan, comparison.planned.cost.timeline
    num_stages = len(plan.stages)
    figure = Figure(figsize=(12, 1.6 + 0.6 * num_stages), layout="constrained")
    axes = figure.add_subplot()
    for span in timeline.spans:
        length = span.end_s - span.start_s
        axes.barh(
            span.stage,
            length,
            left=span.start_s,
            height=0.8,
            color=COLOURS[span.work],
            edgecolor="white",
            linewidth=0.5,
        )
        if span.work != "update" and length > MIN_LABEL_SHARE * timeline.round_s:
            middle = span.start_s + length / 2
            axes.text(middle, span.stage, str(span.micro_batch), ha="center", va="center", fontsize=8)
    labels = [f"{clean(' + '.join(stage.peers), 40)}\nblocks {stage.start}-{stage.stop - 1}" for stage in plan.stages]
    axes.set_yticks(range(num_stages), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.round_s)
    batches = comparison.task.batches
    shown = "one batch" if batches == 1 else f"{batches} batches in a row"
    axes.set_xlabel(f"seconds of {shown}, predicted")
    single = comparison.baselines[SINGLE]
    gain = f"; {SINGLE} {single.cost.batch_s:.3g} s" if single else ""
    axes.set_title(f"{clean(plan.model, 60)}: {comparison.planned.cost.batch_s:.3g} s a batch{gain}")
    used = [work for work in COLOURS if any(span.work == work for span in timeline.spans)]
    figure.legend(handles=[Patch(color=COLOURS[work], label=work) for work in used], loc="outside lower right", ncols=3)
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); name another file with --png") from None

"""A split plan's timeline as a picture. Needs matplotlib, like ``pipeline_figure``.

Invariant: draws what ``play`` found, to scale; writes one PNG file and leaves matplotlib's global state alone.
"""

from __future__ import annotations

from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.planning.split.comparison import Comparison
from p2ptrain.planning.split.strategies import ALONE
from p2ptrain.ui.pipeline_figure import COLOURS, check_matplotlib
from p2ptrain.ui.split_view import spans_of
from p2ptrain.words import clean

SHADES = ("#b39ddb", "#7e57c2", "#80cbc4", "#26a69a", "#ef9a9a", "#e57373", "#ffe082", "#ffb300")
"""Of tails, by unit."""


def draw(comparison: Comparison, path: Path) -> None:
    """Write the timeline to ``path``. Raises ``UserError`` where that can't be done."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    room, plan = comparison.room, comparison.planned.plan
    until_s, spans = spans_of(room, plan)
    owners = [unit.owner for unit in plan.units]
    peers = [*owners, *(name for name in plan.helpers if name not in owners)]
    figure = Figure(figsize=(12, 1.8 + 0.5 * len(peers)), layout="constrained")
    axes = figure.add_subplot()
    shade = {owner: SHADES[index % len(SHADES)] for index, owner in enumerate(owners)}
    for span in spans:
        colour = shade[span.owner] if span.work == "tail" else COLOURS[span.work]
        length, row = span.end_s - span.start_s, peers.index(span.peer)
        axes.barh(row, length, left=span.start_s, height=0.8, color=colour, edgecolor="white", linewidth=0.3)
    labels = []
    for peer in peers:
        unit = plan.unit_of(peer)
        kept = (
            f", {plan.kept_from}-{plan.num_blocks - 1}" if plan.kept_from and unit is not None and unit.helper else ""
        )
        blocks = f"blocks 0-{unit.cut - 1}{kept}" if unit is not None else f"{len(plan.units_of(peer))} tails"
        labels.append(f"{clean(peer, 30)}\n{blocks}")
    axes.set_yticks(range(len(peers)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, until_s)
    axes.set_xlabel("seconds of a round's begin, predicted")
    alone = comparison.strategies[ALONE]
    gain = f"; {ALONE} {alone.plan.round_s:.3g} s" if alone else ""
    axes.set_title(f"{clean(plan.model, 60)}: {plan.round_s:.3g} s a round{gain}")
    used = [work for work in COLOURS if any(span.work == work for span in spans)]
    handles = [Patch(color=COLOURS[work], label=work) for work in used]
    helped = [unit.owner for unit in plan.units if unit.helper is not None]
    handles += [Patch(color=shade[owner], label=f"tail of {clean(owner, 20)}") for owner in helped[: len(SHADES)]]
    figure.legend(handles=handles, loc="outside lower right", ncols=4)
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); name another file with --png") from None

"""A timeline in characters: a line for each that works, each character what it does most in its stretch of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TIMELINE_WIDTH = 100
IDLE, UPDATE = "·", "="
Stretch = tuple[float, float, str]
"""From when to when, in seconds, and the sign of what is done."""


def seconds(value: float) -> str:
    """``1,234 s``, ``12.3 s``, ``4.56 ms``."""
    if value >= 100:
        return f"{value:,.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def pass_sign(work: str, micro_batch: int) -> str:
    """Digits are forward passes, by micro-batch; letters backward ones, from a for 0."""
    return str(micro_batch % 10) if work == "forward" else chr(ord("a") + micro_batch % 10)


def timeline_text(rows: Sequence[tuple[str, Iterable[Stretch]]], until_s: float, width: int) -> list[str]:
    """``rows``: each with its label. The last line is the scale."""
    label = max((len(name) for name, _ in rows), default=0) + 1
    cells = max(10, width - label - 2)
    scale = until_s / cells or 1.0
    lines = [f"{name:<{label}}|{_cells(stretches, cells, scale)}|" for name, stretches in rows]
    return [*lines, f"{'':<{label}} 0{seconds(until_s):>{cells - 1}}"]


def _cells(stretches: Iterable[Stretch], cells: int, scale: float) -> str:
    weight = [{IDLE: 0.0} for _ in range(cells)]
    for start_s, end_s, sign in stretches:
        for cell in range(min(cells - 1, int(start_s / scale)), min(cells, int(end_s / scale) + 1)):
            overlap = min(end_s, (cell + 1) * scale) - max(start_s, cell * scale)
            weight[cell][sign] = weight[cell].get(sign, 0.0) + max(0.0, overlap)
    for signs in weight:
        signs[IDLE] = scale - sum(signs.values())
    return "".join(max(signs.items(), key=lambda item: item[1])[0] for signs in weight)

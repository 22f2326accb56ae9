"""Charts as SVG text: lines over a number, and bars of who did what when.

Invariant: every text that is not ours is escaped; colours are Okabe and Ito's and never carry a meaning alone (each
line has its own dashes and its name, each bar its word). A line has at most ``MAX_POINTS``, evenly taken, with its
first and its last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 34
MAX_POINTS = 400
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
ROW = 26
Points = Sequence[tuple[float, float]]


def style(index: int) -> tuple[str, str]:
    """Colour and dashes of the n-th line."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` of them."""
    if len(points) <= MAX_POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def lines(
    what: str,
    series: Mapping[int, Points],
    names: Sequence[str],
    *,
    x_words: Callable[[float], str],
    y_words: Callable[[float], str],
    x_title: str,
    from_zero: bool = False,
    marks: Points = (),
) -> str:
    """``series``: by the number of the peer in ``names``; ``marks``: points that stand alone; "" where is nothing."""
    shown = {index: thinned(points) for index, points in series.items() if points}
    every = [point for points in shown.values() for point in points] + list(marks)
    if not every:
        return ""
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = (0.0 if from_zero else min(y for _, y in every)), max(y for _, y in every)
    x_high, y_high = (x_high if x_high > x_low else x_low + 1), (y_high if y_high > y_low else y_low + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    out = [_open(HEIGHT, what)]
    for y in ticks(y_low, y_high):
        _, down = at(x_low, y)
        out.append(f'<path class="grid" d="M{LEFT} {down}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{down + 4}" text-anchor="end">{escape(y_words(y))}</text>')
    for x in ticks(x_low, x_high):
        across, _ = at(x, y_low)
        out.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(x_words(x))}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>')
    out.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for index, points in shown.items():
        colour, dashes = style(index)
        path = "M" + "L".join(f"{across} {down}" for across, down in (at(*point) for point in points))
        dots = f' stroke-dasharray="{dashes}"' if dashes else ""
        tip = f"<title>{escape(names[index])}: {escape(y_words(points[-1][1]))} last</title>"
        out.append(f'<path class="line" d="{path}" stroke="{colour}"{dots}>{tip}</path>')
        if len(points) <= 40:
            circles = (at(*point) for point in points)
            out += [f'<circle cx="{across}" cy="{down}" r="2.5" fill="{colour}"/>' for across, down in circles]
    for x, y in marks:
        across, down = at(x, y)
        out.append(
            f'<path class="mark" d="M{across} {down - 6}L{across + 6} {down}L{across} {down + 6}L{across - 6} {down}Z">'
            f"<title>{escape(y_words(y))}</title></path>"
        )
    return "".join([*out, "</svg>", _legend(shown, names)])


def _legend(shown: Mapping[int, Points], names: Sequence[str]) -> str:
    out = []
    for index in shown:
        colour, dashes = style(index)
        dots = f' stroke-dasharray="{dashes}"' if dashes else ""
        key = f'<svg class="key" viewBox="0 0 28 8"><path class="line" d="M0 4H28" stroke="{colour}"{dots}/></svg>'
        out.append(f"<li>{key} {escape(names[index])}</li>")
    return f'<ul class="legend">{"".join(out)}</ul>'


def bars(
    what: str,
    rows: Sequence[tuple[str, Sequence[tuple[float, float, str]]]],
    kinds: Mapping[str, str],
    *,
    begin: float,
    end: float,
    x_words: Callable[[float], str],
    x_title: str,
) -> str:
    """A row for each name: from when to when it was of which kind. ``kinds``: their colours."""
    left, span = 150, max(end - begin, 1e-9)
    height = TOP + ROW * len(rows) + BOTTOM

    def across(at: float) -> float:
        return round(left + (min(max(at, begin), end) - begin) / span * (WIDTH - left - RIGHT), 1)

    out = [_open(height, what)]
    for row, (name, spans) in enumerate(rows):
        down = TOP + ROW * row
        out.append(f'<text x="{left - 8}" y="{down + 16}" text-anchor="end">{escape(name[:22])}</text>')
        for first, last, kind in spans:
            x, wide = across(first), max(1.0, across(last) - across(first))
            tip = f"<title>{escape(name)}: {escape(kind)}, {last - first:.1f} s</title>"
            colour = kinds.get(kind, "#7F7F7F")
            out.append(f'<rect x="{x}" y="{down + 3}" width="{wide}" height="{ROW - 8}" fill="{colour}">{tip}</rect>')
            if wide > 8 * len(kind):
                out.append(f'<text class="on" x="{x + 4}" y="{down + 16}">{escape(kind)}</text>')
    for x in ticks(0.0, span):
        where = across(begin + x)
        out.append(f'<text x="{where}" y="{height - BOTTOM + 16}" text-anchor="middle">{escape(x_words(x))}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x_title)}</text></svg>')
    shown = {kind for _, spans in rows for _, _, kind in spans}
    keys = [
        f'<li><svg class="key" viewBox="0 0 28 8"><rect width="28" height="8" fill="{colour}"/></svg> {kind}</li>'
        for kind, colour in kinds.items()
        if kind in shown
    ]
    return f'{"".join(out)}<ul class="legend">{"".join(keys)}</ul>'


def _open(height: int, what: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(what)}">'

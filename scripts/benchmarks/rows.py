"""What a benchmark brings to the page of figures: rows of a table, what they say plainly, and rows for README.

Invariant: in a table figures are named, never written down: a text says which case and which figure of which result
file. Remarks do so where the file holds the figure; differences and figures of earlier versions they write out.

In a text ``{case/figure:.1f}`` stands for the median of a benchmark's figure, and its spread if there is one;
``{case/figure*0.001:.1f}`` for a thousandth of it, ``{case/figure:+.1f}`` for a difference, with its sign. Of a result
of ``p2ptrain demo`` ``{epochs:g}`` stands for one of its fields, or for the lowest and highest of its peers. What
stands between ``<`` and ``>`` is left out where the file has not all of its figures: of some benchmarks cases may be
chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Record = dict[str, Any]
Chapter = Literal["What comes out", "Unlike devices", "Pipelines", "What it costs", "Many peers"]
PLAIN = ("what", "measured", "baseline", "command")


class FigureError(Exception):
    """One line for the user: what is wrong, where, what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """Of a table; its last column, the command, is added. ``file``: name of the result file, without ``.json``."""

    file: str
    what: str
    measured: str
    baseline: str = ""
    more: tuple[str, ...] = ()
    """Further columns."""

    def cells(self, record: Record) -> list[str]:
        """All but the command. Raises ``FigureError`` for what the file does not have."""
        return [filled(text, self.file, record) for text in (self.what, self.measured, self.baseline, *self.more)]


@dataclass(frozen=True, slots=True)
class Remark:
    """What a file's figures say, in plain words; left out with its file."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """One table and what it says. ``in_readme``: rows of README's own table, without a command."""

    chapter: Chapter
    title: str
    rows: Sequence[Row]
    remarks: Sequence[Remark] = ()
    header: tuple[str, ...] = PLAIN
    in_readme: Sequence[Row] = ()


def filled(text: str, file: str, record: Record) -> str:
    """``text`` with its figures. Raises ``FigureError`` for one that the file does not have."""
    fill = _of_bench if "cases" in record else _of_demo

    def known(part: re.Match[str]) -> str:
        try:
            return filled(part[1], file, record)
        except FigureError:
            return ""

    return _PLACE.sub(lambda place: fill(place, file, record), _PART.sub(known, text))


_PART = re.compile(r"<([^<>]*)>")
_PLACE = re.compile(r"\{(?:([^{}/]+)/)?(\w+)(?:\*([0-9.e+-]+))?:(\+?)([^{}]+)\}")


def _of_bench(place: re.Match[str], file: str, record: Record) -> str:
    case, figure, factor, sign, digits = place.groups()
    cases = {case["case"]: case["figures"] for case in record["cases"]}
    found = cases.get(case, {}).get(figure)
    if found is None:
        raise FigureError(f"scripts/figures/{file}.json: no figure {figure!r} of {case!r}, which a row names")
    texts = [f"{found[key] * float(factor or 1):{sign},{digits}}" for key in ("median", "low", "high")]
    to = " to " if sign else "-"
    return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}{to}{texts[2]})"


def _of_demo(place: re.Match[str], file: str, record: Record) -> str:
    _, field, factor, sign, digits = place.groups()
    result = record["result"]
    values = [result[field]] if field in result else [peer.get(field) for peer in result["peers"]]
    if not values or None in values:
        raise FigureError(f"scripts/figures/{file}.json: no {field!r}; is it such a result of p2ptrain demo?")
    if isinstance(values[0], str):
        return values[0]
    low, high = (f"{end * float(factor or 1):{sign}{digits}}" for end in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"

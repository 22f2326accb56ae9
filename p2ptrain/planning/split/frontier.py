"""What several units ask of one helper: of its time, of its link, of its memory. Only what nothing betters is kept.

A ``Frontier`` is a set of points, one for each way to choose an option for every unit: seconds of the helper's time,
share of its link, bytes of its memory. ``joined`` adds a unit. A point is dropped where another one asks for no more of
anything. Where more than ``Limits.num_points`` are left only so many are kept, spread over the helper's time: a plan
made of those holds, but may not be the best.

Invariant: pure, and exact as long as no more points than that are left.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2ptrain.planning.pipeline.cost import Floats

Which = npt.NDArray[np.intp]
FINE_POINTS, COARSE_POINTS = 256, 60
LEVELS = 32
"""Of memory, where points are few."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points in the order of ``helper_s``."""

    helper_s: Floats
    share: Floats
    num_bytes: Floats
    ours: Which
    """Of each point, which one of the frontier that was joined it came from, and ..."""
    theirs: Which
    """... of the one that was added."""

    def __len__(self) -> int:
        return len(self.helper_s)


NOTHING = Frontier(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1, np.intp), np.zeros(1, np.intp))
"""No unit asks for nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the units of one helper may ask for together."""

    helper_s: float
    num_bytes: float
    share: float = 1.0
    is_tight: bool = False
    """Whether memory may run out, so that it has to be looked at."""
    is_coarse: bool = False

    @property
    def num_points(self) -> int:
        return COARSE_POINTS if self.is_coarse else FINE_POINTS


def frontier_of(helper_s: Floats, share: Floats, num_bytes: Floats, limits: Limits) -> Frontier:
    """Of one unit's options."""
    return _best(helper_s, share, num_bytes, limits, 1)


def joined(frontier: Frontier, other: Frontier, limits: Limits) -> Frontier:
    """Both together."""
    helper_s = np.add.outer(frontier.helper_s, other.helper_s).ravel()
    share = np.add.outer(frontier.share, other.share).ravel()
    num_bytes = np.add.outer(frontier.num_bytes, other.num_bytes).ravel() if limits.is_tight else np.zeros(len(share))
    return _best(helper_s, share, num_bytes, limits, len(other))


def _best(helper_s: Floats, share: Floats, num_bytes: Floats, limits: Limits, width: int) -> Frontier:
    """Those within the limits that nothing betters; ``width``: points of what was added."""
    able = (helper_s <= limits.helper_s) & (share <= limits.share)
    if limits.is_tight:
        able &= num_bytes <= limits.num_bytes
    rows = np.flatnonzero(able)
    rows = rows[np.lexsort((num_bytes[rows], share[rows], helper_s[rows]))]
    if limits.is_tight and limits.is_coarse:
        rows = _by_levels(rows, share, num_bytes, limits)
    elif limits.is_tight:
        rows = _staircase(rows, share, num_bytes)
    elif len(rows):
        its = share[rows]
        before = np.minimum.accumulate(its)[:-1]
        rows = rows[np.concatenate([[True], its[1:] < before])]
    if len(rows) > limits.num_points:
        rows = rows[_spread(helper_s[rows], share[rows], limits)]
    ours, theirs = np.divmod(rows, width)
    return Frontier(helper_s[rows], share[rows], num_bytes[rows], ours, theirs)


def _staircase(rows: Which, share: Floats, num_bytes: Floats) -> Which:
    """Of rows in the order of a third quantity, those that no one before betters in both of these."""
    kept: list[int] = []
    stairs: list[tuple[float, float]] = []  # share rising, bytes falling
    for row in rows.tolist():
        point = (float(share[row]), float(num_bytes[row]))
        at = bisect_left(stairs, (point[0], np.inf))
        if at and stairs[at - 1][1] <= point[1]:
            continue
        while at < len(stairs) and stairs[at][1] >= point[1]:
            del stairs[at]
        if at and stairs[at - 1][0] == point[0]:
            del stairs[at - 1]
        insort(stairs, point)
        kept.append(row)
    return np.array(kept, dtype=np.intp)


def _by_levels(rows: Which, share: Floats, num_bytes: Floats, limits: Limits) -> Which:
    """As ``_staircase``, with memory told apart in ``LEVELS`` steps only."""
    if not len(rows):
        return rows
    level = np.ceil(num_bytes[rows] / (limits.num_bytes / LEVELS or 1.0)).astype(np.intp)
    its = np.where(level <= np.arange(LEVELS + 1)[:, None], share[rows], np.inf)
    before = np.minimum.accumulate(its, axis=1)[level[1:], np.arange(len(rows) - 1)]
    kept: Which = rows[np.concatenate([[True], share[rows][1:] < before])]
    return kept


def _spread(helper_s: Floats, share: Floats, limits: Limits) -> Which:
    """Of each of ``num_points`` equal stretches of the helper's time the one with the least share, and the first."""
    width = limits.helper_s / (limits.num_points - 1) or 1.0
    bins = np.floor(helper_s / width)
    order = np.lexsort((share, bins))
    first = np.concatenate([[True], bins[order][1:] != bins[order][:-1]])
    kept = order[first][: limits.num_points - 1]
    return np.unique(np.append(kept, 0))

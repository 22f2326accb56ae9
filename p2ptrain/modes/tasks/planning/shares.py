"""How much of the model each part gets: the shares that let all parts finish a round together.

A round of peer p on a part of share r costs r^2 * n_p / s_p: the work of a sub-model falls with the square of its width
(n_p samples, s_p FLOP/s). With q = max of n_p / s_p over a part's trainers, the slowest part is fastest when
r = sqrt(T / q) for one common T, kept within limits: a class gets between half and twice an even share of the width
(so that no class starves), a part no more than its trainers' memory allows and its samples can fill, and, with three
parts or more, no more than ``MAX_SHARE``. T follows from the sum of the shares by bisection.

Invariant: the shares sum to at most 1, and to 1 (but for rounding) where the limits allow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MAX_SHARE = 0.5
"""With three parts or more: a quarter of the FLOPs of square layers, at most a third with a third of linear ones."""
SHARE_UNITS = 1_000_000
"""Shares are whole multiples of 1 / SHARE_UNITS, so that they are short in JSON and equal parts get equal shares."""
WIDTH_SPREAD = 2.0
"""A class's share of the width stays within this factor of even, both ways."""
BISECTION_STEPS = 100
PASSES_IN_BUDGET = 2.0
"""Of a part, for one of the whole model, where work is limited: narrower and longer beats wider and shorter."""


Limits = tuple[float, float]


def limits(
    num_classes: int, sizes: Sequence[float], memory_shares: Sequence[float], fullness: Sequence[float] = ()
) -> list[Limits]:
    """Least and largest share of each part, from the number of its classes and from its trainers' memory.

    ``fullness``: how many even shares each part's samples can fill; () = enough for all.
    """
    widest = MAX_SHARE if len(sizes) >= 3 else 1.0
    result = []
    for size, memory_share, full in zip(sizes, memory_shares, fullness or [WIDTH_SPREAD] * len(sizes), strict=True):
        even = size / num_classes
        high = min(widest, memory_share, even * min(WIDTH_SPREAD, max(1 / WIDTH_SPREAD, full)))
        result.append((min(high, even / WIDTH_SPREAD), high))
    return result


def affordable_share(budget: float) -> float:
    """The widest part of which ``PASSES_IN_BUDGET`` passes are so much work, of a pass of the whole model over the same
    samples; 0 = no limit."""
    return min(1.0, math.sqrt(budget / PASSES_IN_BUDGET)) if budget else 1.0


def even_shares(costs: Sequence[float], bounds: Sequence[Limits], total: float = 1.0) -> list[float]:
    """Shares within ``bounds``, summing to at most ``total``, that minimise max(share^2 * cost).

    ``costs`` are seconds a round of the whole model would take; all above zero.
    """
    if math.fsum(high for _, high in bounds) <= total:
        return _rounded([high for _, high in bounds])
    roots = [math.sqrt(cost) for cost in costs]
    low, high = 0.0, max(root * bound[1] for root, bound in zip(roots, bounds, strict=True))
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        if math.fsum(_clip(middle / root, bound) for root, bound in zip(roots, bounds, strict=True)) > total:
            high = middle
        else:
            low = middle
    return _rounded([_clip(low / root, bound) for root, bound in zip(roots, bounds, strict=True)])


def apportion(weights: Sequence[float], num_seats: int, taken: Sequence[int]) -> list[int]:
    """Seats (classes) for each group by highest averages, on top of those ``taken``; nobody is left without one."""
    seats = list(taken)
    for _ in range(num_seats):
        order = range(len(seats))
        winner = max(order, key=lambda g: (seats[g] == 0, weights[g] / (seats[g] + 1), -g))
        seats[winner] += 1
    return [now - before for now, before in zip(seats, taken, strict=True)]


def _clip(value: float, bound: Limits) -> float:
    return min(max(value, bound[0]), bound[1])


def _rounded(shares: Sequence[float]) -> list[float]:
    """Down to whole units, but never to nothing."""
    units = [max(1, math.floor(share * SHARE_UNITS + 1e-3)) for share in shares]
    while sum(units) > SHARE_UNITS:
        units[units.index(max(units))] -= 1
    return [unit / SHARE_UNITS for unit in units]

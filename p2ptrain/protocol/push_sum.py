"""What push-sum does to values and masses.

Theory (push-sum: Kempe, Dobra, Gehrke, FOCS 2003). The parameters are divided into *shards*, named sets of tensors; a
peer's part holds some of them. For each shard that it holds, its trainer keeps parameters x and a mass m (samples).
A push takes half of m along with a copy of x; a merge makes x' = (m x + w x_in) / (m + w) and m' = m + w. No push or
merge changes sum(m x) and sum(m) over the group, what is under way included, so all x tend to their ratio, the mean
weighted by samples, however unequally peers push (plain one-sided averaging ends nearer to who pushes most).
"""

from __future__ import annotations

from collections.abc import Sequence


def halve(mass: float) -> tuple[float, float]:
    """What a push leaves and what it takes along. They are equal, and their sum is ``mass`` exactly."""
    return mass / 2, mass / 2


def merge(
    values: Sequence[float], mass: float, values_in: Sequence[float], mass_in: float
) -> tuple[list[float], float]:
    """Push-sum's merge: the mean weighted by mass, and the mass of both. Nothing of no mass counts."""
    total = mass + mass_in
    if total <= 0:
        return list(values), 0.0
    share = mass_in / total
    return [own + share * (other - own) for own, other in zip(values, values_in, strict=True)], total

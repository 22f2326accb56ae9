"""Means of several members' contributions of which some may be wrong, tensor by tensor.

    trimmed-mean   coordinate by coordinate without the lowest and the highest quarter, at least one of each; by weight
                   among those that are left (Yin et al., ICML 2018)
    median         coordinate by coordinate, whatever the weights
    clip           the weighted mean, with what is far from the median drawn in: beyond ``REACH`` times the typical
                   distance a contribution counts less, by the square. Where nothing is that far it is the plain mean

Invariant: fewer than three contributions have no majority, so theirs is the plain mean. With three and more, what any
single one can move is bounded by how far the others lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2ptrain.config import Robust
from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import State, check_fits, weighted_mean

FEWEST = 3
"""Contributions of which one can be told to be wrong."""
FEW = 16
"""Contributions that are put in order without a sort."""
REACH = 3.0
"""Times the typical distance from the median: honest contributions are hardly ever further away."""


@torch.no_grad()
def trimmed_mean(values: Tensor, weights: Tensor) -> Tensor:
    """[...] of contributions [n, ...] with weights [n]."""
    num = values.shape[0]
    cut = max(1, num // 4) if num >= FEWEST else 0
    by_weight = weights.argsort(stable=True)  # of equal values the same ones are cut, in whatever order they come
    ordered = values[by_weight].sort(dim=0, stable=True)
    kept, chosen = ordered.values[cut : num - cut], ordered.indices[cut : num - cut]
    shares = _positive(weights)[by_weight][chosen]  # [kept, ...]
    base = kept[0]
    return base + ((kept - base) * shares).sum(0) / shares.sum(0)


@torch.no_grad()
def median(values: Tensor) -> Tensor:
    """[...] of contributions [n, ...]; of an even number the mean of the middle two."""
    num = values.shape[0]
    ordered = _in_order(values)
    low, high = ordered[(num - 1) // 2], ordered[num // 2]
    return low + (high - low) / 2


def _in_order(values: Tensor) -> list[Tensor]:
    """Coordinate by coordinate, the lowest first. Of few it swaps neighbours, which takes a tenth of a sort's time."""
    if values.shape[0] > FEW:
        return list(values.sort(0).values)
    rows = list(values)
    for turn in range(len(rows)):
        for at in range(turn % 2, len(rows) - 1, 2):
            rows[at], rows[at + 1] = torch.minimum(rows[at], rows[at + 1]), torch.maximum(rows[at], rows[at + 1])
    return rows


@torch.no_grad()
def clipped_mean(values: Tensor, weights: Tensor, factors: Tensor | None = None) -> Tensor:
    """[...] of contributions [n, ...] with weights [n]; ``factors`` [n]: other ones than ``clip_factors``."""
    shares = _positive(weights)
    shares = (shares / shares.sum()).view(-1, *[1] * (values.dim() - 1))
    factors = clip_factors(values) if factors is None else factors
    if bool((factors == 1).all()):
        base = values[0]
        return base + ((values - base) * shares).sum(0)
    middle = median(values)
    return middle + ((values - middle) * shares * factors.view(shares.shape)).sum(0)


def clip_factors(values: Tensor) -> Tensor:
    """[n]: by how much of its way from the median each of [n, ...] counts; 1 for all that are not far away."""
    num = values.shape[0]
    if num < FEWEST:
        return torch.ones(num, dtype=values.dtype)
    distances = (values - median(values)).flatten(1).norm(dim=1)
    bound = REACH * distances.sort().values[(num - 1) // 2]
    return torch.where(distances > bound, (bound / distances.clamp_min(1e-30)).square(), 1.0)


def _positive(weights: Tensor) -> Tensor:
    """Weights of which none is nothing."""
    total = weights.sum()
    return weights.clamp_min(1e-9 * float(total)) if total > 0 else torch.ones_like(weights)


def robust(values: Tensor, weights: Tensor, how: Robust) -> Tensor:
    """The mean of [n, ...] with weights [n], as ``how`` says."""
    if how == "none" or values.shape[0] < FEWEST:
        shares = _positive(weights)
        return (values * (shares / shares.sum()).view(-1, *[1] * (values.dim() - 1))).sum(0)
    if how == "median":
        return median(values)
    return trimmed_mean(values, weights) if how == "trimmed-mean" else clipped_mean(values, weights)


def sound(copies: Sequence[tuple[float, State]], like: State) -> list[int]:
    """Which of them can be averaged at all: of the names, shapes and types of ``like``, and finite numbers."""
    found = []
    for index, (_, state) in enumerate(copies):
        try:
            check_fits(state, like)
        except RemoteError:
            continue
        found.append(index)
    return found


@torch.no_grad()
def robust_mean(copies: Sequence[tuple[float, State]], how: Robust, like: State) -> dict[str, Tensor]:
    """The mean of copies of one part, by mass, without those that are unsound. Give them in peer-id order.

    Raises ``RemoteError`` where none is sound, and for odd masses; with "none", or two copies, as ``weighted_mean``.
    """
    if how == "none":
        return weighted_mean(copies)
    kept = [copies[index] for index in sound(copies, like)]
    if not kept:
        raise RemoteError("copies", f"none of {len(copies)} copies of a part is sound")
    if len(kept) < FEWEST:
        return weighted_mean(kept)
    weights = torch.tensor([mass for mass, _ in kept], dtype=torch.float64)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise RemoteError("mass", "a mass that is not a finite number")
    plain = weighted_mean(kept[:1])
    mean: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        each = [state[name] for _, state in kept]
        if all(torch.equal(other, tensor) for other in each) or not bool(tensor.isfinite().all()):
            mean[name] = tensor  # constants, such as a mask of minus infinity
            continue
        values = torch.stack([other.double() for other in each])  # [copies, ...]
        value = robust(values, weights, how) if tensor.is_floating_point() else median(values)
        mean[name] = value.to(tensor.dtype)
    return mean

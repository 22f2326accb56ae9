"""Contributions to a step of the head fit, bounded: nobody counts much more than the others do.

Peers may have samples of quite different classes, and then their gradients differ as much as they can: coordinate by
coordinate a trimmed mean would leave out whoever alone has a class. So a contribution is bounded as a whole:

    samples    no more than ``MOST_SAMPLES`` times the median count
    size       no more than ``REACH`` times the typical one, of a sample or of a peer, whichever is more; what is larger
               counts less, by the square
    moments    that no samples can have don't count

Invariant: of fewer than three contributions all count as they are. Who is within the bounds counts as it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.learning.robust.means import FEWEST

MOST_SAMPLES = 2.0
REACH = 2.0
SLACK = 1e-6
"""Of rounding, in sums over samples."""

Contribution = tuple[int, Mapping[str, Tensor]]


@torch.no_grad()
def bounded_gradients(contributions: Sequence[Contribution]) -> list[tuple[float, dict[str, Tensor]]]:
    """(samples, sums) of gradients as they count."""
    if len(contributions) < FEWEST:
        return [(float(samples), dict(sums)) for samples, sums in contributions]
    shares = _shares([float(samples) for samples, _ in contributions])
    counts = [samples * share for (samples, _), share in zip(contributions, shares, strict=True)]
    sizes = [_size(sums) * share for (_, sums), share in zip(contributions, shares, strict=True)]
    return [
        (count * factor, {name: tensor * (share * factor) for name, tensor in sums.items()})
        for (_, sums), share, count, factor in zip(contributions, shares, counts, _factors(sizes, counts), strict=True)
    ]


@torch.no_grad()
def bounded_moments(contributions: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Moments as they count, without those that no samples can have."""
    if len(contributions) < FEWEST:
        return [dict(sums) for sums in contributions]
    possible = [sums for sums in contributions if are_possible(sums)]
    if len(possible) < FEWEST:
        return [dict(sums) for sums in possible]
    samples = [float(sums["counts"].sum()) for sums in possible]
    shares = _shares(samples)
    counts = [each * share for each, share in zip(samples, shares, strict=True)]
    sizes = [float(_diagonal(sums["square"]).sum()) * share for sums, share in zip(possible, shares, strict=True)]
    factors = _factors(sizes, counts)
    return [
        {name: tensor * (share * factor) for name, tensor in sums.items()}
        for sums, share, factor in zip(possible, shares, factors, strict=True)
    ]


def are_possible(sums: Mapping[str, Tensor]) -> bool:
    """Whether there can be samples with these moments: by the inequality of Cauchy and Schwarz."""
    counts, total, square = sums["counts"], sums["sum"], sums["square"]
    diagonal, n = _diagonal(square), float(counts.sum())
    if n <= 0 or bool((counts < 0).any() or (diagonal < 0).any()):
        return False
    if bool((total.square() > n * diagonal * (1 + SLACK) + SLACK).any()):
        return False
    return square.dim() == 1 or bool((square.square() <= torch.outer(diagonal, diagonal) * (1 + SLACK) + SLACK).all())


def _diagonal(square: Tensor) -> Tensor:
    return square.diagonal() if square.dim() == 2 else square


def _shares(samples: Sequence[float]) -> list[float]:
    """By what each count of samples is multiplied."""
    most = MOST_SAMPLES * statistics.median(samples)
    return [min(1.0, most / each) if each > 0 else 1.0 for each in samples]


def _factors(sizes: Sequence[float], counts: Sequence[float]) -> list[float]:
    of_a_peer = statistics.median_low(sizes)
    of_a_sample = statistics.median_low([size / max(count, 1e-9) for size, count in zip(sizes, counts, strict=True)])
    bounds = [REACH * max(of_a_peer, of_a_sample * count) for count in counts]
    return [1.0 if size <= bound else (bound / size) ** 2 for size, bound in zip(sizes, bounds, strict=True)]


def _size(sums: Mapping[str, Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.cat([sums["weight"].flatten(), sums["bias"].flatten()])))

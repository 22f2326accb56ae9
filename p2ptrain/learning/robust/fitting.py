"""Contributions to a step of the head fit, bounded: nobody counts much more than the others do.

Peers may have samples of quite different classes, and then their gradients differ as much as they can: coordinate by
coordinate a trimmed mean would leave out whoever alone has a class. So a contribution is bounded as a whole:

    samples    no more than ``MOST_SAMPLES`` times the median count
    size       no more than ``REACH`` times the typical one, of a sample or of a peer, whichever is more; what is larger
               counts less, by the square
    moments    that no samples can have don't count
    gradients  of no convex loss neither (``GradientWatch``)

Invariant: of fewer than three contributions all count as they are. Who is within the bounds counts as it is.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.learning.head_fit import MAX_ROWS
from p2ptrain.learning.robust.means import FEWEST

MOST_SAMPLES = 2.0
REACH = 2.0
SLACK = 1e-6
"""Of rounding, in sums over samples."""
MAX_VIOLATIONS = 3
FIXED_SLACK, SAMPLED_SLACK = 0.02, 0.5
"""Cosines below nothing that pass."""

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


class GradientWatch:
    """Whose gradients are none of the loss of any fixed samples: that loss is convex in the head.

    So between two steps <g(b) - g(a), b - a> is at least nothing, for every honest peer. A negated gradient shows
    itself at once, noise now and then. After ``MAX_VIOLATIONS`` a peer counts no more in this fit. Of more samples than
    a step takes (``head_fit.MAX_ROWS``) a step sees others than the last, so these are given more slack.
    """

    def __init__(self) -> None:
        self._state: dict[str, Tensor] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._violations: Counter[str] = Counter()

    @property
    def caught(self) -> tuple[str, ...]:
        """Who counts no more."""
        return tuple(sorted(peer for peer, number in self._violations.items() if number >= MAX_VIOLATIONS))

    @torch.no_grad()
    def look(self, state: Mapping[str, Tensor], contributions: Mapping[str, Contribution]) -> None:
        """The sums of a step, computed from ``state``, by peer."""
        if self._state:
            present = (state["class_weight"] > 0).unsqueeze(1)
            way = _joined(state, present) - _joined(self._state, present)
            for peer, (samples, sums) in contributions.items():
                if peer not in self._sums or not bool(way.any()):
                    continue
                before = _joined(self._sums[peer], present)
                change = _joined(sums, present) - before
                size = float(way.norm())
                rounding = 1e-5 * float(before.norm()) * size
                slack = SAMPLED_SLACK if samples > MAX_ROWS else FIXED_SLACK
                if float(way @ change) < -slack * size * float(change.norm()) - rounding:
                    self._violations[peer] += 1
        self._state = {name: state[name].clone() for name in ("weight", "bias")}
        self._sums = {peer: dict(sums) for peer, (_, sums) in contributions.items()}


def _joined(tensors: Mapping[str, Tensor], present: Tensor) -> Tensor:
    """Weight and bias of the classes that somebody has samples of, flat."""
    both = torch.cat([tensors["weight"], tensors["bias"].unsqueeze(1)], 1)
    return (both * present).flatten().double()

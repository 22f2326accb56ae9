"""The mean of copies of one tensor, by the samples that each was trained on since all were the same; one may be wrong.

As in ``means``, with differences that keep honest copies as they are. One may lie the further away the more samples it
was trained on, as it took more steps: up to ``FURTHEST`` times as far as one of a typical number. And in a tensor of d
numbers 1 + ``CHANCE`` / sqrt(d) times as far: of few numbers distances differ by chance. Large tensors go by in chunks,
so that no more than one chunk of all copies is worked on at a time.

Invariant: with "none", of fewer than three copies, and with "clip" where none is far away, it is the plain mean, to the
bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from p2ptrain.config import Robust
from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import wide
from p2ptrain.learning.robust.means import FEWEST, REACH, clipped_mean, median, robust

FURTHEST = 4.0
"""Who claims more samples than so many times the typical number may lie no further away for it."""
CHANCE = 4.0
"""Honest biases of 5 numbers were seen 5 times as far away as typical ones, large tensors never 3 times."""
CHUNK = 1 << 18
"""Numbers of each copy."""


@torch.no_grad()
def mean_of_copies(copies: Sequence[tuple[int, Tensor]], how: Robust) -> tuple[Tensor, list[float]]:
    """The mean of (samples, tensor), all of one shape and type, and by how much of its way each copy counts.

    That is 1 but for what "clip" draws in. Counters come out as the highest, or where one may be wrong as the median.
    """
    samples, tensors = [each for each, _ in copies], [tensor for _, tensor in copies]
    first, whole = tensors[0], [1.0] * len(copies)
    is_bounded = how != "none" and len(copies) >= FEWEST
    if len(copies) == 1 or not first.numel():
        return first, whole
    if not first.is_floating_point():
        stacked = torch.stack(tensors)
        return (stacked.sort(0).values[(len(copies) - 1) // 2] if is_bounded else stacked.amax(0)), whole
    if not bool(first.isfinite().all()) or not all(bool(tensor.isfinite().all()) for tensor in tensors):
        if not all(torch.equal(tensor, first) for tensor in tensors):
            raise RemoteError("tensor-not-finite", "copies of a constant differ")
        return first, whole  # a mask of minus infinity
    factors = _clip_factors(tensors, samples) if is_bounded and how == "clip" else whole
    if not is_bounded or (how == "clip" and min(factors) == 1):
        return _plain_mean(samples, tensors), whole
    weights, counted = torch.tensor(samples).to(wide(first).dtype), torch.tensor(factors).to(wide(first).dtype)
    mean = torch.empty(first.shape, dtype=first.dtype)
    flat = mean.view(-1)
    for start, stop, values in _chunks(tensors):
        value = clipped_mean(values, weights, counted) if how == "clip" else robust(values, weights, how)
        flat[start:stop] = value.to(mean.dtype)
    return mean, factors


def _plain_mean(samples: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    total = sum(samples)
    mean = wide(torch.zeros_like(tensors[0], memory_format=torch.contiguous_format))
    for number, tensor in zip(samples, tensors, strict=True):
        mean.add_(wide(tensor), alpha=number / total if total else 1 / len(tensors))
    return mean.to(tensors[0].dtype)


def _clip_factors(tensors: Sequence[Tensor], samples: Sequence[int]) -> list[float]:
    """As ``means.clip_factors``, each by the number of its samples."""
    squares = torch.zeros(len(tensors), dtype=torch.float64)
    for _, _, values in _chunks(tensors):
        squares += (values - median(values)).square().sum(1, dtype=torch.float64)
    distances, middle = squares.sqrt(), (len(tensors) - 1) // 2
    counts = torch.tensor(samples, dtype=torch.float64)
    further = (counts / counts.sort().values[middle].clamp_min(1.0)).clamp(1.0, FURTHEST)
    reach = REACH * (1 + CHANCE / math.sqrt(tensors[0].numel()))
    bounds = reach * distances.sort().values[middle] * further
    factors = torch.where(distances > bounds, (bounds / distances.clamp_min(1e-30)).square(), 1.0)
    return [float(factor) for factor in factors]


def _chunks(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
    """First and stop of a run of numbers, and these of all copies [copies, numbers]."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    edges = [*range(0, flat[0].numel(), CHUNK), flat[0].numel()]
    for start, stop in itertools.pairwise(edges):
        yield start, stop, torch.stack([wide(each[start:stop]).cpu() for each in flat])

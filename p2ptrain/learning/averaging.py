"""Averaging of named tensors: push-sum merges between two peers, means of replicas, and how far apart copies are.

Invariant: nothing that came from another peer is used before it is checked (names, shapes, dtypes, finite numbers, size
against our own), and a merge that is refused has changed nothing. Floating point: mean in fp32, weighted by mass, the
same bits whichever side computes it; integers (BatchNorm's counters): the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.errors import LocalError, RemoteError

MAX_NORM_RATIO = 1e3
"""An incoming tensor whose root mean square passes this many times (1 + our own) is absurd."""
MAX_STATISTICS_RATIO = 1e8
"""The same for running statistics, which follow the scale of the data."""
MAX_COUNTER = 2**53
"""A counter above it would overflow before long."""

State = Mapping[str, Tensor]
Indices = Mapping[str, Tensor]
Toward = Callable[[str, Tensor, Tensor], Tensor]
"""Name, own tensor, what came: what a merge takes in its place."""


@torch.no_grad()
def check_state(incoming: State, like: State, indices: Indices | None = None) -> None:
    """Refuse (``RemoteError``) what can't be averaged into ``like``: every name of ours, nothing else.

    With ``indices`` a named tensor brings only these coordinates of the flattened tensor (top-k compression).
    """
    for name, size in check_fits(incoming, like, indices).items():
        ours, theirs = like[name], incoming[name]
        ratio = MAX_STATISTICS_RATIO if name.endswith(("running_mean", "running_var")) else MAX_NORM_RATIO
        if size <= ratio:
            continue  # whatever ours is: one look at it less
        limit = ratio * (1.0 + root_mean_square(ours))
        if size > limit and not _are_equal(theirs, ours):
            raise RemoteError("tensor-norm", f"{name}: root mean square {size:.3g}, limit {limit:.3g}")


@torch.no_grad()
def check_fits(incoming: State, like: State, indices: Indices | None = None) -> dict[str, float]:
    """As ``check_state``, whatever the size of the numbers, as long as they are finite.

    Returns that size, the root mean square of every float tensor that came.
    """
    sizes: dict[str, float] = {}
    indices = indices or {}
    if incoming.keys() != like.keys():
        missing, extra = sorted(like.keys() - incoming.keys()), sorted(incoming.keys() - like.keys())
        raise RemoteError("tensor-names", f"missing {missing[:3]}, unknown {extra[:3]}")
    if not indices.keys() <= like.keys():
        raise RemoteError("tensor-names", "indices of a tensor that does not exist")
    for name, ours in like.items():
        theirs = incoming[name]
        shape = tuple(indices[name].shape) if name in indices else tuple(ours.shape)
        if tuple(theirs.shape) != shape:
            raise RemoteError("tensor-shape", f"{name}: {tuple(theirs.shape)} where {shape} is due")
        if theirs.dtype != ours.dtype:
            raise RemoteError("tensor-dtype", f"{name}: {theirs.dtype} where {ours.dtype} is due")
        if theirs.numel():
            size = _check_numbers(name, theirs, ours)
            sizes |= {name: size} if theirs.is_floating_point() else {}
    return sizes


def _check_numbers(name: str, theirs: Tensor, ours: Tensor) -> float:
    """Its root mean square; 0 of whole numbers."""
    if not theirs.is_floating_point():
        if bool(((theirs < 0) & (theirs < ours.to(theirs.device))).any()):  # ours may be a constant below zero
            raise RemoteError("tensor-negative", f"{name}: a counter below zero")
        if theirs.dtype == torch.int64 and int(theirs.max()) > max(MAX_COUNTER, int(ours.max())):
            raise RemoteError("tensor-counter", f"{name}: counted to {int(theirs.max())}")
        return 0.0
    size = root_mean_square(theirs)
    if not math.isfinite(size) and _are_equal(theirs, ours):
        return size  # a constant, such as a mask of minus infinity
    if not math.isfinite(size):  # NaN or infinity anywhere, or squares beyond fp32, ends up here
        raise RemoteError("tensor-not-finite", name)
    if name.endswith("running_var") and bool((theirs < 0).any()):
        raise RemoteError("tensor-negative", f"{name}: a variance below zero")
    return size


def _are_equal(theirs: Tensor, ours: Tensor) -> bool:
    """NaN counts as equal to NaN. (Of other shapes are coordinates of a tensor.)"""
    same = theirs.shape == ours.shape
    return same and bool(torch.isclose(theirs, ours.to(theirs.device), rtol=0, atol=0, equal_nan=True).all())


def wide(tensor: Tensor) -> Tensor:
    """In the precision in which numbers are added up: at least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def root_mean_square(tensor: Tensor) -> float:
    """0 of an empty tensor; not finite where a number of it is not."""
    return float(torch.linalg.vector_norm(wide(tensor))) / math.sqrt(max(1, tensor.numel()))


def merge(
    current: State,
    incoming: State,
    own_mass: float,
    incoming_mass: float,
    *,
    indices: Indices | None = None,
    toward: Toward | None = None,
) -> None:
    """Push-sum: put the mass-weighted mean of both into ``current``, in place.

    ``toward`` may put something else in the place of a float tensor that came.
    """
    check_state(incoming, current, indices)
    merge_checked(current, incoming, own_mass, incoming_mass, indices=indices, toward=toward)


@torch.no_grad()
def merge_checked(
    current: State,
    incoming: State,
    own_mass: float,
    incoming_mass: float,
    *,
    indices: Indices | None = None,
    toward: Toward | None = None,
) -> None:
    """As ``merge``, of what ``check_state`` has found to be sound: looking at each number once is enough."""
    own, share = _shares(own_mass, incoming_mass)
    indices = indices or {}
    merged: set[tuple[int, torch.Size]] = set()
    for name, ours in current.items():
        if (ours.data_ptr(), ours.shape) in merged and ours.numel():
            continue  # tied weights: one tensor by several names is averaged once
        merged.add((ours.data_ptr(), ours.shape))
        theirs = incoming[name].to(ours.device)
        at = indices.get(name)
        if at is not None:
            flat = ours.reshape(-1)  # a view where strides allow, else a copy that is written back below
            at = at.to(ours.device, torch.int64)
            mine = flat[at]
            if toward is not None:
                theirs = toward(name, mine, theirs)
            flat[at] = _mean_of_two(mine, theirs, own, share)
            if flat.data_ptr() != ours.data_ptr():
                ours.copy_(flat.view(ours.shape))
        elif not ours.is_floating_point():
            torch.maximum(ours, theirs, out=ours)
        else:
            if toward is not None:
                theirs = toward(name, ours, theirs)
            _move_to_mean(ours, theirs, own, share)


def _shares(own_mass: float, incoming_mass: float) -> tuple[float, float]:
    if not (math.isfinite(own_mass) and own_mass >= 0):
        raise LocalError(f"own mass is {own_mass}")
    if not (math.isfinite(incoming_mass) and incoming_mass > 0):
        raise RemoteError("mass", f"{incoming_mass} is not a finite number above zero")
    total = own_mass + incoming_mass
    return own_mass / total, incoming_mass / total


def _mean_of_two(a: Tensor, b: Tensor, share_a: float, share_b: float) -> Tensor:
    # Two rounded products, then a sum: symmetric, so both sides of an exchange get the same bits (lerp would not).
    return (wide(a) * share_a).add_(wide(b) * share_b)


def _move_to_mean(ours: Tensor, theirs: Tensor, share_ours: float, share_theirs: float) -> None:
    """``_mean_of_two`` in place of the first: the same operations, so the same bits."""
    if wide(ours) is ours:
        ours.mul_(share_ours).add_(wide(theirs) * share_theirs)
    else:
        ours.copy_(_mean_of_two(ours, theirs, share_ours, share_theirs))


@torch.no_grad()
def weighted_mean(copies: Sequence[tuple[float, State]]) -> dict[str, Tensor]:
    """The mean of copies of one part, by mass. Give them in peer-id order: the same order gives the same bits."""
    if not copies:
        raise LocalError("mean of no copies")
    first = copies[0][1]
    for mass, state in copies:
        if not (math.isfinite(mass) and mass >= 0):
            raise RemoteError("mass", f"{mass} is not a finite number")
        check_state(state, first)
    total = math.fsum(mass for mass, _ in copies)
    shares = [mass / total if total > 0 else 1.0 / len(copies) for mass, _ in copies]
    mean: dict[str, Tensor] = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            mean[name] = torch.stack([state[name] for _, state in copies]).amax(0)
            continue
        if not math.isfinite(root_mean_square(tensor)) and all(_are_equal(state[name], tensor) for _, state in copies):
            mean[name] = tensor.clone()  # a constant: a share of zero of it would be no number
            continue
        accumulated = wide(torch.zeros_like(tensor, memory_format=torch.contiguous_format))
        for share, (_, state) in zip(shares, copies, strict=True):
            accumulated.add_(wide(state[name]) * share)
        mean[name] = accumulated.to(tensor.dtype)
    return mean


@torch.no_grad()
def consensus_distance(states: Iterable[State], *, relative: bool = False) -> float:
    """sqrt(mean over copies of ||x_i - mean||^2) over float tensors; ``relative``: divided by ||mean||."""
    copies = list(states)
    gap = norm = 0.0
    for name, tensor in copies[0].items() if copies else ():
        if tensor.is_floating_point():
            stacked = torch.stack([state[name].double() for state in copies])  # [copies, ...]
            middle = stacked.mean(0)
            gap += float((stacked - middle).square().sum()) / len(copies)
            norm += float(middle.square().sum())
    return math.sqrt(gap / norm) if relative and norm else math.sqrt(gap)

"""Which class group owns which channels: so many for each by its share, and by scores those that it needs most.

Invariant: each unit (a class of ids that a split must not separate) has one owner; every group gets at least one unit
of every space (the units that the same layers make), or the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor

from p2ptrain.errors import JobError, LocalError
from p2ptrain.learning.submodels.channels import NEXT_STEP, Channels

SHARED = -1  # owner of what everyone holds
NOBODY = -2  # owner of channels that the shares leave over


def assign(
    channels: Channels,
    shared: Set[int],
    groups: Sequence[Sequence[int]],
    shares: Sequence[float],
    scores: Mapping[str, Tensor],
) -> Tensor:
    """The owner of every channel id: a group, ``SHARED`` for the ``shared`` classes and the head, or ``NOBODY``."""
    owner_of_class = dict.fromkeys(shared, SHARED)
    for ids, units, makers in _spaces(channels, shared):
        if len(units) < len(groups):
            raise JobError(_too_few(channels, makers, len(units), len(groups)))
        counts = split_counts(len(units), shares)
        score = _unit_scores(channels, groups, units, ids, makers, scores)
        for group, chosen in enumerate(_choose(counts, score)):
            owner_of_class |= {units[one]: group for one in chosen}
    owner = [owner_of_class.get(channels.root(one), NOBODY) for one in range(len(channels.parents))]
    for one in channels.created[channels.head].tolist():
        owner[one] = SHARED
    return torch.tensor(owner)


def _spaces(channels: Channels, shared: Set[int]) -> list[tuple[list[int], list[int], tuple[str, ...]]]:
    """Classes made by the same layers: (their ids, the classes in order, the layers' names)."""
    makers: dict[int, list[str]] = {}
    members: dict[int, list[int]] = {}
    for layer, ids in channels.created.items():
        for one, root in zip(ids.tolist(), channels.roots(ids), strict=True):
            if layer != channels.head and root not in shared:
                members.setdefault(root, []).append(one)
                if layer not in makers.setdefault(root, []):
                    makers[root].append(layer)
    spaces: dict[tuple[str, ...], list[int]] = {}
    for root, layers in makers.items():
        spaces.setdefault(tuple(layers), []).append(root)
    return [([one for unit in units for one in members[unit]], units, names) for names, units in spaces.items()]


def _unit_scores(
    channels: Channels,
    groups: Sequence[Sequence[int]],
    units: list[int],
    ids: list[int],
    makers: tuple[str, ...],
    scores: Mapping[str, Tensor],
) -> Tensor | None:
    """[groups, units]: what each unit is worth to each group; None without scores for these layers."""
    num_classes = channels.created[channels.head].numel()
    layers = [layer for layer in makers if layer in scores]
    if not layers:
        return None
    members = set(ids)
    column = {unit: index for index, unit in enumerate(units)}
    worth = torch.zeros(len(groups), len(units), dtype=torch.float64)
    for layer in layers:
        made, score = channels.created[layer], scores[layer].detach().double().cpu()
        if tuple(score.shape) != (num_classes, made.numel()) or not bool(score.isfinite().all()):
            raise LocalError(
                f"scores of layer {layer!r}: expected finite numbers of shape {(num_classes, made.numel())}, "
                f"got shape {tuple(score.shape)}"
            )
        for channel, (one, root) in enumerate(zip(made.tolist(), channels.roots(made), strict=True)):
            if one in members:
                for group, classes in enumerate(groups):
                    worth[group, column[root]] += score[list(classes), channel].mean()
    return worth


def _too_few(channels: Channels, makers: tuple[str, ...], num_units: int, num_groups: int) -> str:
    made = channels.created[makers[0]]
    roots = set(channels.roots(made))
    reasons = [place for one, place in channels.mixed if channels.root(one) in roots]
    if not reasons:
        return (
            f"layer {makers[0]!r} has {made.numel()} channels, which can't be divided among {num_groups} class "
            f"groups: make it at least {num_groups} wide, use fewer groups, or {NEXT_STEP}"
        )
    return (
        f"the {made.numel()} channels of layer {makers[0]!r} can't be divided among {num_groups} class groups: "
        f"{reasons[0]} works across channels and leaves {num_units} separable unit(s); if it is a norm, use "
        f"BatchNorm or GroupNorm with at least {num_groups} norm groups; else {NEXT_STEP}"
    )


def split_counts(num_units: int, shares: Sequence[float]) -> list[int]:
    """Units per share: at least one each, all together round(num_units * sum of shares), largest remainders first."""
    quotas = [share * num_units for share in shares]
    counts = [max(1, math.floor(quota + 1e-9)) for quota in quotas]
    total = max(len(shares), min(num_units, round(sum(quotas))))
    while sum(counts) != total:
        lacks = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        if sum(counts) < total:
            counts[lacks.index(max(lacks))] += 1
        else:
            worst = min((lack, g) for g, lack in enumerate(lacks) if counts[g] > 1)
            counts[worst[1]] -= 1
    return counts


def _choose(counts: list[int], score: Tensor | None) -> list[list[int]]:
    """Which units each group gets: runs, or greedily the best of those that are left."""
    if score is None:
        starts = [sum(counts[:group]) for group in range(len(counts))]
        return [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]
    relative = score / score.mean(1, keepdim=True).abs().clamp_min(1e-30)  # no group wins by large gradients alone
    chosen: list[list[int]] = [[] for _ in counts]
    taken: set[int] = set()
    for flat in relative.flatten().argsort(descending=True, stable=True).tolist():
        group, unit = divmod(flat, score.shape[1])
        if unit not in taken and len(chosen[group]) < counts[group]:
            chosen[group].append(unit)
            taken.add(unit)
    return chosen


def checked_groups(groups: Sequence[Sequence[int]], num_classes: int) -> tuple[tuple[int, ...], ...]:
    """Raises ``JobError`` unless each is of some classes that no other has."""
    checked = tuple(tuple(int(one) for one in group) for group in groups)
    classes = [one for group in checked for one in group]
    if not checked or not all(checked):
        raise JobError("class groups: there must be at least one, and each needs at least one class")
    if len(set(classes)) != len(classes) or not set(classes) <= set(range(num_classes)):
        raise JobError(
            f"class groups {checked}: each class must be in one group only, and the model has classes 0 to "
            f"{num_classes - 1}"
        )
    return checked


def checked_shares(shares: Sequence[float] | None, num_groups: int) -> tuple[float, ...]:
    """Equal ones by default. Raises ``JobError`` unless there is one for each group, and all fit in."""
    checked = tuple(float(share) for share in shares) if shares is not None else (1.0 / num_groups,) * num_groups
    if len(checked) != num_groups or not all(0 < share <= 1 for share in checked) or sum(checked) > 1 + 1e-9:
        raise JobError(
            f"width shares {checked}: {num_groups} groups need as many, each above 0 and all together at most 1"
        )
    return checked

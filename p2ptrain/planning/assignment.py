"""Who trains what: the first plan of a job, and the next one when peers come and go.

Invariant: pure and deterministic. A plan depends on the job, the snapshots (in any order), the proposer, and for
``next_plan`` on the plan before it, so every peer computes the same plan from the same inputs; ``recomputes`` says
whether a plan is one that these functions would have made.

``first_plan`` cuts classes into parts (``grouping``), sizes them (``shares``) and staffs them (``staffing``);
``next_plan`` keeps classes and shares and staffs again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from p2ptrain.config import Job
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.planning.footprint import largest_share
from p2ptrain.planning.grouping import Group, group_classes, group_peers, groups_by_data, swap_for_wishes
from p2ptrain.planning.plan import (
    MAX_FORMER,
    CombineRule,
    Former,
    Part,
    PeerSnapshot,
    Plan,
    TargetRule,
    cleaned,
    shards,
)
from p2ptrain.planning.shares import even_shares, limits
from p2ptrain.planning.staffing import Staff

SENSIBLE_GROUPS = 8
"""Most groups that ``num_groups = 0`` makes: an eighth of the width is 64 times less work than the full model."""
SMALLEST_SHARE = 0.25
"""A peer is of use when its memory holds at least this fraction of an even share."""


def first_plan(job: Job, peers: Sequence[PeerSnapshot], proposer: PeerId) -> Plan:
    """The plan a group starts with. At least one peer must have samples."""
    inputs = clean(job, peers)
    if not any(peer.counts for peer in inputs):
        raise LocalError("a first plan needs a peer with samples")
    by_data = groups_by_data(inputs, len(job.data.classes)) if job.mode == "tasks" else None
    targets, combine, calibrate = _regime(job, by_data is not None)
    if job.mode == "replicas":
        groups, sizes = [Group(tuple(range(len(job.data.classes))), inputs)], [1.0]
    else:
        groups = sorted(by_data or _groups_by_speed(job, inputs), key=lambda group: group.classes)
        sizes = _shares(job, groups, speeds(inputs), targets)
    parts = tuple(
        Part(index, group.classes, share, (), shards(job.mode, job.tasks.trunk, index))
        for index, (group, share) in enumerate(zip(groups, sizes, strict=True))
    )
    plan = Plan(
        epoch=1,
        job=job.id,
        mode=job.mode,
        proposer=proposer,
        parts=parts,
        trunk=job.tasks.trunk,
        disjoint=by_data is not None,
        targets=targets,
        combine=combine,
        calibrate=calibrate,
        peers=inputs,
        former=(),
        parent="",
    )
    chosen = {peer.peer: index for index, group in enumerate(groups) for peer in group.trainers}
    return dataclasses.replace(plan, parts=_staffed(parts, _staff(job, plan, inputs, chosen)))


def next_plan(job: Job, current: Plan, alive: Sequence[PeerSnapshot], proposer: PeerId) -> Plan | None:
    """The plan after ``current`` with the peers now alive; None when nobody's part would change."""
    inputs = clean(job, alive)
    names = {peer.peer for peer in inputs}
    before = current.trainers()
    part_of = _staff(job, current, inputs, {peer: part for peer, part in before.items() if peer in names})
    if part_of == before or not inputs:
        return None
    gone = [Former(peer, part) for peer, part in sorted(before.items()) if peer not in part_of]
    kept = [entry for entry in current.former if entry.peer not in part_of]
    return dataclasses.replace(
        current,
        epoch=current.epoch + 1,
        proposer=proposer,
        parts=_staffed(current.parts, part_of),
        peers=inputs,
        former=tuple([*kept, *gone][-MAX_FORMER:]),
        parent=current.hash,
    )


def recomputes(job: Job, plan: Plan, parent: Plan | None) -> bool:
    """Whether ``plan`` is what its inputs give. Without its parent only its fit to the job can be checked."""
    if plan.job != job.id or any(peer != cleaned(peer, len(job.data.classes)) for peer in plan.peers):
        return False
    if plan.epoch == 1:
        return any(peer.counts for peer in plan.peers) and first_plan(job, plan.peers, plan.proposer) == plan
    if parent is not None and parent.hash == plan.parent:
        return next_plan(job, parent, plan.peers, plan.proposer) == plan
    fits = plan.mode == job.mode and plan.trunk == job.tasks.trunk and plan.num_classes == len(job.data.classes)
    return fits and (plan.targets, plan.combine, plan.calibrate) == _regime(job, plan.disjoint)


def notes(job: Job, plan: Plan) -> list[str]:
    """What a person should know about the plan, a line each."""
    lines = []
    trainers = plan.trainers()
    for peer in plan.peers:
        if peer.flops_per_s <= 0:
            lines.append(f"{peer.peer}: no speed known, taken for the slowest; `p2ptrain probe` measures it")
        if peer.peer not in trainers and not peer.counts:
            lines.append(f"{peer.peer}: has no samples of this job, trains nothing")
        elif peer.peer not in trainers:
            lines.append(f"{peer.peer}: no part fits its memory and its samples, trains nothing")
        elif largest_share(job, peer.memory_bytes) < plan.parts[trainers[peer.peer]].share:
            lines.append(f"{peer.peer}: its part may not fit into its memory; a smaller batch_size helps")
    for part in plan.parts:
        if not part.trainers:
            names = ", ".join(job.data.classes[c] for c in part.classes)
            lines.append(f"part {part.index} ({names}) waits for a peer that can train it")
    if plan.disjoint and job.tasks.num_groups not in (0, len(plan.parts)):
        lines.append(f"tasks.num_groups = {job.tasks.num_groups} is not kept: the data give {len(plan.parts)} groups")
    return lines


def clean(job: Job, peers: Sequence[PeerSnapshot]) -> tuple[PeerSnapshot, ...]:
    """Snapshots in canonical order and form."""
    unique = {peer.peer: cleaned(peer, len(job.data.classes)) for peer in peers}
    if len(unique) != len(peers):
        raise LocalError("a peer is named twice")
    return tuple(unique[name] for name in sorted(unique))


def speeds(peers: Sequence[PeerSnapshot]) -> dict[PeerId, float]:
    """FLOP/s by peer; one that is not known is taken for the slowest."""
    slowest = min((peer.flops_per_s for peer in peers if peer.flops_per_s > 0), default=1.0)
    return {peer.peer: peer.flops_per_s if peer.flops_per_s > 0 else slowest for peer in peers}


def round_costs(plan: Plan) -> dict[PeerId, float]:
    """Relative time of a round, by trainer: share^2 * samples / speed. Even is good."""
    speed = speeds(plan.peers)
    by_name = {peer.peer: peer for peer in plan.peers}
    return {
        name: part.share * part.share * num_samples(by_name[name], part.classes, plan.targets) / speed[name]
        for part in plan.parts
        for name in part.trainers
    }


def num_samples(peer: PeerSnapshot, classes: Sequence[int], targets: TargetRule) -> int:
    """Samples that a peer passes in a round: with targets "own" only those of its part's classes; at least one."""
    return max(1, sum(peer.counts[c] for c in classes) if targets == "own" and peer.counts else peer.num_samples)


def _regime(job: Job, disjoint: bool) -> tuple[TargetRule, CombineRule, bool]:
    """Targets, combination and calibration: what the job says, or what suits the data."""
    asked = job.tasks
    calibrate = asked.calibrate == "always" or (asked.calibrate == "auto" and disjoint)
    if job.mode == "replicas":
        return "all", "own", calibrate
    targets: TargetRule
    combine: CombineRule
    if asked.targets != "auto":
        targets = asked.targets
    else:
        targets = "own" if disjoint and asked.combine != "sum" else "all"
    if asked.combine != "auto":
        combine = asked.combine
    else:
        combine = "own" if disjoint or targets != "all" else "sum"
    return targets, combine, calibrate


def _groups_by_speed(job: Job, inputs: Sequence[PeerSnapshot]) -> list[Group]:
    num_classes = len(job.data.classes)
    holders = [peer for peer in inputs if peer.counts]
    num_groups = job.tasks.num_groups or min(len(holders), num_classes, SENSIBLE_GROUPS)
    useful = SMALLEST_SHARE / num_groups
    holders = [peer for peer in holders if largest_share(job, peer.memory_bytes) >= useful] or holders
    if not job.tasks.num_groups:
        num_groups = min(num_groups, len(holders))
    speed = speeds(inputs)
    costs = {peer.peer: num_samples(peer, (), "all") / speed[peer.peer] for peer in holders}
    by_name = {peer.peer: peer for peer in holders}
    groups = [[by_name[name] for name in run] for run in group_peers(costs, num_groups)]
    weights = _fit(job, groups, costs, [num_classes / num_groups] * num_groups)
    classes = group_classes(groups, weights, num_classes)
    groups = swap_for_wishes(groups, classes, costs)
    return [Group(tuple(held), tuple(group)) for held, group in zip(classes, groups, strict=True)]


def _shares(job: Job, groups: Sequence[Group], speed: Mapping[PeerId, float], targets: TargetRule) -> list[float]:
    costs = {
        peer.peer: num_samples(peer, group.classes, targets) / speed[peer.peer]
        for group in groups
        for peer in group.trainers
    }
    return _fit(job, [group.trainers for group in groups], costs, [len(group.classes) for group in groups])


def _fit(
    job: Job, groups: Sequence[Sequence[PeerSnapshot]], costs: Mapping[PeerId, float], sizes: Sequence[float]
) -> list[float]:
    """Shares that let the groups' slowest trainers finish together; a group without trainers gets an even one."""
    useful = SMALLEST_SHARE / len(groups)
    rooms = [min((largest_share(job, peer.memory_bytes) for peer in group), default=1.0) for group in groups]
    bounds = limits(len(job.data.classes), sizes, [max(room, useful) for room in rooms])
    waiting = {g: bounds[g][1] / 2 for g, group in enumerate(groups) if not group}
    staffed = [g for g, group in enumerate(groups) if group]
    slowest = [max(costs[peer.peer] for peer in groups[g]) for g in staffed]
    fitted = even_shares(slowest, [bounds[g] for g in staffed], 1.0 - sum(waiting.values()))
    by_group = waiting | dict(zip(staffed, fitted, strict=True))
    return [by_group[g] for g in range(len(groups))]


def _staff(job: Job, plan: Plan, peers: Sequence[PeerSnapshot], part_of: Mapping[PeerId, int]) -> dict[PeerId, int]:
    """Everyone's part, after free peers and parts without trainers have found each other."""
    staff = Staff(
        room={peer.peer: largest_share(job, peer.memory_bytes) for peer in peers},
        plan=plan,
        peers={peer.peer: peer for peer in peers},
        speed=speeds(peers),
        part_of=part_of,
    )
    staff.place()
    return staff.part_of


def _staffed(parts: Sequence[Part], part_of: Mapping[PeerId, int]) -> tuple[Part, ...]:
    trainers: list[list[PeerId]] = [[] for _ in parts]
    for peer, index in sorted(part_of.items()):
        trainers[index].append(peer)
    return tuple(dataclasses.replace(part, trainers=tuple(trainers[part.index])) for part in parts)

"""Who trains what: the first plan of a job, and the next one when peers come and go.

Invariant: pure and deterministic. A plan depends on the job, the snapshots (in any order), the proposer, and for
``next_plan`` on the plan before it, so every peer computes the same plan from the same inputs; ``recomputes`` says
whether a plan is one that these functions would have made.

``first_plan`` chooses the mode where the job leaves that to the group (``mode_choice``), cuts classes into parts
(``grouping``, ``holdings``), sizes them (``shares``) and staffs them (``staffing``);
``next_plan`` keeps classes and shares and staffs again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot, Plan, clean, cleaned, speeds, unlearnt_classes
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.learning.work import fewest_samples
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.plan import (
    MAX_FORMER,
    ClassPart,
    CombineRule,
    Former,
    TargetRule,
    TasksBody,
    body_of,
    shards_of,
)
from p2ptrain.modes.tasks.planning.grouping import group_classes, group_peers, groups_by_data, swap_for_wishes
from p2ptrain.modes.tasks.planning.holdings import (
    Group,
    classes_by_holdings,
    clusters,
    held_classes,
    known_to,
    lacking,
    merged_until_each_has_a_class,
)
from p2ptrain.modes.tasks.planning.mode_choice import max_groups, mode_for
from p2ptrain.modes.tasks.planning.shares import WIDTH_SPREAD, affordable_share, even_shares, limits
from p2ptrain.modes.tasks.planning.staffing import Staff
from p2ptrain.planning.devices.footprint import largest_share

SENSIBLE_GROUPS = 8
"""Most groups that ``num_groups = 0`` makes: an eighth of the width is 64 times less work than the full model."""
FEW_SAMPLES = 20
"""Of a class, in the whole group: with fewer a model can hardly learn it."""
SMALLEST_SHARE = 0.25
"""A peer is of use when its memory holds at least this fraction of an even share."""


def first_plan(job: Job, peers: Sequence[PeerSnapshot], proposer: PeerId) -> Plan:
    """The plan a group starts with. At least one peer must have samples."""
    inputs = clean(job, peers)
    if not any(peer.counts for peer in inputs):
        raise LocalError("a first plan needs a peer with samples")
    num_classes = len(job.data.classes)
    mode, _ = mode_for(job, inputs)
    by_data = groups_by_data(inputs, num_classes) if mode == "tasks" else None
    if by_data is not None and len(by_data) > max_groups(job, inputs):
        by_data = None  # the model is too narrow for a group each: those that are most alike share one
    targets, combine, fit_head = _regime(job, mode, by_data is not None, lacking(inputs, num_classes))
    if mode == "replicas":
        groups, sizes = [Group(tuple(range(num_classes)), inputs)], [1.0]
    else:
        groups = sorted(by_data or _groups_by_speed(job, inputs), key=lambda group: group.classes)
        overlapping = by_data is None and lacking(inputs, num_classes)
        sizes = _shares(job, groups, speeds(inputs), targets, overlapping)
    trunk = tasks_of(job).trunk if mode == "tasks" else 0
    parts = tuple(
        ClassPart(index, share, (), group.classes, shards_of(mode, trunk, index))
        for index, (group, share) in enumerate(zip(groups, sizes, strict=True))
    )
    body = TasksBody(
        parts=parts,
        trunk=trunk,
        disjoint=by_data is not None,
        targets=targets,
        combine=combine,
        fit_head=fit_head,
        former=(),
    )
    chosen = {peer.peer: index for index, group in enumerate(groups) for peer in group.trainers}
    body = dataclasses.replace(body, parts=_staffed(parts, _staff(job, mode, body, inputs, chosen)))
    return Plan(epoch=1, job=job.id, mode=mode, proposer=proposer, peers=inputs, parent="", body=body)


def next_plan(job: Job, current: Plan, alive: Sequence[PeerSnapshot], proposer: PeerId) -> Plan | None:
    """The plan after ``current`` with the peers now alive; None when nobody's part would change."""
    inputs = clean(job, alive)
    names = {peer.peer for peer in inputs}
    body, before = body_of(current), current.trainers()
    part_of = _staff(job, current.mode, body, inputs, {peer: part for peer, part in before.items() if peer in names})
    if part_of == before or not inputs:
        return None
    gone = [Former(peer, part) for peer, part in sorted(before.items()) if peer not in part_of]
    kept = [entry for entry in body.former if entry.peer not in part_of]
    body = dataclasses.replace(
        body,
        parts=_staffed(body.parts, part_of),
        fit_head=body.fit_head or _fits_head(job, body.disjoint, lacking(inputs, len(job.data.classes))),
        former=tuple([*kept, *gone][-MAX_FORMER:]),
    )
    return dataclasses.replace(
        current, epoch=current.epoch + 1, proposer=proposer, peers=inputs, parent=current.hash, body=body
    )


def recomputes(job: Job, plan: Plan, parent: Plan | None) -> bool:
    """Whether ``plan`` is what its inputs give. Without its parent only its fit to the job can be checked."""
    body = plan.body
    if (
        not isinstance(body, TasksBody)
        or plan.job != job.id
        or any(peer != cleaned(peer, len(job.data.classes)) for peer in plan.peers)
    ):
        return False
    if plan.epoch == 1:
        return any(peer.counts for peer in plan.peers) and first_plan(job, plan.peers, plan.proposer) == plan
    if parent is not None and parent.hash == plan.parent:
        return next_plan(job, parent, plan.peers, plan.proposer) == plan
    modes = ("tasks", "replicas") if job.mode == "auto" else (job.mode,)
    trunk = tasks_of(job).trunk if plan.mode == "tasks" else 0
    if plan.mode not in modes or body.trunk != trunk or body.num_classes != len(job.data.classes):
        return False
    # Who lacked which class when the first plan was made is not known any more, nor who has come since.
    possible = [_regime(job, plan.mode, body.disjoint, lacks) for lacks in (False, True)]
    return (body.targets, body.combine) in [each[:2] for each in possible] and body.fit_head in [p[2] for p in possible]


def notes(job: Job, plan: Plan) -> list[str]:
    """What a person should know about the plan, a line each. Peers are named by their ids."""
    lines = []
    trainers = plan.trainers()
    held = held_classes(plan.peers, len(job.data.classes))
    for peer in plan.peers:
        if peer.flops_per_s <= 0:
            lines.append(f"{peer.peer}: no speed known, taken for the slowest; `p2ptrain probe` measures it")
        if peer.peer not in trainers and not peer.counts:
            lines.append(f"{peer.peer}: has no samples of this job, trains nothing")
        elif peer.peer not in trainers:
            lines.append(f"{peer.peer}: no part fits its memory and its samples, trains nothing")
        elif largest_share(job, peer.memory_bytes) < plan.parts[trainers[peer.peer]].share:
            lines.append(f"{peer.peer}: its part may not fit into its memory; a smaller batch_size helps")
        if len(held[peer.peer]) == 1 and peer.peer in trainers and job.data.kind != "text":
            (only,) = (job.data.classes[c] for c in held[peer.peer])
            lines.append(
                f"{peer.peer}: has samples of {only} alone, and learns nothing from one class; they count when the "
                "group fits the last layer"
            )
    lines += _class_notes(job, plan)
    if tasks_of(job).budget and plan.mode == "replicas":
        lines.append("tasks.budget is not kept: every device trains the whole model")
    if body_of(plan).disjoint and tasks_of(job).num_groups not in (0, len(plan.parts)):
        lines.append(
            f"tasks.num_groups = {tasks_of(job).num_groups} is not kept: the data give {len(plan.parts)} groups"
        )
    return lines


def _class_notes(job: Job, plan: Plan) -> list[str]:
    """Classes that nobody will learn, or hardly."""
    names, lines = job.data.classes, list[str]()
    if job.data.kind == "text":
        return lines  # its classes are bytes, of which no text has all
    totals = [sum(peer.counts[c] for peer in plan.peers if peer.counts) for c in range(len(names))]
    lines += unlearnt_classes(plan, job, [peer.peer for peer in plan.peers])
    few = [f"{names[c]} ({total})" for c, total in enumerate(totals) if 0 < total < FEW_SAMPLES]
    if few:
        lines.append(f"few samples in all: {', '.join(few)}; more of them help most")
    for part in body_of(plan).parts:
        owned = [names[c] for c in part.classes if totals[c]]
        if not part.trainers and owned:
            lines.append(f"part {part.index} ({', '.join(owned)}) waits for a peer that can train it")
    return lines


def round_costs(plan: Plan) -> dict[PeerId, float]:
    """Relative time of a round, by trainer: share^2 * samples / speed. Even is good."""
    speed = speeds(plan.peers)
    by_name, body = {peer.peer: peer for peer in plan.peers}, body_of(plan)
    return {
        name: part.share * part.share * num_samples(by_name[name], part.classes, body.targets) / speed[name]
        for part in body.parts
        for name in part.trainers
    }


def num_samples(peer: PeerSnapshot, classes: Sequence[int], targets: TargetRule) -> int:
    """Samples that a peer passes in a round: with targets "own" only those of its part's classes; at least one."""
    return max(1, sum(peer.counts[c] for c in classes) if targets == "own" and peer.counts else peer.num_samples)


def _fits_head(job: Job, disjoint: bool, lacks: bool) -> bool:
    """Whether the group fits the last layer again: what the job says, or where some peer lacks a class."""
    if job.data.kind == "text":
        return False  # every text lacks some byte, and what is fitted is a classifier of samples
    return tasks_of(job).fit_head == "always" or (tasks_of(job).fit_head == "auto" and (disjoint or lacks))


def _regime(job: Job, mode: str, disjoint: bool, lacks: bool) -> tuple[TargetRule, CombineRule, bool]:
    """Targets, combination and whether the head is fitted: what the job says, or what suits the data.

    Votes on all classes are only worth their sum where everybody has seen all classes.
    """
    asked = tasks_of(job)
    fit_head = _fits_head(job, disjoint, lacks)
    if mode == "replicas":
        return "all", "own", fit_head
    targets: TargetRule
    combine: CombineRule
    if asked.targets != "auto":
        targets = asked.targets
    else:
        targets = "own" if disjoint and asked.combine != "sum" else "all"
    if asked.combine != "auto":
        combine = asked.combine
    else:
        combine = "own" if disjoint or lacks or targets != "all" else "sum"
    return targets, combine, fit_head


def _groups_by_speed(job: Job, inputs: Sequence[PeerSnapshot]) -> list[Group]:
    """Groups of peers that hold the same classes, as far as they do, and are about as fast."""
    num_classes = len(job.data.classes)
    held = held_classes(inputs, num_classes)
    holders = [peer for peer in inputs if held[peer.peer]]
    num_groups = tasks_of(job).num_groups or min(len(holders), max_groups(job, inputs), num_classes, SENSIBLE_GROUPS)
    useful = SMALLEST_SHARE / num_groups
    holders = [peer for peer in holders if largest_share(job, peer.memory_bytes) >= useful] or holders
    if not tasks_of(job).num_groups:
        num_groups = min(num_groups, len(holders))
    speed = speeds(inputs)
    costs = {peer.peer: num_samples(peer, (), "all") / speed[peer.peer] for peer in holders}
    by_name = {peer.peer: peer for peer in holders}

    def runs(peers: Sequence[PeerSnapshot], num: int) -> list[list[PeerSnapshot]]:
        cut = group_peers({peer.peer: costs[peer.peer] for peer in peers}, num)
        return [[by_name[name] for name in run] for run in cut]

    everything = all(len(held[peer.peer]) == num_classes for peer in holders)
    if everything:
        groups = runs(holders, num_groups)
        weights = _fit(job, groups, costs, [num_classes / num_groups] * num_groups)
        classes = group_classes(groups, weights, num_classes)
        groups = swap_for_wishes(groups, classes, costs)
        return [Group(tuple(owned), tuple(group)) for owned, group in zip(classes, groups, strict=True)]
    groups, first = merged_until_each_has_a_class(clusters(holders, held, num_groups, runs), held)
    known = sorted(set().union(*held.values()))
    alike = {name: 1 / speed[name] for name in costs}
    weights = _fit(job, groups, alike, [len(known) / len(groups)] * len(groups))
    classes = classes_by_holdings(groups, first, weights, held, known)
    made = [Group(tuple(own), tuple(group)) for own, group in zip(classes, groups, strict=True) if own]
    unknown = tuple(sorted(set(range(num_classes)) - set(known)))
    return [*made, Group(unknown, ())] if unknown else made


def _shares(
    job: Job, groups: Sequence[Group], speed: Mapping[PeerId, float], targets: TargetRule, overlapping: bool
) -> list[float]:
    """Where classes overlap, who has few samples finishes early: a wider part for that would learn from the fewest."""
    costs = {
        peer.peer: (1 if overlapping else num_samples(peer, group.classes, targets)) / speed[peer.peer]
        for group in groups
        for peer in group.trainers
    }
    known = [float(len(group.classes)) for group in groups]
    if overlapping:
        held = held_classes([peer for group in groups for peer in group.trainers], len(job.data.classes))
        known = known_to(groups, held, len(job.data.classes))
    samples = [_samples_per_class(group, targets) for group in groups]
    enough = min(WIDTH_SPREAD * FEW_SAMPLES, max(samples))
    fullness = [WIDTH_SPREAD * each / enough if each else WIDTH_SPREAD for each in samples]  # 0: it waits for a trainer
    return _fit(job, [group.trainers for group in groups], costs, known, fullness)


def _samples_per_class(group: Group, targets: TargetRule) -> float:
    """Of the classes that a group learns: what its best trainer has."""
    most = 0.0
    for peer in group.trainers:
        num_classes = len(group.classes) if targets == "own" else sum(count > 0 for count in peer.counts)
        most = max(most, num_samples(peer, group.classes, targets) / max(1, num_classes))
    return most


def _fit(
    job: Job,
    groups: Sequence[Sequence[PeerSnapshot]],
    costs: Mapping[PeerId, float],
    sizes: Sequence[float],
    fullness: Sequence[float] = (),
) -> list[float]:
    """Shares that let the groups' slowest trainers finish together; a group without trainers gets an even one.

    Who has few samples finishes early, but gets no wider part for that than they can fill.
    """
    useful = SMALLEST_SHARE / len(groups)
    budget = tasks_of(job).budget * fewest_samples(peer.counts for group in groups for peer in group)

    def room(peer: PeerSnapshot) -> float:
        return min(largest_share(job, peer.memory_bytes), affordable_share(budget / max(1, peer.num_samples)))

    rooms = [min((room(peer) for peer in group), default=1.0) for group in groups]
    bounds = limits(len(job.data.classes), sizes, [max(room, useful) for room in rooms], fullness)
    waiting = {g: bounds[g][1] / 2 for g, group in enumerate(groups) if not group}
    staffed = [g for g, group in enumerate(groups) if group]
    slowest = [max(costs[peer.peer] for peer in groups[g]) for g in staffed]
    fitted = even_shares(slowest, [bounds[g] for g in staffed], 1.0 - sum(waiting.values()))
    by_group = waiting | dict(zip(staffed, fitted, strict=True))
    return [by_group[g] for g in range(len(groups))]


def _staff(
    job: Job, mode: str, body: TasksBody, peers: Sequence[PeerSnapshot], part_of: Mapping[PeerId, int]
) -> dict[PeerId, int]:
    """Everyone's part, after free peers and parts without trainers have found each other."""
    staff = Staff(
        room={peer.peer: largest_share(job, peer.memory_bytes) for peer in peers},
        mode=mode,
        body=body,
        peers={peer.peer: peer for peer in peers},
        speed=speeds(peers),
        part_of=part_of,
    )
    staff.place()
    return staff.part_of


def _staffed(parts: Sequence[ClassPart], part_of: Mapping[PeerId, int]) -> tuple[ClassPart, ...]:
    trainers: list[list[PeerId]] = [[] for _ in parts]
    for peer, index in sorted(part_of.items()):
        trainers[index].append(peer)
    return tuple(dataclasses.replace(part, trainers=tuple(trainers[part.index])) for part in parts)

"""Which plan a group takes: who helps whom, with which cut, and how long a round is predicted to take.

Invariant: pure; no plan is slower than all alone by its own figures, unless somebody can't train alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.figures import WIRE, link_figures, planned_times
from p2ptrain.modes.pipeline.plan import DeviceFigures
from p2ptrain.modes.split.config import split_of
from p2ptrain.modes.split.plan import batch_of, samples_of, steps_of
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile
from p2ptrain.planning.devices.profile_codec import rounded
from p2ptrain.planning.split.units import SplitPlan, Unit


@dataclass(frozen=True)
class SplitTask:
    job: Job
    model: ModelProfile
    peers: tuple[PeerSnapshot, ...]
    times: dict[PeerId, BlockTimes]
    slowdown: dict[PeerId, float]
    links: dict[PeerId, float]
    """Bytes/s."""

    def owners(self) -> list[str]:
        return [peer.peer for peer in self.peers if peer.num_samples and peer.peer in self.times]


def task_of(
    job: Job, model: ModelProfile, snapshots: Sequence[PeerSnapshot], figures: Sequence[DeviceFigures]
) -> SplitTask:
    times = planned_times(figures)
    ends, _, _ = link_figures(figures)
    slow = {each.peer: each.slowdown for each in figures}
    if not times:
        raise UserError("nobody's blocks are measured")
    return SplitTask(job, model, tuple(snapshots), times, slow, ends)


def best(task: SplitTask, strategy: str) -> SplitPlan:
    """Raises ``UserError`` where there is none."""
    owners = task.owners()
    if not owners:
        raise UserError(
            "nobody has samples: start a peer with --data (and see that its blocks were measured: `p2ptrain probe`)"
        )
    alone = _plan(task, [_unit(task, owner, None, len(task.model.blocks), 1) for owner in owners])
    if strategy == "alone":
        return alone
    cuts = [i + 1 for i, block in enumerate(task.model.blocks[:-1]) if block.cut_after]
    plans = [alone]
    for helper in sorted(task.times):
        others = [owner for owner in owners if owner != helper]
        own = [_unit(task, helper, None, len(task.model.blocks), 1)] if helper in owners else []
        if not others or not cuts:
            continue
        if strategy == "middle":
            units = [_unit(task, owner, helper, cuts[len(cuts) // 2], len(others)) for owner in others]
        else:
            units = [
                min(
                    [
                        _unit(task, owner, None, len(task.model.blocks), 1),
                        *(_unit(task, owner, helper, cut, len(others)) for cut in cuts),
                    ],
                    key=lambda unit: unit.round_s,
                )
                for owner in others
            ]
        plans.append(_plan(task, own + units))
    if strategy == "middle" and len(plans) > 1:
        return min(plans[1:], key=lambda plan: plan.round_s)
    return min(plans, key=lambda plan: plan.round_s)


def predicted(task: SplitTask, plan: SplitPlan) -> SplitPlan:
    """The same plan, with seconds by these figures."""
    units = []
    for unit in plan.units:
        number = len(plan.units_of(unit.helper)) if unit.helper else 1
        units.append(_unit(task, unit.owner, unit.helper, unit.cut, number))
    return _plan(task, units)


def knows(task: SplitTask, peers: Sequence[str]) -> bool:
    """Whether it can be said how long these take."""
    return all(PeerId(peer) in task.times for peer in peers)


def _plan(task: SplitTask, units: Sequence[Unit]) -> SplitPlan:
    job = task.job
    helped: dict[str, float] = {}
    for unit in units:
        if unit.helper:
            helped[unit.helper] = helped.get(unit.helper, 0.0) + unit.helper_s
    own = {unit.owner: unit.round_s for unit in units}
    seconds = [unit.round_s for unit in units] + [s + own.get(h, 0.0) for h, s in helped.items()]
    working = {*helped, *own}
    ordered = tuple(sorted(units, key=lambda unit: unit.owner))
    standby = tuple(sorted(peer.peer for peer in task.peers if peer.peer not in working))
    settings = split_of(job)
    return SplitPlan(
        task.model.name,
        len(task.model.blocks),
        job.training.batch_size,
        settings.tails,
        settings.medium,
        ordered,
        standby,
        rounded(max(seconds)),
        0.0,
    )


def _unit(task: SplitTask, owner: str, helper: str | None, cut: int, number: int) -> Unit:
    job, model = task.job, task.model
    settings = split_of(job)
    num = len(model.blocks)
    micro = settings.micro_batches if helper else 1
    share = min(task.links[PeerId(owner)], task.links[PeerId(helper)] / number) if helper else 0.0
    unit = Unit(
        owner,
        helper,
        cut,
        rounded(share),
        rounded(share),
        micro,
        micro,
        settings.activations,
        settings.gradients,
        0.0,
        0.0,
        0.0,
    )
    plan = SplitPlan(model.name, num, job.training.batch_size, settings.tails, settings.medium, (unit,), (), 0.0, 0.0)
    samples = samples_of(task.peers, owner)
    batch = batch_of(plan, unit, samples, model.least_samples)
    front = _passes(task, owner, 0, cut, batch.micro_batch) * batch.micro_batches
    steps = steps_of(job, batch, samples)
    tail = up = down = 0.0
    if helper:
        tail = _passes(task, helper, cut, num, batch.micro_batch) * batch.micro_batches
        crossing = model.blocks[cut - 1].activation_bytes * batch.samples
        up = crossing * WIRE[settings.activations] / share
        down = crossing * WIRE[settings.gradients] / share
    slowest = max(front, up, down, tail * number)
    batch_s = slowest + (front + up + down + tail - max(front, up, down, tail)) / micro if helper else front
    return replace(unit, batch_s=rounded(batch_s), round_s=rounded(batch_s * steps), helper_s=rounded(tail * steps))


def _passes(task: SplitTask, peer: str, first: int, stop: int, samples: int) -> float:
    times = task.times[PeerId(peer)]
    seconds = sum(times.forward(samples)[first:stop]) + sum(times.backward(samples)[first:stop])
    return seconds * task.slowdown[PeerId(peer)]

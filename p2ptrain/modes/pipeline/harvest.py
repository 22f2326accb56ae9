"""A harvest of a pipeline: saved runs of blocks, all of one step, put side by side.

Invariant: every tensor of the global model comes from exactly one run, and all runs are of the same state; between two
steps there is no model. Where parts of a group that were apart are equally far, the model of more devices is taken, and
the others are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from p2ptrain.config import Job
from p2ptrain.core.harvest import Collected, Fetch, Harvest, OtherModel, Snapshot, stopped_after
from p2ptrain.core.plan import Plan
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.stages import assembly
from p2ptrain.planning.pipeline.coverage import NO_STATE, cover, models_at, newest_whole
from p2ptrain.wire.messages import SnapshotRef

missing, judged = assembly.missing, assembly.judged


async def fetch(
    plan: Plan, holdings: Sequence[SnapshotRef], fetch: Fetch
) -> tuple[Snapshot | None, dict[int, list[Snapshot]]]:
    """Saved runs by their first block, which cover all blocks at the newest step that can be had; {} if none can."""
    num_blocks = body_of(plan).pipeline.num_blocks
    left = [holding for holding in holdings if holding.kind == "part"]
    got: dict[SnapshotRef, bytes] = {}
    while (newest := newest_whole(num_blocks, left)) != NO_STATE:
        state = next(iter(models_at(num_blocks, newest[0], left)))
        chosen = cover([(0, num_blocks)], state, left, lambda holding: holding in got) or []
        for holding in chosen:
            if holding not in got:
                what = f"blocks {holding.part}-{holding.part + holding.span - 1} after {state[0]} batches"
                data = await fetch(holding, what)
                if data is None:
                    left.remove(holding)  # perhaps somebody has another copy, or an older step is whole
                    break
                got[holding] = data
        else:
            return None, {holding.part: [Snapshot(holding, got[holding])] for holding in chosen}
    return None, {}


def lament(job: Job, plan: Plan, missing: Sequence[int]) -> str:
    """When there will be something."""
    return (
        "there is no step yet of which everybody's blocks are saved: that is after the first round (job file: "
        "training.epochs_per_round, pipeline.snapshot_steps); `p2ptrain status` says how far it is"
    )


def contributors(collected: Collected) -> frozenset[PeerId]:
    """None: a stage is all that there is of its blocks, and every gradient passes all of them."""
    raise UserError(
        "in a pipeline every device's gradients pass all stages, so nobody's contribution can be taken out of the "
        "model afterwards; train again without that device"
    )


def assemble(collected: Collected, *, allow_user_code: bool) -> Harvest:
    """Put the runs side by side. Raises ``UserError`` for runs that are not this job's model."""
    num_blocks = body_of(collected.plan).pipeline.num_blocks
    taken = next((copies[0].holding for copies in collected.parts.values()), None)
    if taken is not None:
        collected = replace(collected, plan=collected.plans.get(taken.epoch, collected.plan))
    found = assembly.harvest_of(collected, num_blocks, lambda ref: [ref.trainer], allow_user_code=allow_user_code)
    if taken is None or (found.is_half_way and not stopped_after(collected.records.values(), collected.job.id)):
        return found
    models = models_at(num_blocks, taken.step, collected.told)
    others = [
        OtherModel(tuple(sorted(collected.name_of(PeerId(peer)) for peer in trainers)), step, epoch)
        for (step, epoch), trainers in models.items()
        if epoch != taken.epoch
    ]
    return replace(found, others=tuple(others))

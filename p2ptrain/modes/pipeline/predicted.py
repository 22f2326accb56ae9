"""What a plan predicts of one peer's work, to be shown beside what that peer measures.

Invariant: pure, and by the very figures that the plan was made by.
"""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import UserError
from p2ptrain.modes.pipeline.figures import fleet_of
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import chain_hash


def predicted(job: Job, model: ModelProfile, plan: Plan, own: str) -> dict[str, float]:
    """Of a peer with a stage: ``planned_batch_s``, ``planned_computes`` (share of the time, with what passing stage
    messages on takes), ``planned_sends_bytes_per_s`` (stage messages and the gradients that its stage averages).

    None of one without a stage, and none of a plan of other blocks, as one may have been taken before they were known.
    """
    body = body_of(plan)
    pipeline = body.pipeline
    at = pipeline.stage_of(own)
    if at is None or body.chain != chain_hash(model):
        return {}
    try:
        fleet = fleet_of(job, model, plan.peers, body.figures)
        costs = fleet.costs(pipeline.num_micro_batches)
    except UserError:
        return {}
    bounds = {bound for stage in pipeline.stages for bound in (stage.start, stage.stop)}
    if not bounds.issubset(costs.cuts) or not fleet.knows(plan.trainers()):
        return {}
    batch_s = fleet.batch_s(pipeline)
    stage, num = pipeline.stages[at], pipeline.num_micro_batches
    start, stop = costs.cuts.index(stage.start), costs.cuts.index(stage.stop)
    place = next(index for index, peer in enumerate(costs.task.peers) if peer.name == own)
    samples = stage.samples[stage.peers.index(own)]
    compute_s = sum(costs.stage_s(place, start, stop, samples)) + sum(fleet.passing_s(pipeline, own))
    group, parameter_bytes = len(stage.peers), float(costs.parameter_bytes[stop] - costs.parameter_bytes[start])
    sent = 2 * (group - 1) / group * parameter_bytes
    if at > 0:
        sent += num * samples * float(costs.cut_bytes[start]) * costs.task.backward_wire
    if at + 1 < len(pipeline.stages):
        sent += num * samples * float(costs.cut_bytes[stop]) * costs.task.forward_wire
    return {
        "planned_batch_s": batch_s,
        "planned_computes": min(1.0, num * compute_s / batch_s),
        "planned_sends_bytes_per_s": sent / batch_s,
    }

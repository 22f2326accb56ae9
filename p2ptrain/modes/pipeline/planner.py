"""Plans of a pipeline: the first one of a group, the next one when peers go or get slow, and what a peer
checks before it follows one.

Invariant: pure and deterministic, as ``assignment``: the inputs in any order give the same plan. A plan carries the
figures that it was computed from (``figures``). Finding a plan is a search and may take a while; ``follows`` does
not repeat it. It sees that the plan fits the job, the model and the peers' memory, and that nobody would be faster
alone.

A batch is one optimizer step. ``steps_per_round`` is set by the first plan and never changes: when a data owner goes,
its samples' share of the later rounds is lost, and the others' samples are drawn oftener in its place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from p2ptrain.config import Job
from p2ptrain.core.plan import SHARE_UNITS, PeerSnapshot, Plan, check_plan, clean, is_successor, successor
from p2ptrain.core.stages.considered import (
    MOST_DEVICES,
    considered,
    fitting,
    is_among_some,
    words_of_considered,
)
from p2ptrain.core.stages.figures import DeviceFigures, MeasuredPeer, are_usable, link_figures, usable, words_of_unknown
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.figures import batches_a_round, fleet_of
from p2ptrain.modes.pipeline.plan import MAX_STRETCH, PipelineBody, body_of
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.footprint import pipeline_bytes
from p2ptrain.planning.devices.profile_codec import chain_hash, rounded
from p2ptrain.planning.pipeline.baselines import best_single_peer
from p2ptrain.planning.pipeline.choice import best, judged_s
from p2ptrain.planning.pipeline.coverage import State
from p2ptrain.planning.pipeline.fleet import Fleet, micro_batch_choices
from p2ptrain.planning.pipeline.light import Lacking, light
from p2ptrain.planning.pipeline.schedule import most_ahead
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.words import link_rate

MOST_HOLDERS = 16
"""Of a large group, so many of those with most of the lost blocks are planned with."""
SLOWER = 1 + 1e-3
"""A plan may be this much slower than the best single peer: figures are rounded."""


def first_plan(job: Job, model: ModelProfile, peers: Sequence[MeasuredPeer], proposer: PeerId) -> Plan:
    """The plan a group starts with. Raises ``UserError`` where there is none, saying what is missing."""
    snapshots = clean(job, [peer.snapshot for peer in peers])
    figures = _looked_at(job, model, snapshots, usable(model, snapshots, peers))
    pipeline = best(fleet_of(job, model, snapshots, figures), pipeline_of(job).strategy)
    steps_per_round = batches_a_round(job, snapshots, pipeline.stages[0].peers)
    body = PipelineBody(chain_hash(model), pipeline, _shares(model, pipeline), figures, 0, steps_per_round)
    return _plan(job, snapshots, body, proposer, None)


def next_plan(
    job: Job,
    model: ModelProfile,
    current: Plan,
    peers: Sequence[MeasuredPeer],
    proposer: PeerId,
    *,
    next_step: int,
    saved: State,
    goes_back: bool = False,
    takes_in: bool = False,
    lost: Collection[PeerId] = (),
    leaving: Collection[PeerId] = (),
    batch_s: float = 0.0,
    may_improve: bool = True,
    lacking: Lacking | None = None,
) -> Plan | None:
    """The plan after ``current`` with the peers now alive; None when the current one will do, or the job is done.

    When one of its trainers is gone, or is there without its stage (``lost``: it was started again), or when more is
    saved than is trained (``goes_back``): a plan for those who are there, that begins with the ``saved`` state, the
    newest that snapshots of all blocks are left of. Else, when today's figures promise a gain of more than
    ``pipeline.replan_gain`` and ``may_improve``, or others are to be taken in who went on apart (``takes_in``), or one
    of its trainers is ``leaving``: the faster plan of those who stay, from ``next_step`` on.
    ``batch_s``: seconds of a batch, as seen under ``current``; 0 = not known. What several peers took longer than
    predicted they are taken to take longer in any pipeline, so that one peer alone may be the faster plan.
    ``lacking``: of the saved state; with it, who has lost peers goes on with the plan that is soonest to begin.
    Raises ``UserError`` where the peers that are left can't train the model.
    """
    before = body_of(current)
    snapshots = clean(job, [peer.snapshot for peer in peers])
    present = {peer.peer for peer in snapshots}.difference(lost)
    is_torn = not present.issuperset(current.trainers())
    goes_back = is_torn or goes_back
    takes_in = takes_in or not current.trainers().keys().isdisjoint(leaving)
    from_step, from_epoch = saved if goes_back else (next_step, current.epoch)
    if not snapshots or from_step >= job.training.rounds * before.steps_per_round:
        return None
    can_wait = not goes_back and not takes_in
    if can_wait and (pipeline_of(job).strategy != "planned" or not may_improve):
        return None
    figures = tuple(f for f in usable(model, snapshots, peers, before.figures) if f.peer not in leaving)
    figures = _looked_at(job, model, snapshots, figures, before, lacking)
    fleet = fleet_of(job, model, snapshots, figures)
    can_go_on = not is_torn and fleet.knows(current.trainers())
    stretch = _stretch(fleet, before, batch_s) if can_go_on else before.stretch
    soonest = _soonest(fleet, before.pipeline, lacking) if is_torn and lacking and _is_light(job) else None
    pipeline = best(fleet, pipeline_of(job).strategy, stretch) if soonest is None else soonest
    if can_go_on and not goes_back and not takes_in:
        enough_s = judged_s(fleet, pipeline, stretch) * (1 + pipeline_of(job).replan_gain)
        if judged_s(fleet, before.pipeline, stretch) <= enough_s:
            return None
    shares = _shares(model, pipeline)
    body = PipelineBody(
        before.chain,
        pipeline,
        shares,
        figures,
        from_step,
        before.steps_per_round,
        from_epoch if from_step else 0,
        goes_back,
        stretch,
    )
    return _plan(job, snapshots, body, proposer, current)


def follows(job: Job, model: ModelProfile | None, plan: Plan, parent: Plan | None) -> bool:
    """Whether this job's peers can follow the plan. Without a model of its own yet a peer checks what it can."""
    body = plan.body
    if not isinstance(body, PipelineBody) or plan.job != job.id or plan.mode != job.mode:
        return False
    if not _continues(job, plan, parent):
        return False
    num, choices = body.pipeline.num_micro_batches, micro_batch_choices(pipeline_of(job).micro_batches)
    if num not in choices or body.pipeline.micro_batch != job.training.batch_size // num:
        return False
    if body.pipeline.stages[0].warm_up > most_ahead(num, flush=pipeline_of(job).schedule == "sync"):
        return False
    try:
        check_plan(plan)
        if clean(job, plan.peers) != plan.peers:
            return False
        return model is None or _is_sound(job, model, plan, body)
    except (RemoteError, UserError):
        return False


def notes(job: Job, plan: Plan, model: ModelProfile | None = None) -> list[str]:
    """What a person should know about the plan, a line each. With the model also what sets the pace."""
    body = body_of(plan)
    known, unknown = {figures.peer for figures in body.figures}, words_of_unknown(plan, body.figures)
    lines = words_of_considered(plan, body.figures)
    for peer in plan.peers:
        if peer.peer in known and peer.peer in body.pipeline.left_out:
            lines.append(f"{peer.peer}: left out: {_why_left_out(job, peer)}")
            continue
        if peer.peer in known and peer.memory_bytes == 0:
            lines.append(f"{peer.peer}: no memory known, taken to have enough")
        if peer.peer in unknown and (peer.peer in known or not is_among_some(plan, body.figures)):
            lines.append(unknown[peer.peer])
    for pair in link_figures(body.figures)[1]:
        lines.append(f"the link between {pair.one} and {pair.other} {link_rate(pair.bytes_per_s * 8e-6)}")
    if model is not None:
        lines.append(_pace(fleet_of(job, model, plan.peers, body.figures), body.pipeline))
    return lines


def _is_light(job: Job) -> bool:
    return pipeline_of(job).strategy == "planned" and pipeline_of(job).recovery == "light"


def _soonest(fleet: Fleet, before: PipelinePlan, lacking: Lacking) -> PipelinePlan | None:
    """What can be had with the least to fetch, if others would follow it."""
    found = light(fleet, before, lacking)
    return found if found is not None and _is_worth_it(fleet, found) else None


def _is_worth_it(fleet: Fleet, pipeline: PipelinePlan) -> bool:
    """No peer would be faster alone."""
    singles = [best_single_peer(fleet.costs(num)) for num in fleet.choices]
    return fleet.batch_s(pipeline) <= SLOWER * min((fleet.batch_s(s) for s in singles if s), default=math.inf)


# --- the plan ---------------------------------------------------------------------------------------------------------


def _looked_at(
    job: Job,
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    figures: tuple[DeviceFigures, ...],
    before: PipelineBody | None = None,
    lacking: Lacking | None = None,
) -> tuple[DeviceFigures, ...]:
    """Of a large group, those that a plan is looked for among: who trains by the plan before and who has most of its
    blocks are. The other strategies take everybody."""
    if pipeline_of(job).strategy != "planned" or len(figures) <= MOST_DEVICES:
        return fitting(figures)
    kept = [] if before is None else [peer for stage in before.pipeline.stages for peer in stage.peers]
    if lacking is not None:
        whole = (0, len(model.blocks))
        to_fetch = {each.peer: lacking(each.peer, whole) for each in figures}
        kept += sorted(to_fetch, key=lambda peer: (to_fetch[peer], peer))[:MOST_HOLDERS]
    return fitting(considered(model, snapshots, figures, kept))


def _stretch(fleet: Fleet, plan: PipelineBody, batch_s: float) -> float:
    """As ``PipelineBody.stretch``, with what was seen under the plan, by its peers' figures of today."""
    if batch_s <= 0 or plan.pipeline.is_alone:
        return plan.stretch
    return rounded(min(max(batch_s / fleet.batch_s(plan.pipeline), 1.0), MAX_STRETCH))


def _plan(
    job: Job, snapshots: tuple[PeerSnapshot, ...], body: PipelineBody, proposer: PeerId, parent: Plan | None
) -> Plan:
    used = {peer for stage in body.pipeline.stages for peer in stage.peers}
    left_out = tuple(peer.peer for peer in snapshots if peer.peer not in used)
    body = replace(body, pipeline=replace(body.pipeline, left_out=left_out))
    return successor(job, snapshots, body, proposer, parent)


def _shares(model: ModelProfile, pipeline: PipelinePlan) -> tuple[float, ...]:
    """Of each stage, of the training FLOPs, in whole units, rounded down."""
    flops = [model.training_flops_of(stage.start, stage.stop) for stage in pipeline.stages]
    return tuple(each * SHARE_UNITS // model.training_flops / SHARE_UNITS for each in flops)


# --- checks and words -------------------------------------------------------------------------------------------------


def _continues(job: Job, plan: Plan, parent: Plan | None) -> bool:
    """Whether the plan may follow its parent. It may begin before it: what was lost with a peer is done again."""
    body = body_of(plan)
    if body.from_step >= job.training.rounds * body.steps_per_round:
        return False
    if parent is None:
        return True
    before = body_of(parent)
    if not body.goes_back and (body.from_step == 0 or body.from_epoch != parent.epoch):
        return False
    goes_on = (before.chain, before.steps_per_round) == (body.chain, body.steps_per_round)
    return goes_on and is_successor(plan, parent)


def _is_sound(job: Job, model: ModelProfile, plan: Plan, body: PipelineBody) -> bool:
    """Whether the plan is one of this model, fits, and is worth having. Raises ``UserError`` if nothing can be."""
    pipeline = body.pipeline
    if (body.chain, pipeline.model, pipeline.num_blocks) != (chain_hash(model), model.name, len(model.blocks)):
        return False
    if body.shares != _shares(model, pipeline):
        return False
    if plan.epoch == 1 and body.steps_per_round != batches_a_round(job, plan.peers, pipeline.stages[0].peers):
        return False
    if not are_usable(model, plan, body.figures):
        return False
    fleet = fleet_of(job, model, plan.peers, body.figures)
    if any(min(stage.samples) < model.least_samples for stage in pipeline.stages):
        return False
    bounds = {bound for stage in pipeline.stages for bound in (stage.start, stage.stop)}
    if not bounds.issubset(fleet.costs(pipeline.num_micro_batches).cuts) or not fleet.fits(pipeline):
        return False
    if pipeline_of(job).strategy != "planned":
        return replace(best(fleet, pipeline_of(job).strategy, body.stretch), left_out=pipeline.left_out) == pipeline
    return _is_worth_it(fleet, pipeline)


def _why_left_out(job: Job, peer: PeerSnapshot) -> str:
    if peer.memory_bytes > 0 and pipeline_bytes(peer.memory_bytes) == 0:
        return "its memory is no more than a peer takes without a model"
    if pipeline_of(job).strategy == "equal":
        return "there are more peers than pieces of the model"
    if pipeline_of(job).strategy == "data-parallel":
        return "it has too little memory for the whole model" if peer.counts else "it has no samples"
    return "with it a batch would hardly be done sooner"


def _pace(fleet: Fleet, pipeline: PipelinePlan) -> str:
    """The step that takes longest."""
    steps = fleet.steps(pipeline)
    stages = [there + back for there, back in zip(steps.forward_s, steps.backward_s, strict=True)]
    links = [max(both) for both in zip(steps.link_forward_s, steps.link_backward_s, strict=True)]
    slowest = max(range(len(stages)), key=lambda index: stages[index])
    batch = f"a batch takes {fleet.batch_s(pipeline):.3g} s"
    if links and max(links) > stages[slowest]:
        index = links.index(max(links))
        return (
            f"the link from stage {index + 1} to {index + 2} sets the pace: {max(links):.3g} s a micro-batch; {batch}"
        )
    stage = pipeline.stages[slowest]
    return (
        f"stage {slowest + 1} (blocks {stage.start}-{stage.stop - 1}: {', '.join(stage.peers)}) sets the pace: "
        f"{stages[slowest]:.3g} s a micro-batch; {batch}"
    )

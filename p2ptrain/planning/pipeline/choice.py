"""Which of the pipelines that can be had a group takes.

Invariant: pure. The fastest by the cost model is not always the one to have: a pipeline has to be worth more than what
it takes over one device alone, and so has each of its devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from p2ptrain.config import Strategy
from p2ptrain.errors import UserError
from p2ptrain.planning.pipeline.baselines import best_single_peer, equal_split, side_by_side
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.search.search import Search

WORTH = 1.05
"""How many times as fast as one with fewer devices, or as one alone, a pipeline has to promise to be for a group to
take it: each device is one more that may get slow or go. It is also by how much promises to two like groups are apart,
of which one measured a little more than the other; a device that promised 3 % more made a batch 10 to 20 % slower."""
DEEPENED = 1.1
"""A search is given so many times its limit, as it makes the best plan's warm-ups deeper only in the end."""
MOST_DROPPED = 4
"""How many devices a pipeline is rid of at most, as each takes a search of its own."""


def best(fleet: Fleet, strategy: Strategy, stretch: float = 1.0) -> PipelinePlan:
    """The one to have of those that the strategy allows, of any number of micro-batches. Raises ``UserError`` without
    one."""
    found = pipelines_of(fleet, strategy, max(WORTH, stretch))
    return min(found, key=lambda pipeline: judged_s(fleet, pipeline, stretch))


def pipelines_of(fleet: Fleet, strategy: Strategy, worth: float = 1.0) -> list[PipelinePlan]:
    """Those to choose from, of any number of micro-batches; without pipelines that are surely slower than another, or
    not ``worth`` times as fast as one device alone. Raises ``UserError`` where there is none."""
    found: list[PipelinePlan] = []
    problems: dict[int, UserError] = {}

    def look_for(plan: Callable[[int], PipelinePlan | None]) -> None:
        for num in fleet.choices:
            try:
                pipeline = plan(num)
            except UserError as error:
                problems.setdefault(num, error)
                continue
            if pipeline is not None:
                found.append(pipeline)

    if strategy == "planned":
        look_for(lambda num: best_single_peer(fleet.costs(num)))
        look_for(lambda num: _lean(fleet, num, found, worth))
    else:
        look_for(lambda num: _baseline(fleet, strategy, num))
    if not found:
        raise problems[fleet.choices[0]]  # of the most micro-batches, which take the least memory
    return [pipeline for pipeline in found if not _is_stale(fleet, pipeline)] or found


def _is_stale(fleet: Fleet, pipeline: PipelinePlan) -> bool:
    """Whether its gradients are all of weights a batch old, but for the last stage's, though they need not be.

    That cost 0.55 points of accuracy (benchmark ``pipeline_accuracy``), several micro-batches a batch 0.14: medians of
    five seeds.
    """
    if len(fleet.choices) == 1:
        return False
    flushes = fleet.costs(pipeline.num_micro_batches).task.batches == 1
    return not flushes and pipeline.num_micro_batches == 1 and len(pipeline.stages) > 1


def judged_s(fleet: Fleet, pipeline: PipelinePlan, stretch: float) -> float:
    """Seconds of a batch; where it takes more than one device, as many more as it has to be worth, and more where
    batches were seen to take longer yet (``PipelineBody.stretch``)."""
    return fleet.batch_s(pipeline) * (1.0 if pipeline.is_alone else max(WORTH, stretch))


def _lean(fleet: Fleet, num_micro_batches: int, others: Sequence[PipelinePlan], worth: float) -> PipelinePlan | None:
    """Of those as fast as the fastest to within ``WORTH`` that with the fewest devices. None where one of the others is
    as good; without others raises ``UserError`` where none fits.

    What passing stage messages on costs them the search does not know: a pipeline with fewer may even be the faster
    one. As its seconds of a batch are never above the fleet's, a limit of these is one for the search.
    """
    fresh = [each for each in others if not _is_stale(fleet, each)]
    limit_s = min((fleet.batch_s(each) / (worth if each.is_alone else 1.0) for each in fresh), default=math.inf)
    search = Search(fleet.costs(num_micro_batches), limit_s * DEEPENED)
    planned = search.best()
    if planned is None or planned.cost.batch_s >= limit_s:
        return None
    found = planned.plan
    fastest_s = fleet.batch_s(found)
    for _ in range(MOST_DROPPED):
        work = {
            peer: samples * fleet.task.model.training_flops_of(stage.start, stage.stop)
            for stage in found.stages
            for peer, samples in zip(stage.peers, stage.samples, strict=True)
        }
        if len(work) <= 2:
            break  # one device alone is another question
        idlest = min(work, key=lambda peer: (work[peer], peer))
        fewer = search.without(idlest, WORTH * fastest_s * DEEPENED)
        if fewer is None or fleet.batch_s(fewer.plan) > WORTH * fastest_s:
            break
        found, fastest_s = fewer.plan, min(fleet.batch_s(fewer.plan), fastest_s)
    return found


def _baseline(fleet: Fleet, strategy: Strategy, num_micro_batches: int) -> PipelinePlan:
    """That of the strategy. Raises ``UserError`` where it does not fit."""
    costs = fleet.costs(num_micro_batches)
    pipeline = equal_split(costs) if strategy == "equal" else side_by_side(costs)
    if pipeline is None or not fleet.fits(pipeline):
        raise UserError(
            f'model {fleet.task.model.name}: pipeline.strategy = "{strategy}" does not fit into the memory of these '
            f'{len(fleet.task.peers)} peers; use "planned", a smaller batch_size, or a narrower model'
        )
    return pipeline

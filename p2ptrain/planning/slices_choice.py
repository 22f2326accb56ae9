"""Which of the pipelines that can be had a group of depth slices takes.

Invariant: pure. The fastest by the cost model is not always the one to have: a pipeline has to be worth more than what
it takes over one device alone, and so has each of its devices.
"""

from __future__ import annotations

from p2ptrain.config import Strategy
from p2ptrain.errors import LocalError, UserError
from p2ptrain.planning.pipeline_baselines import best_single_peer, equal_split, side_by_side
from p2ptrain.planning.pipeline_plan import PipelinePlan
from p2ptrain.planning.pipeline_search import plan_pipeline
from p2ptrain.planning.room import Room

WORTH = 1.05
"""How many times as fast as one with fewer devices, or as one alone, a pipeline has to promise to be for a group to
take it: each device is one more that may get slow or go. It is also by how much promises to two like groups are apart,
of which one measured a little more than the other; a device that promised 3 % more made a batch 10 to 20 % slower."""
MOST_DROPPED = 4
"""How many devices a pipeline is rid of at most, as each takes another search."""


def best(room: Room, strategy: Strategy, stretch: float = 1.0) -> PipelinePlan:
    """The one to have of those that the strategy allows, of any number of micro-batches. Raises ``UserError`` without
    one."""
    found = pipelines_of(room, strategy)
    return min(found, key=lambda pipeline: judged_s(room, pipeline, stretch))


def pipelines_of(room: Room, strategy: Strategy) -> list[PipelinePlan]:
    """Those to choose from, of any number of micro-batches. Raises ``UserError`` where there is none."""
    found: list[PipelinePlan] = []
    problem = None
    for num in room.choices:
        try:
            found += _pipelines(room, strategy, num)
        except UserError as error:
            problem = problem or error  # that of the most micro-batches, which take the least memory
    if not found:
        raise problem or LocalError("a room without a choice of micro-batches")
    if len(room.choices) == 1:
        return found
    return [pipeline for pipeline in found if not _is_stale(room, pipeline)] or found


def _is_stale(room: Room, pipeline: PipelinePlan) -> bool:
    """Whether its gradients are all of weights a batch old, but for the last stage's.

    That cost 0.55 points of accuracy (benchmark ``slices_accuracy``), several micro-batches a batch 0.14: medians of
    five seeds.
    """
    flushes = room.costs(pipeline.num_micro_batches).task.batches == 1
    return not flushes and pipeline.num_micro_batches == 1 and len(pipeline.stages) > 1


def judged_s(room: Room, pipeline: PipelinePlan, stretch: float) -> float:
    """Seconds of a batch; where it takes more than one device, as many more as it has to be worth, and more where
    batches were seen to take longer yet (``SlicesPlan.stretch``)."""
    return room.batch_s(pipeline) * (1.0 if pipeline.is_alone else max(WORTH, stretch))


def _pipelines(room: Room, strategy: Strategy, num_micro_batches: int) -> list[PipelinePlan]:
    """The search does not know what passing parcels on costs a device: alone it costs nothing."""
    costs = room.costs(num_micro_batches)
    if strategy == "planned":
        alone = best_single_peer(costs)
        return [_lean(room, num_micro_batches), *([alone] if alone else [])]
    pipeline = equal_split(costs) if strategy == "equal" else side_by_side(costs)
    if pipeline is None or not room.fits(pipeline):
        raise UserError(
            f'model {room.task.model.name}: slices.strategy = "{strategy}" does not fit into the memory of these '
            f'{len(room.task.peers)} peers; use "planned", a smaller batch_size, or a narrower model'
        )
    return [pipeline]


def _lean(room: Room, num_micro_batches: int) -> PipelinePlan:
    """Of those as fast as the fastest to within ``WORTH`` that with the fewest devices. Raises ``UserError`` where none
    fits.

    What passing parcels on costs them the search does not know: a pipeline with fewer may even be the faster one.
    """
    found = plan_pipeline(room.costs(num_micro_batches)).plan
    left, fastest_s = room, room.batch_s(found)
    for _ in range(MOST_DROPPED):
        work = {
            peer: samples * room.task.model.training_flops_of(stage.start, stage.stop)
            for stage in found.stages
            for peer, samples in zip(stage.peers, stage.samples, strict=True)
        }
        if len(work) <= 2:
            break  # one device alone is another question
        left = left.without(min(work, key=lambda peer: (work[peer], peer)))
        try:
            fewer = plan_pipeline(left.costs(num_micro_batches)).plan
        except UserError:
            break
        fewer_s = room.batch_s(fewer)
        if fewer_s > WORTH * fastest_s:
            break
        found, fastest_s = fewer, min(fewer_s, fastest_s)
    return found

"""What a pipeline plan is to be compared with: the best single peer, an equal split, and data parallel.

Each is a plan of its own for the same task. The pipeline search knows none of them; it is tested against them.
"""

from __future__ import annotations

from p2ptrain.planning.pipeline.cost import CostModel, most_samples, steps_of
from p2ptrain.planning.pipeline.schedule import deepest_warm_up, round_s
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.planning.search.search import plan_of, stage_of


def best_single_peer(model: CostModel) -> PipelinePlan | None:
    """The whole model on the peer that trains it soonest; None where nobody with samples has the memory."""
    plans = []
    for index, peer in enumerate(model.task.peers):
        if peer.has_data and model.split([index], 0, model.num_units, 1) is not None:
            plan = plan_of(model, [stage_of(model, [index], 0, model.num_units, 1)])
            plans.append((round_s(steps_of(model, plan), (1,)), index, plan))
    return min(plans)[2] if plans else None


def equal_split(model: CostModel) -> PipelinePlan:
    """The peers in the order given, a stage each, as many pieces of the model each, as deep a warm-up as there is.

    Pays no heed to speed or memory: it may not fit. More peers than pieces: the first ones.
    """
    task = model.task
    num_stages = min(len(task.peers), model.num_units)
    short, num_long = divmod(model.num_units, num_stages)
    stages, start = [], 0
    for index, depth in enumerate(deepest_warm_up(num_stages, task.most_ahead)):
        stop = start + short + (index < num_long)
        name = task.peers[index].name
        stages.append(Stage(model.cuts[start], model.cuts[stop], (name,), (task.micro_batch,), depth))
        start = stop
    return plan_of(model, stages)


def data_parallel(model: CostModel) -> PipelinePlan | None:
    """The whole model on two peers or more, each with its share of every micro-batch: on the fastest n, the best n.

    Shares follow the peers' speeds within their memory; gradients are averaged once a batch. None where no two peers
    have samples and memory for it.
    """
    plans = []
    for num in range(2, len(_able_alone(model)) + 1):
        plan = side_by_side(model, num)
        if plan is not None:
            plans.append((round_s(steps_of(model, plan), (1,)), num, plan))
    return min(plans)[2] if plans else None


def side_by_side(model: CostModel, num: int | None = None) -> PipelinePlan | None:
    """The whole model on the ``num`` fastest peers that have samples and memory for it, by default on all of them.

    No more than a micro-batch has samples for. None where there is nobody, or too little memory.
    """
    able = _able_alone(model)[:num]
    if not able or model.split(able, 0, model.num_units, 1) is None:
        return None
    return plan_of(model, [stage_of(model, able, 0, model.num_units, 1)])


def _able_alone(model: CostModel) -> list[int]:
    """Peers with samples, and with memory for the whole model and as few as can be; the fastest first."""
    task, last, least = model.task, model.num_units, model.task.model.least_samples
    fixed, each = model.fixed_bytes(0, last), model.sample_bytes(0, last, 1)
    able = [
        index
        for index, peer in enumerate(task.peers)
        if peer.has_data and most_samples(peer.memory_bytes, fixed, each, task.micro_batch) >= least
    ]
    able.sort(key=lambda index: (sum(model.stage_s(index, 0, last, 1)), index))
    return able[: task.micro_batch // least]

"""What ``p2ptrain plan`` compares: the plan that a group of these devices would take, stage messages and all."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from pipeline_rooms import mixed_task

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline import choice
from p2ptrain.planning.pipeline.baselines import best_single_peer
from p2ptrain.planning.pipeline.choice import WORTH, best, judged_s, pipelines_of
from p2ptrain.planning.pipeline.comparison import BASELINES, SINGLE, compare
from p2ptrain.planning.pipeline.cost import CostModel
from p2ptrain.planning.pipeline.fleet import Fleet, micro_batch_choices
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask
from p2ptrain.planning.search.search import Search


def model(num_blocks: int, flops: int, activation_bytes: int = 1000, parameter_bytes: int = 1000) -> ModelProfile:
    block = BlockProfile("b", flops, 2 * flops, parameter_bytes, activation_bytes, activation_bytes, True)
    return ModelProfile("net", 100, (block,) * num_blocks)


def some_room(generator: random.Random) -> Fleet:
    peers = tuple(
        PipelinePeer(f"p{i}", 10 ** generator.uniform(8, 10), 1e9, 10 ** generator.uniform(6, 8))
        for i in range(generator.randint(1, 4))
    )
    net = model(generator.randint(3, 8), 10 ** generator.randint(6, 9), 10 ** generator.randint(2, 5))
    task = PipelineTask(net, peers, 2, generator.choice((1, 4, 8)), 0.001)
    return Fleet(task, generator.choice((1, math.inf)))


@pytest.mark.parametrize("seed", range(30))
def test_it_is_what_a_group_would_take_at_a_group_s_price(seed: int) -> None:
    fleet = some_room(random.Random(seed))
    found, taken = compare(fleet), best(fleet, "planned")
    used = [each for stage in taken.stages for each in stage.peers]
    if found.preferred_peer is not None:
        assert used == [found.preferred_peer]
        single = found.baselines[SINGLE]
        assert single is not None and single.cost.batch_s < WORTH * found.planned.cost.batch_s
    else:
        assert used == [each for stage in found.planned.plan.stages for each in stage.peers]
        assert fleet.batch_s(taken) == pytest.approx(found.planned.cost.batch_s, rel=1e-9)
    assert found.planned.cost.batch_s == fleet.batch_s(found.planned.plan)
    assert found.task.num_micro_batches == found.planned.plan.num_micro_batches
    everybody = {each for stage in found.planned.plan.stages for each in stage.peers} | {*found.planned.plan.left_out}
    assert everybody == {peer.name for peer in fleet.task.peers}


@pytest.mark.parametrize("seed", range(10))
def test_a_baseline_is_of_the_number_of_micro_batches_that_is_best_for_it(seed: int) -> None:
    fleet = some_room(random.Random(seed))
    found = compare(fleet)
    for name, baseline in BASELINES.items():
        plans = [plan for plan in (baseline(fleet.costs(num)) for num in fleet.choices) if plan is not None]
        priced = found.baselines[name]
        assert (priced is None) == (not plans)
        if priced is not None:
            assert priced.cost.batch_s == min(fleet.batch_s(plan) for plan in plans if fleet.fits(plan))
    single = found.baselines[SINGLE]
    assert single is not None and found.planned.cost.batch_s <= single.cost.batch_s


def test_without_a_flush_a_batch_has_several_micro_batches_where_it_can() -> None:
    """With one, all gradients but the last stage's would be of weights a batch old."""
    peers = (PipelinePeer("a", 1e9, 1e9, 1e8), PipelinePeer("b", 1e9, 1e9, 1e8, has_data=False))
    task = PipelineTask(model(6, 10**8), peers, 4, 4)
    for fleet, nums in (
        (Fleet(task, math.inf), {4, 2}),
        (Fleet(dataclasses.replace(task, num_micro_batches=1), 9), {1}),
    ):
        pipelines = [each for each in pipelines_of(fleet, "planned") if len(each.stages) > 1]
        assert {each.num_micro_batches for each in pipelines} == nums
        assert len(best(fleet, "planned").stages) == 2
    alone = Fleet(dataclasses.replace(task, peers=peers[:1]), math.inf)
    assert {each.num_micro_batches for each in pipelines_of(alone, "planned")} == {4, 2, 1}


def is_fresh(fleet: Fleet, plan: PipelinePlan) -> bool:
    """Whether not all gradients but the last stage's are of weights a batch old, or it can't be otherwise."""
    flushes = fleet.costs(plan.num_micro_batches).task.batches == 1
    return flushes or plan.num_micro_batches > 1 or len(plan.stages) == 1 or len(fleet.choices) == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_out_of_the_search_is_not_missed(seed: int) -> None:
    """The best of all numbers of micro-batches, each searched to the end, and of any device alone."""
    fleet = some_room(random.Random(seed))
    found = [Search(fleet.costs(num)).best() for num in fleet.choices]
    plans = [each.plan for each in found if each is not None]
    plans += [plan for plan in (best_single_peer(fleet.costs(num)) for num in fleet.choices) if plan is not None]
    soonest = min(judged_s(fleet, plan, 1.0) for plan in plans if is_fresh(fleet, plan))
    assert judged_s(fleet, best(fleet, "planned"), 1.0) <= soonest * WORTH * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_a_room_s_seconds_are_never_below_the_search_s_which_knows_no_messages(seed: int) -> None:
    fleet = some_room(random.Random(seed))
    for num in fleet.choices:
        found = Search(fleet.costs(num)).best()
        assert found is not None and fleet.batch_s(found.plan) >= found.cost.batch_s * (1 - 1e-9)


def test_a_choice_among_sixty_blocks_and_sixteen_unlike_peers_is_bounded_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the devices that do least it looks again where it has a plan; of other numbers of micro-batches at what
    may yet be faster."""
    searches: list[Search] = []

    class Counted(Search):
        def __init__(self, costs: CostModel, limit_s: float) -> None:
            super().__init__(costs, limit_s)
            searches.append(self)

    monkeypatch.setattr(choice, "Search", Counted)
    fleet = Fleet(mixed_task(random.Random(1), num_blocks=60, num_peers=16))
    taken = best(fleet, "planned")
    assert len(taken.stages) > 1 and fleet.fits(taken)
    first, *others = searches
    assert first.num_tails < 40_000 and sum(search.num_played for search in searches) < 2_500
    assert len(others) == len(fleet.choices) - 1 == 3
    assert sum(search.num_tails for search in others) < first.num_tails / 2


def test_a_batch_is_the_same_in_any_number_of_micro_batches() -> None:
    fleet = Fleet(PipelineTask(model(4, 10**7), (PipelinePeer("a", 1e9, 1e9, 1e7),), 5, 12), math.inf)
    assert fleet.choices == micro_batch_choices(12) == (12, 6, 3, 1)
    tasks = [fleet.costs(num).task for num in fleet.choices]
    assert {task.micro_batch * task.num_micro_batches for task in tasks} == {60}
    assert [task.batches for task in tasks] == [6, 11, 22, 64]
    assert [Fleet(fleet.task).costs(num).task.batches for num in fleet.choices] == [1, 1, 1, 1]

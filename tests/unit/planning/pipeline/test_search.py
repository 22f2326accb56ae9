"""The planner against an exhaustive search, against its baselines, and at its limits."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pipeline_rooms import even_model, mixed_task, room

from p2ptrain.errors import UserError
from p2ptrain.planning.devices.blocks import BlockProfile, BlockTimes, ModelProfile
from p2ptrain.planning.pipeline.baselines import best_single_peer, data_parallel, equal_split, side_by_side
from p2ptrain.planning.pipeline.cost import CostModel, cost_of, stage_memory_bytes, steps_of
from p2ptrain.planning.pipeline.schedule import deepest_warm_up, round_s
from p2ptrain.planning.pipeline.shares import Sharing
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.planning.pipeline.task import PairRate, PipelinePeer, PipelineTask
from p2ptrain.planning.pipeline.warm_ups import all_depths, num_depths
from p2ptrain.planning.search import groups
from p2ptrain.planning.search.partial_plans import ROUNDING
from p2ptrain.planning.search.search import Planned, Search, plan_of


def plan_pipeline(model: CostModel) -> Planned:
    planned = Search(model).best()
    assert planned is not None  # only with a limit
    return planned


@st.composite
def tasks(draw: st.DrawFn, max_blocks: int = 4, max_peers: int = 3, max_samples: int = 3) -> PipelineTask:
    """Small rooms in which memory, links and illegal cuts all bind at times."""
    num_blocks = draw(st.integers(2, max_blocks))
    size = st.sampled_from([0, 1, 5, 20])
    blocks = tuple(
        BlockProfile(
            f"b{i}",
            draw(st.integers(0, 6)),
            draw(st.integers(1, 9)),
            draw(size),
            draw(size),
            draw(size),
            cut,
            least_samples=draw(st.sampled_from([1, 1, 1, 2])),
        )
        for i, cut in enumerate(draw(st.lists(st.booleans(), min_size=num_blocks, max_size=num_blocks)))
    )
    assume(any(block.cut_after for block in blocks[:-1]))
    peers = tuple(
        PipelinePeer(
            f"p{i}",
            draw(st.sampled_from([1.0, 1.0, 2.0, 3.5, 10.0])),
            draw(st.sampled_from([40.0, 120.0, 400.0, 1e9])),
            draw(st.sampled_from([1.0, 4.0, 100.0])),
            has_data=draw(st.sampled_from([True, True, False])),
        )
        for i in range(draw(st.integers(1, max_peers)))
    )
    assume(any(peer.has_data for peer in peers))
    model = ModelProfile("small", draw(size), blocks)
    return PipelineTask(
        model,
        peers,
        micro_batch=draw(st.integers(model.least_samples, max_samples)),
        num_micro_batches=draw(st.integers(1, 5)),
        latency_s=draw(st.sampled_from([0.0, 0.5])),
        forward_wire=draw(st.sampled_from([1.0, 1.0, 0.25])),
        backward_wire=draw(st.sampled_from([1.0, 1.0, 0.5])),
        batches=draw(st.sampled_from([1, 1, 2, 3])),
    )


def every_plan(model: CostModel) -> Iterator[PipelinePlan]:
    """All subsets and orders of peers, groups, cuts and shares of samples; warm-up as deep as planning goes."""
    task, last = model.task, model.num_units
    peers = range(len(task.peers))
    for num_stages in range(1, min(len(peers), last) + 1):
        for stage_of in itertools.product(range(-1, num_stages), repeat=len(peers)):  # -1: left out
            groups = [[peer for peer in peers if stage_of[peer] == s] for s in range(num_stages)]
            if not all(groups) or not all(task.peers[peer].has_data for peer in groups[0]):
                continue
            for cuts in itertools.combinations(range(1, last), num_stages - 1):
                bounds = [*itertools.pairwise((0, *cuts, last))]
                least = task.model.least_samples
                for shares in itertools.product(*(splits(task.micro_batch, len(group), least) for group in groups)):
                    yield plan_of(
                        model,
                        [
                            Stage(model.cuts[a], model.cuts[b], tuple(task.peers[p].name for p in group), share, depth)
                            for (a, b), group, share, depth in zip(
                                bounds, groups, shares, deepest_warm_up(num_stages, task.most_ahead), strict=True
                            )
                        ],
                    )


def splits(total: int, parts: int, least: int = 1) -> list[tuple[int, ...]]:
    return [each for each in itertools.product(range(least, total + 1), repeat=parts) if sum(each) == total]


def fits(model: CostModel, plan: PipelinePlan, depths: tuple[int, ...]) -> bool:
    limits = {peer.name: peer.memory_bytes for peer in model.task.peers}
    for stage, depth in zip(plan.stages, depths, strict=True):
        needs = stage_memory_bytes(model, dataclasses.replace(stage, warm_up=depth))
        if any(need > limits[name] for name, need in zip(stage.peers, needs, strict=True)):
            return False
    return True


def best_by_trying_all(model: CostModel) -> float:
    best = math.inf
    for plan in every_plan(model):
        steps = steps_of(model, plan)
        for depths in all_depths(tuple(stage.warm_up for stage in plan.stages)):
            if fits(model, plan, depths):
                best = min(best, round_s(steps, depths) / steps.batches)
    return best


def check_against_all(task: PipelineTask) -> tuple[Planned, float] | None:
    """The plan, which is none slower than the best of all, and the best's seconds; None where nothing fits."""
    model = CostModel(task)
    best = best_by_trying_all(model)
    if best == math.inf:
        with pytest.raises(UserError, match="no plan fits"):
            plan_pipeline(model)
        return None
    planned = plan_pipeline(model)
    assert planned.is_proved and planned.cost.batch_s <= best * (1 + 1e-6)
    return planned, best


def goes_deeper(planned: Planned, task: PipelineTask) -> bool:
    """Whether a warm-up is deeper than those that all are played with."""
    depths = [stage.warm_up for stage in planned.plan.stages]
    return any(d > most for d, most in zip(depths, deepest_warm_up(len(depths), task.most_ahead), strict=True))


@settings(max_examples=60, deadline=None)
@given(tasks())
def test_the_plan_is_the_best_of_all(task: PipelineTask) -> None:
    found = check_against_all(task)
    if found is not None and not goes_deeper(found[0], task):
        assert found[0].cost.batch_s == pytest.approx(found[1], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(tasks(max_blocks=8, max_peers=5, max_samples=6), st.sampled_from([255, 4]))
def test_a_plan_fits_holds_together_and_is_never_slower_than_its_baselines(task: PipelineTask, max_groups: int) -> None:
    model = CostModel(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "MAX_GROUPS", max_groups)  # 4: groups are a selection, nothing is proved
        try:
            planned = plan_pipeline(model)
            again = plan_pipeline(model)
        except UserError:
            assert best_single_peer(model) is None
            return
    assert again.plan.to_json() == planned.plan.to_json()
    assert planned.cost == cost_of(model, planned.plan) and planned.cost.fits
    assert planned.cost.bound_s <= planned.cost.batch_s * ROUNDING
    known = {peer.name: peer for peer in task.peers}
    assert all(known[name].has_data for name in planned.plan.stages[0].peers)
    used = {name for stage in planned.plan.stages for name in stage.peers}
    assert used | set(planned.plan.left_out) == set(known)
    single = best_single_peer(model)
    assert single is None or planned.cost.batch_s <= cost_of(model, single).batch_s * ROUNDING
    if planned.is_proved:
        others = [plan for plan in (data_parallel(model), equal_split(model)) if plan is not None]
        costs = [cost_of(model, plan) for plan in others if all(known[n].has_data for n in plan.stages[0].peers)]
        assert all(planned.cost.batch_s <= cost.batch_s * ROUNDING for cost in costs if cost.fits)


@st.composite
def linked_tasks(draw: st.DrawFn) -> PipelineTask:
    """Rooms of like peers in which some links are slower than their ends, or said to be faster."""
    task = draw(tasks())
    peers = tuple(dataclasses.replace(task.peers[0], name=peer.name) for peer in task.peers)
    assume(len(peers) > 1 and peers[0].has_data)
    pairs = draw(st.lists(st.sampled_from([*itertools.combinations(range(len(peers)), 2)]), unique=True, min_size=1))
    rate = st.sampled_from([0.5, 2.0, 50.0, 1e6])
    rates = tuple(PairRate(peers[b].name, peers[a].name, draw(rate)) for a, b in pairs)
    return dataclasses.replace(task, peers=draw(st.sampled_from([peers, task.peers])), pair_rates=rates)


@settings(max_examples=40, deadline=None)
@given(linked_tasks())
def test_the_plan_is_the_best_of_all_where_links_have_rates_of_their_own(task: PipelineTask) -> None:
    check_against_all(task)


def test_a_link_takes_the_rate_of_its_pair_and_an_all_reduce_that_of_its_slowest_pair() -> None:
    peers = room(1.0, 1.0, 1.0, link_bytes_per_s=100.0)
    pairs = (PairRate("p0", "p1", 10.0), PairRate("p2", "p1", 20.0), PairRate("p0", "p2", 500.0))
    model = CostModel(PipelineTask(even_model(2, 100, 100), peers, 2, 1, pair_rates=pairs))
    chain = plan_of(model, [Stage(0, 1, ("p2",), (2,), 1), Stage(1, 2, ("p1",), (2,), 1)])
    assert steps_of(model, chain).link_forward_s == (200 / 20,)
    group = plan_of(model, [Stage(0, 1, ("p0", "p1"), (1, 1), 1), Stage(1, 2, ("p2",), (2,), 1)])
    assert steps_of(model, group).link_forward_s == (200 / 20,)
    assert steps_of(model, group).update_s == (100 / 10, 0.0)
    others = plan_of(model, [Stage(0, 1, ("p0",), (2,), 1), Stage(1, 2, ("p2",), (2,), 1)])
    assert steps_of(model, others).link_forward_s == (200 / 100,)  # no faster than its ends


def test_equal_peers_with_a_slow_link_between_two_are_not_neighbours() -> None:
    peers = room(1.0, 1.0, 1.0, memory_bytes=1e15, link_bytes_per_s=1e9)
    task = PipelineTask(even_model(9, 1000, 10**12), peers, 4, 8)
    fast = plan_pipeline(CostModel(task))
    slow = dataclasses.replace(task, pair_rates=(PairRate("p0", "p1", 1.0), PairRate("p1", "p2", 1e9)))
    planned = plan_pipeline(CostModel(slow))
    assert planned.cost.batch_s == pytest.approx(fast.cost.batch_s, rel=1e-3)
    assert [stage.peers for stage in planned.plan.stages][1] == ("p2",)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ((PairRate("p0", "p7", 1.0),), "link p0:p7: no peer is named p7; there are p0, p1"),
        ((PairRate("p0", "p0", 1.0),), "two ends"),
        ((PairRate("p0", "p1", 0.0),), "0 bytes/s; it must be above zero"),
        ((PairRate("p0", "p1", math.nan),), "above zero"),
        ((PairRate("p0", "p1", 1.0), PairRate("p1", "p0", 2.0)), "link p1:p0: is named twice"),
    ],
)
def test_a_link_that_is_none_is_an_error_with_a_next_step(pairs: tuple[PairRate, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CostModel(dataclasses.replace(GOOD, pair_rates=pairs))


def test_batch_norm_gives_every_peer_two_samples() -> None:
    block = dataclasses.replace(even_model(1).blocks[0], least_samples=2)
    net = ModelProfile("norm", 0, (block, *even_model(1).blocks))
    peers = room(1.0, 0.01, 1.0)
    model = CostModel(PipelineTask(net, peers, 16, 4))
    plan = side_by_side(model)
    assert plan is not None and plan.stages[0].samples == (7, 2, 7)
    few = CostModel(PipelineTask(net, peers, 5, 4))
    plan = side_by_side(few)
    assert plan is not None and (plan.stages[0].peers, plan.stages[0].samples) == (("p0", "p2"), (3, 2))
    with pytest.raises(UserError, match=r"batch normalisation.*micro-batches of 1 sample; make them larger"):
        CostModel(PipelineTask(net, peers, 1, 4))


def test_shares_of_many_runs_are_those_of_each_run() -> None:
    generator = random.Random(2)
    for trial in range(36):
        num_blocks, micro_batch, num_peers = 4, generator.choice([3, 16, 40, 64]), generator.choice([4, 8])
        wide = [10 ** generator.uniform(-2, 2) for _ in range(num_peers)]
        few = [generator.choice([1.0, 3.0, 20.0]) for _ in range(num_peers)]
        peers = tuple(
            dataclasses.replace(peer, memory_bytes=generator.choice([1e9, 400.0, 150.0, 60.0]))
            for peer in room(*generator.choice([wide, few]))
        )
        if trial % 3:
            peers = tuple(dataclasses.replace(peer, times=measured(generator, num_blocks)) for peer in peers)
        net = even_model(num_blocks, 1, 1)
        if trial % 2:
            net = dataclasses.replace(
                net, blocks=(dataclasses.replace(net.blocks[0], least_samples=2), *net.blocks[1:])
            )
        model = CostModel(PipelineTask(net, peers, micro_batch, 4))
        sharing = Sharing(model)
        starts, stops = np.triu_indices(num_blocks + 1, 1)
        for size, depth in itertools.product((1, 2, 3, num_peers), (1, 3)):
            group = generator.sample(range(num_peers), size)
            peers_of_runs = np.repeat(np.array(group)[:, None], len(starts), axis=1)
            caps = sharing.caps(peers_of_runs, starts, stops, np.full(len(starts), depth))
            shares = sharing.shares(peers_of_runs, starts, stops, caps)
            took = np.array(sharing.slowest(peers_of_runs, starts, stops, shares))
            for run, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
                expected = model.split(group, start, stop, depth)
                assert shares[:, run].tolist() == list(expected or [0] * size)
                passes = [
                    model.stage_s(peer, start, stop, n) for peer, n in zip(group, expected or (), strict=bool(expected))
                ]
                slowest = np.max(passes, axis=0) if expected else [math.inf, math.inf]
                assert took[:, run] == pytest.approx(slowest, rel=1e-9)


def test_a_selection_of_groups_comes_near_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for seed in range(6):
        generator = random.Random(seed)
        model = CostModel(mixed_task(generator, num_blocks=10, num_peers=6))
        monkeypatch.setattr(groups, "MAX_GROUPS", 255)
        best = plan_pipeline(model)
        monkeypatch.setattr(groups, "MAX_GROUPS", 8)
        found = plan_pipeline(model)
        assert best.is_proved and not found.is_proved
        losses.append(found.cost.batch_s / best.cost.batch_s)
    assert max(losses) < 1.06 and sum(losses) / len(losses) < 1.02


def test_sixty_blocks_and_sixteen_unlike_peers_are_bounded_work() -> None:
    search = Search(CostModel(mixed_task(random.Random(1), num_blocks=60, num_peers=16)))
    planned = search.best()
    assert search.num_tails < 15_000 and search.num_played < 1_000
    assert planned is not None and len(planned.plan.stages) > 1 and planned.cost.fits


def test_equal_peers_are_one_kind_and_cost_no_more_work_than_their_number() -> None:
    task = PipelineTask(even_model(16, 1000, 1000), room(*[1.0] * 16, link_bytes_per_s=1e9), 16, 16)
    search = Search(CostModel(task))
    planned = search.best()
    assert planned is not None and search.num_tails < 3_000
    ideal = 16 * 16 * 16 * 3 / 16
    assert planned.cost.batch_s < 1.6 * ideal


# One search, several plans.


def without(task: PipelineTask, names: set[str]) -> PipelineTask:
    peers = tuple(peer for peer in task.peers if peer.name not in names)
    pairs = tuple(pair for pair in task.pair_rates if not names & {pair.one, pair.other})
    return dataclasses.replace(task, peers=peers, pair_rates=pairs)


@settings(max_examples=60, deadline=None)
@given(st.one_of(tasks(max_peers=4), linked_tasks()), st.randoms(use_true_random=False))
def test_the_best_without_some_is_that_of_the_others(task: PipelineTask, generator: random.Random) -> None:
    search = Search(CostModel(task))
    try:
        search.best()
    except UserError:
        return
    left_out: set[str] = set()
    for peer in generator.sample([peer.name for peer in task.peers], len(task.peers)):
        left_out.add(peer)
        found = search.without(peer, math.inf)
        try:
            best = plan_pipeline(CostModel(without(task, left_out)))
        except UserError:
            assert found is None
            continue
        assert found is not None and found.is_proved and found.cost.fits and left_out <= {*found.plan.left_out}
        assert found.cost.batch_s == pytest.approx(best.cost.batch_s, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(tasks(), st.sampled_from([0.5, 0.99, 1.01, 2.0]))
def test_with_a_limit_it_is_the_same_plan_or_none(task: PipelineTask, share: float) -> None:
    model = CostModel(task)
    try:
        best = plan_pipeline(model)
    except UserError:
        assert Search(model, 1e9).best() is None
        return
    found = Search(model, share * best.cost.batch_s).best()
    if share < 1:
        assert found is None
    elif not goes_deeper(best, task):
        assert found is not None and found.is_proved
        assert found.cost.batch_s == pytest.approx(best.cost.batch_s, rel=1e-6)


def test_without_some_of_many_it_comes_near_to_a_search_of_its_own() -> None:
    losses = []
    for seed in range(4):
        task = mixed_task(random.Random(seed), num_blocks=20, num_peers=12)
        search = Search(CostModel(task))
        best = search.best()
        assert best is not None
        gone = best.plan.stages[-1].peers[0]
        found, own = search.without(gone, math.inf), plan_pipeline(CostModel(without(task, {gone})))
        assert found is not None and found.cost.fits and gone in found.plan.left_out
        losses.append(found.cost.batch_s / own.cost.batch_s)
    assert max(losses) < 1.1 and sum(losses) / len(losses) < 1.03


# Known figures (FTPipeHD): one peer ten times slower than the two beside it.


def slow_in_the_middle(num_micro_batches: int = 400, order: tuple[float, ...] = (10.0, 1.0, 10.0)) -> CostModel:
    return CostModel(PipelineTask(even_model(20), room(*order), 1, num_micro_batches))


def test_the_known_gains_over_an_equal_split_and_over_the_best_single_peer() -> None:
    model = slow_in_the_middle()
    planned, single = plan_pipeline(model), best_single_peer(model)
    assert single is not None
    equal = cost_of(model, equal_split(model))
    assert equal.batch_s / planned.cost.batch_s == pytest.approx(7.0, rel=0.02)
    assert cost_of(model, single).batch_s / planned.cost.batch_s == pytest.approx(2.0, rel=0.06)
    slow_last = slow_in_the_middle(order=(10.0, 10.0, 1.0))
    gain = cost_of(slow_last, equal_split(slow_last)).batch_s / plan_pipeline(slow_last).cost.batch_s
    assert 5.7 < gain < 6.2  # known: 5.95


def test_a_peer_that_would_slow_the_others_down_is_left_out() -> None:
    task = PipelineTask(even_model(6, 1000, 1000), room(10.0, 0.01, 10.0, link_bytes_per_s=1e9), 4, 8)
    assert plan_pipeline(CostModel(task)).plan.left_out == ("p1",)
    slow_links = dataclasses.replace(task, rate_bytes_per_s=1.0)
    assert len(plan_pipeline(CostModel(slow_links)).plan.stages) == 1
    assert plan_pipeline(CostModel(slow_links)).plan.left_out == ("p1", "p2")


def test_the_order_of_stages_follows_memory_and_not_the_order_given() -> None:
    """The first stage keeps the most activations, so the peer with little memory goes last."""
    peers = (PipelinePeer("small", 1e6, 8_500, 1e9), PipelinePeer("large", 1e6, 1e9, 1e9))
    planned = plan_pipeline(CostModel(PipelineTask(even_model(8, 1000), peers, 1, 8)))
    assert [stage.peers for stage in planned.plan.stages] == [("large",), ("small",)]
    needs = dict(zip(("large", "small"), (need[0] for need in planned.cost.memory_bytes), strict=True))
    assert needs["small"] <= 8_500 < needs["large"]


def test_only_peers_with_samples_begin_the_pipeline() -> None:
    peers = (*room(10.0), PipelinePeer("owner", 1e6, 1e12, 1e12))
    task = PipelineTask(even_model(6), (dataclasses.replace(peers[0], has_data=False), peers[1]), 2, 8)
    assert plan_pipeline(CostModel(task)).plan.stages[0].peers == ("owner",)


def test_measured_times_count_more_than_flops() -> None:
    """By its FLOP/s p0 is the faster; measured it is three times slower, and a batch of one costs it half of four."""
    model = even_model(4)
    slow = BlockTimes((1, 4), ((4.5,) * 4, (9.0,) * 4), ((4.5,) * 4, (9.0,) * 4))
    peers = (PipelinePeer("p0", 100e6, 1e12, 1e12, slow), PipelinePeer("p1", 1e6, 1e12, 1e12))
    costs = CostModel(PipelineTask(model, peers, 4, 1))
    assert costs.stage_s(0, 0, 2, 1) == (9.0, 9.0) and costs.stage_s(0, 0, 2, 4) == (18.0, 18.0)
    assert costs.stage_s(0, 0, 1, 2)[0] == pytest.approx(6.0) and costs.stage_s(0, 0, 1, 3)[0] == pytest.approx(7.5)
    assert best_single_peer(costs) == plan_of(costs, [Stage(0, 4, ("p1",), (4,), 1)])
    slower = dataclasses.replace(peers[1], slowdown=2.0)
    assert CostModel(PipelineTask(model, (peers[0], slower), 4, 1)).stage_s(1, 0, 1, 1) == (2.0, 4.0)


def test_measured_times_that_fall_with_more_samples_are_taken_for_noise() -> None:
    times = BlockTimes((2, 4), ((3.0,) * 2, (2.0,) * 2), ((3.0,) * 2, (2.0,) * 2))
    peers = (PipelinePeer("p0", 1e6, 1e12, 1e12, times), PipelinePeer("p1", 1e6, 1e12, 1e12, times))
    costs = CostModel(PipelineTask(even_model(2), peers, 8, 2))
    took = [costs.stage_s(0, 0, 2, samples)[0] for samples in range(9)]
    assert took == sorted(took) and took[0] == 0
    assert plan_pipeline(costs).cost.fits


def test_measured_times_are_planned_with_as_well_as_flops() -> None:
    """Splits are chosen by forward and backward times together, so nothing is proved; it is the best all the same."""
    generator = random.Random(5)
    for _ in range(12):
        model = even_model(generator.randint(2, 3), 5, 5)
        peers = tuple(
            PipelinePeer(f"p{i}", 1.0, generator.choice([80.0, 1e9]), 20.0, measured(generator, len(model.blocks)))
            for i in range(3)
        )
        costs = CostModel(PipelineTask(model, peers, 3, generator.randint(1, 4), 0.01))
        planned = plan_pipeline(costs)
        assert not planned.is_proved and planned.cost.batch_s <= best_by_trying_all(costs) * (1 + 1e-6)


def measured(generator: random.Random, num_blocks: int) -> BlockTimes:
    speed = generator.choice([1, 2, 5])
    one = [[generator.uniform(0.5, 3) / speed for _ in range(num_blocks)] for _ in range(2)]
    four = [[value * generator.uniform(1.2, 4) for value in row] for row in one]
    update = generator.choice([0.0, 0.5 / speed])
    return BlockTimes((1, 4), (tuple(one[0]), tuple(four[0])), (tuple(one[1]), tuple(four[1])), update)


def test_the_optimizers_step_ends_a_batch_at_the_slowest_peers_pace() -> None:
    """A byte of parameters takes p0 0.1 s, and p1 half as long by its profile but four times that while it trains."""
    rows = ((1.0,) * 2,)
    peers = (
        PipelinePeer("p0", 1.0, 1e12, 1e12, BlockTimes((1,), rows, rows, 0.1)),
        PipelinePeer("p1", 1.0, 1e12, 1e12, BlockTimes((1,), rows, rows, 0.05), slowdown=4.0),
    )
    costs = CostModel(PipelineTask(even_model(2, 0, 10), peers, 2, 1))
    alone = best_single_peer(costs)
    assert alone is not None and steps_of(costs, alone).update_s == pytest.approx((0.1 * 20,))
    both = plan_of(costs, [Stage(0, 2, ("p0", "p1"), (1, 1), 1)])
    assert steps_of(costs, both).update_s == pytest.approx((0.2 * 20 + 20 / 1e12,))
    assert cost_of(costs, both).batch_s == pytest.approx(4 * (2.0 + 2.0) + 4.0)


def test_all_depths_are_those_that_do_not_rise() -> None:
    for caps in ((3, 1), (5, 3, 1), (2, 2, 4), (7, 5, 3, 1), (1,)):
        found = list(all_depths(caps))
        expected = [
            each
            for each in itertools.product(*(range(1, cap + 1) for cap in caps))
            if all(a >= b for a, b in itertools.pairwise(each))
        ]
        assert sorted(found) == sorted(expected) and num_depths(caps) == len(expected)


# Bad input.

NAN = math.nan
GOOD = PipelineTask(even_model(3, 10, 10), room(1.0, 2.0), 4, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peers": ()}, "no peers.*name at least one"),
        ({"peers": room(1.0) * 2}, "p0 is named twice"),
        ({"peers": room(0.0)}, "p0: flops_per_s is 0.*p2ptrain probe"),
        ({"peers": room(NAN)}, "p0: flops_per_s is nan.*p2ptrain probe"),
        ({"peers": room(1.0, memory_bytes=NAN)}, "p0: memory_bytes is nan"),
        ({"peers": room(1.0, link_bytes_per_s=0.0)}, "p0: link_bytes_per_s is 0"),
        ({"peers": (dataclasses.replace(room(1.0)[0], has_data=False),)}, "no peer has samples.*--data"),
        ({"micro_batch": 0}, "micro-batches of 0 samples"),
        ({"num_micro_batches": 0}, "0 micro-batches"),
        ({"rate_bytes_per_s": 0.0}, "rate must be above zero"),
        ({"latency_s": NAN}, "latency"),
        ({"forward_wire": 0.0}, "0 and 1 bytes sent for one"),
        ({"backward_wire": math.inf}, "1 and inf bytes sent for one"),
        ({"model": ModelProfile("none", 0, ())}, "model none: 0 blocks"),
        ({"model": even_model(1)}, "no legal cut.*mode tasks"),
        ({"model": dataclasses.replace(even_model(2), blocks=even_model(2).blocks[1:])}, "no legal cut"),
    ],
)
def test_what_can_not_be_planned_is_an_error_with_a_next_step(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CostModel(dataclasses.replace(GOOD, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (BlockTimes((), (), ()), "batch sizes"),
        (BlockTimes((1,), ((1.0,) * 3,), ((1.0,) * 3,), NAN), "the optimizer takes nan s"),
        (BlockTimes((1,), ((1.0,) * 3,), ((1.0,) * 3,), -1.0), "the optimizer takes -1.0 s"),
        (BlockTimes((2, 1), ((1.0,) * 3,) * 2, ((1.0,) * 3,) * 2), "must rise"),
        (BlockTimes((1,), ((1.0,) * 2,), ((1.0,) * 3,)), "not one for each"),
        (BlockTimes((1,), ((1.0, NAN, 1.0),), ((1.0,) * 3,)), r"block 1 \(b1\) at batch size 1 is nan"),
        (BlockTimes((1,), ((0.0,) * 3,), ((1.0,) * 3,)), "forward time at batch size 1 is zero"),
    ],
)
def test_times_that_are_none_are_an_error_with_a_next_step(times: BlockTimes, said: str) -> None:
    peer = dataclasses.replace(room(1.0)[0], times=times)
    with pytest.raises(UserError, match=said) as caught:
        CostModel(dataclasses.replace(GOOD, peers=(peer,)))
    assert "measure p0's blocks again" in str(caught.value)


def test_a_block_without_work_or_with_nan_is_an_error() -> None:
    block = dataclasses.replace(even_model(2).blocks[0], stored_activation_bytes=NAN)
    model = ModelProfile("odd", 0, (block, block))
    with pytest.raises(UserError, match=r"block 0.*stored_activation_bytes is nan"):
        CostModel(dataclasses.replace(GOOD, model=model))
    idle = dataclasses.replace(block, stored_activation_bytes=0, forward_flops=0, backward_flops=0)
    with pytest.raises(UserError, match="no work"):
        CostModel(dataclasses.replace(GOOD, model=ModelProfile("idle", 0, (idle, idle))))


def test_a_plan_that_no_memory_allows_says_what_is_missing() -> None:
    task = dataclasses.replace(GOOD, peers=room(1.0, 2.0, memory_bytes=5.0))
    with pytest.raises(UserError, match=r"(?s)no plan fits into the memory of these 2 peers.*smaller micro-batches"):
        plan_pipeline(CostModel(task))
    assert best_single_peer(CostModel(task)) is None and data_parallel(CostModel(task)) is None
    assert not cost_of(CostModel(task), equal_split(CostModel(task))).fits

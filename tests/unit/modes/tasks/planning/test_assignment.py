"""Assignment: invariants over random groups, balance against exhaustive search, and the scenarios people meet."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot, Plan, check_plan
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import read_plan
from p2ptrain.modes.tasks.config import TasksConfig, tasks_of
from p2ptrain.modes.tasks.planning.assignment import (
    first_plan,
    next_plan,
    notes,
    num_samples,
    recomputes,
    round_costs,
    speeds,
)
from p2ptrain.modes.tasks.planning.shares import MAX_SHARE, WIDTH_SPREAD
from p2ptrain.planning.devices.footprint import largest_share, training_bytes

BALANCE_FACTOR = {"all": 1.01, "own": 1.6}
"""How far first_plan's slowest peer may be behind the best plan that exhaustive search finds, by targets. With "own" a
class less is work less, and the search would starve the slow peers' classes of width; first_plan keeps width even."""


def name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def job(num_classes: int = 6, **tasks: object) -> Job:
    data = DataConfig(
        classes=tuple(f"c{i}" for i in range(num_classes)), input_shape=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    return Job(data=data, tables=(TasksConfig(**tasks),))  # type: ignore[arg-type]


def peer(
    index: int, counts: Sequence[int], speed: float = 1e9, memory: int = 0, wishes: Sequence[int] = ()
) -> PeerSnapshot:
    return PeerSnapshot(name(index), speed, memory, tuple(counts), tuple(wishes))


def even(num_peers: int, num_classes: int = 6, **more: object) -> list[PeerSnapshot]:
    return [peer(i, [50] * num_classes, **more) for i in range(num_peers)]  # type: ignore[arg-type]


def trainers(plan: Plan) -> list[list[int]]:
    return [[int(peer[4:]) for peer in part.trainers] for part in plan.parts]


# --- invariants -----------------------------------------------------------------------------------------------------

speeds_drawn = st.sampled_from([0.0, math.nan, math.inf, 1e8, 1e9, 5e9, 1e11]) | st.floats(1e7, 1e12)


@st.composite
def snapshots(draw: st.DrawFn, num_classes: int, low: int = 1, high: int = 9) -> list[PeerSnapshot]:
    ids = draw(st.lists(st.integers(0, 30), min_size=low, max_size=high, unique=True))
    kind = draw(st.sampled_from(["even", "any", "own"]))
    result = []
    for i in ids:
        if kind == "even":
            counts = [draw(st.integers(20, 60))] * num_classes
        elif kind == "own":
            counts = [100 if c % max(1, len(ids)) == ids.index(i) else 0 for c in range(num_classes)]
        else:
            counts = draw(st.lists(st.integers(0, 40), min_size=num_classes, max_size=num_classes))
        wishes = draw(st.lists(st.integers(0, num_classes - 1), max_size=3))
        memory = draw(st.sampled_from([0, 0, 300 << 20, 450 << 20, 4 << 30]))
        result.append(peer(i, counts, draw(speeds_drawn), memory, wishes))
    return result


@st.composite
def cases(draw: st.DrawFn) -> tuple[Job, list[PeerSnapshot], list[PeerSnapshot]]:
    num_classes = draw(st.integers(2, 8))
    tasks = {
        "num_groups": draw(st.sampled_from([0, 0, 1, 2, num_classes])),
        "targets": draw(st.sampled_from(["auto", "auto", "own", "rest", "all"])),
        "trunk": draw(st.integers(0, 1)),
    }
    work = job(num_classes, **tasks)
    work = dataclasses.replace(
        work,
        model=ModelConfig(name=draw(st.sampled_from(["lenet", "vgg16_bn", "mine:model"]))),
        mode=draw(st.sampled_from(["tasks", "tasks", "tasks", "replicas"])),
    )
    return work, draw(snapshots(num_classes)), draw(snapshots(num_classes, 0))


@settings(max_examples=120, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_plans_hold_together_whatever_the_group(
    case: tuple[Job, list[PeerSnapshot], list[PeerSnapshot]], shuffle: random.Random
) -> None:
    work, peers, later = case
    proposer = peers[0].peer
    if not any(sum(p.counts) for p in peers):
        with pytest.raises(LocalError):
            first_plan(work, peers, proposer)
        return
    plan = first_plan(work, peers, proposer)
    check_plan(plan)
    assert read_plan(plan.to_json()) == plan
    assert plan == first_plan(work, shuffle.sample(peers, len(peers)), proposer)
    assert recomputes(work, plan, None)
    assert next_plan(work, plan, peers, proposer) is None
    trains = plan.trainers()
    if work.mode == "tasks":
        for p in peers:
            if sum(p.counts) and not p.memory_bytes and not (plan.body.disjoint or plan.body.targets == "own"):
                assert p.peer in trains
        if len(plan.parts) >= 3:
            assert all(part.share <= MAX_SHARE for part in plan.parts)

    # the group changes: some go, some come (an id in both is the same peer with other data)
    alive = {p.peer: p for p in [*later, *peers[: len(peers) // 2]]}
    if not alive:
        assert next_plan(work, plan, [], proposer) is None
        return
    proposer = min(alive)
    following = next_plan(work, plan, list(alive.values()), proposer)
    assert following == next_plan(work, plan, shuffle.sample(list(alive.values()), len(alive)), proposer)
    if following is None:
        return
    check_plan(following)
    assert read_plan(following.to_json()) == following
    assert recomputes(work, following, plan) and recomputes(work, following, None)
    assert [(p.classes, p.share) for p in following.parts] == [(p.classes, p.share) for p in plan.parts]
    assert (following.epoch, following.parent) == (plan.epoch + 1, plan.hash)
    assert next_plan(work, following, list(alive.values()), proposer) is None
    after = following.trainers()
    for mover in set(trains) & set(after):
        if trains[mover] != after[mover]:  # only to a part that would have nobody, unless others come after it
            assert trains.keys() & set(following.parts[after[mover]].trainers) == {mover}
            assert following.parts[trains[mover]].trainers
    assert set(trains) & set(alive) <= set(after)


def test_what_does_not_recompute_is_seen() -> None:
    work = job()
    plan = first_plan(work, even(3), name(0))
    first, second, third = plan.parts
    others = (
        dataclasses.replace(first, trainers=second.trainers),
        dataclasses.replace(second, trainers=first.trainers),
        third,
    )
    swapped = dataclasses.replace(plan, body=dataclasses.replace(plan.body, parts=others))
    check_plan(swapped)
    assert not recomputes(work, swapped, None)
    assert not recomputes(job(trunk=1), plan, None)


# --- balance --------------------------------------------------------------------------------------------------------


def best_possible(work: Job, peers: Sequence[PeerSnapshot], num_groups: int) -> float:
    """Time of the slowest peer under the best of all assignments: same limits of shares, groups of even length."""
    speed = speeds(peers)
    num_classes = len(work.data.classes)
    targets = "own" if tasks_of(work).targets == "own" else "all"
    widest = MAX_SHARE if num_groups >= 3 else 1.0
    best = math.inf
    for classes in surjections(num_classes, num_groups):
        for places in surjections(len(peers), num_groups):
            if max(map(places.count, places)) > -(-len(peers) // num_groups):
                continue
            costs = []
            for g in range(num_groups):
                held = [c for c in range(num_classes) if classes[c] == g]
                costs.append(
                    max(
                        num_samples(p, held, targets) / speed[p.peer]  # type: ignore[arg-type]
                        for p, at in zip(peers, places, strict=True)
                        if at == g
                    )
                )
            sizes = [classes.count(g) / num_classes for g in range(num_groups)]
            highs = [min(widest, size * WIDTH_SPREAD) for size in sizes]
            lows = [min(high, size / WIDTH_SPREAD) for high, size in zip(highs, sizes, strict=True)]
            if max(low * low * cost for low, cost in zip(lows, costs, strict=True)) < best:
                best = min(best, slowest(costs, lows, highs))
    return best


def slowest(costs: list[float], lows: list[float], highs: list[float]) -> float:
    target = min(1.0, sum(highs))
    low, high = 0.0, max(costs)
    for _ in range(60):
        time = (low + high) / 2
        shares = [min(max(math.sqrt(time / q), a), b) for q, a, b in zip(costs, lows, highs, strict=True)]
        low, high = (time, high) if sum(shares) < target - 1e-9 else (low, time)
    shares = [min(max(math.sqrt(high / q), a), b) for q, a, b in zip(costs, lows, highs, strict=True)]
    return max(r * r * q for r, q in zip(shares, costs, strict=True))


def surjections(num_items: int, num_groups: int) -> Iterator[tuple[int, ...]]:
    for places in itertools.product(range(num_groups), repeat=num_items):
        if len(set(places)) == num_groups:
            yield places


@pytest.mark.parametrize("targets", ["all", "own"])
@pytest.mark.parametrize(("num_peers", "num_classes", "num_groups"), [(2, 6, 2), (3, 5, 3), (3, 4, 2), (4, 4, 2)])
def test_balance_is_close_to_exhaustive_search(num_peers: int, num_classes: int, num_groups: int, targets: str) -> None:
    draw = random.Random(7)
    for _ in range(4):
        work = job(num_classes, targets=targets, num_groups=num_groups)
        peers = [
            peer(i, [draw.randint(40, 60) for _ in range(num_classes)], 10 ** draw.uniform(9, 10.5))
            for i in range(num_peers)
        ]
        plan = first_plan(work, peers, name(0))
        best = best_possible(work, peers, num_groups)
        assert max(round_costs(plan).values()) <= BALANCE_FACTOR[targets] * best


def test_equal_peers_get_equal_parts() -> None:
    plan = first_plan(job(10), even(5, 10), name(0))
    assert [len(part.classes) for part in plan.parts] == [2] * 5
    assert {part.share for part in plan.parts} == {0.2}
    third = first_plan(job(6), even(3), name(0))
    assert {part.share for part in third.parts} == {0.333333}


def test_a_faster_peer_takes_more_classes_and_a_wider_part() -> None:
    peers = [peer(0, [50] * 10, 1e9), peer(1, [50] * 10, 4e9), peer(2, [50] * 10, 16e9)]
    plan = first_plan(job(10), peers, name(0))
    by_peer = {part.trainers[0]: part for part in plan.parts}
    sizes = [len(by_peer[name(i)].classes) for i in range(3)]
    shares = [by_peer[name(i)].share for i in range(3)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    assert shares == sorted(shares) and shares[2] == MAX_SHARE
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares[0] ** 2 < 1 / 11.8  # the weakest peer does less than an eleventh of the work


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_limits_the_share() -> None:
    work = dataclasses.replace(job(6), model=ModelConfig(name="vgg16_bn"), training=TrainingConfig(batch_size=64))
    small = (256 << 20) + training_bytes(work) // 5
    plan = first_plan(work, [peer(0, [50] * 6, memory=small), peer(1, [50] * 6)], name(0))
    part = plan.part_of(name(0))
    assert part is not None
    assert part.share <= largest_share(work, small) == pytest.approx(0.2, abs=0.01)
    assert all("memory" not in line for line in notes(work, plan))


def test_a_peer_without_room_trains_nothing_and_is_told() -> None:
    work = dataclasses.replace(job(6), model=ModelConfig(name="vgg16_bn"))
    plan = first_plan(work, [peer(0, [50] * 6, memory=200 << 20), *even(3)[1:]], name(0))
    assert plan.part_of(name(0)) is None
    assert any(name(0) in line and "memory" in line for line in notes(work, plan))


def test_footprints_are_those_of_the_built_in_models() -> None:
    models = pytest.importorskip("p2ptrain.learning.models")
    from p2ptrain.planning.devices.footprint import SIZES

    assert set(SIZES) == set(models.MODELS)
    import torch

    for model in ("lenet", "alexnet", "resnet20", "vgg11_bn"):
        with torch.device("meta"):
            built = models.build_model(model, input_shape=(3, 32, 32), num_classes=10)
        weights, per_pixel, _ = SIZES[model]
        assert weights + per_pixel * 1024 == pytest.approx(sum(p.numel() for p in built.parameters()), rel=0.1)


# --- data -----------------------------------------------------------------------------------------------------------


def test_disjoint_data_decide() -> None:
    peers = [peer(0, [90, 90, 0, 0, 0, 0]), peer(1, [0, 0, 90, 90, 90, 0]), peer(2, [2, 0, 0, 0, 1, 90])]
    plan = first_plan(job(6, num_groups=2), peers, name(0))
    assert [part.classes for part in plan.parts] == [(0, 1), (2, 3, 4), (5,)]
    assert trainers(plan) == [[0], [1], [2]]
    assert (plan.body.disjoint, plan.body.targets, plan.body.combine, plan.body.fit_head) == (True, "own", "own", True)
    assert any("num_groups" in line for line in notes(job(6, num_groups=2), plan))


def test_peers_with_the_same_classes_train_one_part_together() -> None:
    peers = [peer(0, [9, 9, 0, 0]), peer(1, [0, 0, 9, 9]), peer(2, [9, 9, 0, 0]), peer(3, [0, 0, 9, 9])]
    plan = first_plan(job(4), peers, name(0))
    assert plan.body.disjoint
    assert trainers(plan) == [[0, 2], [1, 3]]


def test_classes_nobody_has_wait_for_a_peer_that_has_them() -> None:
    work = job(6)
    peers = [peer(0, [9, 9, 0, 0, 0, 0]), peer(1, [0, 0, 9, 9, 0, 0])]
    plan = first_plan(work, peers, name(0))
    assert [part.classes for part in plan.parts] == [(0, 1), (2, 3), (4, 5)]
    assert trainers(plan) == [[0], [1], []]
    assert any("NOBODY HAS SAMPLES OF c4, c5" in line for line in notes(work, plan))
    joined = next_plan(work, plan, [*peers, peer(2, [0, 0, 0, 0, 9, 9])], name(0))
    assert joined is not None
    assert trainers(joined) == [[0], [1], [2]]


def test_mixed_data_are_not_disjoint() -> None:
    plan = first_plan(job(4), [peer(0, [9, 9, 9, 0]), peer(1, [0, 0, 9, 9])], name(0))
    assert (plan.body.disjoint, plan.body.targets, plan.body.combine, plan.body.fit_head) == (
        False,
        "all",
        "own",
        True,
    )


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"fit_head": "never"}, ("own", "own", False)),
        ({"targets": "rest"}, ("rest", "own", True)),
        ({"targets": "all"}, ("all", "own", True)),
        ({"combine": "sum"}, ("all", "sum", True)),
    ],
)
def test_the_job_has_the_last_word_on_disjoint_data(asked: dict[str, str], given: tuple[str, str, bool]) -> None:
    plan = first_plan(job(4, **asked), [peer(0, [9, 9, 0, 0]), peer(1, [0, 0, 9, 9])], name(0))
    assert (plan.body.targets, plan.body.combine, plan.body.fit_head) == given


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"fit_head": "always"}, ("all", "sum", True)),
        ({"targets": "rest"}, ("rest", "own", False)),
        ({"combine": "own"}, ("all", "own", False)),
    ],
)
def test_the_job_has_the_last_word_on_mixed_data(asked: dict[str, str], given: tuple[str, str, bool]) -> None:
    plan = first_plan(job(4, **asked), even(2, 4), name(0))
    assert (plan.body.targets, plan.body.combine, plan.body.fit_head) == given


def test_replicas_are_one_part_that_all_train() -> None:
    work = dataclasses.replace(job(4), mode="replicas")
    plan = first_plan(work, [peer(0, [9, 9, 0, 0]), peer(1, [0, 0, 9, 9])], name(1))
    assert len(plan.parts) == 1
    assert (plan.parts[0].share, plan.parts[0].shards) == (1.0, ("all",))
    assert trainers(plan) == [[0, 1]]
    assert not plan.body.disjoint
    left = next_plan(work, plan, [peer(1, [0, 0, 9, 9])], name(1))
    assert left is not None and trainers(left) == [[1]]


# --- speeds, wishes, group sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.0, math.nan, -1.0, math.inf])
def test_a_peer_without_a_speed_counts_as_the_slowest_and_is_told(speed: float) -> None:
    peers = [peer(0, [50] * 6, speed), peer(1, [50] * 6, 1e9), peer(2, [50] * 6, 9e9)]
    plan = first_plan(job(), peers, name(1))
    one, two = plan.part_of(name(0)), plan.part_of(name(1))
    assert one is not None and two is not None and one.share == pytest.approx(two.share, rel=0.5)
    assert any(name(0) in line and "probe" in line for line in notes(job(), plan))


def test_wishes_are_kept() -> None:
    peers = [
        peer(0, [50] * 6, wishes=[5]),
        peer(1, [50] * 6, wishes=[0, 1, 2]),
        peer(2, [50] * 6, wishes=[5, 3]),
    ]
    plan = first_plan(job(), peers, name(0))
    held = {part.trainers[0]: part.classes for part in plan.parts}
    assert {0, 1, 2} <= set(held[name(1)])
    assert 3 in held[name(2)]
    assert 5 in held[name(0)] + held[name(2)]


def test_wishes_are_kept_when_several_peers_share_a_part() -> None:
    wishes = [[0], [3], [0], [3]]
    peers = [peer(i, [50] * 4, wishes=w) for i, w in enumerate(wishes)]
    plan = first_plan(job(4, num_groups=2), peers, name(0))
    for p in peers:
        part = plan.part_of(p.peer)
        assert part is not None and set(p.wishes) <= set(part.classes)


@pytest.mark.parametrize(("num_peers", "num_groups"), [(4, 2), (7, 3), (6, 3), (16, 0), (20, 0)])
def test_with_enough_peers_every_part_has_two_trainers(num_peers: int, num_groups: int) -> None:
    draw = random.Random(1)
    peers = [peer(i, [50] * 10, 10 ** draw.uniform(8, 11)) for i in range(num_peers)]
    plan = first_plan(job(10, num_groups=num_groups), peers, name(0))
    assert all(len(part.trainers) >= 2 for part in plan.parts)


def test_no_more_groups_than_classes_and_one_a_peer() -> None:
    assert len(first_plan(job(3), even(5, 3), name(0)).parts) == 3
    assert len(first_plan(job(10), even(5, 10), name(0)).parts) == 5
    assert len(first_plan(job(100), even(30, 100), name(0)).parts) == 8


def test_more_groups_than_peers_wait() -> None:
    plan = first_plan(job(6, num_groups=3), even(2), name(0))
    assert sorted(map(len, trainers(plan))) == [0, 1, 1]
    assert sum(part.share for part in plan.parts) == pytest.approx(1, abs=1e-5)


# --- changes --------------------------------------------------------------------------------------------------------


def test_nothing_changes_when_nobody_comes_or_goes() -> None:
    peers = even(4)
    plan = first_plan(job(), peers, name(0))
    slower = [dataclasses.replace(p, flops_per_s=1.0) for p in peers]
    assert next_plan(job(), plan, slower, name(0)) is None


def test_a_lone_trainer_that_dies_leaves_its_part_to_its_replica() -> None:
    plan = first_plan(job(), even(3), name(0))
    after = next_plan(job(), plan, even(3)[:2], name(0))
    assert after is not None
    assert sorted(map(len, trainers(after))) == [0, 1, 1]
    for index in (0, 1):
        assert plan.trainers()[name(index)] == after.trainers()[name(index)]


def test_a_returning_peer_gets_its_part_back() -> None:
    peers = even(3)
    plan = first_plan(job(), peers, name(0))
    gone = next_plan(job(), plan, peers[1:], name(1))
    assert gone is not None
    stranger = peer(9, [50] * 6, 1e12)
    back = next_plan(job(), gone, [*peers, stranger], name(0))
    assert back is not None
    assert back.trainers()[name(0)] == plan.trainers()[name(0)]
    assert name(9) in back.trainers()
    assert back.body.former == ()


def test_a_spare_adopts_an_orphan() -> None:
    work = job(6, num_groups=2)
    plan = first_plan(work, even(3), name(0))
    lone = next(part.trainers[0] for part in plan.parts if len(part.trainers) == 1)
    survivors = [p for p in even(3) if p.peer != lone]
    after = next_plan(work, plan, survivors, survivors[0].peer)
    assert after is not None
    assert sorted(map(len, trainers(after))) == [1, 1]


def test_a_joiner_goes_to_the_orphan_before_any_spare_moves() -> None:
    work = job(6, num_groups=2)
    plan = first_plan(work, even(3), name(0))
    lone = next(part for part in plan.parts if len(part.trainers) == 1)
    alive = [p for p in even(4) if p.peer != lone.trainers[0]]
    after = next_plan(work, plan, alive, alive[0].peer)
    assert after is not None
    assert after.parts[lone.index].trainers == (name(3),)


def test_a_joiner_strengthens_the_part_with_least_speed_for_its_load() -> None:
    work = job(6, num_groups=2, targets="all")
    plan = first_plan(work, [peer(0, [50] * 6, 1e9), peer(1, [50] * 6, 1e9)], name(0))
    first = next_plan(work, plan, [*even(2), peer(2, [50] * 6, 1e9)], name(0))
    assert first is not None
    second = next_plan(work, first, even(4), name(0))
    assert second is not None
    assert sorted(map(len, trainers(second))) == [2, 2]


def test_a_joiner_goes_to_its_wish() -> None:
    work = job(6, num_groups=2)
    plan = first_plan(work, even(2), name(0))
    for part in plan.parts:
        after = next_plan(work, plan, [*even(2), peer(2, [50] * 6, wishes=part.classes[:1])], name(0))
        assert after is not None and name(2) in after.parts[part.index].trainers


def test_on_disjoint_data_nobody_adopts_what_it_has_no_samples_of() -> None:
    peers = [peer(0, [9, 9, 0, 0]), peer(1, [0, 0, 9, 9]), peer(2, [9, 9, 0, 0])]
    work = job(4)
    plan = first_plan(work, peers, name(0))
    after = next_plan(work, plan, [peers[0], peers[2]], name(0))
    assert after is not None
    assert trainers(after) == [[0, 2], []]
    both = next_plan(work, after, [*peers[::2], peer(5, [0, 0, 0, 9])], name(0))
    assert both is not None
    assert trainers(both) == [[0, 2], [5]]


def test_long_histories_stay_bounded() -> None:
    work = job(6, num_groups=2)
    plan = first_plan(work, even(2), name(0))
    for i in range(2, 400):
        plan = next_plan(work, plan, [*even(2), peer(i, [50] * 6)], name(0)) or plan
    assert len(plan.body.former) == 256
    check_plan(plan)

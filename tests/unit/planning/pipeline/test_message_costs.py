"""What passing stage messages on costs the devices: it is in what a plan promises, and in which plan is chosen."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from p2ptrain.config import DataConfig, Job, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.core.stages.figures import DeviceFigures, MeasuredPeer
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.figures import fleet_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.pipeline.planner import first_plan, follows
from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.baselines import best_single_peer
from p2ptrain.planning.pipeline.cost import steps_of
from p2ptrain.planning.pipeline.fleet import BYTE_FLOPS, MESSAGE_FLOPS, Fleet
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage

DATA = DataConfig(classes=("a", "b"), input_shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
JOB = Job(mode="pipeline", data=DATA, training=TrainingConfig(batch_size=16), tables=(PipelineConfig(micro_batches=4),))
MB = 1 << 20


def model(flops: int, activation_bytes: int = 100, parameter_bytes: int = 1000) -> ModelProfile:
    block = BlockProfile("b", flops, 2 * flops, parameter_bytes, activation_bytes, activation_bytes, True)
    return ModelProfile("net", 100, (block,) * 6)


def peer(
    index: int,
    flops_per_s: float = 1e9,
    link: float = 1e9,
    *,
    counts: tuple[int, ...] = (10, 10),
    measured: bool = False,
) -> MeasuredPeer:
    name = PeerId(f"peer{index:012d}")
    times = ((1,), ((0.1,) * 6,), ((0.2,) * 6,)) if measured else ((), (), ())
    return MeasuredPeer(PeerSnapshot(name, flops_per_s, 0, counts, ()), DeviceFigures(name, link, 1.0, *times))


def room_with(net: ModelProfile, *peers: MeasuredPeer, job: Job = JOB) -> Fleet:
    profiles = tuple(each.profile for each in peers if each.profile is not None)
    return fleet_of(job, net, tuple(each.snapshot for each in peers), profiles)


def names(*peers: MeasuredPeer) -> tuple[str, ...]:
    return tuple(each.snapshot.peer for each in peers)


def stage(start: int, stop: int, peers: tuple[MeasuredPeer, ...], samples: tuple[int, ...]) -> Stage:
    return Stage(start, stop, names(*peers), samples, 1)


@pytest.mark.parametrize(("flops", "num_stages"), [(10**6, 1), (10**9, 2)])
def test_a_helper_is_of_use_where_the_model_is_worth_it(flops: int, num_stages: int) -> None:
    """The small model takes 0.29 s a batch alone: less than its stage messages would."""
    helper = peer(1, counts=())
    plan = first_plan(JOB, model(flops), [peer(0), helper], names(peer(0))[0])  # type: ignore[arg-type]
    assert isinstance(plan.body, PipelineBody) and len(plan.body.pipeline.stages) == num_stages
    assert follows(JOB, model(flops), plan, None)


def test_every_stage_works_for_what_it_takes_in_and_hands_on() -> None:
    """Three stages; in the middle a fast and a slow peer that have three samples and one of a micro-batch's four."""
    a, b, c, d = peer(0), peer(1, 3e9), peer(2, 5e8), peer(3)
    net = model(10**8, activation_bytes=MB // 2)
    fleet = room_with(net, a, b, c, d)
    stages = (stage(0, 2, (a,), (4,)), stage(2, 4, (b, c), (3, 1)), stage(4, 6, (d,), (4,)))
    pipeline = PipelinePlan("net", 6, 4, 4, stages, ())
    plain, found = steps_of(fleet.costs(4), pipeline), fleet.steps(pipeline)
    ends = (2 * MESSAGE_FLOPS + BYTE_FLOPS * 2 * MB) / 1e9  # two receivers of 2 MB, in stage messages of a megabyte
    fast = 2 * (2 * MESSAGE_FLOPS + BYTE_FLOPS * 1.5 * MB) / 3e9  # 1.5 MB in, and as much out
    slow = 2 * (MESSAGE_FLOPS + BYTE_FLOPS * 0.5 * MB) / 5e8
    for with_messages, without in ((found.forward_s, plain.forward_s), (found.backward_s, plain.backward_s)):
        more = [seconds - before for seconds, before in zip(with_messages, without, strict=True)]
        assert more == pytest.approx([ends, max(fast, slow), ends])
    averaged = 2 * 2000.0  # bytes of the stage's parameters, sent and received: 4 x 1/2 of them
    norm = MESSAGE_FLOPS  # the part of d to b, that of b to a, the whole from a to all
    expected = (
        (1 + 3) * norm / 1e9,
        max((norm + BYTE_FLOPS * averaged + norm * 1) / 5e8, (norm + BYTE_FLOPS * averaged + 3 * norm) / 3e9),
        2 * norm / 1e9,
    )
    more = [seconds - before for seconds, before in zip(found.update_s, plain.update_s, strict=True)]
    assert more == pytest.approx(expected)
    assert found.link_forward_s == plain.link_forward_s


def test_without_a_flush_after_every_batch_no_norm_goes_round() -> None:
    a, b = peer(0), peer(1)
    pipeline = PipelinePlan("net", 6, 4, 4, (stage(0, 2, (a,), (4,)), stage(2, 6, (b,), (4,))), ())
    task = room_with(model(10**8), a, b).task
    sync, flowing = Fleet(task), Fleet(task, math.inf)
    for each in names(a, b):
        assert sync.node_s(pipeline, each) - flowing.node_s(pipeline, each) == pytest.approx(2 * MESSAGE_FLOPS / 1e9)


def test_a_node_s_work_is_that_for_all_messages_of_a_batch_without_the_trainer_s() -> None:
    a, b, c = peer(0), peer(1, 2e9), peer(2, measured=True)
    coded = dataclasses.replace(c.profile, activation_s_per_byte=1e-6)  # type: ignore[type-var]
    fleet = room_with(model(10**8, activation_bytes=MB // 2), a, b, MeasuredPeer(c.snapshot, coded))
    pipeline = PipelinePlan("net", 6, 4, 4, (stage(0, 2, (a, b), (2, 2)), stage(2, 6, (c,), (4,))), ())
    averaged = MESSAGE_FLOPS + BYTE_FLOPS * 2 * 2000.0
    one_way = MESSAGE_FLOPS + BYTE_FLOPS * MB  # two samples
    norms = {a: 3, b: 1, c: 2}  # the part of c to a, the whole from a to both
    for each, flops_per_s in ((a, 1e9), (b, 2e9)):
        took = fleet.node_s(pipeline, each.snapshot.peer)
        assert took == pytest.approx((4 * 2 * one_way + averaged + norms[each] * MESSAGE_FLOPS) / flops_per_s)
    both = 4 * (2 * MESSAGE_FLOPS + BYTE_FLOPS * 2 * MB) * 2
    assert fleet.node_s(pipeline, c.snapshot.peer) == pytest.approx((both + norms[c] * MESSAGE_FLOPS) / 1e9)
    assert fleet.passing_s(pipeline, c.snapshot.peer)[0] == pytest.approx(both / 8e9 + 2 * MB * 1e-6)
    alone = PipelinePlan("net", 6, 4, 4, (stage(0, 6, (a,), (4,)),), names(b))
    assert fleet.node_s(alone, b.snapshot.peer) == fleet.node_s(alone, a.snapshot.peer) == 0.0


def test_alone_nothing_is_passed_on_and_who_says_no_speed_is_not_charged() -> None:
    silent = peer(1, 0.0, measured=True)
    fleet = room_with(model(10**7), peer(0), silent)
    alone = PipelinePlan("net", 6, 4, 4, (stage(0, 6, (peer(0),), (4,)),), names(silent))
    assert fleet.steps(alone) == steps_of(fleet.costs(4), alone)
    both = PipelinePlan("net", 6, 4, 4, (stage(0, 3, (peer(0),), (4,)), stage(3, 6, (silent,), (4,))), ())
    plain, found = steps_of(fleet.costs(4), both), fleet.steps(both)
    assert found.forward_s[0] > plain.forward_s[0] and found.forward_s[1] == plain.forward_s[1] > 0


def test_no_plan_is_slower_than_the_best_peer_alone() -> None:
    generator = random.Random(3)
    for _ in range(25):
        net = model(10 ** generator.randint(5, 9), 10 ** generator.randint(2, 6))
        peers = [peer(i, 10 ** generator.uniform(8, 10), 10 ** generator.uniform(6, 8)) for i in range(3)]
        plan = first_plan(JOB, net, peers, names(peers[0])[0])  # type: ignore[arg-type]
        assert isinstance(plan.body, PipelineBody)
        fleet = fleet_of(JOB, net, plan.peers, plan.body.figures)
        singles = [best_single_peer(fleet.costs(num)) for num in fleet.choices]
        best = min((fleet.batch_s(single) for single in singles if single), default=math.inf)
        assert fleet.batch_s(plan.body.pipeline) <= best * (1 + 1e-9)

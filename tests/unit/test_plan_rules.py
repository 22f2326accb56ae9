"""What agreement asks of planning, for every mode: plans are proposed from records, and judged."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from p2ptrain.config import DataConfig, Job, SlicesConfig, TrainingConfig
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.planning.assignment import first_plan
from p2ptrain.planning.blocks import BlockProfile, BlockTimes, ModelProfile
from p2ptrain.planning.plan import Plan, SlicesPlan, snapshot
from p2ptrain.planning.profile_codec import profile_to_json
from p2ptrain.protocol.messages import Record
from p2ptrain.runtime.plan_rules import PlanRules

pytestmark = pytest.mark.usefixtures("no_work_for_parcels")
DATA = DataConfig(classes=("a", "b"), input_shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
TASKS = Job(data=DATA)
SLICES = Job(mode="slices", data=DATA, training=TrainingConfig(batch_size=16), slices=SlicesConfig(micro_batches=4))
MODEL = ModelProfile("net", 100, tuple(BlockProfile(f"b{i}", 10**7, 2 * 10**7, 10, 10, 10, True) for i in range(4)))


def name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def record(index: int, job: Job = SLICES, **values: Any) -> Record:
    given: dict[str, Any] = {
        "peer": name(index),
        "version": 1,
        "key": b"k" * 40,
        "name": f"n{index}",
        "addresses": (),
        "job": job.id,
        "counts": (20, 20),
        "wishes": (),
        "flops_per_s": 1e9,
        "memory_bytes": 0,
        "epoch": 0,
        "plan": "",
        "part": -1,
        "phase": "waiting",
        "round": 0,
        "step": 0,
        "samples": 0,
        "loss": 0.0,
        "samples_per_s": 0.0,
        "bytes_sent": 0,
        "waiting_for": "",
        "holdings": (),
        "link_bytes_per_s": 1e8,
    }
    return Record(**(given | values))


def measured(speed: float, net: ModelProfile = MODEL) -> bytes:
    """A profile: so many FLOP/s in every block."""
    sizes = (1, 4)
    forward = tuple(tuple(block.forward_flops * size / speed for block in net.blocks) for size in sizes)
    backward = tuple(tuple(block.backward_flops * size / speed for block in net.blocks) for size in sizes)
    return profile_to_json(net, BlockTimes(sizes, forward, backward)).encode()


PROFILES = {
    "fast": measured(1e9),
    "slow": measured(1e9 / 2.2),
    "other model": measured(1e9, dataclasses.replace(MODEL, name="other")),
    "nonsense": b'{"chain":"x"}',
    "no JSON": b"\xff\xfe",
}


def rules(**values: Any) -> PlanRules:
    return PlanRules(name(0), SLICES, **({"model": lambda: MODEL, "profile_of": PROFILES.get} | values))


def slices_of(plan: Plan | None) -> SlicesPlan:
    assert plan is not None and plan.slices is not None
    return plan.slices


def lengths(plan: Plan | None) -> dict[str, int]:
    """Blocks of each peer's stage."""
    return {peer: stage.stop - stage.start for stage in slices_of(plan).pipeline.stages for peer in stage.peers}


def test_the_other_modes_need_no_more_than_the_job() -> None:
    members = [record(i, TASKS) for i in range(3)]
    own = PlanRules(name(0), TASKS)
    plan = own.propose(None, members)
    assert plan == first_plan(TASKS, [snapshot(each) for each in members], name(0)) and plan.slices is None
    assert own.parse(plan.to_json().encode()) == plan
    assert own.verify(plan, None) and own.participants(plan) == plan.trainers()
    after = own.propose(plan, members[:2])
    assert after is not None and own.verify(after, plan) and own.propose(plan, members) is None
    assert not own.verify(dataclasses.replace(plan, calibrate=not plan.calibrate), None)
    assert own.problem == ""


def test_a_pipeline_is_planned_from_records_and_their_profiles() -> None:
    members = [record(0, profile="fast"), record(1, counts=(), profile="slow")]
    own = rules()
    plan = own.propose(None, members)
    assert lengths(plan) == {name(0): 3, name(1): 1} and own.problem == ""
    assert plan is not None and own.parse(plan.to_json().encode()) == plan
    assert own.verify(plan, None) and set(own.participants(plan)) == set(lengths(plan))
    slowed = [members[0], dataclasses.replace(members[1], profile="fast", slowdown=2.2)]
    assert lengths(own.propose(None, slowed)) == lengths(plan)


def test_batches_that_take_too_long_make_it_one_device_s_plan() -> None:
    members = [record(0, profile="fast"), record(1, counts=(), profile="fast")]
    plan = rules().propose(None, members)
    assert rules(steps=lambda: (5, 2)).propose(plan, members) is None
    after = rules(steps=lambda: (5, 2), batch_s=lambda: 100.0).propose(plan, members)
    assert (
        after is not None
        and lengths(after) == {name(0): 4}
        and rules().verify(after, plan)
        and slices_of(after).stretch > 10
    )


def test_without_a_profile_flops_count() -> None:
    for profile in ("", "not here yet"):
        plan = rules().propose(None, [record(0, profile="fast"), record(1, counts=(), profile=profile)])
        assert lengths(plan) == {name(0): 2, name(1): 2}
        assert slices_of(plan).profiles[1].batch_sizes == ()


@pytest.mark.parametrize("profile", ["other model", "nonsense", "no JSON"])
def test_who_sends_a_profile_that_is_none_is_left_out(profile: str) -> None:
    plan = rules().propose(None, [record(0, profile="fast"), record(1, counts=(), profile=profile)])
    assert lengths(plan) == {name(0): 4} and slices_of(plan).pipeline.left_out == (name(1),)


def test_without_a_model_of_its_own_a_peer_proposes_nothing_but_follows() -> None:
    plan = rules().propose(None, [record(0), record(1)])
    early = rules(model=lambda: None)
    assert early.propose(None, [record(0), record(1)]) is None and "not measured" in early.problem
    assert plan is not None and early.verify(plan, None)
    other = rules(model=lambda: dataclasses.replace(MODEL, name="other"))
    assert not other.verify(plan, None)


def test_why_there_is_no_plan_is_said_until_there_is_one() -> None:
    own = rules()
    assert own.propose(None, [record(0, counts=())]) is None
    assert "no peer has samples" in own.problem and "--data" in own.problem
    assert own.propose(None, [record(0)]) is not None and own.problem == ""
    small = record(0, memory_bytes=1 << 20)
    huge = dataclasses.replace(MODEL, blocks=tuple(dataclasses.replace(b, parameter_bytes=10**9) for b in MODEL.blocks))
    own = rules(model=lambda: huge)
    assert own.propose(None, [small]) is None and "no plan fits" in own.problem


def test_the_next_plan_begins_where_training_can_go_on() -> None:
    members = [record(0), record(1, counts=())]
    own = rules(steps=lambda: (7, 4))
    plan = own.propose(None, members)
    assert own.propose(plan, members) is None
    slower = [members[0], dataclasses.replace(members[1], slowdown=4.0)]
    assert slices_of(own.propose(plan, slower)).from_step == 7
    after = own.propose(plan, members[:1])
    assert slices_of(after).from_step == 4 and after is not None and own.verify(after, plan)
    lost = rules(steps=lambda: (7, 4), is_lost=lambda each: each.peer == name(1))
    again = lost.propose(plan, members)
    assert slices_of(again).from_step == 4 and lengths(again) == lengths(plan)
    assert own.propose(plan, [members[1]]) is None and "no peer has samples" in own.problem


def test_a_plan_that_does_not_hold_together_is_not_read() -> None:
    plan = rules().propose(None, [record(0), record(1)])
    assert plan is not None
    text = plan.to_json().replace('"from_step":0', '"from_step":1')
    with pytest.raises(RemoteError):
        rules().parse(text.encode())

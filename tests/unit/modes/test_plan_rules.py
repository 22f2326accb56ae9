"""What agreement asks of planning, for every mode: plans are proposed from records, and judged."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import records

from p2ptrain.config import DataConfig, Job, TrainingConfig
from p2ptrain.core.plan import Plan, snapshot
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.pipeline.rules import PipelineRules
from p2ptrain.modes.pipeline.stage.way_back import Standing
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.rules import TasksRules
from p2ptrain.planning.devices.blocks import BlockProfile, BlockTimes, ModelProfile
from p2ptrain.planning.devices.profile_codec import profile_to_json
from p2ptrain.protocol.consensus.rules import PlanResult
from p2ptrain.wire.messages import Record

pytestmark = pytest.mark.usefixtures("no_work_for_messages")
DATA = DataConfig(classes=("a", "b"), input_shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
TASKS = Job(data=DATA)
PIPELINE = Job(
    mode="pipeline", data=DATA, training=TrainingConfig(batch_size=16), tables=(PipelineConfig(micro_batches=4),)
)
MODEL = ModelProfile("net", 100, tuple(BlockProfile(f"b{i}", 10**7, 2 * 10**7, 10, 10, 10, True) for i in range(4)))


def name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def record(index: int, job: Job = PIPELINE, **values: Any) -> Record:
    known = {"job": job.id, "counts": (20, 20), "flops_per_s": 1e9, "link_bytes_per_s": 1e8}
    return records.record(name(index), **(known | values))


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


def rules(**values: Any) -> PipelineRules:
    return PipelineRules(name(0), PIPELINE, **({"model": lambda: MODEL, "profile_of": PROFILES.get} | values))


def pipeline_body(plan: Plan | None) -> PipelineBody:
    assert plan is not None and isinstance(plan.body, PipelineBody)
    return plan.body


def answer(own: PipelineRules | TasksRules, current: Plan | None, members: list[Record]) -> PlanResult[Plan]:
    return own.question(current, members).work()


def proposed(own: PipelineRules | TasksRules, current: Plan | None, members: list[Record]) -> Plan | None:
    """Without a problem."""
    found = answer(own, current, members)
    assert found.problem == ""
    return found.plan


def problem(own: PipelineRules | TasksRules, current: Plan | None, members: list[Record]) -> str:
    """Why there is none."""
    found = answer(own, current, members)
    assert found.plan is None
    return found.problem


def lengths(plan: Plan | None) -> dict[str, int]:
    """Blocks of each peer's stage."""
    return {peer: stage.stop - stage.start for stage in pipeline_body(plan).pipeline.stages for peer in stage.peers}


def test_the_other_modes_need_no_more_than_the_job() -> None:
    members = [record(i, TASKS) for i in range(3)]
    own = TasksRules(name(0), TASKS)
    plan = proposed(own, None, members)
    assert plan == first_plan(TASKS, [snapshot(each) for each in members], name(0)) and not isinstance(
        plan.body, PipelineBody
    )
    assert own.parse(plan.to_json().encode()) == plan
    assert own.verify(plan, None) and own.participants(plan) == plan.trainers()
    after = proposed(own, plan, members[:2])
    assert after is not None and own.verify(after, plan) and proposed(own, plan, members) is None
    assert not own.verify(
        dataclasses.replace(plan, body=dataclasses.replace(plan.body, fit_head=not plan.body.fit_head)), None
    )


def test_a_pipeline_is_planned_from_records_and_their_profiles() -> None:
    members = [record(0, profile="fast"), record(1, counts=(), profile="slow")]
    own = rules()
    plan = proposed(own, None, members)
    assert lengths(plan) == {name(0): 3, name(1): 1}
    assert plan is not None and own.parse(plan.to_json().encode()) == plan
    assert own.verify(plan, None) and set(own.participants(plan)) == set(lengths(plan))
    slowed = [members[0], dataclasses.replace(members[1], profile="fast", slowdown=2.2)]
    assert lengths(proposed(own, None, slowed)) == lengths(plan)


def test_batches_that_take_too_long_make_it_one_device_s_plan() -> None:
    members = [record(0, profile="fast"), record(1, counts=(), profile="fast")]
    plan = proposed(rules(), None, members)
    assert proposed(rules(standing=lambda: Standing(5, (2, 1))), plan, members) is None
    after = proposed(rules(standing=lambda: Standing(5, (2, 1)), batch_s=lambda: 100.0), plan, members)
    assert (
        after is not None
        and lengths(after) == {name(0): 4}
        and rules().verify(after, plan)
        and pipeline_body(after).stretch > 10
    )


def test_a_plan_is_beginning_until_it_is_under_way_unless_somebody_who_trains_it_is_gone_or_lost() -> None:
    members = [record(0, profile="fast"), record(1, counts=(), profile="fast")]
    plan = proposed(rules(), None, members)
    early = rules(is_under_way=lambda: False)
    assert early.is_beginning(plan, members) and not rules().is_beginning(plan, members)
    assert not early.is_beginning(None, members) and not early.is_beginning(plan, members[:1])
    lost = rules(is_under_way=lambda: False, is_lost=lambda each: each.peer == name(1))
    assert not lost.is_beginning(plan, members)


def test_without_a_profile_flops_count() -> None:
    for profile in ("", "not here yet"):
        plan = proposed(rules(), None, [record(0, profile="fast"), record(1, counts=(), profile=profile)])
        assert lengths(plan) == {name(0): 2, name(1): 2}
        assert pipeline_body(plan).figures[1].batch_sizes == ()


@pytest.mark.parametrize("profile", ["other model", "nonsense", "no JSON"])
def test_who_sends_a_profile_that_is_none_is_left_out(profile: str) -> None:
    plan = proposed(rules(), None, [record(0, profile="fast"), record(1, counts=(), profile=profile)])
    assert lengths(plan) == {name(0): 4} and pipeline_body(plan).pipeline.left_out == (name(1),)


def test_without_a_model_of_its_own_a_peer_proposes_nothing_but_follows() -> None:
    plan = proposed(rules(), None, [record(0), record(1)])
    early = rules(model=lambda: None)
    assert "not measured" in problem(early, None, [record(0), record(1)])
    assert plan is not None and early.verify(plan, None)
    other = rules(model=lambda: dataclasses.replace(MODEL, name="other"))
    assert not other.verify(plan, None)


def test_why_there_is_no_plan_is_said_until_there_is_one() -> None:
    own = rules()
    why = problem(own, None, [record(0, counts=())])
    assert "no peer has samples" in why and "--data" in why
    assert proposed(own, None, [record(0)]) is not None
    small = record(0, memory_bytes=1 << 20)
    huge = dataclasses.replace(MODEL, blocks=tuple(dataclasses.replace(b, parameter_bytes=10**9) for b in MODEL.blocks))
    own = rules(model=lambda: huge)
    assert "no plan fits" in problem(own, None, [small])


def test_the_next_plan_begins_where_training_can_go_on() -> None:
    members = [record(0), record(1, counts=())]
    own = rules(standing=lambda: Standing(7, (4, 1)))
    plan = proposed(own, None, members)
    assert proposed(own, plan, members) is None
    slower = [members[0], dataclasses.replace(members[1], slowdown=4.0)]
    assert pipeline_body(proposed(own, plan, slower)).from_step == 7
    after = proposed(own, plan, members[:1])
    assert pipeline_body(after).from_step == 4 and after is not None and own.verify(after, plan)
    lost = rules(standing=lambda: Standing(7, (4, 1)), is_lost=lambda each: each.peer == name(1))
    again = proposed(lost, plan, members)
    assert pipeline_body(again).from_step == 4 and lengths(again) == lengths(plan)
    assert "no peer has samples" in problem(own, plan, [members[1]])


def test_a_plan_that_took_long_to_find_takes_over_later() -> None:
    members = [record(0), record(1, counts=())]
    now = {"standing": Standing(7, (4, 1))}
    own = rules(standing=lambda: now["standing"])
    plan = proposed(own, None, members)
    assert plan is not None and own.timed(plan, 1) == plan
    slower = proposed(own, plan, [members[0], dataclasses.replace(members[1], slowdown=4.0)])
    torn = proposed(own, plan, members[:1])
    assert slower is not None and torn is not None
    assert own.timed(slower, 2) == slower and own.timed(torn, 2) == torn
    now["standing"] = Standing(12, (4, 1))
    later = own.timed(slower, 2)
    assert pipeline_body(later).from_step == 12 and later is not None and own.verify(later, plan)
    assert own.timed(torn, 2) == torn  # what is lost is lost from there on
    now["standing"] = Standing(12, (9, 1))
    steps = [pipeline_body(own.timed(each, 2)).from_step for each in (torn, slower)]
    assert steps == [9, 12]  # older ones may be gone
    apart = own.timed(torn, 5)
    assert apart is not None and apart.epoch == 5 and own.verify(apart, plan)
    now["standing"] = Standing(10**6, (4, 1))
    assert own.timed(slower, 2) is None  # the job is done by then


def test_what_may_be_gone_back_to() -> None:
    members = [record(0), record(1, counts=())]
    plan = proposed(rules(), None, members)
    assert plan is not None
    waits = rules(standing=lambda: Standing(7, (4, 1), waits=True))
    assert proposed(waits, plan, members[:1]) is None and not waits.may_go_alone(plan, members[:1])
    near = rules(standing=lambda: Standing(7, (4, 1)))
    torn = proposed(near, plan, members[:1])
    assert torn is not None and near.may_go_alone(plan, members[:1]) and not near.may_go_alone(plan, members)
    assert near.is_torn(plan, members[:1]) and not near.is_torn(plan, members)
    assert rules(standing=lambda: Standing(7)).may_go_alone(plan, members[:1]), "from the initial weights, if need be"
    assert near.accepts(torn)
    assert not rules(standing=lambda: Standing(7, (6, 1))).accepts(torn), "more is saved than the proposer knew"
    ahead = proposed(rules(standing=lambda: Standing(7, (9, 3), is_ahead=True)), plan, members)
    assert ahead is not None and pipeline_body(ahead).begins_with == (9, 3) and pipeline_body(ahead).goes_back
    later = rules().timed(ahead, 2)
    assert later is None or pipeline_body(later).from_step == 0
    known = rules(standing=lambda: Standing(7, (9, 3), is_ahead=True)).timed(ahead, 2)
    assert known is not None and known.epoch > 3, "of a later epoch than what it begins with"


def test_who_goes_back_to_what_these_have_saved_is_taken_in_and_not_followed() -> None:
    """It has done no batch more, however few these have done since they saved that."""
    both = [record(0), record(1)]
    first = proposed(rules(), None, both)
    assert first is not None
    body = dataclasses.replace(pipeline_body(first), from_step=8, from_epoch=1)
    current, others = dataclasses.replace(first, epoch=2, parent=first.hash, body=body), [name(2)]
    here = [record(1, plan=current.hash, epoch=2)]
    near, far = rules(lead=lambda others: 1, margin=lambda: 2), rules(lead=lambda others: 3, margin=lambda: 2)

    def begins(step: int, epoch: int, *, goes_back: bool) -> Plan:
        changed = dataclasses.replace(body, from_step=step, from_epoch=epoch, goes_back=goes_back)
        return dataclasses.replace(first, epoch=30, parent="f" * 64, body=changed)

    ours, older, elses = (begins(*state, goes_back=True) for state in ((12, 2), (8, 1), (12, 9)))
    assert near.holds_on(current, ours, here, others) and near.holds_on(current, older, here, others)
    assert not near.holds_on(current, elses, here, others) and far.holds_on(current, elses, here, others)
    assert not near.holds_on(current, begins(12, 2, goes_back=False), here, others)
    assert not near.holds_on(current, ours, [], others), "these can't go on without all of them"


def test_a_plan_that_does_not_hold_together_is_not_read() -> None:
    plan = proposed(rules(), None, [record(0), record(1)])
    assert plan is not None
    text = plan.to_json().replace('"from_step":0', '"from_step":1')
    with pytest.raises(RemoteError):
        rules().parse(text.encode())

"""Plans of a pipeline: what goes in comes out the same for everyone, holds together, fits, and changes with cause."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_edits import put

from p2ptrain.config import DataConfig, Job, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot, Plan, check_plan
from p2ptrain.core.stages.figures import DeviceFigures, MeasuredPeer
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import PipelineConfig, pipeline_of
from p2ptrain.modes.pipeline.figures import batches_a_round, fleet_of, task_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.pipeline.planner import first_plan, follows, next_plan, notes
from p2ptrain.modes.registry import read_plan
from p2ptrain.planning.devices.blocks import MAX_MEASURED, BlockProfile, ModelProfile
from p2ptrain.planning.devices.footprint import PEER_BASE_BYTES
from p2ptrain.planning.devices.profile_codec import chain_hash
from p2ptrain.planning.pipeline.choice import WORTH
from p2ptrain.planning.pipeline.fleet import micro_batch_choices
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.pipeline.task import PairRate
from p2ptrain.planning.search.search import Search
from p2ptrain.wire.messages import LinkFigure

pytestmark = pytest.mark.usefixtures("no_work_for_messages")
DATA = DataConfig(classes=("a", "b", "c", "d"), input_shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
STRATEGIES = ("planned", "equal", "data-parallel")
MB = 1 << 20


def job(rounds: int = 10, batch_size: int = 16, optimizer: str = "sgd", **values: Any) -> Job:
    training = TrainingConfig(rounds=rounds, batch_size=batch_size, optimizer=optimizer)  # type: ignore[arg-type]
    return Job(
        mode="pipeline", data=DATA, training=training, tables=(PipelineConfig(**{"micro_batches": 4, **values}),)
    )


def model(num_blocks: int = 6, parameter_bytes: int = 1000, activation_bytes: int = 100) -> ModelProfile:
    block = BlockProfile("b", 10**7, 2 * 10**7, parameter_bytes, activation_bytes, activation_bytes, True)
    return ModelProfile("net", 100, tuple(dataclasses.replace(block, name=f"b{i}") for i in range(num_blocks)))


def name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def peer(
    index: int,
    speed: float = 1e9,
    *,
    counts: tuple[int, ...] = (10, 10, 10, 10),
    memory: int = 0,
    link: float = 1e8,
    slowdown: float = 1.0,
    measured: int = 0,
) -> MeasuredPeer:
    """``measured``: its blocks' number; each then takes what its FLOP/s say, with a little for each call."""
    sizes = (1, 4, 16) if measured else ()
    forward = tuple((1e7 * size / speed + 1e-5,) * measured for size in sizes)
    backward = tuple((2e7 * size / speed + 1e-5,) * measured for size in sizes)
    profile = DeviceFigures(name(index), link, slowdown, sizes, forward, backward)
    return MeasuredPeer(PeerSnapshot(name(index), speed, memory, counts, ()), profile)


def changed(each: MeasuredPeer, **values: Any) -> MeasuredPeer:
    assert each.profile is not None
    return dataclasses.replace(each, profile=dataclasses.replace(each.profile, **values))


def pipeline_body(plan: Plan) -> PipelineBody:
    assert isinstance(plan.body, PipelineBody)
    return plan.body


def stages(plan: Plan) -> list[tuple[int, int, list[int]]]:
    return [(s.start, s.stop, [int(each[4:]) for each in s.peers]) for s in pipeline_body(plan).pipeline.stages]


def first(peers: Sequence[MeasuredPeer], work: Job | None = None, net: ModelProfile | None = None) -> Plan:
    return first_plan(work or job(), net or model(), peers, name(0))


def first_pipeline(peers: Sequence[MeasuredPeer], net: ModelProfile) -> PipelinePlan:
    """The fastest, whatever its devices bring, in the number of micro-batches that is fastest."""
    plan = first(peers, net=net)
    fleet = fleet_of(job(), net, plan.peers, pipeline_body(plan).figures)
    found = [Search(fleet.costs(num)).best() for num in fleet.choices]
    return min((each.plan for each in found if each is not None), key=fleet.batch_s)


# --- what holds for any group ---------------------------------------------------------------------------------------


@st.composite
def groups(draw: st.DrawFn, blocks: int = 6) -> list[MeasuredPeer]:
    found = []
    for index in draw(st.lists(st.integers(0, 20), min_size=1, max_size=5, unique=True)):
        found.append(
            peer(
                index,
                draw(st.sampled_from([0.0, 1e8, 1e9, 1e9, 3.3e9, 2e10])) or (1e9 if not found else 0.0),
                counts=(10,) * 4 if not found or draw(st.booleans()) else (),
                memory=draw(st.sampled_from([0, 0, 4096 * MB])),
                link=draw(st.sampled_from([0.0, 1e6 / 3, 1e8])),
                slowdown=draw(st.sampled_from([1.0, 1.0, 2 / 3, math.nan])) if found else 1.0,
                measured=draw(st.sampled_from([0, blocks])) if not found else 0,
            )
        )
    return found


@settings(max_examples=60, deadline=None)
@given(groups(), st.sampled_from(STRATEGIES), st.randoms(use_true_random=False))
def test_everyone_computes_the_same_plan_and_can_follow_it(
    peers: list[MeasuredPeer], strategy: str, shuffle: random.Random
) -> None:
    work = job(strategy=strategy)
    proposer = peers[0].snapshot.peer
    plan = first_plan(work, model(), peers, proposer)
    again = first_plan(work, model(), shuffle.sample(peers, len(peers)), proposer)
    assert again.to_json() == plan.to_json()
    assert read_plan(plan.to_json().encode()) == plan
    assert follows(work, model(), plan, None) and follows(work, None, plan, None)
    assert notes(work, plan, model())[-1].endswith("s")
    for index, part in enumerate(plan.parts):
        stage = pipeline_body(plan).pipeline.stages[index]
        assert part.trainers == tuple(sorted(stage.peers))
        assert part.share == pytest.approx((stage.stop - stage.start) / 6, abs=1e-6)
    assert sum(part.share for part in plan.parts) <= 1
    assert plan.num_classes == 4 and plan.part_of(name(99)) is None
    counts = {each.snapshot.peer: each.snapshot.counts for each in peers}
    assert all(counts[trainer] for trainer in plan.parts[0].trainers)
    # nothing changed: no other plan
    assert next_plan(work, model(), plan, peers, proposer, next_step=2, saved=(1, 1)) is None
    # one of its trainers goes
    gone = max(plan.trainers())
    left = [each for each in peers if each.snapshot.peer != gone]
    owners = [each for each in left if each.snapshot.counts and each.profile is not None]
    if not any(each.snapshot.flops_per_s and not math.isnan(each.profile.slowdown) for each in owners if each.profile):
        return
    proposer = left[0].snapshot.peer
    following = next_plan(work, model(), plan, left, proposer, next_step=9, saved=(4, 1))
    assert following is not None and pipeline_body(following).from_step == 4
    assert read_plan(following.to_json()) == following
    assert follows(work, model(), following, plan) and follows(work, model(), following, None)
    assert (following.epoch, following.parent) == (2, plan.hash)
    assert gone not in {each.peer for each in following.peers}
    assert next_plan(work, model(), following, left, proposer, next_step=9, saved=(4, 1)) is None


def edits() -> dict[str, Callable[[dict[str, Any]], object]]:
    return {
        "no pipeline": put("body", None),
        "a pipeline in another mode": put("mode", "replicas"),
        "a share less": lambda plain: plain["body"]["shares"].pop(),
        "stage of a stranger": put("body.pipeline.stages.0.peers", ["q" * 16]),
        "a gap": put("body.pipeline.stages.1.start", 5),
        "samples of another micro-batch": put("body.pipeline.stages.0.samples", [3]),
        "shares above the model": put("body.shares.1", 0.9),
        "left out and unnamed": put("body.pipeline.left_out", []),
        "left out but in": put("body.pipeline.left_out", [name(0), name(3)]),
        "a first stage without samples": lambda plain: [each.update(counts=[]) for each in plain["peers"][:1]],
        "no samples anywhere": lambda plain: [each.update(counts=[]) for each in plain["peers"]],
        "counts of unlike lengths": put("peers.1.counts", [1, 2]),
        "figures out of order": lambda plain: plain["body"]["figures"].reverse(),
        "figures of a stranger": put("body.figures.3.peer", "q" * 16),
        "no figures of a trainer": lambda plain: plain["body"]["figures"].pop(0),
        "times for other blocks": put("body.figures.0.forward_s", [[1.0], [1.0]]),
        "times for other sizes": put("body.figures.0.backward_s", []),
        "sizes fall": put("body.figures.0.batch_sizes", [4, 1]),
        "no number": put("body.figures.0.slowdown", math.nan),
        "endless link": put("body.figures.0.link_bytes_per_s", math.inf),
        "endless measured link": put("body.figures.0.links", [link(name(1), math.inf)]),
        "link to itself": put("body.figures.0.links", [link(name(0))]),
        "link to a stranger": put("body.figures.0.links", [link("q" * 16)]),
        "links out of order": put("body.figures.0.links", [link(name(2)), link(name(1))]),
        "chain is no hash": put("body.chain", "x" * 64),
        "first plan from the middle": put("body.from_step", 1),
        "from below zero": put("body.from_step", -1),
        "rounds without steps": put("body.steps_per_round", 0),
        "steps beyond all": put("body.steps_per_round", 2**60),
        "a header with more": put("trunk", 1),
        "extra key": put("body.more", 1),
        "missing key": lambda plain: plain["body"].pop("chain"),
    }


def link(to: str, rate: float = 1e6) -> dict[str, Any]:
    return {"peer": to, "bytes_per_s": rate, "latency_s": 0.001}


@cache
def three() -> Plan:
    """Two stages, peers 0 and 1 (in this order: only 0 and 3 have samples), the others left out."""
    slow = (peer(2, 1e5, counts=()), peer(3, 1e5))
    plan = first([peer(0, measured=6), peer(1, counts=(), measured=6), *slow])
    assert stages(plan) == [(0, 3, [0]), (3, 6, [1])]
    return plan


@pytest.mark.parametrize("case", edits())
def test_what_does_not_hold_together_is_refused(case: str) -> None:
    plain = json.loads(three().to_json())
    edits()[case](plain)
    with pytest.raises(RemoteError):
        read_plan(json.dumps(plain, sort_keys=True, separators=(",", ":")))


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just([]) | st.just({})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused_or_judged_but_never_a_crash(data: st.DataObject) -> None:
    plan, plain = three(), json.loads(three().to_json())
    target: Any = plain
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(target[key], (dict, list)) or not target[key] or data.draw(st.integers(0, 5)) == 0:
            break
        target = target[key]
    before = copy.deepcopy(target[key])
    target[key] = data.draw(json_values)
    try:
        damaged = read_plan(json.dumps(plain, sort_keys=True, separators=(",", ":")))
    except RemoteError:
        return
    assert follows(job(), model(), damaged, None) in (True, False)
    assert follows(job(), model(), damaged, plan) is False  # a first plan is nobody's child
    assert (damaged == plan) == (json.dumps(target[key]) == json.dumps(before))


# --- following --------------------------------------------------------------------------------------------------------


def with_body(plan: Plan, **values: Any) -> Plan:
    return dataclasses.replace(plan, body=dataclasses.replace(pipeline_body(plan), **values))


def with_pipeline(plan: Plan, **values: Any) -> Plan:
    return with_body(plan, pipeline=dataclasses.replace(pipeline_body(plan).pipeline, **values))


def test_a_plan_for_another_job_or_model_is_not_followed() -> None:
    plan = three()
    assert follows(job(), model(), plan, None)
    assert not follows(job(rounds=9), model(), plan, None)
    assert not follows(job(), model(7), plan, None)
    assert not follows(job(), dataclasses.replace(model(), name="other"), plan, None)
    assert not follows(job(), model(), with_body(plan, chain="0" * 64), None)
    for work in (job(), job(batch_size=32), job(micro_batches=2)):
        as_if = dataclasses.replace(plan, job=work.id)
        assert follows(work, model(), as_if, None) == follows(work, None, as_if, None) == (work == job())
    tasks = dataclasses.replace(job(), mode="tasks")
    assert not follows(tasks, model(), dataclasses.replace(plan, job=tasks.id), None)


def test_figures_that_were_touched_up_are_not_followed() -> None:
    plan = three()
    assert not follows(job(), model(), with_body(plan, shares=(0.4,) * len(plan.parts)), None)
    assert not follows(job(), model(), with_body(plan, steps_per_round=99), None)
    slow = dataclasses.replace(pipeline_body(plan).figures[0], slowdown=0.0)
    assert not follows(job(), model(), with_body(plan, figures=(slow, *pipeline_body(plan).figures[1:])), None)
    odd = dataclasses.replace(plan.peers[3], counts=(0, 0, 0, 0))
    assert not follows(job(), model(), dataclasses.replace(plan, peers=(*plan.peers[:3], odd)), None)


def test_a_plan_that_cuts_where_the_model_has_no_cut_is_not_followed() -> None:
    blocks = tuple(dataclasses.replace(block, cut_after=i != 2) for i, block in enumerate(model().blocks))
    uneven = dataclasses.replace(model(), blocks=blocks)
    assert not follows(job(), uneven, with_body(three(), chain=chain_hash(uneven)), None)
    peers = [peer(0), peer(1, counts=())]
    assert follows(job(), uneven, first(peers, net=uneven), None)


def test_a_plan_slower_than_one_of_its_peers_alone_is_not_followed() -> None:
    """The pipeline stays as it was planned; the figures say that its second peer got slower."""
    plan = first([peer(0), peer(1, counts=())])
    assert len(plan.parts) == 2
    own, other = pipeline_body(plan).figures
    for slowdown, is_worth_it in ((1.1, True), (1.4, True), (3.0, False)):
        profiles = (own, dataclasses.replace(other, slowdown=slowdown))
        assert follows(job(), model(), with_body(plan, figures=profiles), None) is is_worth_it


def memory_for(num_bytes: int) -> int:
    """Of a device that may use so much for its stage: a tenth stays free."""
    return (PEER_BASE_BYTES + num_bytes) * 10 // 9 + 10


def test_a_plan_beyond_a_peer_s_memory_is_not_followed() -> None:
    net = model(parameter_bytes=10 * MB)
    # six blocks of 10 MB, held four times: parameters, gradients, momentum, and a snapshot under way
    whole, half = memory_for(241 * MB), memory_for(121 * MB)
    plan = first([peer(0, memory=half), peer(1, memory=half)], net=net)
    assert [stop - start for start, stop, _ in stages(plan)] == [3, 3]
    less = tuple(dataclasses.replace(each, memory_bytes=each.memory_bytes - 2 * MB) for each in plan.peers)
    assert follows(job(), net, plan, None)
    assert not follows(job(), net, dataclasses.replace(plan, peers=less), None)
    assert len(first([peer(0, memory=whole)], net=net).parts) == 1
    with pytest.raises(UserError, match=r"no plan fits into the memory of these 1 peers.*more peers"):
        first([peer(0, memory=half)], net=net)


def test_a_child_follows_its_parent_only() -> None:
    plan = three()
    left = [peer(0, measured=6), peer(3, 1e5)]
    child = next_plan(job(), model(), plan, left, name(0), next_step=8, saved=(3, 1))
    assert child is not None and follows(job(), model(), child, plan)
    assert follows(job(), model(), dataclasses.replace(child, epoch=3), plan), "the one before found no majority"
    assert not follows(job(), model(), dataclasses.replace(child, epoch=1), plan)
    assert not follows(job(), model(), with_body(child, from_epoch=2), plan), "a state that is still to come"
    assert not follows(job(), model(), with_body(child, goes_back=False, from_epoch=0), plan), "which batches?"
    assert not follows(job(), model(), dataclasses.replace(child, parent="0" * 64), plan)
    assert not follows(job(), model(), with_body(child, steps_per_round=4), plan)
    last = 10 * pipeline_body(plan).steps_per_round
    assert follows(job(), model(), with_body(child, from_step=last - 1), plan)
    assert not follows(job(), model(), with_body(child, from_step=last), plan)
    assert not follows(job(), model(), plan, child)


# --- what goes into a plan --------------------------------------------------------------------------------------------


def test_a_round_is_as_many_batches_as_the_first_stage_has_samples_for() -> None:
    assert pipeline_body(first([peer(0)])).steps_per_round == 3  # 40 samples, 16 a batch
    assert pipeline_body(first([peer(0, counts=(1, 0, 0, 0))])).steps_per_round == 1
    longer = dataclasses.replace(job(), training=TrainingConfig(batch_size=16, epochs_per_round=2.0))
    assert pipeline_body(first([peer(0)], longer)).steps_per_round == 5
    both = first([peer(0), peer(1)], job(strategy="data-parallel"))
    assert stages(both) == [(0, 6, [0, 1])] and pipeline_body(both).steps_per_round == 5


@pytest.mark.parametrize(("speed", "gain", "is_used"), [(0.4, 1.1, True), (0.08, 1.0, False)])
def test_each_device_has_to_help(speed: float, gain: float, is_used: bool) -> None:
    """Of what a search would take, who makes a batch less than a twentieth faster stands by."""
    long, two = model(60), [peer(0), peer(2)]
    plan = first([*two, peer(1, speed * 1e9)], net=long)
    searched = first_pipeline([*two, peer(1, speed * 1e9)], long)
    assert name(1) in {each for stage in searched.stages for each in stage.peers}, "the search takes it"
    assert (name(1) not in pipeline_body(plan).pipeline.left_out) == is_used
    fleet = fleet_of(job(), long, plan.peers, pipeline_body(plan).figures)
    fastest, without = fleet.batch_s(searched), fleet.batch_s(first_pipeline(two, long))
    assert gain <= without / fastest and (without / fastest > WORTH) == is_used
    assert fleet.batch_s(pipeline_body(plan).pipeline) <= WORTH * fastest
    assert follows(job(), long, plan, None)


def test_what_several_slow_devices_bring_is_counted_together() -> None:
    """Each of them hardly helps; to leave them all out would cost more than a device has to be worth."""
    long, slow = model(60), [peer(index, 0.08e9) for index in (1, 3, 4)]
    plan = first([peer(0), peer(2), *slow], net=long)
    pipeline, fleet = pipeline_body(plan).pipeline, fleet_of(job(), long, plan.peers, pipeline_body(plan).figures)
    fastest = fleet.batch_s(first_pipeline([peer(0), peer(2), *slow], long))
    without = fleet.batch_s(first_pipeline([peer(0), peer(2)], long))
    assert without > WORTH * fastest >= fleet.batch_s(pipeline)
    assert len(pipeline.left_out) == 2


def test_a_device_that_hardly_helps_stays_where_its_memory_is_needed() -> None:
    huge = model(60, parameter_bytes=30 * MB)
    alone = PEER_BASE_BYTES + 4 * 1000 * MB
    peers = [peer(0, memory=alone), peer(1, 0.08e9, memory=alone), peer(2, memory=alone)]
    plan = first(peers, net=huge)
    assert pipeline_body(plan).pipeline.left_out == ()
    with pytest.raises(UserError, match="no plan fits"):
        first([peers[0], peers[2]], net=huge)


def test_a_slow_peer_is_left_out_and_said_so() -> None:
    plan = first([peer(0), peer(1, 1e5), peer(2)])
    assert pipeline_body(plan).pipeline.left_out == (name(1),)
    assert {profile.peer for profile in pipeline_body(plan).figures} == {name(0), name(1), name(2)}
    assert f"{name(1)}: left out: with it a batch would hardly be done sooner" in notes(job(), plan)


def test_a_peer_without_samples_never_begins_the_pipeline() -> None:
    plan = first([peer(0, 5e9, counts=()), peer(1, 1e9)])
    assert stages(plan)[0][2] == [1]
    with pytest.raises(UserError, match=r"no peer has samples.*--data"):
        first([peer(0, counts=()), peer(1, counts=(0, 0, 0, 0))])


def test_measured_times_count_more_than_flops_and_slowdown_multiplies_both() -> None:
    """All say 1 GFLOP/s; peer 1 was measured at a third of it, or got three times slower: it gets fewer blocks."""
    slow = peer(1, 1e9 / 3, counts=(), measured=6)
    slow = dataclasses.replace(slow, snapshot=dataclasses.replace(slow.snapshot, flops_per_s=1e9))
    for other in (slow, peer(1, counts=(), slowdown=3.0), peer(1, counts=(), slowdown=3.0, measured=6)):
        assert stages(first([peer(0), other])) == [(0, 5, [0]), (5, 6, [1])]
    assert stages(first([peer(0), peer(1, counts=(), measured=6)])) == [(0, 3, [0]), (3, 6, [1])]


def test_what_its_trainer_takes_for_messages_is_counted_for_each_that_it_passes_on() -> None:
    """Peer 1 ends the pipeline: it takes activations in, and hands gradients on, of 100 bytes a sample."""
    peers = [peer(0, measured=6), peer(1, counts=(), measured=6)]
    took = []
    for extra in ({}, {"activation_s_per_byte": 1e-6, "gradient_s_per_byte": 3e-6}):
        plan = first([peers[0], changed(peers[1], **extra)])
        fleet, pipeline = (
            fleet_of(job(), model(), plan.peers, pipeline_body(plan).figures),
            pipeline_body(plan).pipeline,
        )
        assert pipeline.stages[1].peers == (name(1),)
        took.append((fleet.passing_s(pipeline, name(0)), fleet.passing_s(pipeline, name(1)), pipeline.micro_batch))
    (first_before, before, _), (first_after, after, rows) = took
    assert first_after == first_before
    assert [new - old for new, old in zip(after, before, strict=True)] == pytest.approx([1e-4 * rows, 3e-4 * rows])


@pytest.mark.parametrize(
    "values",
    [
        {"slowdown": math.nan},
        {"slowdown": 0.0},
        {"link_bytes_per_s": math.nan},
        {"link_bytes_per_s": -1.0},
        {"activation_s_per_byte": math.nan},
        {"gradient_s_per_byte": 2.0},
        {"forward_s": ((0.0,) * 6,) * 2},
        {"forward_s": ((math.nan,) * 6,) * 2},
        {"backward_s": ((1e7,) * 6,) * 2},
        {"backward_s": ((1.0,) * 5,) * 2},
        {"batch_sizes": (4, 1)},
        {"batch_sizes": ()},
    ],
)
def test_a_peer_whose_figures_make_no_sense_is_left_out_and_the_others_are_planned_for(values: dict[str, Any]) -> None:
    odd = changed(peer(1, measured=6), **values)
    plan = first([peer(0, measured=6), odd, peer(2, measured=6)])
    assert pipeline_body(plan).pipeline.left_out == (name(1),)
    assert [profile.peer for profile in pipeline_body(plan).figures] == [name(0), name(2)]
    assert follows(job(), model(), read_plan(plan.to_json()), None)
    assert any(line.startswith(f"{name(1)}: left out: its speed") and "probe" in line for line in notes(job(), plan))
    with pytest.raises(UserError, match=r"none of the 1 peers can be planned with.*p2ptrain probe"):
        first([odd])


def test_no_speed_is_no_figure_and_no_profile_neither() -> None:
    for odd in (peer(1, 0.0), peer(1, math.nan), dataclasses.replace(peer(1), profile=None)):
        assert pipeline_body(first([peer(0), odd])).pipeline.left_out == (name(1),)
    only_measured = dataclasses.replace(
        peer(1, measured=6), snapshot=dataclasses.replace(peer(1).snapshot, flops_per_s=0.0)
    )
    assert pipeline_body(first([peer(0), only_measured])).pipeline.left_out == ()


def test_figures_are_rounded_so_that_everyone_computes_with_the_same() -> None:
    long = changed(peer(0, 1e9 / 3, measured=6), slowdown=10 / 3, link_bytes_per_s=1e8 / 3)
    profile = pipeline_body(first([long])).figures[0]
    assert (profile.slowdown, profile.link_bytes_per_s, profile.forward_s[0][0]) == (3.333, 33330000.0, 0.03001)


def test_what_is_not_known_is_taken_for_something_and_said() -> None:
    plan = first([peer(0, link=0.0), peer(1, counts=(), memory=4096 * MB)])
    said = notes(job(), plan)
    assert f"{name(0)}: no link speed known, taken for 100 Mbit/s" in said
    assert f"{name(0)}: no memory known, taken to have enough" in said
    assert not any(name(1) in line for line in said)
    task = task_of(job(), model(), plan.peers, pipeline_body(plan).figures)
    assert task.peers[0].link_bytes_per_s == 12.5e6 and task.peers[0].memory_bytes > 1e15
    assert task.peers[1].memory_bytes == pytest.approx(0.9 * 4096 * MB - PEER_BASE_BYTES, abs=1)


def links(*to: tuple[int, float]) -> tuple[LinkFigure, ...]:
    return tuple(LinkFigure(name(index), rate, 0.001 * (index + 1)) for index, rate in to)


def test_links_count_as_measured_where_peers_do_not_say_what_theirs_do() -> None:
    """The slowest of one's links is the link's fault, the fastest tells what one's end can do."""
    peers = [peer(0, link=0.0), peer(1, counts=(), link=0.0), peer(2, counts=(), link=0.0)]
    peers[0] = changed(peers[0], links=links((1, 5e6), (2, 1e6)))
    plan = first(peers)
    task = task_of(job(), model(), plan.peers, pipeline_body(plan).figures)
    assert [each.link_bytes_per_s for each in task.peers] == [5e6, 5e6, 1e6]
    assert task.pair_rates == () and task.latency_s == pytest.approx(0.0025)
    assert not any("no link speed known" in line for line in notes(job(), plan))
    assert follows(job(), model(), read_plan(plan.to_json()), None)
    peers[1] = changed(peers[1], links=links((2, 4e6)))
    plan = first(peers)
    task = task_of(job(), model(), plan.peers, pipeline_body(plan).figures)
    assert [each.link_bytes_per_s for each in task.peers] == [5e6, 5e6, 4e6]
    assert task.pair_rates == (PairRate(name(0), name(2), 1e6),)
    assert f"the link between {name(0)} and {name(2)} carries 8 Mbit/s" in notes(job(), plan)


def test_a_link_must_be_clearly_slower_than_its_ends_say_to_count_as_that() -> None:
    for rate, counted in ((1e8, ()), (7e7, ()), (6e7, (PairRate(name(0), name(1), 6e7),)), (1e12, ())):
        plan = first([changed(peer(0), links=links((1, rate))), peer(1, counts=())])
        task = task_of(job(), model(), plan.peers, pipeline_body(plan).figures)
        assert [each.link_bytes_per_s for each in task.peers] == [1e8, 1e8]
        assert task.pair_rates == counted


@pytest.mark.parametrize(("slow", "between"), [(1, 2), (2, 1)])
def test_a_slow_link_is_planned_around(slow: int, between: int) -> None:
    """The only peer with samples hands on to whom its link is good, and that one hands on to the third."""
    rates = {1: 1e8, 2: 1e8, slow: 1e6}
    fleet = [
        changed(peer(0, link=0.0), links=links(*rates.items())),
        changed(peer(1, counts=(), link=0.0), links=links((2, 1e8))),
        peer(2, counts=(), link=0.0),
    ]
    plan = first_plan(job(), model(activation_bytes=10**5), fleet, name(0))
    assert [peers for *_, peers in stages(plan)] == [[0], [between], [slow]]


@pytest.mark.parametrize(
    "odd",
    [
        links((1, math.nan)),
        links((1, 0.0)),
        links((0, 1e6)),
        links((7, 1e6)),
        (LinkFigure(name(1), 1e6, math.inf),),
        (LinkFigure(name(1), 1e6, -1.0),),
    ],
)
def test_links_whose_figures_make_no_sense_are_not_looked_at(odd: tuple[LinkFigure, ...]) -> None:
    plan = first([changed(peer(0), links=odd), peer(1, counts=())])
    assert pipeline_body(plan).figures[0].links == ()
    assert follows(job(), model(), read_plan(plan.to_json()), None)


def test_the_number_of_micro_batches_is_the_plans_choice() -> None:
    assert micro_batch_choices(8) == (8, 4, 2, 1)
    assert micro_batch_choices(12) == (12, 6, 3, 1)
    assert micro_batch_choices(1) == (1,)
    assert max(len(micro_batch_choices(num)) for num in range(1, 4097)) + 2 <= MAX_MEASURED

    def shape(*peers: MeasuredPeer, **values: Any) -> tuple[int, int, int]:
        pipeline = pipeline_body(first(peers, job(**values))).pipeline
        assert pipeline.num_micro_batches * pipeline.micro_batch == 16
        return len(pipeline.stages), len(pipeline.stages[0].peers), pipeline.num_micro_batches

    # each pass has its costs, whatever its samples: nobody alone makes more of them than it must
    assert shape(peer(0, measured=6)) == (1, 1, 1)
    assert shape(peer(0, measured=6), peer(1, measured=6), strategy="data-parallel") == (1, 2, 1)
    # two stages need several, and no more than pay
    pair = peer(0, measured=6), peer(1, counts=(), measured=6)
    assert shape(*pair) == (2, 1, 4)
    slow_calls = [changed(each, forward_s=((0.2,) * 6, (0.21,) * 6, (0.22,) * 6)) for each in pair]
    assert shape(*slow_calls, strategy="equal")[2] < 4


def test_a_pipeline_is_only_formed_where_it_promises_more_than_one_device_alone() -> None:
    net = model(num_blocks=40, parameter_bytes=10, activation_bytes=10)
    gains = {}
    for percent in range(1, 40):
        pair = peer(0), peer(1, percent * 1e7, counts=())
        plan = first(pair, net=net)
        alone = pipeline_body(first(pair[:1], net=net)).pipeline
        fleet = fleet_of(job(), net, plan.peers, pipeline_body(plan).figures)
        found = Search(fleet.costs(4)).best()
        assert found is not None
        gains[fleet.batch_s(alone) / fleet.batch_s(found.plan)] = len(stages(plan))
        assert fleet.batch_s(pipeline_body(plan).pipeline) * (WORTH if len(stages(plan)) > 1 else 1) <= fleet.batch_s(
            alone
        )
    assert {num for gain, num in gains.items() if gain > WORTH} == {2}
    assert {num for gain, num in gains.items() if 1.001 < gain < WORTH} == {1}


def test_a_pipeline_that_takes_longer_than_one_device_alone_would_gives_way_to_it() -> None:
    net = model(parameter_bytes=10, activation_bytes=1000)
    pair = [peer(0, measured=6), peer(1, counts=(), measured=6)]
    plan = first(pair, net=net)
    fleet = fleet_of(job(), net, plan.peers, pipeline_body(plan).figures)
    promised = fleet.batch_s(pipeline_body(plan).pipeline)
    alone_s = fleet.batch_s(pipeline_body(first(pair[:1], net=net)).pipeline)
    assert len(stages(plan)) == 2 and alone_s > 1.2 * promised

    def after(current: Plan, batch_s: float, peers: Sequence[MeasuredPeer] = pair) -> Plan | None:
        return next_plan(job(), net, current, peers, name(0), next_step=5, saved=(2, 1), batch_s=batch_s)

    assert after(plan, 0.0) is None and after(plan, 1.05 * alone_s) is None
    alone = after(plan, 1.5 * alone_s)
    assert alone is not None and stages(alone) == [(0, 6, [0])] and follows(job(), net, alone, plan)
    stretch = pipeline_body(alone).stretch
    assert stretch == pytest.approx(1.5 * alone_s / promised, rel=1e-3)
    # what was seen is remembered: the group does not run to and fro, not even when somebody joins
    assert after(alone, alone_s) is None and after(alone, 3 * alone_s) is None
    assert after(alone, alone_s, [*pair, peer(2, counts=(), measured=6)]) is None
    left = after(alone, alone_s, [*pair[1:], peer(2, measured=6)])
    assert left is not None and pipeline_body(left).stretch == stretch


def test_little_memory_takes_more_micro_batches() -> None:
    net = model(activation_bytes=10 * MB)  # six of them stored, and two on their way: 16 samples at once take 1.4 GB

    def num_micro_batches(memory: int) -> int:
        alone = peer(0, measured=6, memory=memory_for(memory))
        return pipeline_body(first([alone], net=net)).pipeline.num_micro_batches

    assert (num_micro_batches(2000 * MB), num_micro_batches(500 * MB)) == (1, 4)


def test_the_notes_name_what_sets_the_pace() -> None:
    slow_stage = first([peer(0, 1e9), peer(1, 1e9, counts=())])
    expected = f"stage 1 (blocks 0-2: {name(0)}) sets the pace: 0.36 s a micro-batch; a batch takes "
    assert notes(job(), slow_stage, model())[-1].startswith(expected)
    net, work = model(activation_bytes=100_000), job(strategy="equal")
    slow_link = first([peer(0, link=1e6), peer(1, counts=(), link=1e6)], work, net)
    assert notes(work, slow_link, net)[-1].startswith("the link from stage 1 to 2 sets the pace: 0.4 s")


def test_compression_makes_links_faster_and_optimizers_take_memory() -> None:
    net = model(activation_bytes=100_000)
    peers = [peer(0, link=1e6), peer(1, counts=(), link=1e6)]
    plan = first(peers, job(strategy="equal"), net)

    def seconds(**values: Any) -> float:
        fleet = fleet_of(job(strategy="equal", **values), net, plan.peers, pipeline_body(plan).figures)
        return fleet.batch_s(pipeline_body(plan).pipeline)

    assert seconds() > seconds(activations="fp16") > seconds(activations="fp16", gradients="fp16")
    assert seconds(activations="fp16", gradients="fp16") > seconds(activations="int8", gradients="int8")

    def copies(work: Job) -> int:
        return task_of(work, net, plan.peers, pipeline_body(plan).figures).optimizer_copies

    assert copies(job(optimizer="adamw")) == copies(job()) + 1
    assert copies(job(schedule="async")) == copies(job()) + 2  # stashed, for two batches on their way


def test_without_a_flush_batches_follow_on_each_other() -> None:
    net = model(parameter_bytes=10, activation_bytes=1000)
    pair = [peer(0, measured=6), peer(1, counts=(), measured=6)]
    works = {kind: job(schedule=kind) for kind in ("sync", "async")}
    plans = {kind: first(pair, work, net) for kind, work in works.items()}
    fleets = {kind: fleet_of(works[kind], net, plan.peers, pipeline_body(plan).figures) for kind, plan in plans.items()}
    took = {kind: fleets[kind].batch_s(pipeline_body(plan).pipeline) for kind, plan in plans.items()}
    assert took["async"] < 0.9 * took["sync"]
    tasks = {kind: each.costs(4).task for kind, each in fleets.items()}
    num = batches_a_round(works["async"], plans["async"].peers)
    assert (tasks["sync"].batches, tasks["async"].batches) == (1, min(num, 16)) and num > 1
    assert (tasks["sync"].most_ahead, tasks["async"].most_ahead) == (4, 5)
    assert all(follows(works[kind], net, plan, None) for kind, plan in plans.items())
    for kind, plan in plans.items():
        pipeline, most = pipeline_body(plan).pipeline, 1 if kind == "async" else 0
        for more in (0, 1, 2):
            deeper = dataclasses.replace(pipeline.stages[0], warm_up=pipeline.num_micro_batches + more)
            plan = with_pipeline(plan, stages=(deeper, *pipeline.stages[1:]))
            assert follows(works[kind], net, plan, None) is (more <= most)


def test_a_stage_with_batch_norm_is_not_shared_out_to_single_samples() -> None:
    net = model()
    normed = dataclasses.replace(net, blocks=(dataclasses.replace(net.blocks[0], least_samples=2), *net.blocks[1:]))
    work = job(strategy="data-parallel", micro_batches=1)
    peers = [peer(0), peer(1, 1e8)]
    for each, samples in ((net, (15, 1)), (normed, (14, 2))):
        plan = first(peers, work, each)
        assert pipeline_body(plan).pipeline.stages[0].samples == samples and follows(work, each, plan, None)
    stage = dataclasses.replace(pipeline_body(plan).pipeline.stages[0], samples=(15, 1))
    planned = work.with_table(dataclasses.replace(pipeline_of(work), strategy="planned"))
    alone = dataclasses.replace(with_pipeline(plan, stages=(stage,)), job=planned.id)
    assert follows(planned, net, with_body(alone, chain=pipeline_body(first(peers, work, net)).chain), None)
    assert not follows(planned, normed, alone, None)


def test_a_round_has_as_many_batches_as_its_owners_samples_make() -> None:
    owners = [peer(0, counts=(40, 40)).snapshot, peer(1, counts=(8, 8)).snapshot, peer(2, counts=()).snapshot]
    work = job()
    size = work.training.batch_size
    assert batches_a_round(work, owners, [name(0)]) == math.ceil(80 / size)
    assert batches_a_round(work, owners, [name(0), name(1)]) == math.ceil(96 / size)
    assert batches_a_round(work, owners) == math.ceil(48 / size)
    assert batches_a_round(work, [peer(2, counts=()).snapshot]) == 1


def test_the_partition_names_the_cut_and_who_trains_what() -> None:
    plan = three()
    pipeline = pipeline_body(plan).pipeline
    swapped = tuple(
        dataclasses.replace(stage, peers=other.peers)
        for stage, other in zip(pipeline.stages, reversed(pipeline.stages), strict=True)
    )
    deeper = (dataclasses.replace(pipeline.stages[0], warm_up=4), pipeline.stages[1])
    assert with_pipeline(plan, stages=deeper).partition == with_body(plan, from_step=7).partition == plan.partition
    assert with_pipeline(plan, stages=swapped).partition != plan.partition


# --- the next plan ----------------------------------------------------------------------------------------------------


def test_a_slower_peer_brings_a_new_plan_only_above_the_gain() -> None:
    before = first([peer(0), peer(1, counts=())])
    later = [peer(0), peer(1, counts=(), slowdown=2.5)]

    def at(gain: float) -> Plan | None:
        work = job(replan_gain=gain)
        current = dataclasses.replace(before, job=work.id)
        return next_plan(work, model(), current, later, name(1), next_step=7, saved=(3, 1))

    better = at(0.01)
    assert better is not None
    fleet = fleet_of(job(), model(), better.peers, pipeline_body(better).figures)
    gain = fleet.batch_s(pipeline_body(before).pipeline) / fleet.batch_s(pipeline_body(better).pipeline) - 1
    assert gain > 0.2
    just_under, just_over = at(gain * (1 - 1e-6)), at(gain * (1 + 1e-6))
    assert just_over is None and just_under is not None
    assert pipeline_body(just_under).from_step == 7 and pipeline_body(just_under).figures[1].slowdown == 2.5
    assert just_under.proposer == name(1) and just_under.partition != before.partition
    assert follows(job(replan_gain=gain * (1 - 1e-6)), model(), just_under, None)


def test_a_joiner_brings_a_new_plan_where_it_helps() -> None:
    before = first([peer(0)])
    for speed, helps in ((1e6, False), (1e9, True)):
        peers = [peer(0), peer(1, speed, counts=())]
        found = next_plan(job(), model(), before, peers, name(0), next_step=5, saved=(3, 1))
        assert (found is not None) is helps
        assert found is None or len(found.parts) == 2


def test_a_death_brings_a_plan_from_the_newest_step_that_is_saved() -> None:
    peers = [peer(0), peer(1, counts=()), peer(2, counts=())]
    before = first(peers)
    assert len(before.trainers()) == 3
    for covered, next_step, expected in ((6, 8, 6), (0, 8, 0), (9, 8, 9)):
        plan = next_plan(job(), model(), before, peers[:2], name(0), next_step=next_step, saved=(covered, 1))
        assert plan is not None and pipeline_body(plan).from_step == expected
        assert set(plan.trainers()) == {name(0), name(1)}
    with pytest.raises(UserError, match="no peer has samples"):
        next_plan(job(), model(), before, peers[1:], name(1), next_step=8, saved=(6, 1))
    assert next_plan(job(), model(), before, [], name(0), next_step=8, saved=(6, 1)) is None


def test_while_a_plan_rests_only_a_death_brings_another() -> None:
    peers = [peer(0), peer(1, counts=()), peer(2, counts=())]
    before = first(peers)
    slower = [peer(0, slowdown=20.0), *peers[1:]]
    for may, now, expected in ((True, slower, True), (False, slower, False), (False, peers[:2], True)):
        found = next_plan(job(), model(), before, now, name(1), next_step=8, saved=(6, 1), may_improve=may)
        assert (found is not None) is expected


def test_who_is_not_in_the_plan_may_go() -> None:
    before = three()
    peers = [peer(0, measured=6), peer(1, counts=(), measured=6)]
    assert next_plan(job(), model(), before, peers, name(0), next_step=8, saved=(6, 1)) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trainer_that_lost_its_stage_is_planned_with_from_what_is_saved(strategy: str) -> None:
    work, peers = job(strategy=strategy), [peer(0), peer(1)]
    before = first(peers, work)
    assert set(before.trainers()) == {name(0), name(1)}
    plan = next_plan(work, model(), before, peers, name(0), next_step=8, saved=(6, 1), lost=[name(1)])
    assert plan is not None and pipeline_body(plan).from_step == 6 and plan.trainers() == before.trainers()
    assert follows(work, model(), plan, before)
    bystander = [name(7)]
    assert next_plan(work, model(), before, peers, name(0), next_step=8, saved=(6, 1), lost=bystander) is None


def test_rounds_stay_as_long_as_they_were() -> None:
    peers = [peer(0), peer(1)]
    before = first(peers, job(strategy="data-parallel"))
    plan = next_plan(job(strategy="data-parallel"), model(), before, peers[:1], name(0), next_step=8, saved=(6, 1))
    assert plan is not None and pipeline_body(plan).steps_per_round == pipeline_body(before).steps_per_round == 5


def test_when_training_is_over_nothing_is_planned() -> None:
    peers = [peer(0), peer(1, counts=())]
    before = first(peers)
    last = 10 * pipeline_body(before).steps_per_round
    assert next_plan(job(), model(), before, peers[:1], name(0), next_step=last, saved=(last, 1)) is None
    slower = [peer(0), peer(1, counts=(), slowdown=9.0)]
    assert next_plan(job(), model(), before, slower, name(0), next_step=last, saved=(0, 0)) is None
    assert next_plan(job(), model(), before, slower, name(0), next_step=last - 1, saved=(0, 0)) is not None


def test_a_trainer_whose_figures_are_gone_keeps_those_it_was_planned_with() -> None:
    peers = [peer(0, measured=6), peer(1, counts=(), measured=6)]
    before = first(peers)
    forgot = dataclasses.replace(peers[1], profile=DeviceFigures(name(1), 1e8, 1.0, (), (), ()))
    for now in (forgot, dataclasses.replace(peers[1], profile=None), changed(peers[1], slowdown=math.nan)):
        both = [peers[0], now]
        assert next_plan(job(), model(), before, both, name(0), next_step=8, saved=(6, 1)) is None
        plan = next_plan(job(), model(), before, both, name(0), next_step=8, saved=(6, 1), lost=[name(0)])
        assert plan is not None and pipeline_body(plan).figures == pipeline_body(before).figures
    unmeasured = first([peer(0), peer(1, counts=())])  # there is nothing to keep: planned without it
    both = [peer(0), dataclasses.replace(peer(1, counts=()), profile=None)]
    plan = next_plan(job(), model(), unmeasured, both, name(0), next_step=8, saved=(6, 1))
    assert plan is not None and set(plan.trainers()) == {name(0)} and pipeline_body(plan).from_step == 8


# --- baselines as plans -----------------------------------------------------------------------------------------------


def test_an_equal_split_takes_everyone_in_order_but_a_data_owner_first() -> None:
    work = job(strategy="equal")
    peers = [peer(0, counts=()), peer(1, 1e5, counts=()), peer(2), peer(3)]
    plan = first(peers, work)
    assert stages(plan) == [(0, 2, [2]), (2, 4, [0]), (4, 5, [1]), (5, 6, [3])]
    assert follows(work, model(), plan, None)
    slower = [changed(each, slowdown=50.0) if i == 3 else each for i, each in enumerate(peers)]
    assert next_plan(work, model(), plan, slower, name(0), next_step=5, saved=(2, 1)) is None
    assert next_plan(work, model(), plan, [*peers, peer(4)], name(0), next_step=5, saved=(2, 1)) is None
    after = next_plan(work, model(), plan, peers[1:], name(1), next_step=5, saved=(2, 1))
    assert after is not None and stages(after) == [(0, 2, [2]), (2, 4, [1]), (4, 6, [3])]
    many = first([peer(i) for i in range(8)], work)
    assert pipeline_body(many).pipeline.left_out == (name(6), name(7))
    assert f"{name(7)}: left out: there are more peers than pieces of the model" in notes(work, many)


def test_data_parallel_is_one_stage_of_all_that_have_samples() -> None:
    work = job(strategy="data-parallel")
    peers = [peer(0, 3e9), peer(1, 1e9), peer(2, counts=())]
    plan = first(peers, work)
    assert stages(plan) == [(0, 6, [0, 1])] and pipeline_body(plan).pipeline.stages[0].samples == (3, 1)
    assert f"{name(2)}: left out: it has no samples" in notes(work, plan)
    assert stages(first([peers[0], peers[2]], work)) == [(0, 6, [0])]


def test_a_baseline_stays_as_it_is_although_a_joiner_would_make_it_faster() -> None:
    work = job(batch_size=64, strategy="data-parallel")
    peers = [peer(0), peer(1)]
    plan, joined = first(peers, work), [*peers, peer(2, 9e9)]
    faster = first(joined, work)
    fleet = fleet_of(work, model(), faster.peers, pipeline_body(faster).figures)
    assert fleet.batch_s(pipeline_body(plan).pipeline) > 2 * fleet.batch_s(pipeline_body(faster).pipeline)
    assert next_plan(work, model(), plan, joined, name(0), next_step=5, saved=(2, 1)) is None


@pytest.mark.parametrize("strategy", ["equal", "data-parallel"])
def test_a_baseline_beyond_memory_is_an_error_with_a_next_step(strategy: str) -> None:
    net = model(parameter_bytes=10 * MB)
    peers = [peer(i, memory=memory_for(60 * MB)) for i in range(2)]
    with pytest.raises(UserError, match=f'strategy = "{strategy}" does not fit.*use "planned"'):
        first(peers, job(strategy=strategy), net)


def test_another_plan_than_the_baseline_asked_for_is_not_followed() -> None:
    peers = [peer(0), peer(1)]
    for strategy in ("equal", "data-parallel"):
        work = job(strategy=strategy)
        own = first(peers, work)
        for other in STRATEGIES:
            plan = dataclasses.replace(first(peers, job(strategy=other)), job=work.id)
            check_plan(plan)
            is_same = pipeline_body(plan).pipeline.stages == pipeline_body(own).pipeline.stages
            assert follows(work, model(), plan, None) is is_same
        assert not follows(work, model(), with_pipeline(own, stages=first([peer(0)]).body.pipeline.stages), None)  # type: ignore[union-attr]

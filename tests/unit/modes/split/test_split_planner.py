"""Plans of split training: what is planned, what a peer refuses to follow, and when another plan is due."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2ptrain.config import DataConfig, GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot, Plan, plan_from_json
from p2ptrain.core.stages.figures import DeviceFigures, MeasuredPeer
from p2ptrain.errors import JobError, RemoteError, UserError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.modes.split.choice import choice_of
from p2ptrain.modes.split.config import SplitConfig
from p2ptrain.modes.split.plan import BODIES, SeenPace, StartPiece, body_of, bounds_of, needs_of, rates_of, workers
from p2ptrain.modes.split.planner import Known, first_plan, follows, next_plan, notes
from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.split.rounds.handing import carried_s

CLASSES = tuple("abcd")
MODEL = ModelProfile(
    "toy", 256, tuple(BlockProfile(f"b{i}", 10**6, 2 * 10**6, 10**5, 400, 400, True) for i in range(6))
)
HELPER, ANNA, BEN = (PeerId(name * 16) for name in ("a", "b", "c"))
SAMPLES = (40, 40, 40, 40)


def job(**values: Any) -> Job:
    return Job(
        mode="split",
        model=ModelConfig("toy"),
        data=DataConfig(CLASSES, (1, 8, 8), mean=(0.0,), std=(1.0,), val=0.0),
        training=TrainingConfig(rounds=5, batch_size=32),
        tables=(SplitConfig(**values),),
        group=GroupConfig(),
    )


def peer(name: PeerId, block_s: float, counts: tuple[int, ...] = (), memory: int = 0) -> MeasuredPeer:
    sizes = (1, 4, 32)
    forward = tuple(tuple(block_s * size for _ in MODEL.blocks) for size in sizes)
    backward = tuple(tuple(2 * second for second in row) for row in forward)
    snapshot = PeerSnapshot(name, 1e10, memory, counts, ())
    return MeasuredPeer(snapshot, DeviceFigures(name, 1e7, 1.0, sizes, forward, backward))


def without_times(known: MeasuredPeer) -> MeasuredPeer:
    """Its FLOP/s count."""
    return MeasuredPeer(known.snapshot, DeviceFigures(known.snapshot.peer, 1e7, 1.0, (), (), ()))


def room() -> list[MeasuredPeer]:
    return [peer(HELPER, 1e-5), peer(ANNA, 1e-3, SAMPLES), peer(BEN, 4e-4, SAMPLES)]


def test_weak_peers_are_helped_and_everybody_follows() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    body = body_of(plan)
    assert body.split.helpers == (HELPER,) and workers(body.split) == (HELPER, ANNA, BEN)
    assert follows(job(), MODEL, plan, None) and follows(job(), None, plan, None)
    assert plan_from_json(plan.to_json(), BODIES) == plan
    assert body.averager == HELPER, "most lies there"
    ((first, stop),) = needs_of(body.split, ANNA)
    assert first == 0 and [end for _, end in needs_of(body.split, HELPER)] == [6]
    assert {stop, needs_of(body.split, BEN)[0][1]} <= set(bounds_of(body.split))
    assert set(rates_of(body.split, HELPER)) == {ANNA, BEN} and set(rates_of(body.split, ANNA)) == {HELPER}
    assert [part.trainers for part in plan.parts] == [(HELPER,), (ANNA,), (BEN,)]
    assert first_plan(job(), MODEL, room()[::-1], HELPER) == plan


def test_alone_as_a_baseline_and_where_nobody_is_stronger() -> None:
    plan = first_plan(job(strategy="alone"), MODEL, room(), HELPER)
    assert body_of(plan).split.helpers == () and body_of(plan).split.standby == (HELPER,)
    assert follows(job(strategy="alone"), MODEL, plan, None)
    weak = [peer(HELPER, 1.0), peer(ANNA, 1e-3, SAMPLES), peer(BEN, 1e-3, SAMPLES)]
    assert body_of(first_plan(job(), MODEL, weak, HELPER)).split.helpers == ()


def test_labels_stay_with_their_owners_and_the_last_block_does() -> None:
    stay = job(labels="stay")
    plan = first_plan(stay, MODEL, room(), HELPER)
    body = body_of(plan)
    assert body.split.kept_from == 5 and body.split.helpers == (HELPER,)
    assert needs_of(body.split, ANNA)[1:] == ((5, 6),) and needs_of(body.split, HELPER)[-1][1] == 5
    assert 5 in bounds_of(body.split) and plan_from_json(plan.to_json(), BODIES) == plan
    assert follows(stay, MODEL, plan, None) and not follows(job(), MODEL, plan, None)
    assert not follows(stay, MODEL, with_split(plan, kept_from=4), None)
    assert not follows(stay, MODEL, first_plan(job(), MODEL, room(), HELPER), None)
    assert sum(body.shares) == pytest.approx(1, abs=1e-3)
    two = dataclasses.replace(MODEL, blocks=MODEL.blocks[:2])
    with pytest.raises(UserError, match='labels = "send"'):
        first_plan(stay, two, [without_times(peer(ANNA, 1e-3, SAMPLES))], ANNA)


def test_without_samples_there_is_no_plan() -> None:
    with pytest.raises(UserError, match="samples"):
        first_plan(job(), MODEL, [peer(HELPER, 1e-5)], HELPER)


def test_an_owner_that_no_plan_has_room_for_is_left_out_and_not_the_end_of_the_group() -> None:
    tiny = peer(ANNA, 1e-3, SAMPLES, memory=1)
    plan = first_plan(job(), MODEL, [tiny, peer(BEN, 1e-3, SAMPLES)], BEN)
    assert [unit.owner for unit in body_of(plan).split.units] == [BEN] and body_of(plan).split.standby == (ANNA,)
    assert follows(job(), MODEL, plan, None)


def test_figures_that_make_no_sense_are_left_out_and_told() -> None:
    odd = MeasuredPeer(PeerSnapshot(ANNA, 0.0, 0, SAMPLES, ()), None)
    plan = first_plan(job(), MODEL, [peer(HELPER, 1e-5), odd, peer(BEN, 1e-3, SAMPLES)], HELPER)
    assert body_of(plan).split.standby == (ANNA,)
    assert any(ANNA in line and "make no sense" in line for line in notes(job(), plan))


# --- the next plan ----------------------------------------------------------------------------------------------------

START = (StartPiece(0, 6, BlobId("e" * 64), 100),)


def test_the_same_room_keeps_its_plan() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    assert next_plan(job(), MODEL, plan, room(), HELPER, Known(2, START)) is None


def test_who_is_gone_or_lost_and_who_comes_make_another_plan() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    for peers, known in (
        (room()[1:], Known(2, START)),
        (room(), Known(2, START, lost=(ANNA,))),
        ([*room(), peer(PeerId("d" * 16), 1e-3, SAMPLES)], Known(2, START)),
    ):
        after = next_plan(job(), MODEL, plan, peers, ANNA, known)
        assert after is not None and body_of(after).start == START and body_of(after).from_round == 2
        assert follows(job(), MODEL, after, plan) and not follows(job(), MODEL, after, after)
    assert next_plan(job(), MODEL, plan, room()[1:], ANNA, Known(5, START)) is None, "all rounds are over"


def test_who_failed_to_average_does_not_average_again() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    after = next_plan(job(), MODEL, plan, room(), ANNA, Known(2, START, lost=(HELPER,)))
    assert after is not None and body_of(after).averager != HELPER
    split, figures = body_of(after).split, body_of(after).figures
    by_others = choice_of(job(), MODEL, after.peers, figures, {HELPER}).today(split)
    assert by_others is not None and by_others.exchange_s == split.exchange_s, "and is not counted with"
    by_helper = choice_of(job(), MODEL, after.peers, figures).today(split)
    assert by_helper is not None and by_helper.exchange_s < split.exchange_s
    assert follows(job(), MODEL, after, plan)


def with_slowdown(slowdown: float) -> list[MeasuredPeer]:
    helper, *others = room()
    assert helper.profile is not None
    return [dataclasses.replace(helper, profile=dataclasses.replace(helper.profile, slowdown=slowdown)), *others]


def test_a_helper_that_was_slower_than_it_says_is_planned_with_as_it_was_seen() -> None:
    """In the midst of a round, and for four rounds from its beginning; the next time for sixteen."""
    long = dataclasses.replace(job(), training=TrainingConfig(rounds=100, batch_size=32))
    plan = first_plan(long, MODEL, room(), HELPER)
    for times, until in ((1, 4), (2, 4 + 16)):
        known = Known(4 * (times - 1), START if times > 1 else (), paces={HELPER: 0.5}, elapsed_s=1.0)
        after = next_plan(long, MODEL, plan, room(), ANNA, known)
        assert after is not None and HELPER not in body_of(after).split.helpers
        assert body_of(after).seen == (SeenPace(HELPER, 0.5, times, until),)
        assert follows(long, MODEL, after, plan) and plan_from_json(after.to_json(), BODIES) == after
        lied = changed(after, figures=body_of(plan).figures)
        assert not follows(long, MODEL, lied, plan), "faster than it was seen"
        assert times == 1 or not follows(long, MODEL, changed(after, seen=()), plan), "what is known is not forgotten"
        assert next_plan(long, MODEL, after, room(), ANNA, Known(until - 1, START)) is None
        again = next_plan(long, MODEL, after, room(), ANNA, Known(4, START)) if until == 4 else None
        plan = again or after
        assert (HELPER in body_of(plan).split.helpers) == bool(again)


def test_who_says_that_it_is_slow_is_believed() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    pace = 6 * 3 * 1e-5
    known = Known(1, START, paces={HELPER: 3000 * pace}, elapsed_s=1.0)
    after = next_plan(job(), MODEL, plan, with_slowdown(2500.0), ANNA, known)
    assert after is not None and HELPER not in body_of(after).split.helpers and body_of(after).seen == ()


def test_a_round_under_way_is_dropped_only_for_one_that_is_over_sooner() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    slow_s = 320 * 0.5
    for elapsed_s, is_dropped in ((1.0, True), (slow_s / 2, True), (slow_s - 3.0, False)):
        known = Known(1, START, paces={HELPER: 0.5}, elapsed_s=elapsed_s)
        assert (next_plan(job(), MODEL, plan, room(), ANNA, known) is not None) == is_dropped
    late = [*room(), peer(PeerId("d" * 16), 1e-3, SAMPLES)]
    assert next_plan(job(), MODEL, plan, late, ANNA, Known(1, START, elapsed_s=1.0)) is None


def test_a_slower_helper_makes_another_plan_only_for_a_gain() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    assert next_plan(job(), MODEL, plan, with_slowdown(1.02), HELPER, Known(2, START)) is None
    after = next_plan(job(), MODEL, plan, with_slowdown(500.0), HELPER, Known(2, START))
    assert after is not None and HELPER not in body_of(after).split.helpers


def test_a_change_that_costs_more_than_it_brings_is_not_made() -> None:
    """The rounds that are left have to bring what it takes: the vote, what is dropped, and the blocks that travel."""
    plan = first_plan(job(), MODEL, room(), HELPER)
    helper, *others = room()
    assert helper.profile is not None
    due = {}
    for slowdown in (1.5, 20, 40, 80, 5000):
        slow = dataclasses.replace(helper, profile=dataclasses.replace(helper.profile, slowdown=float(slowdown)))
        due[slowdown] = tuple(
            next_plan(job(), MODEL, plan, [slow, *others], HELPER, Known(over, START)) is not None for over in (1, 4)
        )
    assert due[1.5] == (False, False) and due[5000] == (True, True)
    assert (True, False) in due.values() and (False, True) not in due.values()


def test_what_travels_with_a_change_is_what_nobody_had_before() -> None:
    peers = room()
    choice = choice_of(job(), MODEL, [each.snapshot for each in peers], [e.profile for e in peers if e.profile])
    helped = choice.best()
    alone = choice.alone([ANNA, BEN])
    assert alone is not None and helped.helpers == (HELPER,)
    num_bytes = 1e5 * (6 - min(unit.cut for unit in helped.units))
    expected = float(carried_s(1e10, np.array(num_bytes), 1e7)) + 2 * choice.task.latency_s
    assert expected > num_bytes / 1e7
    assert choice.moving_s(helped, alone) == pytest.approx(expected)
    assert choice.moving_s(helped, helped) == 0.0 and choice.moving_s(alone, helped) > 0.0, "the helper gets its tails"


def test_rounds_that_take_much_longer_than_planned_end_the_help() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    planned_s = body_of(plan).split.round_s
    after = next_plan(job(), MODEL, plan, room(), HELPER, Known(2, START, round_s=50 * planned_s + 2.0))
    assert after is not None and body_of(after).split.helpers == () and body_of(after).stretch > 10
    assert follows(job(), MODEL, after, plan)
    assert next_plan(job(), MODEL, after, room(), HELPER, Known(3, START)) is None, "and no help is tried again"


# --- what is refused --------------------------------------------------------------------------------------------------


def changed(plan: Plan, **values: Any) -> Plan:
    return dataclasses.replace(plan, body=dataclasses.replace(body_of(plan), **values))


def with_split(plan: Plan, **values: Any) -> Plan:
    return changed(plan, split=dataclasses.replace(body_of(plan).split, **values))


BAD: dict[str, Callable[[Plan], Plan]] = {
    "another averager": lambda plan: changed(plan, averager=PeerId("d" * 16)),
    "shares": lambda plan: changed(plan, shares=body_of(plan).shares[:-1]),
    "figures": lambda plan: changed(plan, figures=body_of(plan).figures[1:]),
    "a start of no round": lambda plan: changed(plan, start=START),
    "a round without a start": lambda plan: changed(plan, from_round=2),
    "a start with a gap": lambda plan: changed(plan, from_round=2, start=(StartPiece(1, 6, BlobId("e" * 64), 1),)),
    "half a start": lambda plan: changed(plan, from_round=2, start=(StartPiece(0, 3, BlobId("e" * 64), 1),)),
    "the chain": lambda plan: changed(plan, chain="x" * 64),
    "who stands by": lambda plan: with_split(plan, standby=(PeerId("d" * 16),)),
    "a unit too few": lambda plan: with_split(plan, units=body_of(plan).split.units[:1]),
    "another batch": lambda plan: with_split(plan, batch_size=16),
    "another medium": lambda plan: with_split(plan, medium="shared"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_plan_that_does_not_hold_together_is_not_followed(what: str) -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    assert not follows(job(), MODEL, BAD[what](plan), None)


@pytest.mark.parametrize("what", [what for what in BAD if what not in ("another batch", "another medium")])
def test_and_its_bytes_are_refused(what: str) -> None:
    text = BAD[what](first_plan(job(), MODEL, room(), HELPER)).to_json()
    if what == "a unit too few":
        text = text.replace('"mode":"split"', '"mode":"other"')
    with pytest.raises(RemoteError):
        plan_from_json(text, BODIES)


def test_a_plan_slower_than_all_alone_is_not_followed() -> None:
    slow = [peer(HELPER, 1.0), *room()[1:]]
    fast = first_plan(job(), MODEL, room(), HELPER)
    figures = {each.snapshot.peer: each.profile for each in slow}
    worse = changed(fast, figures=tuple(figures[each.peer] for each in body_of(fast).figures))
    assert not follows(job(), MODEL, worse, None)


# --- the job ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (job(micro_batches=64), r"split\.micro_batches"),
        (job(replan_gain=0.0), r"split\.replan_gain"),
        (job(labels="stay", tails="shared"), r"split\.labels"),
    ],
    ids=["micro-batches", "gain", "labels"],
)
def test_what_a_job_can_not_say(made: Job, said: str) -> None:
    with pytest.raises(JobError, match=said):
        job_from_json(made.to_json())


def test_unknown_tails_are_refused() -> None:
    with pytest.raises(JobError, match=r"split\.tails"):
        job_from_json(job().to_json().replace('"mode":"split"', '"mode":"split","split":{"tails":"none"}'))

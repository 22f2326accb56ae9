"""Groups that train one model as a pipeline: whole peers in virtual time, whose trainers keep books of every batch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from blocks_trainer import MODEL, NUM_BLOCKS
from peer_group import LOSSY, NOTHING, RATE, Room, harvest, plan_of, refusals
from seeds import seeds
from stage_group import (
    all_at,
    blocks_of,
    check_done,
    epoch_trained,
    first_of_stage,
    group,
    pipeline_body,
    saved,
    state_of,
    total_steps,
    trainer,
    whole_steps,
)
from stage_trainer import check, ledger, read_piece

from p2ptrain.core import commands as c
from p2ptrain.modes.pipeline import harvest as harvester
from p2ptrain.modes.pipeline.stage.calm import REST_S
from p2ptrain.planning.devices.blocks import BlockTimes
from p2ptrain.planning.devices.profile_codec import profile_to_json
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.protocol.machine import Send
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN, Conditions
from p2ptrain.wire.messages import StreamData

pytestmark = pytest.mark.usefixtures("no_work_for_messages")


# --- from nothing to done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, LOSSY], ids=["lan", "lossy"])
@pytest.mark.parametrize("strategy", ["equal", "data-parallel", "planned"])
def test_three_peers(seed: int, conditions: Conditions, strategy: str) -> None:
    room = group(seed, 3, conditions, strategy=strategy, owners=3 if strategy == "data-parallel" else 1, rounds=4)
    assert room.run(300, room.all_done), state_of(room)
    assert len(room.plans()) == 1 and room.epochs() == {1}
    steps = total_steps(room.on()[0])
    for device in room.on():
        if plan_of(device).part_of(device.id):
            assert trainer(device).step == steps
            assert trainer(device).follows == [(1, 0, 0, False)] and trainer(device).halts == [(1, -1)]
    assert set(check_done(room)) == {1}
    assert not refusals(room)


def test_a_helper_that_comes_late_stands_by() -> None:
    room = group(count=3, min_peers=2, rounds=8)
    room.devices[2].kill()
    assert room.run(30, all_at(room, 5))
    room.restart(2)
    late, heard = room.devices[2], set[str]()

    def told() -> bool:
        heard.add(late.record.waiting_for)
        return any("the baseline 'equal' change for no newcomer" in words for words in heard)

    assert room.run(100, told), state_of(room)
    assert not any("no sense" in words for words in heard)
    assert room.run(300, room.all_done), state_of(room)
    assert {device.record.epoch for device in room.on()} == {1} and room.devices[2].record.part == -1
    check_done(room)


# --- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, LOSSY], ids=["lan", "lossy"])
@pytest.mark.parametrize("stage", range(3))
def test_one_dies_and_no_batch_is_counted_twice(seed: int, conditions: Conditions, stage: int) -> None:
    room = group(seed, 3, conditions, owners=3, rounds=8)
    assert room.run(60, all_at(room, 25)), state_of(room)
    room.run(room.rng.uniform(0, 2))
    (victim,) = pipeline_body(room.devices[0]).pipeline.stages[stage].peers
    device = next(d for d in room.on() if d.id == victim)
    device.kill()
    newest = max(whole_steps(room), default=0)
    assert newest >= 5
    assert room.run(120, epoch_trained(room, 2)), state_of(room)
    starts = {trainer(d).follows[-1][:2] for d in room.on()}
    assert len(starts) == 1
    ((epoch, first),) = starts
    assert epoch == 2 and first >= newest, "the newest step that is saved whole"
    assert room.run(300, room.all_done), state_of(room)
    epochs = check_done(room)
    assert (epochs[:first] == 1).all() and (epochs[first:] == 2).all()
    assert not refusals(room)


def test_who_comes_back_without_its_stage_gets_it_again() -> None:
    """Killed and started again before anybody noticed: the group goes back to what is saved, with the same peers."""
    room = group(owners=3, rounds=7)
    assert room.run(60, all_at(room, 25)), state_of(room)
    device = room.devices[1]
    device.kill()
    room.run(0.3)
    room.restart(1)
    assert room.run(60, epoch_trained(room, 2)), state_of(room)
    assert plan_of(device).part_of(device.id) is not None
    assert room.run(300, room.all_done), state_of(room)
    epochs = check_done(room)
    assert 1 in epochs and 2 in epochs


def test_a_trainer_that_dies() -> None:
    room = group(rounds=7)
    assert room.run(60, all_at(room, 25)), state_of(room)
    device = room.devices[2]
    dead = trainer(device)
    dead.dead = True
    dead._say(c.TrainerFailed("killed (out of memory?)", user_error=False))
    assert room.run(60, epoch_trained(room, 2)), state_of(room)
    assert trainer(device) is not dead
    assert room.run(300, room.all_done), state_of(room)
    check_done(room)


@pytest.mark.parametrize("seed", seeds(1))
def test_all_die_and_come_back(seed: int) -> None:
    room = group(seed, rounds=7)
    assert room.run(60, all_at(room, 25)), state_of(room)
    whole = whole_steps(room)[-1]
    for device in room.on():
        device.kill()
    room.run(5)
    for number in range(3):
        room.restart(number)
        room.run(0.7)
    assert room.run(60, epoch_trained(room, 2)), state_of(room)
    assert {trainer(device).follows[0][1] for device in room.on()} == {whole}
    assert room.run(300, room.all_done), state_of(room)
    check_done(room)


def test_who_leaves_is_not_waited_for() -> None:
    room = group(owners=3, rounds=7)
    assert room.run(60, all_at(room, 25)), state_of(room)
    room.run(2)
    left, at = room.devices[2], room.network.now
    room.perform(left, left.core.leave(at))
    room.run(0.3)
    left.kill()
    assert room.run(10, epoch_trained(room, 2)), state_of(room)
    assert room.network.now - at < 1.0 + 3.0, "settling, votes, and getting the blocks"
    assert all(device.note_kinds()["left"] == 1 and not device.note_kinds()["failed"] for device in room.on())
    assert room.run(300, room.all_done), state_of(room)
    check_done(room)


# --- what is kept -----------------------------------------------------------------------------------------------------


def best_without(room: Room, lost: Device | None) -> int:
    """The newest step that all blocks are saved of, if one is lost."""
    best = 0
    for step, runs in saved(room).items():
        for epoch in {h.epoch for _, h in runs}:
            held = [h for device, h in runs if device is not lost and h.epoch == epoch]
            if {b for h in held for b in range(h.part, h.part + h.span)} == set(range(NUM_BLOCKS)):
                best = max(best, step)
    return best


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("save_s", [0.0, 1.5, None], ids=["fast", "slow", "full"])
def test_a_step_that_is_saved_whole_never_vanishes(seed: int, save_s: float | None) -> None:
    """Nor does one that is whole without any one peer; though one peer's disk is slow, or full from some time on."""
    room = group(seed, 3, LOSSY, owners=3, rounds=12, snapshot_steps=2)
    assert room.run(60, lambda: min(best_without(room, device) for device in room.on()) > 0), state_of(room)
    room.devices[room.rng.randrange(3)].save_s = save_s
    whole, safe = 0, 0
    for _ in range(100):
        room.run(0.2)
        now_whole, now_safe = best_without(room, None), min(best_without(room, device) for device in room.on())
        assert now_whole >= whole and now_safe >= safe, (room.network.now, whole, now_whole, safe, now_safe)
        whole, safe = now_whole, now_safe
    assert safe >= 2 and max(len(device.disk.own) for device in room.on()) <= 4
    kept = Counter((device.id, h.part, h.trainer) for device in room.on() for h in device.disk.replicas)
    assert max(kept.values()) <= 4
    victim = room.devices[room.rng.randrange(3)]
    victim.kill()
    assert room.run(400, epoch_trained(room, 2)), state_of(room)  # where disks are slow, who is gone may be waited for
    assert min(trainer(device).follows[-1][1] for device in room.on()) >= safe


def test_the_harvest_is_of_one_step() -> None:
    room = group(1, conditions=LOSSY, rounds=20, snapshot_steps=5)
    assert room.run(120, all_at(room, 23)), state_of(room)
    tries = (harvest(room, harvester, visitor_number) for visitor_number in range(99, 109))
    found = next(found for found in tries if found)  # what records name may be gone by the time they are heard
    (step,) = {holding.step for holding, _ in found.values()}
    assert step >= 15
    total = total_steps(room.on()[0])
    check(ledger([read_piece(data, step, total) for _, data in found.values()]), step)


def test_the_first_plan_knows_the_links() -> None:
    room = group(count=4, strategy="planned", settle_s=3.0)
    assert room.run(60, all_at(room, 1)), state_of(room)
    body = pipeline_body(room.devices[0])
    figures = {frozenset((p.peer, link.peer)): link for p in body.figures for link in p.links}
    assert len(figures) == 6 == sum(len(p.links) for p in body.figures), "every pair, measured by one of the two"
    for figure in figures.values():
        assert figure.bytes_per_s == pytest.approx(RATE, rel=0.1) and LAN.delay_s <= figure.latency_s < 0.005
    assert Counter(len(d.core.records.own.links) for d in room.on()) == Counter([0, 1, 2, 3])
    assert room.run(300, room.all_done), state_of(room)
    assert not refusals(room)


# --- a better plan ----------------------------------------------------------------------------------------------------


def load_of(pipeline: PipelinePlan, device: Device) -> float:
    """Blocks, times the share of the samples that go through them here."""
    index = pipeline.stage_of(device.id)
    if index is None:
        return 0.0
    stage = pipeline.stages[index]
    return (stage.stop - stage.start) * stage.samples[stage.peers.index(device.id)] / pipeline.micro_batch


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, LOSSY], ids=["lan", "lossy"])
def test_a_peer_gets_slow_and_gives_blocks_away(seed: int, conditions: Conditions) -> None:
    """All go on to one step of the future, hand over what others lack there, and no batch is lost or done again."""
    room = group(seed, 3, conditions, strategy="planned", rounds=10)
    assert room.run(60, all_at(room, 12)), state_of(room)
    before = pipeline_body(room.devices[0]).pipeline
    assert len(before.stages) == 3, "a pipeline"
    slow = first_of_stage(room, 1)
    trainer(slow).slowdown = 4.0
    assert room.run(120, epoch_trained(room, 2)), state_of(room)
    after = pipeline_body(room.devices[0])
    first, pipeline = after.from_step, after.pipeline
    assert load_of(pipeline, slow) < load_of(before, slow)
    for device in room.on():
        assert trainer(device).halts[-1] == (2, first), "all halt after the same batch"
        index, old = pipeline.stage_of(device.id), before.stage_of(device.id)
        given = {b for epoch, start, stop in trainer(device).given if epoch == 2 for b in range(start, stop)}
        assert given == blocks_of(pipeline, index) - blocks_of(before, old), "only missing blocks travel"
        if index is not None:
            assert trainer(device).follows[-1][3], "own blocks stay"
    assert room.run(300, room.all_done), state_of(room)
    epochs = check_done(room)
    assert (epochs[:first] == 1).all() and (epochs[first:] >= 2).all()
    for device in room.on():
        assert not device.disk.fresh, "pieces that nobody needs any more"
    assert not refusals(room)


def test_pieces_stay_until_all_have_theirs_though_one_begins_the_next_batch_before() -> None:
    """The first stage gives blocks away, keeps the others, and goes on before the second has got them."""
    room = group(strategy="planned", rounds=15, schedule="async", snapshot_bytes=12_000_000)
    assert room.run(120, all_at(room, 30)), state_of(room)
    before = pipeline_body(room.devices[0]).pipeline
    slow = first_of_stage(room, 0)
    trainer(slow).slowdown = 4.0
    assert room.run(120, epoch_trained(room, 2)), state_of(room)
    after = pipeline_body(room.devices[0])
    assert after.pipeline.stages[0].peers == (slow.id,) and load_of(after.pipeline, slow) < load_of(before, slow)
    assert after.from_step >= 30 and all(trainer(d).halts[-1] == (2, after.from_step) for d in room.on())
    assert not [n for d in room.on() for _, n in d.notes if n.kind == "blob-lost"]
    assert room.run(300, room.all_done), state_of(room)
    check_done(room)


@pytest.mark.parametrize("late_s", [0.0, 1.0, 3.0])
def test_no_batch_is_lost_if_more_is_known_while_blocks_are_still_on_their_way(
    late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another plan from a later batch on, nobody would ever have the blocks."""
    monkeypatch.setattr("stage_group.RATE", 1.5e6)
    room = group(strategy="planned", rounds=20, snapshot_bytes=12_000_000)
    assert room.run(300, all_at(room, 30)), state_of(room)
    slow, other = first_of_stage(room, 1), first_of_stage(room, 2)
    trainer(slow).slowdown = 4.0
    assert room.run(120, lambda: any(trainer(d).halts[-1][0] == 2 for d in room.on())), state_of(room)
    room.run(late_s)
    now = room.network.now
    room.perform(other, other.core.run(list(other.core.records.update(now, slowdown=6.0)), now))
    assert room.run(1000, room.all_done), state_of(room)
    begun = dict(sorted((epoch, step) for d in room.on() for epoch, step, *_ in trainer(d).follows))
    halted = {step for device in room.on() for epoch, step in trainer(device).halts if epoch == 2}
    steps = list(begun.values())
    assert {begun.get(2)} == halted, "what they halted for was done"
    assert steps == sorted(steps), "nobody went back"
    assert len(begun) > 2, "it was planned for"
    check_done(room)


def test_who_stood_by_under_one_plan_is_ready_for_the_next_at_once() -> None:
    room = group(strategy="planned", rounds=60)
    assert room.run(60, all_at(room, 1)), state_of(room)
    slow = first_of_stage(room, 1)
    trainer(slow).slowdown = 30.0
    assert room.run(300, epoch_trained(room, 2)), state_of(room)
    between = pipeline_body(room.devices[0])
    assert between.pipeline.stage_of(slow.id) is None, "it stands by, with the stage that it had"
    others = [device for device in room.on() if device is not slow]
    assert room.run(60, lambda: trainer(others[0]).step >= between.from_step + 4), state_of(room)
    for device in others:
        trainer(device).slowdown = 60.0
    assert room.run(6000, lambda: trainer(slow).follows[-1][0] > 2), state_of(room)
    epoch = trainer(slow).follows[-1][0]
    (adopted,) = [now for now, n in slow.notes if n.kind == "plan-adopted" and dict(n.fields)["epoch"] == epoch]
    (halted,) = [now for now, n in slow.notes if n.kind == "halted" and dict(n.fields)["epoch"] == epoch]
    assert halted - adopted < 1.0


def test_a_pipeline_that_is_seen_to_be_slow_gives_way_to_one_peer_though_no_stage_says_that_it_is() -> None:
    room = group(strategy="planned", rounds=20)
    assert room.run(60, all_at(room, 1)), state_of(room)
    for device in room.on():
        trainer(device).unseen = 4.0
    assert room.run(300, epoch_trained(room, 2)), state_of(room)
    after = pipeline_body(room.devices[0])
    assert [len(stage.peers) for stage in after.pipeline.stages] == [1] and after.stretch > 2
    assert room.run(1000, room.all_done), state_of(room)
    assert plan_of(room.devices[0]).epoch == 2, "and it stays"
    check_done(room)


def test_messages_of_an_older_epoch_or_another_plan_are_dropped() -> None:
    room = group(strategy="planned", rounds=8)
    assert room.run(60, all_at(room, 12)), state_of(room)
    trainer(room.devices[1]).slowdown = 4.0
    first = plan_of(room.devices[0]).hash
    assert room.run(120, epoch_trained(room, 2)), state_of(room)
    room.run(1)
    a, b = (next(d for d in room.on() if d.id == p) for p in list(plan_of(room.devices[0]).trainers())[:2])
    taken, held = len(trainer(b).taken), refusals(room)
    for epoch, plan in ((1, first), (2, "f" * 64), (3, first)):
        old = StreamData(epoch, 0, "forward", trainer(b).step, 0, 0, b"not a stage message", plan, 1)
        room.perform(a, a.core.run([Send(b.id, old)], room.network.now))
    room.run(0.1)
    assert all(epoch == 2 for epoch, _ in trainer(b).taken[taken:]) and refusals(room) == held
    assert room.run(300, room.all_done), state_of(room)
    check_done(room)


def test_the_state_of_a_slow_peer_that_gets_fast_again_is_told() -> None:
    room = group(strategy="planned", rounds=20)
    assert room.run(60, all_at(room, 12)), state_of(room)
    slow = room.devices[1]
    trainer(slow).slowdown = 4.0
    assert room.run(120, epoch_trained(room, 2)), state_of(room)
    assert slow.record.slowdown == 4.0
    trainer(slow).slowdown = 1.0
    if plan_of(slow).part_of(slow.id) is not None:
        assert room.run(120, lambda: slow.record.slowdown == 1.0)
        assert room.run(60, epoch_trained(room, 3)), state_of(room)


def test_who_is_left_out_for_being_slow_is_taken_in_again_when_it_is_not() -> None:
    room = group(strategy="planned", rounds=200)
    assert room.run(120, all_at(room, 30)), state_of(room)
    slow = first_of_stage(room, 1)
    trainer(slow).slowdown = 30.0
    assert room.run(600, epoch_trained(room, 2)), state_of(room)
    assert plan_of(slow).part_of(slow.id) is None
    num_used, num_looks = slow.note_kinds()["stage"], slow.note_kinds()["look"]
    room.run(200)
    assert slow.note_kinds()["look"] > num_looks, "it looked"
    assert slow.note_kinds()["stage"] == num_used, "and trained nothing"
    assert plan_of(slow).epoch == 2 and slow.record.slowdown == 30.0, "and still is"
    trainer(slow).slowdown = 1.0
    assert room.run(400, epoch_trained(room, 3)), state_of(room)
    assert plan_of(slow).part_of(slow.id) is not None and slow.record.slowdown == 1.0


# --- a split network, and plans that can't be made --------------------------------------------------------------------


@pytest.mark.parametrize("alone", range(3))
def test_a_minority_waits_for_the_others(alone: int) -> None:
    room = group(owners=3, rounds=12)
    assert room.run(60, all_at(room, 12)), state_of(room)
    others = [device for device in room.on() if device.number != alone]
    lonely = room.devices[alone]
    room.partition([alone], [device.number for device in others])
    assert room.run(60, lambda: {device.record.epoch for device in others} == {2}), state_of(room)
    room.run(10)
    assert plan_of(lonely).epoch == 1 and trainer(lonely).follows[-1][0] == 1
    assert "votes for plan" in lonely.record.waiting_for or "to propose a plan" in lonely.record.waiting_for
    room.heal()
    assert room.run(120, lambda: plan_of(lonely).hash == plan_of(others[0]).hash), state_of(room)
    assert room.run(600, room.all_done), state_of(room)
    check_done(room)


def nonsense() -> list[str]:
    sizes = (1, 4)
    rows = tuple(tuple(0.001 * size for _ in MODEL.blocks) for size in sizes)
    mad = tuple(tuple(1e7 * size for _ in MODEL.blocks) for size in sizes)
    return ["{}", "no JSON", profile_to_json(MODEL, BlockTimes(sizes, rows, mad))]


@pytest.mark.parametrize("profile", nonsense(), ids=["no profile", "no JSON", "slower than anything"])
def test_a_peer_whose_profile_is_nonsense_is_left_out_and_told_why(profile: str) -> None:
    room = group(2, count=2, min_peers=3)
    work = room.devices[0].disk.job
    odd = room.add(2, NOTHING, job=work, profile=profile)
    assert room.run(60, lambda: room.devices[0].record.step >= 5), state_of(room)
    room.run(1.5)
    assert "make no sense" in odd.record.waiting_for
    assert room.run(200, room.all_done), state_of(room)
    assert room.epochs() - {0} == {1}
    assert plan_of(odd).part_of(odd.id) is None and set(plan_of(odd).trainers()) == {room.devices[n].id for n in (0, 1)}
    check_done(room)


def test_the_last_plan_stays_where_no_other_can_be_made() -> None:
    """The only peer with samples dies: the others say what is missing, and go on when it is back."""
    room = group(rounds=8)
    assert room.run(60, all_at(room, 20)), state_of(room)
    owner, others = room.devices[0], [room.devices[1], room.devices[2]]
    owner.kill()
    room.run(30)
    assert {plan_of(device).epoch for device in others} == {1}
    assert all("a plan that can be made" in device.record.waiting_for for device in others), state_of(room)
    assert not any(device.done for device in others)
    whole = whole_steps(room)[-1]
    assert whole >= 12
    room.restart(0)
    assert room.run(60, epoch_trained(room, 2)), state_of(room)
    assert {trainer(device).follows[-1][1] for device in room.on()} == {whole}
    assert room.run(300, room.all_done), state_of(room)
    check_done(room)


def test_what_a_group_that_is_not_whole_waits_for() -> None:
    room = group(count=2, min_peers=3)
    room.run(5)
    assert {device.record.waiting_for for device in room.on()} == {"peers whose speed is known: 2 of 3 are here"}


# --- the end ----------------------------------------------------------------------------------------------------------


def test_who_dies_with_the_last_blocks_makes_the_others_train_the_last_batches_again() -> None:
    room = group(owners=3, rounds=4)
    assert room.run(60, all_at(room, 18)), state_of(room)
    victim = room.devices[1]
    victim.save_s = None
    assert room.run(60, all_at(room, 24)), state_of(room)
    victim.kill()
    assert room.run(60, epoch_trained(room, 2)), state_of(room)
    assert {device.record.phase for device in room.on()} == {"training"}
    assert room.run(120, lambda: {device.record.phase for device in room.on()} == {"done"}), state_of(room)
    epochs = check_done(room)
    assert epochs[-1] == 2 and epochs[0] == 1


def test_everyone_shows_the_loss_that_the_last_stage_knows() -> None:
    room = group(rounds=10)
    assert room.run(60, all_at(room, 20)), state_of(room)
    room.run(2)
    losses = [device.record.loss for device in room.on()]
    assert max(losses) < 0.1 and min(losses) > 0, "1 / step"


def test_who_gets_stuck_on_the_way_to_the_next_plan_does_not_hold_up_the_group() -> None:
    """Its last batch before the new plan never ends, as when the others stopped sending for it too soon."""
    room = group(strategy="planned", rounds=10)
    assert room.run(60, all_at(room, 12)), state_of(room)
    trainer(room.devices[1]).slowdown = 4.0
    assert room.run(60, lambda: any(device.record.epoch == 2 for device in room.on())), state_of(room)
    stuck = room.devices[2]
    trainer(stuck)._end_batch = lambda: None  # type: ignore[method-assign]
    room.run(30)
    del trainer(stuck)._end_batch
    assert trainer(stuck).halts[1][0] == 2, "halted where it was"
    assert room.run(300, room.all_done), state_of(room)
    assert plan_of(stuck).epoch >= 3
    check_done(room)


def test_a_noisy_machine_does_not_make_plans_flip() -> None:
    """One device is held up for a few seconds, then not, again and again: plans that only promise more speed come more
    and more seldom. (Undamped, this one had four within half a minute.)"""
    room = group(strategy="planned", rounds=4000, block_s=0.0002)
    assert room.run(60, all_at(room, 12)), state_of(room)
    first = room.devices[0]  # its samples make it train by any plan, and so tell how fast it is

    for slowdown in (8.0, 1.0) * 4:
        trainer(first).slowdown = slowdown
        room.run(15.0)
    adopted = [now for now, n in first.notes if n.kind == "plan-adopted"]
    assert 2 <= len(adopted) <= 4, adopted
    assert all(later - sooner >= REST_S for sooner, later in pairwise(adopted[1:])), adopted

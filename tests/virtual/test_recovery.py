"""What a pipeline does when peers die, stall, are cut off or come back: it goes on, and nothing trained is lost.

Whole peers in virtual time. A snapshot is taken every ``EVERY`` batches: no more of them may ever be lost.

``scripts/losses.py`` has most of this with real processes, one group a case; of these CI runs a stage that is killed
and a trainer that dies (``processes/test_pipeline_runs.py``). Benchmark ``recovery`` measures what a loss costs,
``leak`` what deaths leave behind. ``scripts/explore.py`` tries any order.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from kept_rooms import again
from peer_group import NOTHING, Room, plan_of, sizes
from seeds import seeds
from stage_group import (
    all_at,
    check_done,
    committed,
    epoch_trained,
    furthest,
    group,
    pipeline_body,
    state_of,
    told_untruly,
    total_steps,
    trainer,
    under_way,
    whole_steps,
)
from stage_trainer import StageTraits

from p2ptrain.core import commands as c
from p2ptrain.runtime.status import snapshot_peer
from p2ptrain.simulation.device import Device
from p2ptrain.ui import status_table

pytestmark = pytest.mark.usefixtures("no_work_for_messages")

EVERY = 5
CAPPED = (
    *("_asked", "_presences", "_snapshots", "_hellos", "_plans", "_proven", "_epochs", "_offers[].open", "_former."),
    "_recovery._trail",
)
"""Tables with a bound of their own, which fill up to it; and streams of the plan before, which end by themselves."""


def pipeline(seed: int = 0, count: int = 4, rounds: int = 6, **options: object) -> Room:
    return again(under_way_at_13, seed, count, rounds, **options)


def under_way_at_13(seed: int, count: int, rounds: int, **options: object) -> Room:
    settings = {"strategy": "planned", "snapshot_steps": EVERY} | options
    room = group(seed, count, owners=count, rounds=rounds, **settings)  # type: ignore[arg-type]
    assert room.run(60, all_at(room, 13)), state_of(room)
    return room


def staged(room: Room) -> list[Device]:
    """Those with a stage, from the samples to the loss."""
    by_id = {device.id: device for device in room.devices.values()}
    return [by_id[peer] for stage in pipeline_body(room.on()[0]).pipeline.stages for peer in stage.peers]


def goes_on(room: Room, done: int, *, within_s: float = 40.0, after: int = 1, lost: int = EVERY + 1) -> None:
    """With a later plan, from no more than so many batches before what was done."""
    assert room.run(within_s, under_way(room, after)), state_of(room)
    starts = {trainer(d).follows[-1][:2] for d in room.on() if d.trainer is not None and trainer(d).step >= 0}
    starts = {start for start in starts if start[0] > after}  # who stands still has heard of nothing
    assert len(starts) == 1, starts
    ((_, first),) = starts
    assert done - first <= lost, (done, first)


def ends_well(room: Room) -> set[int]:
    """All batches once in the model, and never two plans of one epoch; the epochs in which they were trained. What was
    told as lost was lost."""
    assert room.run(600, room.all_done), state_of(room)
    assert not told_untruly(room)
    assert all(len(plans) == 1 for plans in committed(room).values()), committed(room)
    return set(check_done(room).tolist())


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", list(itertools.combinations(range(4), 2)), ids=str)
def test_any_two_of_four_may_die_at_once(dead: tuple[int, int]) -> None:
    room = pipeline()
    devices = staged(room)
    done = furthest(room)
    for index in dead:
        devices[index].kill()
    goes_on(room, done)
    ends_well(room)


@pytest.mark.parametrize("gap_s", [0.5, 3.0, 8.0])
def test_a_second_death_soon_after_the_first(gap_s: float) -> None:
    """Whoever holds the replicas of the blocks that were just lost dies too."""
    room = pipeline()
    devices = staged(room)
    done = furthest(room)
    devices[3].kill()
    room.run(gap_s)
    epoch = max(committed(room))
    room.devices[devices[2].number].kill()
    goes_on(room, done, after=epoch)
    ends_well(room)


def test_a_replica_holder_dies_right_after_a_full_recovery() -> None:
    room = pipeline()
    devices = staged(room)
    devices[1].kill()
    assert room.run(40, under_way(room, 1)), state_of(room)
    room.run(3)
    done, epoch = furthest(room), max(committed(room))
    devices[2].kill()
    goes_on(room, done, after=epoch)
    ends_well(room)


def test_three_of_six_die_one_after_the_other() -> None:
    room = pipeline(count=6)
    devices = staged(room)
    for index in (1, 4, 2):
        done, epoch = furthest(room), max(committed(room))
        devices[index].kill()
        goes_on(room, done, after=epoch)
        room.run(4)
    ends_well(room)


@pytest.mark.parametrize("seed", seeds(1))
def test_three_of_six_die_at_once(seed: int) -> None:
    """Where they had all there was of some blocks, they are waited for by name; no batch is lost in silence."""
    room = pipeline(seed, count=6, rounds=8)
    devices, done = staged(room), furthest(room)
    dead = room.rng.sample(devices, 3)
    for device in dead:
        device.kill()
    room.run(30)
    if not under_way(room, 1)():
        words = room.on()[0].record.waiting_for
        assert all(trainer(d).follows[-1][:2] == (1, 0) for d in room.on()) and words, state_of(room)
        assert any(f"device {device.number}" in words for device in dead), words
    for device in dead:
        room.restart(device.number)
    goes_on(room, done, within_s=90)
    ends_well(room)


@pytest.mark.parametrize("batches_left", [0, 1])
def test_one_dies_at_the_last_batch(batches_left: int) -> None:
    """Its own last snapshot may be gone with it."""
    room = pipeline(rounds=4)
    total = total_steps(room.on()[0])
    assert room.run(120, lambda: furthest(room) >= total - batches_left), state_of(room)
    staged(room)[1].kill()
    ends_well(room)


def test_who_comes_back_has_a_stage_again_and_nothing_is_trained_twice_for_it() -> None:
    room = pipeline(rounds=14)
    device, done = staged(room)[1], furthest(room)
    device.kill()
    goes_on(room, done)
    epochs = set(committed(room))
    room.restart(device.number)
    assert room.run(120, lambda: device.core.role is not None and device.record.part >= 0), state_of(room)
    assert room.run(40, under_way(room, max(epochs))), state_of(room)
    assert not pipeline_body(device).goes_back
    ends_well(room)


def test_deaths_leave_nothing_behind() -> None:
    """What a peer holds, in memory and on disk, depends on who is there, not on how many have died."""
    room = pipeline(rounds=1000)
    lasting, mortal = staged(room)[:2], staged(room)[2:]
    tables, blobs = [], []
    for turn in range(7):
        device, epoch = mortal[turn % 2], max(committed(room))
        device.end()
        assert room.run(40, under_way(room, epoch)), state_of(room)
        room.restart(device.number)
        room.run(4)
        tables.append([sizes(each.core) for each in lasting])
        blobs.append(max(len(each.disk.blobs) for each in room.devices.values()))
    for number in range(len(lasting)):  # what comes and goes is not more by the least of two turns
        one, two, *_, last, least = (table[number] for table in tables[1:])
        early = {path: max(each.get(path, 0) for each in (one, two)) for path in least}
        late = {path: min(each.get(path, 0) for each in (last, least)) for path in least}
        grown = {path: (early[path], late[path]) for path in late if late[path] > early[path] + 2}
        assert not {path for path in grown if not any(capped in path for capped in CAPPED)}, grown
    assert max(blobs[3:]) <= max(blobs[:3]) + 1, blobs


def test_the_proposer_dies_during_its_proposal() -> None:
    room = pipeline()
    devices = staged(room)
    done = furthest(room)
    devices[1].kill()
    assert room.run(20, lambda: any(d.core.records.own.vote for d in room.on())), state_of(room)
    (proposer,) = {d for d in room.on() if d.note_kinds()["voted"]} & {min(room.on(), key=lambda d: d.id)}
    proposer.kill()
    goes_on(room, done, within_s=60)
    ends_well(room)


@pytest.mark.parametrize("dead", [(1,), (1, 2), (0, 3)], ids=str)
def test_processes_that_end_are_missed_at_once(dead: tuple[int, ...]) -> None:
    """Of one or two of four: who stays does not wait for those who are known to be nowhere."""
    room = pipeline()
    devices, done, at = staged(room), furthest(room), room.network.now
    for index in dead:
        devices[index].end()
    goes_on(room, done, within_s=6.0)
    noticed = [
        when - at
        for device in room.on()
        for when, note in device.notes
        if when > at and (note.kind == "plan-adopted" or note.kind == "failed")
    ]
    assert len(noticed) >= len(room.on()) * (len(dead) + 1) and max(noticed) < 1.0, "by the simulation's clock"
    ends_well(room)


def test_a_process_that_ended_and_is_back_is_no_dead_one() -> None:
    room = pipeline()
    device = staged(room)[2]
    device.end()
    device.start()
    assert room.run(90, under_way(room, 0)), state_of(room)
    ends_well(room)


@pytest.mark.parametrize("load_s", [0.2, 20.0])
@pytest.mark.parametrize("index", range(4))
def test_only_the_trainer_process_dies(index: int, load_s: float) -> None:
    room = pipeline()
    done = furthest(room)
    device = staged(room)[index]
    assert isinstance(device.traits, StageTraits)
    device.traits = dataclasses.replace(device.traits, load_s=load_s)
    dead = trainer(device)
    dead.dead = True
    dead._say(c.TrainerFailed("killed (out of memory?)", user_error=False))
    goes_on(room, done, within_s=6.0)
    assert load_s < 1 or device.id not in plan_of(device).trainers(), "nobody waits for its next trainer"
    ends_well(room)


def test_where_the_job_leaves_it_open_all_save_as_often_as_the_slowest_asks_for() -> None:
    """A snapshot holds one of three up for a tenth of a second: some 27 s between two, and no more is lost."""
    room = group(count=3, owners=3, samples=(1000,) * 6, saves_s=0.001, block_s=0.0025)
    slow = room.devices[1]
    slow.traits = dataclasses.replace(slow.traits, saves_s=0.1)  # type: ignore[type-var]
    assert room.run(60, all_at(room, 1)), state_of(room)
    a_round = pipeline_body(slow).steps_per_round
    assert room.run(900, lambda: any(steps % a_round for steps in whole_steps(room))), state_of(room)
    every = max(device.record.saves_every for device in room.on())
    assert 1 < every == slow.record.saves_every < a_round and every & (every - 1) == 0
    step = furthest(room)
    assert room.run(300, lambda: len([s for s in whole_steps(room) if s > step]) > 1), state_of(room)
    assert {s % every for s in whole_steps(room) if s > step and s % a_round} == {0}, whole_steps(room)
    done = furthest(room)
    staged(room)[2].kill()
    goes_on(room, done, lost=2 * every)


# --- stalls, and leaving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.0, 5.0, 20.0, 120.0])
def test_a_device_that_stalls(seconds: float) -> None:
    room = pipeline(rounds=6 + int(seconds) // 5)
    done = furthest(room)
    device = staged(room)[1]
    device.stall(seconds)
    room.run(seconds)
    if seconds > 3:
        goes_on(room, done)
    ends_well(room)


@pytest.mark.parametrize("index", range(4))
def test_who_leaves_costs_nothing(index: int) -> None:
    room = pipeline()
    device = staged(room)[index]
    done, role = furthest(room), device.core.role
    assert role is not None and not role.is_free_to_leave
    room.perform(device, device.core.run(device.core.group.say(room.network.now, leaving=True), room.network.now))
    assert room.run(30, lambda: role.is_free_to_leave), state_of(room)
    room.perform(device, device.core.leave(room.network.now))
    room.run(0.5)
    device.kill()
    room.run(5)
    ((epoch, first),) = {trainer(d).follows[-1][:2] for d in room.on()}
    assert epoch == 2 and first >= done and not pipeline_body(room.on()[0]).goes_back
    assert not any(d.note_kinds()["goes-back"] for d in room.on())
    ends_well(room)


# --- power, and disks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(2))
def test_power_fails_for_all_and_one_disk_is_lost(seed: int) -> None:
    room = pipeline(seed)
    devices, done = staged(room), furthest(room)
    for device in devices:
        device.kill()
    room.run(5)
    lost = devices[room.rng.randrange(4)]
    for device in devices:
        if device is not lost:
            room.restart(device.number)
            room.run(0.7)
    goes_on(room, done, within_s=90)
    ends_well(room)


def test_a_returning_peer_whose_disk_is_damaged() -> None:
    """All of its blobs are other bytes than they were. An older good state of others is used."""
    room = pipeline(rounds=10)
    devices = staged(room)
    device = devices[1]
    done = furthest(room)
    device.kill()
    goes_on(room, done)
    device.disk.blobs = {blob: b"x" * len(data) for blob, data in device.disk.blobs.items()}
    room.restart(device.number)
    room.run(20)
    done, epoch = furthest(room), max(committed(room))
    devices[3].kill()
    goes_on(room, done, after=epoch, within_s=60)
    ends_well(room)


def test_blocks_that_get_damaged_on_the_disk_of_a_running_peer_are_fetched_from_others() -> None:
    """It has to go back to what it saved itself, and that is no such thing any more. It is tried once."""
    room = pipeline()
    devices = staged(room)
    done = furthest(room)
    damaged = devices[1]
    damaged.disk.blobs = {blob: b"x" * len(data) for blob, data in damaged.disk.blobs.items()}
    devices[3].kill()
    goes_on(room, done, within_s=60, lost=3 * EVERY)
    assert damaged.note_kinds()["snapshot-refused"] <= 2
    assert len(committed(room)) <= 5, "no plan after the other"
    ends_well(room)


# --- a network in parts -----------------------------------------------------------------------------------------------


def test_cut_in_halves_after_a_loss_and_healed() -> None:
    room = pipeline(count=5, rounds=16)
    devices = staged(room)
    done = furthest(room)
    devices[4].kill()
    goes_on(room, done)
    room.run(3)
    done = furthest(room)
    numbers = sorted(device.number for device in room.on())
    room.partition(numbers[:2], numbers[2:])
    room.run(40)
    done = max(done, furthest(room))
    room.heal()
    assert room.run(60, lambda: len(room.plans()) == 1), state_of(room)
    room.run(5)
    assert room.run(30, all_at(room, done - EVERY - 1)), state_of(room)
    ends_well(room)


@pytest.mark.parametrize(
    "parts",
    [((0, 1, 2), (3,)), ((0, 1), (2, 3)), ((0, 1), (2,), (3,))],
    ids=str,
)
def test_a_cut_network_goes_on_and_is_one_group_again(parts: tuple[tuple[int, ...], ...]) -> None:
    """Who is further goes on, and takes in the others, who train no batch more of their own: nothing is waited for.
    Those are told which batches are lost."""
    room = pipeline(rounds=12)
    done = furthest(room)
    room.partition(*parts)
    room.run(30)
    on_the_way = furthest(room)
    assert on_the_way > done, "somebody goes on"
    apart, last = {d: (trainer(d).step, trainer(d).follows[-1][0]) for d in room.on()}, max(committed(room))
    room.heal()
    assert room.run(60, lambda: len(room.plans()) == 1), state_of(room)
    assert room.run(20, lambda: all(device.record.part >= 0 for device in room.on())), state_of(room)
    assert room.run(20, under_way(room, last)), state_of(room)
    counted = ends_well(room)
    for device, (step, epoch) in apart.items():
        starts = [first for each, first, *_ in trainer(device).follows if each > last]
        assert starts and all(on_the_way - first <= EVERY + 3 for first in starts), (on_the_way, starts)
        told = [dict(note.fields)["batches"] for _, note in device.notes if note.kind == "gives-way"]
        assert told or epoch in counted, "who has trained for nothing is told; ``ends_well`` looks at the numbers"
        assert all(step - done <= int(each) < 40 for each in told), told


@pytest.mark.parametrize("is_far_behind", [True, False])
def test_what_is_finished_never_gives_way_to_who_began_again(is_far_behind: bool) -> None:
    """One of four is cut off early and begins again alone, in a later epoch. It meets the others when they are done,
    as its own model is half trained: theirs stays, and it stops. Or as it ends as well: both stay, the model is that of
    more devices, and everybody says so."""
    room = pipeline(rounds=4)
    alone = staged(room)[2]
    others = [device for device in room.on() if device is not alone]
    room.partition([device.number for device in others], [alone.number])
    total, epochs = total_steps(alone), committed(room)
    assert room.run(300, lambda: all(device.record.phase == "done" for device in others)), state_of(room)
    wanted = total // 2 if is_far_behind else total
    assert room.run(300, lambda: trainer(alone).step >= wanted and alone.core.epoch > max(epochs)), state_of(room)
    plans = {plan_of(device).hash for device in others}
    room.heal()
    assert room.run(60, lambda: alone.record.phase == "done"), state_of(room)
    room.run(30)
    assert {plan_of(device).hash for device in others} == plans
    if is_far_behind:
        assert trainer(alone).step < total and alone.note_kinds()["overtaken"] == 1
    else:
        assert trainer(alone).step == total
    assert alone.core.epoch not in check_done(room)
    for device in room.on():
        told = [dict(note.fields) for _, note in device.notes if note.kind == "finished-apart"]
        status = status_table.headline(snapshot_peer(device.core))
        assert ("models trained to the end apart: 2" in status) == bool(told) == (not is_far_behind)
        who = f"device {alone.number}"
        assert all(len(told) == 1 and each["others"] == who and who not in str(each["taken"]) for each in told)
        assert is_far_behind or f"not that of {who}" in status


# --- nobody here has the blocks ---------------------------------------------------------------------------------------


def test_the_group_waits_for_those_whose_disks_have_the_blocks_and_never_begins_again_in_silence() -> None:
    room = pipeline(rounds=20)
    devices, done = staged(room), furthest(room)
    for device in devices[:3]:
        device.kill()
    room.run(60)
    assert not any(trainer(d).follows[-1][1] == 0 for d in room.on() if len(trainer(d).follows) > 1), state_of(room)
    words = devices[3].record.waiting_for
    assert any(f"device {device.number}" in words for device in devices[:3]), words
    room.restart(devices[0].number)
    goes_on(room, done, within_s=90)
    ends_well(room)


def test_who_comes_back_with_a_newer_whole_state_is_gone_back_to() -> None:
    """Two of three are away for so long that the third begins again: what they bring is more than it has."""
    room = pipeline(count=3, rounds=12)
    devices, done = staged(room), furthest(room)
    for device in devices[1:]:
        device.kill()
    assert room.run(600, lambda: furthest(room) >= 1 and max(committed(room)) > 1), state_of(room)
    begun = max(committed(room))
    for device in devices[1:]:
        room.restart(device.number)
    goes_on(room, done, within_s=60, after=begun)
    ends_well(room)


def test_a_helper_without_samples_may_be_among_the_dead() -> None:
    room = group(count=5, owners=2, rounds=10, snapshot_steps=EVERY, min_peers=5)
    assert room.run(60, all_at(room, 13)), state_of(room)
    assert room.devices[4].traits.counts == NOTHING  # type: ignore[attr-defined]
    done = furthest(room)
    for number in (1, 4):
        room.devices[number].kill()
    goes_on(room, done)
    ends_well(room)
    assert epoch_trained(room, max(committed(room)))() and plan_of(room.on()[0]).epoch >= 2

"""Groups of whole peers: they form, plan, train, keep each other's parts, lose members, and end, in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from fake_trainer import FakeTrainer, combination, contribution
from peer_group import Room, job, refusals, sizes
from seeds import seeds

from p2ptrain.core import commands as c
from p2ptrain.ids import blob_id, peer_id
from p2ptrain.modes.tasks.averaging.payloads import ASKED_AGAIN_S
from p2ptrain.modes.tasks.head.blob import head_holding, head_holdings
from p2ptrain.modes.tasks.head.fit import _covers
from p2ptrain.modes.tasks.role import Seeking, TasksRole
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN, Conditions
from p2ptrain.simulation.room import Visitor
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import ReplicaOffer, SnapshotRef

WORLD = Conditions(delay_s=0.002, jitter_s=0.02)
LOSSY = Conditions(delay_s=0.002, jitter_s=0.02, loss=0.2)
HAVES = {0: (10, 10, 0, 0, 0, 0), 1: (0, 0, 10, 10, 0, 0), 2: (0, 0, 0, 0, 10, 10)}
"""Samples of classes that nobody else has."""


def group(seed: int, count: int, conditions: Conditions = LAN, mode: str = "tasks", **changes: object) -> Room:
    """``count`` devices that were all given the job."""
    room = Room(seed, conditions)
    traits = {name: changes.pop(name) for name in ("round_s", "dimensions", "pull") if name in changes}
    the_job = job(mode, **changes)  # type: ignore[arg-type]
    for number in range(count):
        room.add(number, job=the_job, **traits)
    return room


def everyone_trains(room: Room) -> bool:
    return all(device.record.phase == "training" and device.record.round >= 1 for device in room.on())


def phases(room: Room) -> Counter[str]:
    return Counter(device.record.phase for device in room.on())


def holdings(devices: Iterable[Device], part: int) -> list[int]:
    return [h.round for device in devices for h in device.record.holdings if h.part == part]


def check_heads(room: Room) -> None:
    """Everyone holds one and the same head, over the last round of every part, one copy of each of its trainers."""
    heads = {h.blob for device in room.on() for h in device.record.holdings if h.kind == "head"}
    assert len(heads) == 1
    (head,) = heads
    for device in room.on():
        assert head in device.disk.blobs
        copies = head_holdings(device.disk.blobs[head])
        plan = device.core.agreement.current if device.core.agreement else None
        assert plan is not None and device.core.job is not None
        assert {h.part for h in copies} == set(range(len(plan.parts)))
        assert len({(h.part, h.trainer) for h in copies}) == len(copies)
        assert {h.round for h in copies} == {device.core.job.training.rounds}


def fitted_head(room: Room) -> np.ndarray:
    """What everyone holds."""
    (head,) = {h.blob for d in room.on() for h in d.record.holdings if h.kind == "head"}
    return np.asarray(tensorfile.read(room.on()[0].disk.blobs[head]).arrays()["head"])


def expected_head(room: Room) -> np.ndarray:
    """What one peer with everybody's samples would have fitted."""
    trainers = [device.trainer for device in room.on() if isinstance(device.trainer, FakeTrainer)]
    rows = np.concatenate([trainer.own_features() for trainer in trainers])
    state = None
    for step in range(7):  # moments, gradients, validation: all the same to this trainer
        state = combination(step, state, [(len(rows), contribution(step, state, rows))])
    assert state is not None
    return state


# --- from nothing to done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, WORLD], ids=["lan", "slow"])
def test_three_peers(seed: int, conditions: Conditions) -> None:
    room = group(seed, 3, conditions)
    assert room.run(60, room.all_done)
    assert len(room.plans()) == 1 and room.epochs() == {1}
    assert sorted(device.record.part for device in room.on()) == [0, 1, 2]
    room.run(3)
    for part in range(3):  # its trainer and a holder have its last round
        assert holdings(room.on(), part).count(6) == 2
    assert room.covered() == {0, 1, 2}
    assert not refusals(room)


@pytest.mark.parametrize("seed", seeds(1))
def test_one_has_the_job_and_the_others_get_it(seed: int) -> None:
    room = Room(seed, WORLD)
    room.add(0)
    room.add(1)
    room.run(5)
    assert "job" in room.devices[0].record.waiting_for
    room.add(2, job=job())
    assert room.run(60, room.all_done)
    assert len({device.record.job for device in room.on()}) == 1
    assert len(room.plans()) == 1


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, WORLD, LOSSY], ids=["lan", "slow", "lossy"])
def test_five_peers_fit_the_head(seed: int, conditions: Conditions) -> None:
    """Classes that only one peer has: the group fits the head together, as one peer with all samples would."""
    room = Room(seed, conditions)
    the_job = job("tasks", fit_head="auto", min_peers=5)
    for number in range(5):
        room.add(number, HAVES[number % 3], job=the_job, round_s=0.2 + 0.1 * number)
    assert room.run(400, room.all_done)
    assert room.run(
        60, lambda: all(h.core.role and h.core.role.ending and h.core.role.ending.holdings() for h in room.on())
    )
    check_heads(room)
    if conditions.loss == 0:
        np.testing.assert_allclose(fitted_head(room), expected_head(room), rtol=1e-9)
        assert not refusals(room)


@pytest.mark.parametrize("seed", seeds(20))
def test_the_last_layer_is_fitted_once_by_all(seed: int) -> None:
    """Whatever is slow or lost on the way: one fit, over the last round of every part, and none after it."""
    conditions, count = (LAN, LOSSY, WORLD)[seed % 3], 2 + seed % 2
    room = Room(seed, conditions)
    the_job = job("tasks", fit_head="always", min_peers=count, rounds=4)
    for number in range(count):  # rounds so short that records lag behind calls
        times = {"round_s": room.rng.choice((0.01, 0.03, 0.3)), "save_s": room.rng.choice((0.0, 0.02, 0.3, 2.0))}
        room.add(number, job=the_job, **times)
    assert room.run(400, room.all_done)
    assert room.run(
        60, lambda: all(d.core.role and d.core.role.ending and d.core.role.ending.holdings() for d in room.on())
    )
    room.run(30)
    assert phases(room) == {"done": count}
    check_heads(room)
    for device in room.on():
        kinds = device.note_kinds()
        assert kinds["head-fitted"] == 1 and kinds["done"] == 1
        done_at = next(at for at, note in device.notes if note.kind == "done")
        assert not any(note.kind.startswith("head-fit") for at, note in device.notes if at > done_at)
    sessions = {dict(n.fields)["session"] for d in room.on() for _, n in d.notes if n.kind == "head-fit-started"}
    assert len(sessions) == 1
    if conditions.loss == 0:
        np.testing.assert_allclose(fitted_head(room), expected_head(room), rtol=1e-9)


def test_nobody_fits_again_who_comes_back_or_late_when_all_are_done() -> None:
    """All are started again one by one, then all at once, and somebody new comes: the model stays the one it was."""
    room = Room(3, LAN)
    the_job = job("tasks", fit_head="always", min_peers=3, rounds=3)
    for number in range(3):
        room.add(number, job=the_job, round_s=0.2)
    assert room.run(400, room.all_done)
    room.run(10)
    before = fitted_head(room).copy()
    for numbers in ((0,), (1,), (2,), (0, 1, 2)):
        for number in numbers:
            room.devices[number].kill()
        room.run(5)
        for number in numbers:
            room.restart(number)
        assert room.run(100, room.all_done)
        room.run(10)
    room.add(3, job=the_job, round_s=0.2)
    room.run(60)
    started = [note for device in room.on() for _, note in device.notes if note.kind == "head-fit-started"]
    assert len({dict(note.fields)["session"] for note in started}) == 1
    assert all(device.note_kinds()["head-fitted"] <= 1 for device in room.on())
    np.testing.assert_array_equal(fitted_head(room), before)


@pytest.mark.parametrize("delay_s", [0.5, 1.0, 2.0])
def test_a_slow_way_takes_longer_and_loses_nothing(delay_s: float) -> None:
    """1 Mbit/s, and up to 2.2 s each way: they take each other for lost now and then, and are done in the end."""
    room = Room(1, Conditions(delay_s=delay_s, jitter_s=0.2), bytes_per_s=125_000)
    for number in range(2):
        room.add(number, job=job("replicas", rounds=4, min_peers=2), round_s=5.0)
    assert room.run(600, room.all_done)
    assert {device.record.round for device in room.on()} == {4}
    assert all(max(h.round for h in device.disk.own) == 4 for device in room.on())


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("victim", [0, 2, 4])
def test_one_dies_while_the_group_fits_the_head(seed: int, victim: int) -> None:
    room = Room(seed, WORLD)
    the_job = job("tasks", fit_head="always", head_fit_steps=30)
    for number in range(5):
        room.add(number, job=the_job, round_s=0.2)
    assert room.run(60, lambda: any(device.record.phase == "fitting" for device in room.on()))
    room.run(room.rng.uniform(0, 1.5))
    room.devices[victim].kill()
    assert room.run(200, room.all_done)
    room.run(20)
    check_heads(room)


def test_who_was_away_while_the_group_fitted_it_gets_the_head() -> None:
    room = Room(1, LAN)
    the_job = job("tasks", fit_head="always")
    for number in range(4):
        room.add(number, job=the_job, round_s=0.2)
    assert room.run(60, lambda: all(device.record.phase == "trained" for device in room.on()) or room.all_done())
    room.devices[0].kill()
    room.run(5)
    assert room.run(100, room.all_done)
    room.restart(0)
    assert room.run(60, room.all_done)
    room.run(2)
    check_heads(room)


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(2))
def test_a_fifth_of_all_messages_lost(seed: int) -> None:
    room = group(seed, 4, LOSSY, rounds=10, min_peers=4)
    assert room.run(200, room.all_done), [(d.number, d.record.phase, d.record.waiting_for) for d in room.on()]
    assert room.run(60, lambda: len(room.plans()) == 1)
    # Offers that get lost are repeated, a minute apart in the end.
    assert room.run(120, lambda: all(len(holdings(room.on(), part)) >= 2 for part in range(4)))
    assert not refusals(room)


# --- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("victim", range(4))
def test_any_one_of_four_dies(seed: int, victim: int) -> None:
    """The rest learn of it and end, and every part is still in somebody's hands."""
    room = group(seed, 4, WORLD, rounds=12)
    assert room.run(30, lambda: everyone_trains(room))
    room.run(room.rng.uniform(1, 3))
    part = room.devices[victim].record.part
    room.devices[victim].kill()
    alive = [device.id for device in room.on()]
    dead = room.devices[victim].id
    assert room.run(20, lambda: all(dead not in device.core.membership.alive() for device in room.on()))
    assert room.covered() == {0, 1, 2, 3}
    assert holdings(room.on(), part)
    assert room.run(100, lambda: room.all_done() and len(room.plans()) == 1), "a last plan may still be on its way"
    assert room.covered() == {0, 1, 2, 3}
    assert all(set(device.core.membership.alive()) == set(alive) - {device.id} for device in room.on())
    assert not refusals(room)


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("away_s", [0.5, 8.0, 40.0])
def test_the_dead_one_comes_back(seed: int, away_s: float) -> None:
    """With its disk: it trains its own part again, from the round that it had reached."""
    room = group(seed, 4, WORLD, rounds=40)
    assert room.run(30, lambda: everyone_trains(room))
    room.run(4)
    device = room.devices[2]
    part, round_ = device.record.part, max(h.round for h in device.disk.own)
    device.kill()
    room.run(away_s)
    room.restart(2)
    assert room.run(30, lambda: device.record.phase == "training")
    assert device.record.part == part
    assert device.trainer is not None
    assert device.trainer.follows[0][1] >= round_
    assert room.run(200, room.all_done)
    assert len(room.plans()) == 1
    assert not refusals(room)


@pytest.mark.parametrize("seed", seeds(1))
def test_all_die_and_come_back(seed: int) -> None:
    """A power cut: the group goes on with its plan, nobody starts anew."""
    room = group(seed, 3, WORLD, rounds=20)
    assert room.run(30, lambda: everyone_trains(room))
    room.run(3)
    before = {d.number: (d.record.part, max(h.round for h in d.disk.own)) for d in room.on()}
    for device in room.on():
        device.kill()
    room.run(5)
    for number in range(3):
        room.restart(number)
        room.run(0.7)
    assert room.run(100, room.all_done)
    for number, (part, round_) in before.items():
        trainer = room.devices[number].trainer
        assert trainer is not None and trainer.follows[0] == (part, round_, True)


@pytest.mark.parametrize("seed", seeds(1))
def test_the_proposer_dies_before_it_proposes(seed: int) -> None:
    room = Room(seed, WORLD)
    the_job = job(settle_s=4.0)
    devices = [room.add(number, job=the_job) for number in range(4)]
    first = min(devices, key=lambda device: device.id)
    ready = [device for device in devices if device is not first]
    room.run(2.0 + room.rng.uniform(0, 1))
    assert room.plans() == {""}
    first.kill()
    assert room.run(60, room.all_done)
    assert len(room.plans()) == 1
    assert {d.id for d in ready} == set(ready[0].core.agreement.current.trainers())  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", seeds(1))
def test_the_proposer_dies_while_it_spreads_its_plan(seed: int) -> None:
    room = Room(seed, WORLD)
    the_job = job()
    devices = [room.add(number, job=the_job) for number in range(4)]
    first = min(devices, key=lambda device: device.id)
    assert room.run(30, lambda: first.core.epoch == 1)
    room.run(room.rng.uniform(0, 0.3))
    first.kill()
    assert room.run(100, room.all_done)
    assert len(room.plans()) == 1
    assert room.covered() >= {device.record.part for device in room.on() if device.record.part >= 0}


# --- joining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
def test_a_late_one_gets_job_and_part(seed: int) -> None:
    room = group(seed, 3, WORLD, rounds=30)
    assert room.run(30, lambda: everyone_trains(room))
    room.run(3)
    late = room.add(3)
    assert room.run(20, lambda: late.record.phase == "training")
    assert late.trainer is not None
    part, round_, own = late.trainer.follows[0]
    assert part == late.record.part and round_ >= 1 and not own
    assert room.run(100, room.all_done)
    assert len(room.plans()) == 1


@pytest.mark.parametrize("seed", seeds(1))
def test_the_donor_dies_in_the_middle_of_the_transfer(seed: int) -> None:
    """The part is large; whoever else has it carries on from the bytes that are there."""
    room = group(seed, 3, Conditions(0.05, 0.01), rounds=60, dimensions=200_000, replicas=2, settle_s=0.1)
    assert room.run(60, lambda: everyone_trains(room))
    room.run(3)
    late = room.add(3, dimensions=200_000)
    assert room.network.run(room.network.now + 60, lambda: late.core.role is not None, every_s=0.0)
    late.core._on_message[ReplicaOffer] = lambda sender, message, now: []  # else it has all parts before it needs one
    fetched_from: set[str] = set()

    def half_way() -> bool:
        state = late.core.role._state if isinstance(late.core.role, TasksRole) else None
        seeking = state.trying if isinstance(state, Seeking) else None
        for progress in late.core.transfers.progress():
            share = progress.received_bytes / progress.num_bytes
            if seeking is not None and progress.blob == seeking.blob and 0.01 < share < 0.95:
                fetched_from.add(progress.waiting_for)
                return True
        return False

    assert room.network.run(room.network.now + 60, half_way, every_s=0.0)
    donor = next(device for device in room.on() if device.id in fetched_from)
    donor.kill()
    assert room.run(60, lambda: late.record.phase == "training")
    assert late.trainer is not None and late.trainer.follows[0][1] >= 1


def test_more_peers_than_parts_all_find_work() -> None:
    room = group(0, 6, WORLD, rounds=20, num_groups=3)
    assert room.run(100, room.all_done)
    assert Counter(device.record.part for device in room.on()) == {0: 2, 1: 2, 2: 2}
    notes = sum((device.note_kinds() for device in room.on()), Counter[str]())
    assert notes["gossip"] > 20  # trainers of one part average it


# --- partition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("apart_s", [3.0, 30.0])
def test_a_network_in_two_halves(seed: int, apart_s: float) -> None:
    room = group(seed, 5, WORLD, rounds=300)
    assert room.run(30, lambda: everyone_trains(room))
    room.run(2)
    room.partition([0, 1], [2, 3, 4])
    room.run(apart_s)
    room.heal()

    def one() -> bool:
        plan = room.devices[0].core.role.plan  # type: ignore[union-attr]
        whole = all(len(device.core.membership.alive()) == 4 for device in room.on())
        return whole and plan is not None and len(plan.trainers()) == 5 and len(room.plans()) == 1

    assert room.run(120, one), [(d.number, d.core.epoch, d.core.membership.alive()) for d in room.on()]
    assert room.run(60, lambda: phases(room) == {"training": 5})
    plan = room.devices[0].core.role.plan  # type: ignore[union-attr]
    assert plan is not None
    for device in room.on():
        assert device.record.part == plan.trainers()[device.id]


def test_who_gets_more_work_after_it_was_done_is_done_again() -> None:
    room = group(0, 2, LAN, rounds=10)
    assert room.run(60, lambda: phases(room) == {"done": 2})
    device = room.devices[0]
    trainer, now = device.trainer, room.network.now
    assert trainer is not None
    before = device.note_kinds()["done"]
    room.perform(device, device.core.trainer_said(c.Following(part=0, round=8, rounds=10), None, 0, now))
    assert phases(room) == {"done": 1, "training": 1}
    taken = c.SnapshotTaken(
        part=0, round=10, step=100, samples=600, loss=0.1, round_finished=True, training_finished=True, snapshot=b""
    )
    room.perform(device, device.core.trainer_said(taken, None, 0, now))
    assert phases(room) == {"done": 2}
    assert device.note_kinds()["done"] == before + 1


# --- replicas and gossip ----------------------------------------------------------------------------------------------


def masses(room: Room) -> float:
    return sum(sum(device.trainer.masses.values()) for device in room.on() if device.trainer)


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, WORLD], ids=["lan", "slow"])
def test_replicas_agree_and_no_mass_is_lost(seed: int, conditions: Conditions) -> None:
    room = group(seed, 5, conditions, "replicas", rounds=30)
    assert room.run(20, lambda: everyone_trains(room))
    room.run(3)
    apart = spread(room)
    assert room.run(100, room.all_done)
    room.run(70)  # what is under way arrives, or comes back
    trained = sum(device.trainer.trained for device in room.on() if device.trainer)
    assert trained >= 5 * 28 * 60 and masses(room) == pytest.approx(trained, rel=1e-9)  # a late one began with a copy
    assert spread(room) < 0.05 * apart
    assert not refusals(room)


@pytest.mark.parametrize("mode", ["replicas", "tasks"])
def test_who_averages_a_part_needs_no_copies_of_it_while_it_trains(mode: str) -> None:
    """Of four peers in replicas. Of several parts too few rounds bring two of the same together, so there copies go to
    others after every round; the last one does in any case."""
    room = group(6, 4, LAN, mode, rounds=14, min_peers=4, num_groups=2 if mode == "tasks" else 0)
    others = 3 if mode == "replicas" else 0
    assert room.run(20, lambda: everyone_trains(room))
    assert room.run(100, lambda: all(device.record.round > 2 for device in room.on()))
    before = Counter({device.number: device.note_kinds()["replica-acked"] for device in room.on()})
    assert room.run(100, lambda: all(device.record.round > 9 for device in room.on()))
    sent = sum(device.note_kinds()["replica-acked"] - before[device.number] for device in room.on())
    assert not sent if others > 1 else sent
    for device in room.on():
        role = device.core.role
        assert role is not None
        assert len(role.replicas.replication.owner.holders()) == max(0, 2 - others), "group.replicas is 2"
    merges = sum(device.note_kinds()["gossip"] for device in room.on())
    assert 0.5 < merges / sum(device.record.round for device in room.on()) < 1.2
    room.devices[1].kill()
    assert room.run(100, room.all_done)
    for device in room.on():
        role = device.core.role
        assert role is not None
        assert any(acked and acked.round == 14 for acked in role.replicas.replication.owner.holders().values())


@pytest.mark.parametrize("seed", seeds(2))
def test_a_lossy_network_keeps_the_mass(seed: int) -> None:
    """What was never fetched is taken back; only a last chunk that got lost takes mass away, up to half of a peer's."""
    room = group(seed, 4, LOSSY, "replicas", rounds=30, min_peers=4)
    assert room.run(300, room.all_done)
    room.run(100)
    trainers = [device.trainer for device in room.on() if device.trainer]
    assert sum(trainer.reclaimed for trainer in trainers) > 0
    trained = sum(trainer.trained for trainer in trainers)
    assert 0.5 * trained <= masses(room) <= trained * (1 + 1e-9)


def test_payloads_nobody_fetched_give_their_masses_back() -> None:
    """A partner that dies after every push."""
    room = group(3, 3, LAN, "replicas", rounds=400)
    assert room.run(20, lambda: everyone_trains(room))
    for number in (1, 2):
        room.devices[number].kill()
    room.run(30)
    trainer = room.devices[0].trainer
    assert trainer is not None and room.devices[0].record.phase == "training"
    lost = trainer.samples - sum(trainer.masses.values())
    room.run(20)
    assert trainer.samples - sum(trainer.masses.values()) == pytest.approx(lost)


def test_payloads_do_not_pile_up_in_memory() -> None:
    """Those that were merged are gone, and after a while those that were fetched: of many, a few are left."""
    room = group(4, 3, LAN, "replicas", rounds=10_000)
    assert room.run(20, lambda: everyone_trains(room))
    assert room.run(600, lambda: all(device.note_kinds()["gossip"] >= 30 for device in room.on()))
    rounds = [device.record.round for device in room.on()]
    room.run(ASKED_AGAIN_S)
    lately = 2 * max(device.record.round - before for device, before in zip(room.on(), rounds, strict=True)) + 6
    assert all(len(device.disk.passing) <= lately for device in room.on())
    for device in room.on():
        device.kill() if device.number else None
    room.run(80)
    assert len(room.devices[0].disk.passing) <= 2


def spread(room: Room) -> float:
    xs = np.stack([device.trainer.x for device in room.on() if device.trainer])
    return float(np.sqrt(np.square(xs - xs.mean(0)).sum(1).mean()))


# --- odd ones ---------------------------------------------------------------------------------------------------------


def test_two_jobs_in_one_group_are_told_apart() -> None:
    room = Room(0, WORLD)
    for number in range(6):
        room.add(number, job=job(name="even" if number % 2 == 0 else "odd"))
    assert room.run(60, room.all_done)
    for number in range(6):
        device = room.devices[number]
        others = {d.id for d in room.on() if d.number % 2 == number % 2}
        plan = device.core.agreement.current if device.core.agreement else None
        assert plan is not None and set(plan.trainers()) == others
        assert device.note_kinds()["other-job"] == 3
        assert {h.trainer for h in device.record.holdings} <= others
    assert not refusals(room)


@pytest.mark.parametrize("seed", seeds(1))
def test_a_trainer_that_dies_once_is_started_again(seed: int) -> None:
    room = group(seed, 3, WORLD, rounds=10)
    assert room.run(20, lambda: everyone_trains(room))
    trainer = room.devices[1].trainer
    assert trainer is not None
    trainer.traits = type(trainer.traits)(**{**vars_of(trainer.traits), "dies_at_round": trainer.round + 1})
    assert room.run(100, room.all_done)
    assert room.devices[1].note_kinds()["trainer-failed"] == 1
    assert not room.devices[1].lost


def vars_of(traits: object) -> dict[str, object]:
    return {name: getattr(traits, name) for name in traits.__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", seeds(1))
def test_a_peer_whose_trainer_fails_for_good_stays_as_replica_holder(seed: int) -> None:
    room = Room(seed, WORLD)
    the_job = job(rounds=12)
    for number in range(4):
        room.add(number, job=the_job, dies_at_round=2 if number == 1 else -1)
    assert room.run(100, lambda: all(d.done or d.lost for d in room.on()))
    failed = room.devices[1]
    assert failed.lost and failed.record.phase == "failed"
    assert all(failed.id in d.core.membership.alive() for d in room.on() if d is not failed)
    room.run(5)
    assert any(h.trainer != failed.id for h in failed.record.holdings)
    assert room.covered() == {0, 1, 2, 3}


def test_a_user_error_is_told_and_the_others_go_on() -> None:
    room = Room(0, WORLD)
    for number in range(4):
        room.add(number, job=job(), bad_user=number == 1)
    assert room.run(60, lambda: all(d.done for d in room.on() if d.number != 1))
    assert "no samples" in room.devices[1].lost


def test_a_leaving_peer_is_gone_at_once() -> None:
    room = group(0, 4, WORLD, rounds=60)
    assert room.run(20, lambda: everyone_trains(room))
    room.run(2)
    leaver = room.devices[3]
    room.perform(leaver, leaver.core.leave(room.network.now))
    room.run(0.5)
    assert all(leaver.id not in device.core.membership.alive() for device in room.on() if device is not leaver)
    leaver.kill()
    assert room.run(100, room.all_done)
    assert room.covered() == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", seeds(1))
def test_an_observer_harvests(seed: int) -> None:
    """It sees everyone, gets job and plan, fetches a copy of every part and the head, and is nobody's member."""
    room = Room(seed, WORLD)
    the_job = job("tasks", fit_head="always")
    for number in range(4):
        room.add(number, job=the_job)
    assert room.run(100, room.all_done)
    room.devices[2].kill()
    room.run(10)
    visitor = room.visit(50, [0])
    core = visitor.core
    assert room.run(10, lambda: core.complete() and core.plan() is not None and core.job is not None)
    assert core.job == the_job
    assert {record.peer for record in core.alive()} == {device.id for device in room.on()}
    plan = core.plan()
    assert plan is not None
    harvest(room, visitor, {("part", part.index) for part in plan.parts} | {("head", 0)})
    room.run(5)
    assert all(visitor.id not in device.core.membership.alive() for device in room.on())
    assert all(device.core.records.get(visitor.id) is None for device in room.on())
    assert not refusals(room) and not core.refused


def harvest(room: Room, visitor: Visitor, wanted: set[tuple[str, int]]) -> None:
    held = [h for record in visitor.core.alive() for h in record.holdings if h.kind != "kept"]  # looked at half-way
    best = {(h.kind, h.part): h for h in held}
    assert set(best) == wanted
    for holding in best.values():
        visitor.fetch(holding)
    assert room.run(60, lambda: all(h.blob in visitor.blobs for h in best.values()))
    for (kind, part), holding in best.items():
        metadata = tensorfile.read(visitor.blobs[holding.blob]).metadata
        assert metadata.get("part") == (str(part) if kind == "part" else None)
        assert kind == "head" or json.loads(metadata["masses"])


# --- many -------------------------------------------------------------------------------------------------------------


CAPPED = ("_relays", "_asked", "_former", "_noted", "_errors", "_hellos", "_challenges")
"""Tables with a fixed bound of their own, which fill up to it."""


def test_twenty_peers_come_and_go_and_tables_stay_bounded() -> None:
    """What a peer holds in memory depends on who is there, not on what has been."""
    room = group(0, 20, LAN, rounds=10_000, num_groups=6, round_s=5.0, min_peers=20)
    room.run(8)
    early = sizes(room.devices[0].core)
    for turn in range(5):
        room.devices[1 + turn].kill()
        room.run(1)
        room.restart(1 + turn)
        room.run(1)
    assert room.run(60, lambda: len(room.plans()) == 1 and phases(room) == {"training": 20})
    late = sizes(room.devices[0].core)
    grown = [p for p in late if late[p] > 2 * early[p] + 300 and not any(c in p for c in CAPPED)]
    assert not grown, {p: (early[p], late[p]) for p in grown}
    assert all(late[path] < 3000 for path in late)
    assert room.covered() == set(range(6))
    assert not refusals(room)


def test_a_head_is_not_of_the_last_rounds_when_any_part_went_on() -> None:
    """One part stopped for good at round 3; another goes on from 4 to 5 after the fit: that is worth another one."""

    def copy(part: int, round_: int) -> SnapshotRef:
        return SnapshotRef(
            part, peer_id(b"%040d" % part), 1, round_, 10 * round_, 100, blob_id(b"%d %d" % (part, round_)), 9
        )

    fitted = (copy(0, 5), copy(1, 3), copy(2, 4))
    head = head_holding(fitted[0].trainer, blob_id(b"head"), 9, fitted, 7, 100)
    assert _covers(head, fitted) and _covers(head, fitted[:2])
    assert not _covers(head, (copy(0, 5), copy(1, 3), copy(2, 5)))
    assert not _covers(head, (*fitted, copy(3, 1)))

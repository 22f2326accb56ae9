"""Groups that look at their whole model while they train: what is told, what is kept for it, and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import fake_trainer
import peer_group
import pytest
import stage_group
import test_units
from blocks_trainer import BlocksTrainer
from model_looker import ModelLooker
from peer_group import Room, plan_of

from p2ptrain.config import Job
from p2ptrain.core.looks.figures import GroupLook, best_of, looks_of_group
from p2ptrain.core.looks.looks import COSTS, NEWEST
from p2ptrain.modes.tasks.role import TasksRole
from p2ptrain.simulation.device import Device

pytestmark = pytest.mark.usefixtures("no_work_for_messages")


def job(*args: Any, look_every: int = 1, **changes: Any) -> Job:
    """One that has validation samples."""
    found = peer_group.job(*args, **changes)
    training = dataclasses.replace(found.training, look_every=look_every)
    return dataclasses.replace(found, training=training, data=dataclasses.replace(found.data, val=0.1))


def of_tasks(mode: str = "tasks", look_every: int = 1, rounds: int = 5, **traits: Any) -> Room:
    room, work = Room(0), job(mode, rounds=rounds, look_every=look_every)
    for number in range(3):
        traits = {"round_s": 3.0, "num_val": 10 + number, **traits}
        room.add(number, job=work, **traits)
    return room


ROOMS: dict[str, Callable[[], Room]] = {
    "tasks": of_tasks,
    "replicas": lambda: of_tasks("replicas"),
    "pipeline": lambda: stage_group.group(rounds=5, num_val=10, block_s=0.003, owners=2),
    "split": lambda: test_units.group(rounds=5, num_val=10, weak_s=0.01),
}


@pytest.fixture(autouse=True)
def jobs_that_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_group, "job", job)
    monkeypatch.setattr(test_units, "job", job)


def looker(device: Device) -> ModelLooker:
    assert isinstance(device.trainer, (fake_trainer.FakeTrainer, BlocksTrainer))
    return device.trainer.looker


def looks(room: Room) -> list[GroupLook]:
    records = [device.record for device in room.on()]
    return looks_of_group(records, records[0].job)


def kept(device: Device) -> dict[int, set[str]]:
    """By round, what its record says that it keeps for looks."""
    found: dict[int, set[str]] = {}
    for ref in device.record.holdings:
        if ref.kind == "kept":
            found.setdefault(ref.round, set()).add(ref.blob)
    return found


@pytest.mark.parametrize("mode", ROOMS)
def test_all_look_at_the_same_copies_and_keep_the_best_and_the_newest(mode: str) -> None:
    room = ROOMS[mode]()
    most: set[int] = set()

    def done() -> bool:
        most.update(len(kept(device)) for device in room.on())
        return room.all_done()

    assert room.run(400, done), [(d.record.phase, d.record.round, d.record.waiting_for) for d in room.on()]
    room.run(5)
    found = looks(room)
    samples = sum(device.trainer.traits.num_val for device in room.on())  # type: ignore[union-attr]
    assert {look.round for look in found} >= {2, 3, 4}, "the best and what came after it"
    assert all(look.samples == samples for look in found if look.round in (3, 4)), "everybody's samples, once each"
    best = best_of(found)
    assert best is not None and best.round == 3
    assert max(most) <= NEWEST + 1 + 1, "one more while it is being saved"
    blobs = {device.number: kept(device) for device in room.on()}
    there = set().union(*(each.get(3, set()) for each in blobs.values()))
    for device in room.on():
        for state, copies in looker(device).looks.items():
            assert {ref.round for ref in copies} == {copies[0].round}
            if state == best.state:
                assert {ref.blob for ref in copies} <= there, "the best can still be had"
        for blobs_of_round in kept(device).values():
            assert all(blob in device.disk for blob in blobs_of_round)
        assert not refusals_of_looks(device)


def refusals_of_looks(device: Device) -> int:
    return device.note_kinds()["look-given-up"]


def test_without_a_word_in_the_job_looks_cost_a_part_of_the_time_and_the_first_waits() -> None:
    room = of_tasks(look_every=0, rounds=12, round_s=4.0)
    began = room.network.now
    assert room.run(100, lambda: bool(looks(room)))
    assert room.network.now - began >= COSTS
    assert room.run(10, lambda: looks(room)[0].num_peers == 3)
    (first,) = looks(room)
    for device in room.on():
        looker(device).seconds = 1e6  # the next one says that it took for ever
    assert room.run(200, room.all_done)
    assert len(looks(room)) <= 2 and looks(room)[0] == first


def test_who_has_no_validation_samples_looks_at_nothing_but_keeps_its_copies() -> None:
    room, work = Room(0), job(rounds=5)
    for number in range(3):
        room.add(number, job=work, round_s=3.0, num_val=0 if number == 2 else 10)
    assert room.run(200, room.all_done)
    helper = room.devices[2]
    assert not helper.record.looks and not looker(helper).looks and kept(helper)
    assert {look.num_peers for look in looks(room) if look.round == 3} == {2}


def test_a_job_that_asks_for_no_look_in_time_keeps_nothing() -> None:
    room = of_tasks(look_every=5)
    assert room.run(200, room.all_done)
    assert not looks(room) and not any(kept(device) for device in room.on())


def test_another_cut_of_the_model_gives_up_what_was_kept_of_the_one_before() -> None:
    room = of_tasks(rounds=12)
    assert room.run(100, lambda: any(look.round >= 3 for look in looks(room)))
    epoch = plan_of(room.devices[0]).epoch
    for device in room.on():
        assert isinstance(device.core.role, TasksRole)
        device.core.role._partition = "as the model was cut before"
    room.devices[2].kill()
    assert room.run(60, lambda: all(plan_of(device).epoch > epoch for device in room.on()))
    room.run(2)
    assert any(kept(device) for device in room.on())
    for device in room.on():
        assert all(ref.epoch > epoch for ref in device.record.holdings if ref.kind == "kept")


def test_a_device_that_was_off_for_a_moment_still_has_what_it_kept() -> None:
    room = of_tasks("replicas", rounds=12)
    assert room.run(100, lambda: any(look.round >= 4 for look in looks(room)))
    device = room.devices[1]
    assert 3 in kept(device)
    device.kill()
    room.restart(1)
    assert room.run(30, lambda: device.record.phase == "training")
    assert 3 in kept(device)

"""A group whose whole model gets no better ends its training together, in every mode, by no single member's word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import peer_group
import pytest
import stage_group
import test_units
from peer_group import Room
from test_model_looks import looker

from p2ptrain.config import Job
from p2ptrain.core.harvest import stopped_after
from p2ptrain.core.looks import patience
from p2ptrain.simulation.device import Device

pytestmark = pytest.mark.usefixtures("no_work_for_messages")

ROUNDS, PATIENCE, BEST = 10, 1, 3
SOON = BEST + PATIENCE + 3
"""Looks take a moment, news too, and then a round is ended."""


def job(*args: Any, **changes: Any) -> Job:
    found = peer_group.job(*args, **changes)
    training = dataclasses.replace(found.training, look_every=1, patience=PATIENCE)
    return dataclasses.replace(found, training=training, data=dataclasses.replace(found.data, val=0.1))


def of_tasks(mode: str = "tasks", **options: Any) -> Room:
    room, work = Room(0), job(mode, rounds=ROUNDS)
    for number in range(3):
        room.add(number, job=work, round_s=3.0, num_val=10 + number, **options)
    assert room.run(20, lambda: all(device.trainer is not None for device in room.on()))
    return room


ROOMS: dict[str, Callable[[], Room]] = {
    "tasks": of_tasks,
    "pipeline": lambda: stage_group.group(
        rounds=ROUNDS, num_val=10, block_s=0.003, owners=2, micro_batches=1, samples=(16,) * 6
    ),
    "split": lambda: test_units.group(rounds=ROUNDS, num_val=10, weak_s=0.01),
}


@pytest.fixture(autouse=True)
def jobs_with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_group, "job", job)
    monkeypatch.setattr(test_units, "job", job)


def why(device: Device) -> dict[str, Any]:
    """What it says when its training ends before the last round."""
    (note,) = [note for _, note in device.notes if note.kind in ("patience-over", "ends-with-others")]
    return dict(note.fields)


def state_of(room: Room) -> list[tuple[str, int, str]]:
    return [(device.record.phase, device.record.round, device.record.waiting_for) for device in room.on()]


def rounds_of(room: Room) -> set[int]:
    return {device.record.round for device in room.on() if device.record.part >= 0}


@pytest.mark.parametrize("mode", ROOMS)
def test_all_end_together_and_say_why_and_which_round_was_best(mode: str) -> None:
    room = ROOMS[mode]()
    assert room.run(400, room.all_done), state_of(room)
    assert max(rounds_of(room)) <= SOON, "not the job's last round"
    assert {why(device)["best"] for device in room.on()} == {BEST}
    assert any(device.note_kinds()["patience-over"] for device in room.on())
    assert all(device.was_stopped is None for device in room.on()), "they serve what they have, as after the last round"
    work = room.on()[0].core.job
    assert work is not None and 0 < stopped_after([d.record for d in room.on()], work.id) <= SOON
    assert len(room.plans()) == 1, "who ends is no reason for another plan"


def test_one_member_can_not_end_it_by_what_it_says_of_its_looks() -> None:
    room = of_tasks()
    for device in room.on()[:2]:
        looker(device).right = {round: round / ROUNDS for round in range(1, ROUNDS + 1)}
    assert room.run(400, room.all_done), state_of(room)
    assert rounds_of(room) == {ROUNDS}
    assert not any(device.note_kinds()["patience-over"] for device in room.on())


def test_who_tells_nothing_any_more_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LATE_S", 6.0)  # two rounds
    room = of_tasks()
    assert room.run(60, lambda: all(device.record.looks for device in room.on()))
    looker(room.devices[2]).tells = False
    assert room.run(300, room.all_done), state_of(room)
    assert BEST < max(rounds_of(room)) <= SOON + 2 < ROUNDS
    assert all(why(device)["looks"] == PATIENCE for device in room.on())


@pytest.mark.parametrize("mode", ["pipeline", "split"])
def test_who_decide_at_once_end_after_the_same_round(mode: str) -> None:
    room = ROOMS[mode]()
    devices = room.on()

    def looked() -> bool:
        return all(d.record.looks and d.record.looks[-1].round >= 2 for d in devices if d.record.looks)

    assert room.run(100, lambda: any(d.record.looks for d in devices) and looked())
    newest = max(device.record.round for device in devices)
    for number, device in enumerate(devices):
        core, now = device.core, room.network.now
        assert core.role is not None
        room.perform(device, core.run(core._stop._end(core.role, newest + 1 + 2 * (number % 2), now), now))
    assert room.run(200, room.all_done), state_of(room)
    assert {device.record.ends_after for device in devices} == {newest + 1}
    assert max(rounds_of(room)) <= newest + 2 and len(room.plans()) == 1


def test_who_comes_when_the_others_end_ends_with_them() -> None:
    room = of_tasks("replicas")
    assert room.run(200, lambda: any(device.record.ends_after for device in room.on())), state_of(room)
    late = room.add(3, job=room.on()[0].core.job, round_s=3.0, num_val=10)
    assert room.run(200, room.all_done), state_of(room)
    assert late.record.round < ROUNDS


def test_whom_others_must_not_end_goes_by_its_own_samples_alone() -> None:
    room = of_tasks(remote_stop=False)
    looker(room.devices[0]).right = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9, 5: 0.9, 6: 0.9}
    assert room.run(400, room.all_done), state_of(room)
    ended = {number: room.devices[number].record.round for number in range(3)}
    assert max(ended.values()) < ROUNDS, "its own looks say so too, later"
    assert all(device.note_kinds()["patience-over"] == 1 for device in room.on())

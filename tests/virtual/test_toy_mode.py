"""A mode is a folder and a line in the registry: one that the package has never heard of, from nothing to a harvest."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from peer_group import Room, job
from seeds import seeds
from toy_mode.config import ToyConfig
from toy_mode.mode import MODE
from toy_mode.trainer import ToyTrainer, ToyTraits

from p2ptrain.core.harvest import Collected, Harvest
from p2ptrain.core.plan import Plan
from p2ptrain.errors import JobError
from p2ptrain.modes import registry
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.simulation.device import Device
from p2ptrain.wire.messages import NO_PART, SnapshotRef

ROUNDS, BY = 8, 3
MODEL = {"number.0": ROUNDS * BY, "number.1": ROUNDS * BY}
NO_SAMPLES = (0,) * 6


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODES, "toy", MODE)


def group(seed: int, count: int = 3) -> Room:
    """``count`` devices without any samples; the first was given the job, and the others get it from the group."""
    room = Room(seed, traits=ToyTraits)
    room.add(0, NO_SAMPLES, job=job("toy", rounds=ROUNDS, min_peers=count).with_table(ToyConfig(by=BY)))
    for number in range(1, count):
        room.add(number, NO_SAMPLES)
    return room


def plan_of(device: Device) -> Plan:
    plan = device.core.role.plan if device.core.role else None
    assert plan is not None
    return plan


def parts(room: Room) -> list[int]:
    return sorted(device.record.part for device in room.on())


def harvest(room: Room) -> Harvest:
    """As ``p2ptrain harvest`` does it, through an observer."""
    visitor = room.visit(99, [device.number for device in room.on()])
    room.run(3)
    holdings = {h.blob: h for record in visitor.core.alive() for h in record.holdings if h.kind == "part"}

    async def fetch(holding: SnapshotRef, what: str) -> bytes | None:
        visitor.fetch(holding)
        room.run(20, lambda: holding.blob in visitor.blobs)
        return visitor.blobs.get(holding.blob)

    plan, work = visitor.core.plan(), visitor.core.job
    assert plan is not None and work is not None
    harvester = registry.mode_of(work).harvester
    result, found = asyncio.run(harvester.fetch(plan, list(holdings.values()), fetch))
    assert not harvester.missing(plan, found)
    collected = Collected(work, plan, found, result, visitor.core.records)
    return harvester.assemble(collected, allow_user_code=False)


@pytest.mark.parametrize("seed", seeds(2))
def test_a_group_agrees_trains_and_is_done(seed: int) -> None:
    room = group(seed)
    assert room.run(60, room.all_done)
    assert len(room.plans()) == 1 and room.epochs() == {1} and parts(room) == [NO_PART, 0, 1]
    model = harvest(room)
    assert {name: int(value) for name, value in model.state.items()} == MODEL
    assert not model.is_half_way


@pytest.mark.parametrize("seed", seeds(2))
def test_another_goes_on_where_one_was_killed(seed: int) -> None:
    room = group(seed)
    assert room.run(60, lambda: sum(device.record.round >= 4 for device in room.on()) == 2)
    spare = next(device for device in room.on() if device.record.part == NO_PART)
    victim = next(device for device in room.on() if device.record.part == 1)
    victim.kill()
    assert room.run(60, room.all_done)
    assert room.epochs() == {2} and parts(room) == [0, 1] and spare.record.part == 1
    trainer: Any = spare.trainer
    assert isinstance(trainer, ToyTrainer) and 3 <= trainer.began_at < ROUNDS
    model = harvest(room)
    assert {name: int(value) for name, value in model.state.items()} == MODEL
    assert model.report[1].trainers == (f"device {spare.number}",)


def test_one_that_comes_back_finds_its_part_again() -> None:
    room = group(0, count=2)
    assert room.run(60, lambda: all(device.record.round >= 3 for device in room.on()))
    room.devices[1].kill()
    room.run(1)
    room.restart(1)
    assert room.run(60, room.all_done)
    assert parts(room) == [0, 1]
    trainer: Any = room.devices[1].trainer
    assert trainer.began_at >= 2


def test_its_plans_and_words_are_found() -> None:
    room = group(0)
    assert room.run(60, room.all_done)
    plan, words = plan_of(room.on()[0]), registry.mode_of(job("toy")).words
    assert registry.read_plan(plan.to_json()) == plan
    assert len({words.plan_sentence(plan, job("toy"), device.id) for device in room.on()}) == 3


def test_its_jobs_are_read_and_checked() -> None:
    given = job("toy").with_table(ToyConfig(by=BY))
    assert job_from_json(given.to_json()).table(ToyConfig) == ToyConfig(by=BY)
    with pytest.raises(JobError, match=r"toy\.by"):
        job_from_json(given.with_table(ToyConfig(by=101)).to_json())


def test_too_few_wait_for_more() -> None:
    room = Room(0, traits=ToyTraits)
    room.add(0, NO_SAMPLES, job=job("toy", min_peers=3))
    room.add(1, NO_SAMPLES)
    room.run(10)
    assert {device.record.waiting_for for device in room.on()} == {"peers that can count: 2 of 3 are here"}

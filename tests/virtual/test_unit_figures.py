"""Groups that train split: a peer comes back with other samples or with figures that make no sense; labels stay."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from blocks_trainer import MODEL
from peer_group import plan_of
from test_units import SAMPLES, all_at, body_of, check_done, group, nonsense, owners_by_round, state_of, victims

from p2ptrain.planning.devices.footprint import PEER_BASE_BYTES, SPARE_PART
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.room import Room


def comes_back(room: Room, device: Device, after_s: float = 0.3, **traits: Any) -> None:
    """Killed, and started again as another one."""
    device.kill()
    device.traits = dataclasses.replace(device.traits, **traits)  # type: ignore[type-var]
    room.run(after_s)
    room.restart(device.number)


def test_who_measures_nonsense_in_a_group_that_trains_keeps_the_figures_of_the_last_plan() -> None:
    room = group(rounds=4)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (helper,) = victims(room, "helper")
    before = {unit.owner: unit.cut for unit in body_of(helper).split.units}
    comes_back(room, helper, profile=nonsense()[1])
    assert room.run(300, room.all_done), state_of(room)
    assert {unit.owner: unit.cut for unit in body_of(helper).split.units} == before
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


def test_a_late_peer_with_nonsense_changes_no_plan_and_is_told_why() -> None:
    room = group(rounds=6)
    assert room.run(120, all_at(room, 1)), state_of(room)
    odd = room.add(4, SAMPLES, job=room.devices[0].disk.job, profile="no JSON")
    assert room.run(300, lambda: "make no sense" in odd.record.waiting_for), state_of(room)
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


@pytest.mark.parametrize("counts", [(1, 0, 0, 0, 0, 0), (2**40,) * 6], ids=["one sample", "no end of samples"])
def test_an_owner_that_comes_back_with_other_samples_does_not_end_the_group(counts: tuple[int, ...]) -> None:
    """Fewer than its unit had micro-batches, or so many that a round would take years: the others go on."""
    room = group(owners=2, rounds=5, strategy="mid-cut")
    assert room.run(120, all_at(room, 1)), state_of(room)
    (owner,) = victims(room, "owner")
    others = [device for device in room.on() if device is not owner]
    comes_back(room, owner, counts=counts)
    assert room.run(300, lambda: all(device.record.round >= 5 for device in others)), state_of(room)
    if counts[0] > 1:
        assert "a round would take months" in owner.record.waiting_for
        assert all(unit.owner != owner.id for unit in body_of(others[0]).split.units)


def test_owners_without_the_memory_wait_for_a_helper_and_say_so() -> None:
    """No cut is legal for them alone: the last good plan stays until a helper is back."""
    for_blocks = 3 * 4 * MODEL.blocks[0].parameter_bytes
    memory = (for_blocks + PEER_BASE_BYTES) * SPARE_PART // (SPARE_PART - 1)
    room = group(owners=2, rounds=5, weak_bytes=memory)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (helper,) = victims(room, "helper")
    assert all(unit.helper == helper.id for unit in body_of(helper).split.units)
    helper.kill()
    room.run(30)
    owners = room.on()
    assert all(plan_of(owner).epoch == 1 and not owner.done for owner in owners)
    assert any("has not the memory" in owner.record.waiting_for for owner in owners), state_of(room)
    room.restart(helper.number)
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 2)).values()) == {2}


def test_labels_that_stay_and_a_helper_that_dies() -> None:
    """Owners have two runs of blocks: every round is whole, and so is the harvest."""
    room = group(rounds=5, labels="stay")
    assert room.run(120, all_at(room, 1)), state_of(room)
    assert body_of(room.devices[0]).split.kept_from == 8
    victims(room, "helper")[0].kill()
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}

"""Copies are told of in the name of who made them: a member that passes off its own as another's gets nowhere."""

from __future__ import annotations

import dataclasses

import pytest
from liar import LIAR, check_goes_on, honest, lie, made, pretend, training_group
from peer_group import Room

from p2ptrain.simulation.device import Device
from p2ptrain.wire import messages as m
from p2ptrain.wire.messages import SnapshotRef

FALSE = b"what the liar made"


def forged(room: Room, victim: Device, **changes: object) -> SnapshotRef:
    """As if the victim had gone on by far; its bytes lie with the liar."""
    blob = room.devices[LIAR].disk.put(FALSE)
    newest = max(victim.record.holdings, key=lambda ref: (ref.trainer == victim.id, ref.round))
    further = {"round": 40, "step": 10**6, "blob": blob, "num_bytes": len(FALSE)}
    return dataclasses.replace(newest, **(further | changes))  # type: ignore[arg-type]


def told_anywhere(room: Room) -> set[str]:
    return {ref.blob for device in honest(room) for peer in device.core.records.all().values() for ref in peer.holdings}


@pytest.mark.parametrize("signed", ["by the liar", "as it was", "not at all"])
def test_a_copy_in_another_s_name_is_believed_by_nobody(signed: str) -> None:
    """Told in the own record and offered: neither is it kept, nor does it come to who takes the part over."""
    room = training_group()
    victim = room.devices[1]
    assert room.run(10, lambda: any(ref.trainer == victim.id for ref in victim.record.holdings))
    ref = forged(room, victim)
    if signed != "as it was":
        ref = made(room, ref) if signed == "by the liar" else dataclasses.replace(ref, signature="")
    part, reached = victim.record.part, victim.record.round
    pretend(room, lambda record: dataclasses.replace(record, holdings=(*record.holdings, ref)))
    for device in honest(room):
        lie(room, device, m.ReplicaOffer(ref))
    room.run(2)
    assert ref.blob not in told_anywhere(room)
    assert all(device.core.sessions.refused["snapshot-unsigned"] for device in honest(room))
    victim.kill()
    room.run(1)
    room.restart(1)
    assert room.run(60, lambda: victim.record.phase == "training")
    assert victim.trainer is not None and victim.record.part == part
    assert victim.trainer.follows[0][1] >= reached - 1
    assert all(ref.blob not in device.disk.blobs for device in honest(room))
    check_goes_on(room)


def test_a_fit_over_copies_in_another_s_name_is_not_begun() -> None:
    room = training_group(rounds=5, fit_head="always", head_fit_steps=20)
    assert room.run(60, lambda: any(device.record.phase == "fitting" for device in honest(room)))
    refs = tuple(made(room, forged(room, device, part=device.record.part)) for device in honest(room))
    for device in honest(room):
        lie(room, device, m.HeadFitCall(device.core.epoch, refs))
    room.run(1)
    assert all(device.core.sessions.refused["snapshot-unsigned"] for device in honest(room))
    assert room.run(900, lambda: all(device.done for device in honest(room)))
    assert not {ref.blob for ref in refs} & {blob for device in honest(room) for blob in device.disk.blobs}


def test_copies_stay_signed_on_their_way_and_over_a_restart() -> None:
    """Every copy that anybody tells of can be checked by all, by who comes after its trainer is gone, too."""
    room = training_group(liar=False)
    room.run(3)
    gone = room.devices[0]
    gone.kill()
    room.run(5)
    room.devices[1].kill()
    room.run(1)
    room.restart(1)
    late = room.add(5, load_s=0.05, round_s=0.4)
    assert room.run(60, lambda: late.record.job != "" and room.devices[1].record.phase == "training")
    room.run(2)
    kept = {ref for device in room.on() for ref in device.record.holdings}
    assert {ref.trainer for ref in kept} >= {device.id for device in room.on() if device is not late} | {gone.id}
    assert all(late.core.group.is_trainers(ref) for ref in kept)
    assert not any(device.core.refused["snapshot-unsigned"] for device in room.on())
    assert not any(device.banned for device in room.on())


def test_what_an_older_version_kept_is_signed_by_its_trainer_and_told_by_nobody_else() -> None:
    room = training_group(liar=False)
    room.run(3)
    device = next(d for d in room.on() if d.disk.replicas)
    device.kill()
    disk = device.disk
    disk.own, disk.replicas = (
        tuple(dataclasses.replace(ref, key="", signature="") for ref in refs) for refs in (disk.own, disk.replicas)
    )
    room.run(1)
    room.restart(device.number)
    assert room.run(30, lambda: device.record.job != "")
    assert "unsigned-copies" in device.note_kinds()
    role = device.core.role
    assert role is not None and role.replicas.own and role.replicas.replication.holder.kept()
    assert all(map(device.core.group.is_trainers, role.replicas.own))
    assert all(map(device.core.group.is_trainers, device.record.holdings))
    check_goes_on(room)

"""A group with a liar in it: a whole peer that plays along, whose lies go out over its own sessions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from kept_rooms import again
from peer_group import Room, job

from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.protocol.signing import Statements
from p2ptrain.simulation.device import CODE, Device
from p2ptrain.simulation.names import key
from p2ptrain.simulation.network import Conditions
from p2ptrain.simulation.signing import signing_as
from p2ptrain.wire.messages import Message, Record, SnapshotRef

LINK = Conditions(delay_s=0.001, jitter_s=0.002)
LIAR = 3


def training_group(seed: int = 0, liar: bool = True, **changes: object) -> Room:
    """Three honest devices and a liar, in training."""
    return again(in_training, seed, liar, **changes)


def in_training(seed: int, liar: bool, **changes: object) -> Room:
    room = Room(seed, LINK)
    the_job = job(**({"rounds": 40, "min_peers": 4 if liar else 3, "settle_s": 0.2} | changes))  # type: ignore[arg-type]
    for number in range(4 if liar else 3):
        room.add(number, job=the_job, load_s=0.05, round_s=0.4)
    assert room.run(20, lambda: all(device.record.round >= 1 for device in room.on()))
    return room


def honest(room: Room) -> list[Device]:
    return [device for device in room.on() if device.number != LIAR]


def lie(room: Room, to: Device, message: Message, *, job_id: str | None = None, epoch: int | None = None) -> None:
    """Send this as the liar, over its session with ``to``."""
    core = room.devices[LIAR].core
    known = core.job_id if job_id is None else job_id
    for effect in core.sessions.send(to.id, message, known, core.epoch if epoch is None else epoch, room.network.now):
        assert isinstance(effect, SendFrames)
        room.send(core.own_id, effect)


def check_goes_on(room: Room) -> None:
    """The honest ones know each other, follow one plan, train, and hold no more than they should."""
    room.run(2)
    devices = honest(room)
    before = {device.number: device.record.step for device in devices}
    ids = {device.id for device in devices}
    assert room.run(90, lambda: all(d.done or d.record.step > before[d.number] for d in devices)), [
        (d.number, d.record.phase, d.record.waiting_for, d.note_kinds()) for d in devices
    ]
    for device in devices:
        assert ids - {device.id} <= device.core.membership.alive()
        assert not any(key(other.number) in device.banned for other in devices)
        assert not device.lost
        assert device.core.job == devices[0].core.job
    assert room.run(60, lambda: len({d.core.agreement.hash if d.core.agreement else "" for d in devices}) == 1)


def check_untouched(room: Room, epoch: int) -> None:
    """Nobody was banned or called gone, and no new plan was needed."""
    devices = honest(room)
    for device in devices:
        assert not device.banned
        assert {other.id for other in devices} - {device.id} <= device.core.membership.alive()
        assert not [note for _, note in device.notes if note.kind in ("left", "banned")]
        assert device.core.epoch == epoch
    check_goes_on(room)


def statements(number: int) -> Statements:
    return Statements(signing_as(key(number)), CODE)


def made(room: Room, ref: SnapshotRef) -> SnapshotRef:
    """Signed by the liar, in its own name or in another's."""
    return dataclasses.replace(made_by(room, room.devices[LIAR], ref), trainer=ref.trainer)


def made_by(room: Room, liar: Device, ref: SnapshotRef) -> SnapshotRef:
    """Signed by this one, in its own name."""
    own, job_id = liar.id, liar.core.group.job
    return statements(liar.number).made(dataclasses.replace(ref, trainer=own), own, key(liar.number), job_id)


def pretend(room: Room, change: Callable[[Record], Record]) -> None:
    """The liar's own record says something else from now on; it spreads by itself."""
    core = room.devices[LIAR].core
    changed = change(core.records.own)
    fields = {name: getattr(changed, name) for name in Record.__dataclass_fields__}
    for name in ("peer", "key", "version", "signature"):
        del fields[name]
    room.perform(room.devices[LIAR], core.run(core.records.update(room.network.now, **fields), room.network.now))

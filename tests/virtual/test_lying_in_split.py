"""A member of split training that lies: its updates and stage messages are of no use.

What it sends is refused, whoever gets it names it, and the others train the very round again without it. The trainers
keep books only (``unit_trainer``); what the real ones refuse is in the tests of ``learning/split`` and of its stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from test_units import all_at, body_of, group, state_of, trainer, victims
from unit_trainer import UnitTrainer

from p2ptrain.core.stages.commands import SendStageMessage
from p2ptrain.ids import BlobId
from p2ptrain.modes.split.commands import UpdateMade
from p2ptrain.simulation.device import Device
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import Fetch

Change = Callable[[bytes], bytes]


def lies(device: Device, kind: type, field: str, change: Change) -> None:
    """What its trainer says of this kind is another from now on."""
    odd = trainer(device)
    say = odd._say

    def said(event: object) -> None:
        if isinstance(event, kind):
            event = dataclasses.replace(event, **{field: change(getattr(event, field))})  # type: ignore[type-var]
        say(event)

    odd._say = said


def of_the_first(changed: list[bytes]) -> Change:
    """The same again and again: of an earlier round, with its signature for this one."""

    def again(data: bytes) -> bytes:
        changed.append(data)
        return changed[0]

    return again


MESSAGES: dict[str, Callable[[], Change]] = {
    "owner": lambda: of_the_first([]),
    "helper": lambda: lambda data: tensorfile.pack({"x": np.zeros((3, 3))}, {}),
}
"""Of another batch, of another shape."""


def check_named_and_left(room, odd: Device) -> None:  # type: ignore[no-untyped-def]
    """It is shut out of a next plan, by one that it works with, and the others end the next round."""
    others = [device for device in room.on() if device is not odd]

    def is_out() -> bool:
        bodies = [body_of(each) for each in others if each.core.agreement and each.core.agreement.current]
        return any(out.peer == odd.id for body in bodies for out in body.shut_out)

    assert room.run(240, is_out), state_of(room)
    assert sum(device.note_kinds()["blamed"] for device in room.on()) >= 1
    assert not any(note.kind == "blamed" and dict(note.fields)["peer"] != odd.id for d in others for _, note in d.notes)
    begun = max(device.record.round for device in others)
    assert room.run(240, lambda: any(device.done or device.record.round > begun for device in others)), state_of(room)


def test_updates_of_another_round() -> None:
    room = group(rounds=4)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (odd,) = victims(room, "owner")
    lies(odd, UpdateMade, "update", of_the_first([]))
    check_named_and_left(room, odd)


def test_an_update_that_is_told_of_and_never_given() -> None:
    room = group(rounds=4)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (odd,) = victims(room, "owner")
    serving = odd.core.transfers._serving
    asked, updates = serving.asked, set[BlobId]()

    def silent(to: object, fetch: Fetch) -> object:
        updates.update(ref.blob for ref in odd.record.holdings if ref.kind == "update")
        return [] if fetch.blob in updates else asked(to, fetch)  # type: ignore[arg-type]

    serving.asked = silent  # type: ignore[assignment,method-assign]
    check_named_and_left(room, odd)


@pytest.mark.parametrize("who", MESSAGES)
def test_stage_messages_of_no_use(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations of an owner, or gradients of a helper."""
    monkeypatch.setattr(UnitTrainer, "expects_lies", True)
    room = group(rounds=4)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (odd,) = victims(room, who)
    lies(odd, SendStageMessage, "message", MESSAGES[who]())
    check_named_and_left(room, odd)


def test_figures_that_nobody_can_mean_cost_no_round() -> None:
    """Others ask how long it would take such a peer to keep a copy."""
    room = group(rounds=3, replicas=2)
    assert room.run(120, all_at(room, 1)), state_of(room)
    odd = room.devices[0]
    tiny = {"flops_per_s": 5e-324, "link_bytes_per_s": 5e-324}
    said = odd.core.records.update(room.network.now, **tiny)  # type: ignore[arg-type]
    room.perform(odd, odd.core.run(said, room.network.now))
    assert room.run(240, room.all_done), state_of(room)
    assert all(device.core.group.record(odd.id).flops_per_s == 5e-324 for device in room.on())  # type: ignore[union-attr]

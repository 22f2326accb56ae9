"""A room with more peers than each has room for in its address book: it hangs together, after deaths and a cut too."""

from __future__ import annotations

import pytest
from peer_group import Room
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Send
from p2ptrain.protocol.session import address_book
from p2ptrain.runtime.peer import reach
from p2ptrain.runtime.peer.reach import BESIDE, ring_neighbours
from p2ptrain.simulation.device import Device
from p2ptrain.wire.messages import StatusRequest

NUM_PEERS, BOOK = 9, 2


@pytest.fixture(autouse=True)
def small_books(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_book, "MAX_ADDRESSES", BOOK)
    monkeypatch.setattr(reach, "LARGE", BOOK)


def has_ring(devices: list[Device]) -> bool:
    ids = [device.id for device in devices]
    return all(
        device.core.sessions.key_of(other) is not None
        for device in devices
        for other in ring_neighbours(device.id, [each for each in ids if each != device.id], BESIDE)
    )


def knows(device: Device, others: set[PeerId]) -> bool:
    return device.core.membership.alive() == others - {device.id}


@pytest.mark.parametrize("seed", seeds(1))
def test_it_hangs_together_and_who_has_something_to_say_gets_a_link(seed: int) -> None:
    room = Room(seed)
    for number in range(NUM_PEERS):
        room.add(number)
    room.network.run(60.0, lambda: has_ring(room.on()))
    assert has_ring(room.on())
    one = room.devices[0]
    other = next((d for d in room.on()[1:] if one.core.sessions.key_of(d.id) is None), None)
    if other is not None:
        room.perform(one, one.core.run([Send(other.id, StatusRequest())], one.now))
        room.network.run(room.network.now + 5.0, lambda: one.core.sessions.key_of(other.id) is not None)
        assert one.core.sessions.key_of(other.id) is not None
    for number in (2, 4, 7):  # a third of it at once
        room.devices[number].kill()
    left = {device.id for device in room.on()}
    room.network.run(room.network.now + 90.0, lambda: has_ring(room.on()) and all(knows(d, left) for d in room.on()))
    assert has_ring(room.on()) and all(knows(device, left) for device in room.on())
    half = [device.id for device in room.on()][:2]
    room.network.partition(half)
    room.network.run(room.network.now + 10.0)
    room.network.heal()
    room.network.run(room.network.now + 120.0, lambda: all(knows(d, left) for d in room.on()) and has_ring(room.on()))
    assert has_ring(room.on()) and all(knows(device, left) for device in room.on())

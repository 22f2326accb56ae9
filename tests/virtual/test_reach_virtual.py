"""A large room: it hangs together, after deaths and a cut too; links that nobody needs close, and open when needed."""

from __future__ import annotations

import dataclasses

import pytest
from peer_group import Room
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.swim import LAN
from p2ptrain.protocol.machine import Send
from p2ptrain.protocol.session import address_book
from p2ptrain.runtime.peer import neighbours, reach
from p2ptrain.simulation.device import Device
from p2ptrain.wire.messages import PlanReply, PlanRequest, PlanVote, StreamAck

NUM_PEERS, BOOK = 9, 2
IDLE_S, SPARE_IDLE_S = 6.0, 3.0


@pytest.fixture(autouse=True)
def small_books(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_book, "MAX_ADDRESSES", BOOK)
    small = {"LARGE": BOOK, "CROWDED": BOOK + 1, "IDLE_S": IDLE_S, "SPARE_IDLE_S": SPARE_IDLE_S, "SPARE": 1}
    small["LOOK_S"] = 1.0
    for name, value in small.items():
        monkeypatch.setattr(reach, name, value)
    monkeypatch.setattr(neighbours, "BESIDE", 1)
    monkeypatch.setattr(neighbours, "RINGS", 1)


def room_of(seed: int) -> Room:
    room = Room(seed)
    for number in range(NUM_PEERS):
        device = room.add(number)
        device.core.membership._roster._config = dataclasses.replace(LAN, all_near=BOOK)
    return room


def has_neighbours(devices: list[Device]) -> bool:
    return all(
        device.core.sessions.key_of(other) is not None
        for device in devices
        for other in device.core.reach.neighbours(device.id)
    )


def knows(device: Device, others: set[PeerId]) -> bool:
    return device.core.membership.alive() == others - {device.id}


def linked(one: Device, other: Device) -> bool:
    return all(a.core.sessions.key_of(b.id) is not None for a, b in ((one, other), (other, one)))


def others_of(device: Device, room: Room) -> list[Device]:
    """Those that are no neighbours."""
    near = device.core.reach.neighbours(device.id)
    return [each for each in room.on() if each is not device and each.id not in near]


def notes(room: Room, kind: str) -> int:
    return sum(note.kind == kind for device in room.on() for _, note in device.notes)


def settle(room: Room) -> None:
    """All have their neighbours, and no other link."""

    def is_settled() -> bool:
        links = {d.id: set(d.core.sessions.peers()) for d in room.on()}
        return all(its == room.devices[0].core.reach.neighbours(peer) for peer, its in links.items())

    room.network.run(room.network.now + 120.0, is_settled, every_s=1.0)
    assert is_settled()


@pytest.mark.parametrize("seed", seeds(1))
def test_it_hangs_together(seed: int) -> None:
    room = room_of(seed)
    room.network.run(60.0, lambda: has_neighbours(room.on()))
    assert has_neighbours(room.on())
    for number in (2, 4, 7):  # a third of it at once
        room.devices[number].kill()
    left = {device.id for device in room.on()}
    room.network.run(
        room.network.now + 90.0, lambda: has_neighbours(room.on()) and all(knows(d, left) for d in room.on())
    )
    assert has_neighbours(room.on()) and all(knows(device, left) for device in room.on())
    half = [device.id for device in room.on()][:2]
    room.network.partition(half)
    room.network.run(room.network.now + 10.0)
    room.network.heal()
    room.network.run(
        room.network.now + 120.0, lambda: all(knows(d, left) for d in room.on()) and has_neighbours(room.on())
    )
    assert has_neighbours(room.on()) and all(knows(device, left) for device in room.on())


@pytest.mark.parametrize("seed", seeds(1))
def test_links_of_no_use_close_on_both_sides_and_nobody_is_suspected_for_it_or_dialled_again(seed: int) -> None:
    room = room_of(seed)
    settle(room)
    one = room.devices[0]
    admitted = notes(room, "admitted")
    for other in room.on():  # mDNS shows them all again
        for shown in room.on():
            room.perform(other, other.core.propose(shown.address, other.now, "mdns"))
    room.run(20)
    assert notes(room, "admitted") == admitted
    assert notes(room, "suspected") == notes(room, "failed") == 0
    assert set(one.core.sessions.peers()) == one.core.reach.neighbours(one.id)
    assert all(knows(device, {each.id for each in room.on()}) for device in room.on())


@pytest.mark.parametrize("seed", seeds(1))
def test_what_is_said_to_others_opens_a_link_and_is_heard_and_the_link_goes_when_it_is_of_no_use(seed: int) -> None:
    room = room_of(seed)
    settle(room)
    one = room.devices[0]
    other, third, *_ = others_of(one, room)
    room.perform(one, one.core.run([Send(other.id, PlanVote("f" * 64, 1, False))], one.now))
    room.run(2)
    assert not linked(one, other), "everybody hears of votes anyway"
    heard: list[object] = []
    other.core._on_message[PlanRequest] = lambda sender, message, now: heard.append(message) or []
    asked = [PlanRequest("a" * 64), PlanRequest("b" * 64)]
    room.perform(one, one.core.run([Send(other.id, each) for each in asked[:1] * reach.MAX_UNSAID + asked], one.now))
    room.run(2)
    assert linked(one, other) and heard == asked, "the first word, too, and once however often it was said meanwhile"
    room.perform(one, one.core.run([Send(third.id, PlanReply(b"-"))], one.now))
    room.run(2)
    room.network.run(room.network.now + 2 * IDLE_S, lambda: not linked(one, other) and not linked(one, third))
    assert not linked(one, other) and not linked(one, third)
    assert notes(room, "suspected") == 0


@pytest.mark.parametrize("seed", seeds(1))
def test_links_that_something_uses_stay(seed: int) -> None:
    room = room_of(seed)
    settle(room)
    one = room.devices[0]
    streaming, fetching, *_ = others_of(one, room)
    epoch = one.core.epoch
    for each in (streaming, fetching):
        room.perform(one, one.core.run([Send(each.id, PlanRequest("a" * 64))], one.now))
    room.run(2)
    assert linked(one, streaming) and linked(one, fetching)
    for a, b in ((one, streaming), (streaming, one)):
        a.core.reach.carried(b.id, StreamAck(epoch, 0, ""), a.now)
    one.core.transfers.uses = fetching.id.__eq__  # type: ignore[method-assign]
    room.run(3 * IDLE_S)
    assert linked(one, streaming) and one.core.sessions.key_of(fetching.id) is not None
    one.core.transfers.uses = lambda peer: False  # type: ignore[method-assign]
    room.network.run(room.network.now + 2 * IDLE_S, lambda: one.core.sessions.key_of(fetching.id) is None)
    assert one.core.sessions.key_of(fetching.id) is None and linked(one, streaming)


@pytest.mark.parametrize("seed", seeds(1))
def test_more_than_may_be_dialled_at_once_all_hear_what_is_said_to_them_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_book, "MAX_WANTED", 2)
    room = room_of(seed)
    settle(room)
    one = room.devices[0]
    others, heard = others_of(one, room), set[PeerId]()
    for other in others:
        other.core._on_message[PlanRequest] = lambda _, message, now, own=other.id: heard.add(own) or []
    room.perform(one, one.core.run([Send(other.id, PlanRequest("a" * 64)) for other in others], one.now))
    room.network.run(room.network.now + reach.UNSAID_S, lambda: len(heard) == len(others))
    assert heard == {other.id for other in others} and len(heard) > 2

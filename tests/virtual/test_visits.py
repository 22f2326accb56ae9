"""Whole peers and their visitors in virtual time: who only looks leaves nothing behind, whichever way it goes."""

from __future__ import annotations

import pytest
from peer_group import Room, job, sizes
from seeds import seeds

from p2ptrain.protocol.session import visitors
from p2ptrain.simulation.room import Visitor
from p2ptrain.wire.messages import RecordDigest

BOUNDED = ("_former", "_hellos", "_noted", "refused")
"""Tables of the session layer of a fixed size; they remember whom they have seen."""
GONE_S = visitors.VISITOR_SILENT_S + 15.0


def fleet_of(num_peers: int, seed: int) -> Room:
    room = Room(seed)
    for number in range(num_peers):
        room.add(number, job=job("tasks", rounds=10_000))
    assert room.run(60, lambda: all(device.record.phase == "training" for device in room.on()))
    room.run(5)
    return room


def is_told(room: Room, visitor: Visitor) -> bool:
    core = visitor.core
    return core.complete() and core.plan() is not None and len(core.alive()) == len(room.on())


def failures(room: Room) -> int:
    return sum(device.note_kinds()[kind] for device in room.on() for kind in ("failed", "left", "banned", "one-way"))


def session_tables(room: Room) -> list[dict[str, int]]:
    found = [sizes(device.core) for device in room.on()]
    return [
        {p: n for p, n in size.items() if ".sessions." in p and not any(each in p for each in BOUNDED)}
        for size in found
    ]


@pytest.mark.parametrize("goodbye", [True, False])
def test_visitors_leave_nothing(goodbye: bool) -> None:
    room = fleet_of(3, 1)
    before = session_tables(room)
    ids = {device.id for device in room.on()}
    for number in range(30):
        visitor = room.visit(50 + number, [number % 3])
        assert room.run(10, lambda visitor=visitor: is_told(room, visitor))
        room.end_visit(visitor, goodbye=goodbye)
        if goodbye:
            room.run(0.1)
            assert all(set(device.core.sessions.peers()) == ids - {device.id} for device in room.on())
    room.run(1.0 if goodbye else GONE_S)
    assert all(set(device.core.sessions.peers()) == ids - {device.id} for device in room.on())
    room.run(15)
    assert session_tables(room) == before
    assert not failures(room)


@pytest.mark.parametrize("seed", seeds(2))
def test_an_observer_that_was_away_sees_the_group_again(seed: int) -> None:
    """A laptop with ``watch`` sleeps: the peers have dropped it, and it has to find that out by itself."""
    room = fleet_of(3, seed)
    visitor = room.visit(50, [0])
    assert room.run(10, lambda: is_told(room, visitor))
    room.partition([50])
    room.run(120)
    assert all(visitor.id not in device.core.sessions.peers() for device in room.on())
    assert not visitor.core.sessions.peers() and not visitor.core.answered
    room.heal()
    assert room.run(60, lambda: is_told(room, visitor))
    assert all(visitor.id in device.core.sessions.peers() for device in room.on())
    assert not failures(room)


def test_an_observer_that_is_stopped_for_a_while_finds_its_way_back() -> None:
    room = fleet_of(2, 3)
    visitor = room.visit(50, [0])
    assert room.run(10, lambda: is_told(room, visitor))
    room.network.stall(visitor.id, 60)
    room.run(59)
    assert all(visitor.id not in device.core.sessions.peers() for device in room.on())
    assert room.run(120, lambda: all(visitor.id in device.core.sessions.peers() for device in room.on()))
    room.end_visit(visitor, goodbye=True)
    room.run(1)
    assert all(visitor.id not in device.core.sessions.peers() for device in room.on())


def test_joiners_come_in_though_the_group_is_larger_than_its_room_for_visitors() -> None:
    """To who comes, everybody is a visitor until their records are here; and nobody is dropped for it."""
    room = Room(4)
    count = visitors.MAX_VISITORS + 4
    for number in range(count):
        room.add(number)
    everyone = {device.id for device in room.on()}
    assert room.run(60, lambda: all(device.core.membership.alive() | {device.id} == everyone for device in room.on()))
    room.run(GONE_S)
    assert all(set(device.core.sessions.peers()) | {device.id} == everyone for device in room.on())
    assert not failures(room) and not any(device.note_kinds()["link-closed"] for device in room.on())


def test_a_joiner_whose_record_is_held_up_stays_and_joins() -> None:
    """Its records are lost for a minute: it talks, so it stays; then they come."""
    room = fleet_of(2, 5)
    joiner = room.add(2, job=job("tasks", rounds=10_000))
    known = [device.core.records for device in room.on()[:2]]
    held = [book.received for book in known]
    for book in known:
        book.received = lambda sender, message, now, book=book: (  # type: ignore[method-assign]
            [] if not isinstance(message, RecordDigest) else type(book).received(book, sender, message, now)
        )
    room.run(60)
    assert all(joiner.id in device.core.sessions.peers() for device in room.on()[:2])
    for book, received in zip(known, held, strict=True):
        book.received = received  # type: ignore[method-assign]
    assert room.run(30, lambda: all(joiner.id in device.core.membership.alive() for device in room.on()[:2]))
    assert not failures(room)


def test_a_killed_observer_ends_a_transfer_that_served_it() -> None:
    room = fleet_of(2, 6)
    visitor = room.visit(50, [0])
    assert room.run(60, lambda: any(record.holdings for record in visitor.core.alive()))
    holding = next(h for record in visitor.core.alive() for h in record.holdings)
    visitor.fetch(holding)
    room.end_visit(visitor, goodbye=False)
    room.run(GONE_S)
    for device in room.on():
        assert visitor.id not in device.core.transfers._serving._queues
        assert not any(key[0] == visitor.id for key in device.core.transfers._serving._reading)

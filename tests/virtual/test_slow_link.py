"""A slow link that two sources flood: all that comes waits in one queue, pings and acks too, and nobody is called dead.

The queue has no end here: a router with much memory for a slow link (bufferbloat) is worse than one that drops.
"""

from __future__ import annotations

import random

import pytest
from peer_group import Room
from seeds import seeds

from p2ptrain.core.downloads import Downloads
from p2ptrain.ids import PeerId, blob_id
from p2ptrain.protocol.session.effects import SendFrames

RATE = 5e6 / 8
"""Of the link, 5 Mbit/s in bytes/s."""
BLOB_BYTES = 2_500_000
SOURCES = (1, 2)


class SlowRoom(Room):
    """All that goes to device 0 goes through one queue."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.free_at = 0.0
        self.longest_s = 0.0
        """That anything waited."""

    def send(self, who: PeerId, effect: SendFrames) -> None:
        to = self._by_address.get(effect.address)
        if to is None or to.number != 0:
            super().send(who, effect)
            return
        now, frames = self.network.now, [bytes(frame) for frame in effect.frames]
        self.free_at = max(now, self.free_at) + sum(map(len, frames)) / RATE
        self.longest_s = max(self.longest_s, self.free_at - now)
        self.network.at_host(
            to.id, self.free_at + self.conditions.delay_s, lambda: self._deliver(who, to, effect.lane, frames)
        )


@pytest.mark.parametrize("seed", seeds(2))
def test_nobody_is_called_dead_by_a_slow_link_that_two_sources_flood(seed: int) -> None:
    room = SlowRoom(seed)
    one, *_ = [room.add(number) for number in (0, *SOURCES)]
    room.run(3, lambda: all(len(device.core.membership.alive()) == 2 for device in room.on()))
    rng = random.Random(seed)
    blobs = {number: rng.randbytes(BLOB_BYTES) for number in SOURCES}
    downloads = Downloads(one.core.transfers, one.disk.__contains__)
    for number, data in blobs.items():
        source = room.devices[number]
        source.disk.put(data)
        fetch = downloads.fetch(blob_id(data), len(data), [source.id], one.now)
        room.perform(one, one.core.run(fetch, one.now))
    began = room.network.now
    assert room.run(120, lambda: all(blob_id(data) in one.disk for data in blobs.values()))
    took_s, at_least_s = room.network.now - began, 2 * BLOB_BYTES / RATE
    print(f"{took_s:.1f} s of at least {at_least_s:.1f} s; something waited {room.longest_s:.2f} s")
    assert took_s < 1.3 * at_least_s, "the link was used"
    told = [(device.number, note) for device in room.on() for _, note in device.notes if note.kind == "failed"]
    assert not told
    assert all(len(device.core.membership.alive()) == 2 for device in room.on())

"""Blobs over a simulated network that loses, doubles, delays and reorders, from sources that die, lie and stall."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.protocol.blobs.fetching import TransferConfig
from p2ptrain.protocol.blobs.transfer import FetchCompleted, FetchFailed, ReadChunk, Transfers, WriteChunk
from p2ptrain.protocol.machine import Send
from p2ptrain.wire.messages import Chunk

CONFIG = TransferConfig(
    first_chunk_bytes=700,
    min_chunk_bytes=300,
    max_chunk_bytes=4000,
    window=3,
    max_in_flight_bytes=10_000,
    max_fetches=2,
    max_timeout_s=5.0,
    idle_s=400.0,
    overall_s=600.0,
)
LIMIT_S = 10 * CONFIG.overall_s


@dataclass
class Peer:
    name: PeerId
    transfers: Transfers
    blobs: dict[BlobId, bytes] = field(default_factory=dict)
    incoming: dict[BlobId, bytearray] = field(default_factory=dict)
    failed: dict[BlobId, str] = field(default_factory=dict)
    dead: bool = False
    mute: bool = False
    lies: float = 0.0
    """Share of the chunks it serves that are wrong."""
    broken_by: list[tuple[PeerId, str]] = field(default_factory=list)


class Room:
    """Peers, and the network between them."""

    def __init__(
        self, seed: int, loss: float, doubles: float, bytes_per_s: float, delay_s: float = 0.0, limit_s: float = LIMIT_S
    ) -> None:
        self.delay_s, self.limit_s = delay_s, limit_s
        self.rng = random.Random(seed)
        self.loss, self.doubles, self.bytes_per_s = loss, doubles, bytes_per_s
        self.now = 0.0
        self.peers: dict[PeerId, Peer] = {}
        self._events: list = []
        self._count = 0
        self._free_at: dict[PeerId, float] = {}

    def add(self, name: str, config: TransferConfig = CONFIG, **traits) -> Peer:
        peer = Peer(PeerId(name * 16), Transfers(config), **traits)
        self.peers[peer.name] = peer
        return peer

    def at(self, when: float, action) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def carry_out(self, peer: Peer, effects) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._send(peer, to, message)
                case ReadChunk(to, blob, offset, length):
                    data = peer.blobs.get(blob, b"")[offset : offset + length]
                    if len(data) != length:
                        self.carry_out(peer, peer.transfers.unknown(to, blob))
                        continue
                    if self.rng.random() < peer.lies:
                        data = bytes(255 - byte for byte in data)
                    self.carry_out(peer, peer.transfers.chunk_read(to, blob, offset, data))
                case WriteChunk(blob, offset, data):
                    peer.incoming[blob][offset : offset + len(data)] = data
                case FetchCompleted(blob):
                    if blob_id(peer.incoming[blob]) == blob:
                        peer.blobs[blob] = bytes(peer.incoming.pop(blob))
                        self.carry_out(peer, peer.transfers.verified(blob, self.now))
                    else:
                        self.carry_out(peer, peer.transfers.corrupt(blob, self.now))
                case FetchFailed(blob, reason):
                    peer.failed[blob] = reason
        assert peer.transfers.in_flight_bytes <= peer.transfers._config.max_in_flight_bytes

    def _send(self, sender: Peer, to: PeerId, message) -> None:
        size = len(message.data) if isinstance(message, Chunk) else 100
        leaves = max(self.now, self._free_at.get(sender.name, 0.0)) + size / self.bytes_per_s
        self._free_at[sender.name] = leaves
        for _ in range(1 + (self.rng.random() < self.doubles)):
            if self.rng.random() >= self.loss:
                self.at(leaves + self.delay_s + self.rng.expovariate(20.0), lambda: self._arrive(sender, to, message))

    def _arrive(self, sender: Peer, to: PeerId, message) -> None:
        peer = self.peers[to]
        if peer.dead or peer.mute or sender.dead:
            return
        try:
            self.carry_out(peer, peer.transfers.received(sender.name, message, self.now))
        except RemoteError as error:
            peer.broken_by.append((sender.name, error.reason))

    def fetch(self, peer: Peer, data: bytes, sources: list[Peer]) -> None:
        blob = blob_id(data)
        peer.incoming[blob] = bytearray(len(data))
        names = [source.name for source in sources]
        self.carry_out(peer, peer.transfers.fetch(blob, len(data), names, self.now))

    def kill(self, peer: Peer, noticed_after: float) -> None:
        peer.dead = True

        def notice() -> None:
            for other in self.peers.values():
                self.carry_out(other, other.transfers.peer_gone(peer.name, self.now))

        self.at(self.now + noticed_after, notice)

    def run(self, peer: Peer) -> None:
        """Until ``peer`` has nothing left to fetch."""
        while peer.transfers.progress():
            deadline = peer.transfers.next_deadline()
            arrives = self._events[0][0] if self._events else float("inf")
            assert min(deadline, arrives) < float("inf"), "a fetch waits for nothing"
            self.now = max(self.now, min(deadline, arrives))
            assert self.now < self.limit_s, peer.transfers.progress()
            if arrives <= deadline:
                heapq.heappop(self._events)[2]()
            else:
                self.carry_out(peer, peer.transfers.tick(self.now))


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_a_long_way_is_used_as_well_as_a_short_one(delay_s: float) -> None:
    """A link of 1 Mbit/s brings 10 MB in 80 s, however long its way is: a tenth more, and some round trips to begin."""
    room = Room(1, 0.0, 0.0, 125_000, delay_s, 1000.0)
    source, peer = room.add("a", TransferConfig()), room.add("b", TransferConfig())
    data = random.Random(1).randbytes(10_000_000)
    source.blobs[blob_id(data)] = data
    room.fetch(peer, data, [source])
    room.run(peer)
    assert peer.blobs == {blob_id(data): data} and not peer.failed
    assert room.now < 1.1 * 80 + 10 * delay_s


@pytest.mark.parametrize("seed", range(3))
def test_a_long_way_that_loses_a_twentieth_gets_through(seed: int) -> None:
    room = Room(seed, 0.05, 0.05, 125_000, 2.0, 1000.0)
    source, peer = room.add("a", TransferConfig()), room.add("b", TransferConfig())
    data = random.Random(1).randbytes(5_000_000)
    source.blobs[blob_id(data)] = data
    room.fetch(peer, data, [source])
    room.run(peer)
    assert peer.blobs == {blob_id(data): data} and not peer.failed


SOURCES = st.lists(
    st.sampled_from(["good", "dies", "mute", "liar", "half-liar", "empty", "stalls"]), min_size=1, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(
    kinds=SOURCES,
    size=st.integers(1, 60_000),
    seed=st.integers(0, 10**6),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    doubles=st.sampled_from([0.0, 0.3]),
    bytes_per_s=st.sampled_from([5e3, 1e5, 1e7]),
)
def test_completes_with_the_right_bytes_or_fails_in_time(kinds, size, seed, loss, doubles, bytes_per_s):
    room = Room(seed, loss, doubles, bytes_per_s)
    data = room.rng.randbytes(size)
    me = room.add("z")
    sources = []
    for name, kind in zip("abcd", kinds, strict=False):
        source = room.add(name, blobs={} if kind == "empty" else {blob_id(data): data})
        sources.append(source)
        source.mute = kind == "mute"
        source.lies = {"liar": 1.0, "half-liar": 0.4}.get(kind, 0.0)
        when = room.rng.uniform(0.0, 2 * size / bytes_per_s)
        if kind == "dies":
            room.at(when, lambda source=source: room.kill(source, room.rng.uniform(0.0, 5.0)))
        if kind == "stalls":
            room.at(when, lambda source=source: setattr(source, "mute", True))
            room.at(when + 20.0, lambda source=source: setattr(source, "mute", False))
    room.fetch(me, data, sources)
    room.run(me)
    if "good" in kinds:
        assert me.failed == {}, (kinds, me.failed)
    assert (blob_id(data) in me.blobs) != (blob_id(data) in me.failed)
    assert me.blobs.get(blob_id(data), data) == data
    assert me.broken_by == [], "late and double chunks are nobody's fault"


@pytest.mark.parametrize("bytes_per_s", [2e5, 1e8])
def test_many_blobs_from_a_few_peers(bytes_per_s):
    room = Room(3, 0.02, 0.02, bytes_per_s)
    datas = [room.rng.randbytes(20_000 + n) for n in range(30)]
    sources = [room.add(name, blobs={blob_id(data): data for data in datas}) for name in "abc"]
    me, other = room.add("y"), room.add("z")
    for data in datas:
        room.fetch(me, data, room.rng.sample(sources, 3))
        room.fetch(other, data, room.rng.sample(sources, 3))
    room.at(0.5, lambda: room.kill(sources[0], 3.0))

    def keep_ticking() -> None:
        room.carry_out(other, other.transfers.tick(room.now))
        room.at(room.now + 0.1, keep_ticking)

    keep_ticking()
    room.run(me)
    assert set(me.blobs.values()) == set(datas)
    assert room.now < 10 * sum(map(len, datas)) / bytes_per_s + 60


def test_without_loss_nothing_is_asked_twice():
    room = Room(1, 0.0, 0.0, 2e4)
    data = room.rng.randbytes(300_000)
    source, me = room.add("a", blobs={blob_id(data): data}), room.add("z")
    sent = []
    deliver = room._send

    def count(sender, to, message):
        if isinstance(message, Chunk):
            sent.append(len(message.data))
        deliver(sender, to, message)

    room._send = count
    room.fetch(me, data, [source])
    room.run(me)
    assert me.blobs[blob_id(data)] == data
    assert sum(sent) == len(data)
    assert room.now < 1.2 * len(data) / 2e4 + 1


def test_a_blob_passes_on_along_a_chain_while_its_owner_dies():
    room = Room(5, 0.05, 0.05, 1e6)
    data = room.rng.randbytes(50_000)
    owner = room.add("a", blobs={blob_id(data): data})
    first, second = room.add("b"), room.add("c")
    room.fetch(first, data, [owner])
    room.run(first)
    room.kill(owner, 2.0)
    room.fetch(second, data, [owner, first])
    room.run(second)
    assert second.blobs[blob_id(data)] == data

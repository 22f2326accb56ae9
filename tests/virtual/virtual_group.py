"""Whole peers over the simulated network: membership, records and gossip, with a toy trainer of a few numbers each.

A failing run names its seed; ``P2PTRAIN_SEED=<seed> pytest <test>`` repeats just that one.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable

from p2ptrain.ids import PeerId, blob_id, peer_id
from p2ptrain.net.simulated import Conditions, SimulatedNetwork
from p2ptrain.protocol import gossip
from p2ptrain.protocol.gossip import ExchangeEnded, FetchAndMerge, Gossip, GossipConfig, MakePayload
from p2ptrain.protocol.group.membership import LAN, Membership, MembershipConfig, PeerFailed, PeerJoined
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.protocol.machine import NEVER
from p2ptrain.wire.messages import (
    NO_PART,
    Ack,
    GossipPush,
    Message,
    Ping,
    PingRequest,
    Record,
    RecordDigest,
    Records,
    ShardMass,
)

SHARD = "all"
ROUND_S = 0.25


def seeds(count: int) -> list[int]:
    """``count`` of them, or the one to repeat."""
    wanted = os.environ.get("P2PTRAIN_SEED")
    return [int(wanted)] if wanted else list(range(count))


def key(number: int) -> bytes:
    return b"%040d" % number


def peer_ids(count: int) -> list[PeerId]:
    return [peer_id(key(number)) for number in range(count)]


def record(number: int, **changes: object) -> Record:
    plain: dict[str, object] = dict(
        peer=peer_id(key(number)), version=1, key=key(number), name=f"peer {number}", addresses=(), job="", counts=(),
        wishes=(), flops_per_s=0.0, memory_bytes=0, epoch=0, plan="", part=NO_PART, phase="waiting", round=0, step=0,
        samples=0, loss=0.0, samples_per_s=0.0, bytes_sent=0, waiting_for="", holdings=(),
    )  # fmt: skip
    return Record(**(plain | changes))  # type: ignore[arg-type]


class MembershipHost:
    """A peer that is nothing but a member."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        assert isinstance(message, (Ping, PingRequest, Ack))
        return list(self.membership.received(sender, message, now))

    def tick(self, now: float) -> list[object]:
        return list(self.membership.tick(now))

    def next_deadline(self) -> float:
        return self.membership.next_deadline()


class FullPeer:
    """Membership, records, gossip and a toy trainer: ``values`` and their push-sum ``mass``."""

    def __init__(self, number: int, seed: int, now: float, members: Iterable[PeerId], config: MembershipConfig) -> None:
        rng = random.Random(f"{seed}/{number}")
        self.id = peer_id(key(number))
        self.membership = Membership(self.id, rng, now, config, members=members)
        self.book = RecordBook(record(number), rng, now)
        self.gossip = Gossip(self.id, rng, GossipConfig(ceiling_s=2.0))
        self.values = [rng.gauss(0, 1) for _ in range(4)]
        self.mass = rng.uniform(0.5, 2.0)
        self.next_round = NEVER
        self._alive: frozenset[PeerId] = frozenset()

    def train(self, everyone: Iterable[PeerId], now: float) -> None:
        """From now on finish a round every ``ROUND_S``."""
        self.gossip.shards({peer: (SHARD,) for peer in everyone}, (SHARD,), 1, now)
        self.next_round = now + ROUND_S

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        if isinstance(message, (RecordDigest, Records)):
            return list(self.book.received(sender, message, now))
        if isinstance(message, GossipPush):
            return list(self.gossip.received(sender, message, now))
        assert isinstance(message, (Ping, PingRequest, Ack))
        return self._with_alive(list(self.membership.received(sender, message, now)), now)

    def tick(self, now: float) -> list[object]:
        effects = self._with_alive(list(self.membership.tick(now)), now)
        effects += self.book.tick(now) + self.gossip.tick(now)
        if self.next_round <= now:
            self.next_round = now + ROUND_S
            effects += self.gossip.round_finished(now)
        return effects

    def next_deadline(self) -> float:
        timers = (self.membership.next_deadline(), self.book.next_deadline(), self.gossip.next_deadline())
        return min(*timers, self.next_round)

    def _with_alive(self, effects: list[object], now: float) -> list[object]:
        alive = self.membership.alive()
        if alive is not self._alive:
            self._alive = alive
            self.book.peers_alive(alive, now)
            effects += self.gossip.peers_alive(alive, now)
        return effects


class Group:
    """``count`` full peers that know each other from the start."""

    def __init__(
        self, count: int, seed: int, conditions: Conditions, config: MembershipConfig = LAN, *, codec: bool = False
    ) -> None:
        self.seed = seed
        self.config = config
        self.rng = random.Random(f"{seed}/group")
        self.network = SimulatedNetwork(seed, conditions, on_effect=self._carry_out, through_codec=codec)
        self.peers: dict[PeerId, FullPeer] = {}
        self.events: list[tuple[float, PeerId, object]] = []
        self._blobs: dict[str, tuple[list[float], float]] = {}
        self.outcomes: dict[str, int] = {}
        everyone = peer_ids(count)
        for number in range(count):
            self.add(number, everyone)

    def add(self, number: int, members: Iterable[PeerId] = ()) -> FullPeer:
        peer = FullPeer(number, self.seed, self.network.now, members, self.config)
        self.peers[peer.id] = peer
        self.network.add(peer.id, peer)
        return peer

    def crash(self, peer: PeerId) -> None:
        del self.peers[peer]
        self.network.crash(peer)

    def link(self, one: PeerId, other: PeerId) -> None:
        """Both admit the other, as after a handshake."""
        now = self.network.now
        self.network.perform(one, self.peers[one].membership.peer_reachable(other, now))
        self.network.perform(other, self.peers[other].membership.peer_reachable(one, now))

    def times_of(self, kind: type[PeerJoined] | type[PeerFailed], peer: PeerId) -> dict[PeerId, float]:
        """When each learnt it first."""
        times: dict[PeerId, float] = {}
        for when, who, event in self.events:
            if isinstance(event, kind) and event.peer == peer:
                times.setdefault(who, when)
        return times

    def consensus_distance(self) -> float:
        """Root mean square distance of the peers' values from their mean."""
        columns = list(zip(*(peer.values for peer in self.peers.values()), strict=True))
        means = [sum(column) / len(column) for column in columns]
        squares = sum((value - mean) ** 2 for column, mean in zip(columns, means, strict=True) for value in column)
        return math.sqrt(squares / len(self.peers))

    def _carry_out(self, who: PeerId, effect: object, now: float) -> None:
        peer = self.peers.get(who)
        if peer is None:
            return
        if isinstance(effect, MakePayload):
            self.network.at(now + self.rng.uniform(0.01, 0.03), lambda: self._make(peer, effect))
        elif isinstance(effect, FetchAndMerge):
            self.network.at(now + self.rng.uniform(0.02, 0.08), lambda: self._merge(peer, effect))
        elif isinstance(effect, ExchangeEnded):
            self.outcomes[effect.outcome] = self.outcomes.get(effect.outcome, 0) + 1
        elif isinstance(effect, (PeerJoined, PeerFailed)):
            self.events.append((now, who, effect))

    def _make(self, peer: FullPeer, effect: MakePayload) -> None:
        if peer.id in self.peers:
            peer.mass, sent = gossip.halve(peer.mass)
            blob = blob_id(f"{peer.id}{effect.exchange}".encode())
            self._blobs[blob] = (list(peer.values), sent)
            masses = (ShardMass(SHARD, sent),)
            now = self.network.now
            self.network.perform(peer.id, peer.gossip.payload_ready(effect.exchange, blob, 32, masses, now))

    def _merge(self, peer: FullPeer, effect: FetchAndMerge) -> None:
        if peer.id in self.peers:
            values, mass = self._blobs[effect.blob]
            assert mass == effect.masses[0].mass
            peer.values, peer.mass = gossip.merge(peer.values, peer.mass, values, mass)
            self.network.perform(peer.id, peer.gossip.merged(effect.exchange, self.network.now))

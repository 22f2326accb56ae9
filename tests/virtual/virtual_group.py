"""Peers over the simulated network: membership, records and gossip, with a few numbers each in place of parameters."""

from __future__ import annotations

import random
from collections.abc import Iterable

from records import book, membership, record

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.gossip import ExchangeEnded, Gossip, GossipConfig
from p2ptrain.protocol.group.records import RECORD_MESSAGES
from p2ptrain.protocol.group.swim import LAN, MembershipConfig, PeerFailed, PeerJoined
from p2ptrain.simulation.averaging import SHARD, Averager, Averaging, distance
from p2ptrain.simulation.names import key, peer_ids
from p2ptrain.simulation.network import Conditions, SimulatedNetwork
from p2ptrain.wire.messages import Ack, Message, Ping, PingRequest

ROUND_S = 0.25


class FullPeer(Averager):
    """Membership, records, gossip and a trainer of a few numbers."""

    def __init__(self, number: int, seed: int, now: float, members: Iterable[PeerId], config: MembershipConfig) -> None:
        rng = random.Random(f"{seed}/{number}")
        self.id = peer_id(key(number))
        self.membership = membership(self.id, rng, now, config, members=members)
        self.book = book(record(number), rng, now)
        super().__init__(Gossip(self.id, rng, GossipConfig(ceiling_s=2.0)), rng)
        self._alive: frozenset[PeerId] = frozenset()

    def begin(self, everyone: Iterable[PeerId], now: float) -> None:
        """From now on finish a round every ``ROUND_S``."""
        self.machine.shards({peer: (SHARD,) for peer in everyone}, (SHARD,), 1, now)
        self.train(ROUND_S, now + ROUND_S)

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        if isinstance(message, RECORD_MESSAGES):
            return list(self.book.received(sender, message, now))
        if isinstance(message, (Ping, PingRequest, Ack)):
            return self._with_alive(list(self.membership.received(sender, message, now)), now)
        return super().handle(sender, message, now)

    def tick(self, now: float) -> list[object]:
        effects = self._with_alive(list(self.membership.tick(now)), now)
        return [*effects, *self.book.tick(now), *super().tick(now)]

    def next_deadline(self) -> float:
        return min(self.membership.next_deadline(), self.book.next_deadline(), super().next_deadline())

    def _with_alive(self, effects: list[object], now: float) -> list[object]:
        alive = self.membership.alive()
        if alive is not self._alive:
            for peer in sorted(alive - self._alive):  # sessions dial whoever becomes known
                effects += self.membership.peer_reachable(peer, now)
            self._alive = alive
            self.book.peers_alive(alive, now)
            effects += self.machine.peers_alive(alive, now)
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
        self.outcomes: dict[str, int] = {}
        self._averaging = Averaging(self.network, self.rng, self.peers)
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
        return distance(self.peers.values())

    def _carry_out(self, who: PeerId, effect: object, now: float) -> list[object]:
        if who in self.peers and isinstance(effect, ExchangeEnded):
            self.outcomes[effect.outcome] = self.outcomes.get(effect.outcome, 0) + 1
        elif who in self.peers and isinstance(effect, (PeerJoined, PeerFailed)):
            self.events.append((now, who, effect))
        return self._averaging.carry_out(who, effect, now)

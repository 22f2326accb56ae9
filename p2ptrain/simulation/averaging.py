"""Gossip over a few numbers in place of parameters: every peer has values and their push-sum mass.

Invariant: a payload that nobody fetched gives its mass back, as in ``modes/tasks/averaging/payloads.py``. Training
itself is left to whoever sets a peer's values.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping

from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.protocol import push_sum
from p2ptrain.protocol.gossip import ExchangeEnded, FetchAndMerge, Gossip, MakePayload
from p2ptrain.protocol.machine import NEVER
from p2ptrain.simulation.network import SimulatedNetwork
from p2ptrain.wire.messages import Message, ShardMass

MAKE_S = (0.01, 0.03)
TRANSFER_S = (0.02, 0.08)
"""To make a payload, and to fetch and merge one: drawn evenly from these."""
NUM_VALUES = 4
SHARD = "all"


class Averager:
    """One peer's numbers. It starts an exchange whenever a round ends, from ``train`` on."""

    def __init__(self, machine: Gossip, rng: random.Random) -> None:
        self.machine = machine
        self.values = [rng.gauss(0, 1) for _ in range(NUM_VALUES)]
        self.mass = rng.uniform(0.5, 2.0)
        self.num_payloads = 0
        self.num_rounds = 0
        self._round_s = 0.0
        self._next_round = NEVER

    def train(self, round_s: float, first: float) -> None:
        """The first round ends at ``first``, and another every ``round_s``."""
        self._round_s, self._next_round = round_s, first

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        return list(self.machine.received(sender, message, now))  # type: ignore[arg-type]

    def tick(self, now: float) -> list[object]:
        effects: list[object] = list(self.machine.tick(now))
        if self._next_round <= now:
            self._next_round = now + self._round_s
            self.num_rounds += 1
            effects += self.machine.round_finished(self.num_rounds, now)
        return effects

    def next_deadline(self) -> float:
        return min(self.machine.next_deadline(), self._next_round)


class Averaging:
    """What all the peers' gossip asks for. ``peers``: those that are there; whoever is not does nothing."""

    def __init__(self, network: SimulatedNetwork, rng: random.Random, peers: Mapping[PeerId, Averager]) -> None:
        self._network = network
        self._rng = rng
        self._peers = peers
        self._blobs: dict[BlobId, tuple[list[float], float]] = {}
        self._published: dict[tuple[PeerId, int], BlobId] = {}

    def carry_out(self, who: PeerId, effect: object, now: float) -> list[object]:
        """What isn't gossip's is left alone."""
        peer = self._peers.get(who)
        if peer is None:
            return []
        if isinstance(effect, MakePayload):
            self._network.at(now + self._rng.uniform(*MAKE_S), lambda: self._make(who, peer, effect))
        elif isinstance(effect, FetchAndMerge):
            payload = self._blobs.pop(effect.blob, None)
            if payload is None:  # withdrawn
                return list(peer.machine.failed(effect.exchange, now))
            self._network.at(now + self._rng.uniform(*TRANSFER_S), lambda: self._merge(who, peer, effect, *payload))
        elif isinstance(effect, ExchangeEnded):
            blob = self._published.pop((who, effect.exchange), None)
            if blob in self._blobs and effect.outcome != "done":  # nobody fetched it: its mass comes back
                peer.mass += self._blobs.pop(blob)[1]
        return []

    def _make(self, who: PeerId, peer: Averager, effect: MakePayload) -> None:
        if who not in self._peers or not peer.machine.awaits_payload(effect.exchange):
            return
        peer.mass, sent = push_sum.halve(peer.mass)
        peer.num_payloads += 1
        blob = blob_id(f"{who}{effect.exchange}".encode())
        self._blobs[blob], self._published[who, effect.exchange] = (list(peer.values), sent), blob
        masses, now = (ShardMass(SHARD, sent),), self._network.now
        self._network.perform(who, peer.machine.payload_ready(effect.exchange, blob, 32, masses, now))

    def _merge(self, who: PeerId, peer: Averager, effect: FetchAndMerge, values: list[float], mass: float) -> None:
        if who not in self._peers:
            return
        peer.values, peer.mass = push_sum.merge(peer.values, peer.mass, values, mass)
        self._network.perform(who, peer.machine.merged(effect.exchange, self._network.now))


def distance(peers: Iterable[Averager]) -> float:
    """Root mean square distance of the peers' values from their mean."""
    columns = list(zip(*(peer.values for peer in peers), strict=True))
    return math.sqrt(sum(statistics.pvariance(column, statistics.fmean(column)) for column in columns))


def weighted_mean(peers: Iterable[Averager]) -> list[float]:
    """What push-sum finds: the mean of the values by mass."""
    everyone = list(peers)
    total = math.fsum(peer.mass for peer in everyone)
    return [math.fsum(peer.mass * peer.values[i] for peer in everyone) / total for i in range(NUM_VALUES)]

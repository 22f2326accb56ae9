"""How a group of any size averages, in virtual time: push-sum gossip as this project has it, and one central averager.

Every peer is a ``Gossip`` machine over the simulated network, with a few numbers in place of parameters and random
masses. Training stands still meanwhile (it would keep the copies apart), and all start from unrelated numbers (peers
start from the same weights), so this is the averaging alone, from the worst start. A payload that nobody fetched gives
its mass back, as in ``modes/tasks/payloads.py``. Not simulated: sessions, bandwidth shared by transfers.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable

from benchmarks.virtual import WIRELESS, neighbours, peer_ids
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.net.simulated import SimulatedNetwork
from p2ptrain.protocol import gossip
from p2ptrain.protocol.gossip import ExchangeEnded, FetchAndMerge, Gossip, MakePayload
from p2ptrain.wire.messages import GossipPush, Message, ShardMass

ROUND_S = 1.0
"""A round of training, after which each starts an exchange; a fifth more or less from peer to peer."""
MAKE_S = (0.01, 0.03)
TRANSFER_S = (0.02, 0.08)
"""To make a payload, and to fetch and merge one: drawn evenly from these, for gossip and for its baseline alike."""
NUM_VALUES = 4
SHARD = "all"


class _Averager:
    """Gossip over a few numbers: ``values`` and their push-sum ``mass``."""

    def __init__(self, machine: Gossip, rng: random.Random, round_s: float) -> None:
        self.machine = machine
        self.values = [rng.gauss(0, 1) for _ in range(NUM_VALUES)]
        self.mass = rng.uniform(0.5, 2.0)
        self.num_payloads = 0
        self._round_s = round_s
        self._next_round = rng.random() * round_s

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        assert isinstance(message, GossipPush)
        return list(self.machine.received(sender, message, now))

    def tick(self, now: float) -> list[object]:
        effects: list[object] = list(self.machine.tick(now))
        if self._next_round <= now:
            self._next_round = now + self._round_s
            effects += self.machine.round_finished(now)
        return effects

    def next_deadline(self) -> float:
        return min(self.machine.next_deadline(), self._next_round)


def reach_consensus(
    num_peers: int, seed: int, *, num_links: int, goal: float = 0.01, give_up_s: float = 120.0
) -> dict[str, float]:
    """Push-sum until the distance from the mean is below ``goal`` of what it was. Training itself stands still."""
    rng = random.Random(f"{seed}/{num_peers}/consensus")
    everyone = peer_ids(num_peers)
    hosts: dict[PeerId, _Averager] = {}
    blobs: dict[BlobId, tuple[list[float], float]] = {}
    published: dict[tuple[PeerId, int], BlobId] = {}

    def carry_out(who: PeerId, effect: object, now: float) -> list[object]:
        if isinstance(effect, MakePayload):
            network.at(now + rng.uniform(*MAKE_S), lambda: make(who, effect))
        elif isinstance(effect, FetchAndMerge):
            payload = blobs.pop(effect.blob, None)
            if payload is None:  # withdrawn
                return list(hosts[who].machine.failed(effect.exchange, now))
            network.at(now + rng.uniform(*TRANSFER_S), lambda: merge(who, effect, *payload))
        elif isinstance(effect, ExchangeEnded):
            blob = published.pop((who, effect.exchange), None)
            if blob in blobs and effect.outcome != "done":  # nobody fetched it: its mass comes back
                hosts[who].mass += blobs.pop(blob)[1]
        return []

    def make(who: PeerId, effect: MakePayload) -> None:
        host = hosts[who]
        host.mass, sent = gossip.halve(host.mass)
        host.num_payloads += 1
        blob = blob_id(f"{who}{effect.exchange}".encode())
        blobs[blob], published[who, effect.exchange] = (list(host.values), sent), blob
        masses = (ShardMass(SHARD, sent),)
        network.perform(who, host.machine.payload_ready(effect.exchange, blob, 32, masses, network.now))

    def merge(who: PeerId, effect: FetchAndMerge, values: list[float], mass: float) -> None:
        host = hosts[who]
        host.values, host.mass = gossip.merge(host.values, host.mass, values, mass)
        network.perform(who, host.machine.merged(effect.exchange, network.now))

    network = SimulatedNetwork(seed, WIRELESS, on_effect=carry_out)
    shard = frozenset((SHARD,))
    for number, linked in enumerate(neighbours(num_peers, num_links, rng)):
        own = random.Random(f"{seed}/{number}")
        machine = Gossip(everyone[number], own)
        machine.shards({everyone[other]: shard for other in linked}, shard, 1, 0.0)
        machine.peers_alive([everyone[other] for other in linked], 0.0)
        hosts[everyone[number]] = host = _Averager(machine, own, ROUND_S * own.uniform(0.8, 1.2))
        network.add(everyone[number], host)
    start = _distance(hosts.values())
    truth = _weighted_mean(hosts.values())
    reached = network.run(give_up_s, lambda: _distance(hosts.values()) < goal * start, every_s=0.1 * ROUND_S)
    middle = [statistics.fmean(column) for column in zip(*(host.values for host in hosts.values()), strict=True)]
    payloads = [host.num_payloads for host in hosts.values()]
    return {
        "peers": num_peers,
        "payloads_per_peer": statistics.fmean(payloads),
        "payloads_busiest": max(payloads),
        "bias_share": math.dist(middle, truth) / start,
        "left_share": _distance(hosts.values()) / start,
    } | ({"rounds": network.now / ROUND_S, "consensus_s": network.now} if reached else {})


def average_centrally(num_peers: int, seed: int) -> dict[str, float]:
    """The baseline: at the end of its round each sends its payload to one, who returns the mean to all.

    That one's link carries one payload at a time. Nobody is lost, and nobody goes on before it has the mean.
    """
    rng = random.Random(f"{seed}/{num_peers}/central")
    ready = sorted(rng.random() * ROUND_S for _ in range(num_peers - 1))
    network = SimulatedNetwork(seed)
    free_at = 0.0
    for when in ready:
        free_at = max(free_at, when + rng.uniform(*MAKE_S)) + rng.uniform(*TRANSFER_S)
    for _ in ready:
        free_at += rng.uniform(*TRANSFER_S)
    done: list[float] = []
    network.at(free_at, lambda: done.append(network.now))
    network.run(free_at)
    return {
        "peers": num_peers,
        "rounds": done[0] / ROUND_S,
        "consensus_s": done[0],
        "payloads_per_peer": 2 * (num_peers - 1) / num_peers,
        "payloads_busiest": num_peers - 1,
    }


def _distance(hosts: Iterable[_Averager]) -> float:
    """Root mean square distance of the peers' values from their mean."""
    columns = list(zip(*(host.values for host in hosts), strict=True))
    return math.sqrt(sum(statistics.pvariance(column, statistics.fmean(column)) for column in columns))


def _weighted_mean(hosts: Iterable[_Averager]) -> list[float]:
    everyone = list(hosts)
    total = math.fsum(host.mass for host in everyone)
    return [math.fsum(host.mass * host.values[i] for host in everyone) / total for i in range(NUM_VALUES)]

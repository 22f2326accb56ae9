"""How a group of any size averages, in virtual time: push-sum gossip as this project has it, and one central averager.

Every peer is a ``Gossip`` machine over the simulated network, with a few numbers in place of parameters and random
masses. Training stands still meanwhile (it would keep the copies apart), and all start from unrelated numbers (peers
start from the same weights), so this is the averaging alone, from the worst start. Not simulated: sessions, bandwidth
shared by transfers.
"""

from __future__ import annotations

import math
import random
import statistics

from benchmarks.virtual import neighbours
from p2ptrain.ids import PeerId
from p2ptrain.protocol.gossip import Gossip
from p2ptrain.simulation.averaging import MAKE_S, SHARD, TRANSFER_S, Averager, Averaging, distance, weighted_mean
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import WIRELESS, SimulatedNetwork

ROUND_S = 1.0
"""A round of training, after which each starts an exchange; a fifth more or less from peer to peer."""


def reach_consensus(
    num_peers: int, seed: int, *, num_links: int, goal: float = 0.01, give_up_s: float = 120.0
) -> dict[str, float]:
    """Push-sum until the distance from the mean is below ``goal`` of what it was. Training itself stands still."""
    rng = random.Random(f"{seed}/{num_peers}/consensus")
    everyone = peer_ids(num_peers)
    hosts: dict[PeerId, Averager] = {}
    network = SimulatedNetwork(seed, WIRELESS, on_effect=lambda who, effect, now: averaging.carry_out(who, effect, now))
    averaging = Averaging(network, rng, hosts)
    shard = frozenset((SHARD,))
    for number, linked in enumerate(neighbours(num_peers, num_links, rng)):
        own = random.Random(f"{seed}/{number}")
        machine = Gossip(everyone[number], own)
        machine.shards({everyone[other]: shard for other in linked}, shard, 1, 0.0)
        machine.peers_alive([everyone[other] for other in linked], 0.0)
        round_s = ROUND_S * own.uniform(0.8, 1.2)
        hosts[everyone[number]] = host = Averager(machine, own)
        host.train(round_s, own.random() * round_s)
        network.add(everyone[number], host)
    start = distance(hosts.values())
    truth = weighted_mean(hosts.values())
    reached = network.run(give_up_s, lambda: distance(hosts.values()) < goal * start, every_s=0.1 * ROUND_S)
    middle = [statistics.fmean(column) for column in zip(*(host.values for host in hosts.values()), strict=True)]
    payloads = [host.num_payloads for host in hosts.values()]
    return {
        "peers": num_peers,
        "payloads_per_peer": statistics.fmean(payloads),
        "payloads_busiest": max(payloads),
        "bias_share": math.dist(middle, truth) / start,
        "left_share": distance(hosts.values()) / start,
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

"""Replicas in virtual time: real models that train on scikit-learn's digits, and the gossip of this project.

Every peer is a ``Gossip`` machine over the simulated network and a ``PartTraining``, whose steps take virtual time; a
fifth more or less from peer to peer. So bytes, averages a round, how far apart the copies are, and the accuracy of
their mean are functions of the seed: no machine needs to be calm for them. Bytes are those of the tensors in payloads.
Not simulated: sessions, records, bandwidth shared by transfers, copies kept by replica holders.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.experiment import measure
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.learning.averaging import consensus_distance, weighted_mean
from p2ptrain.learning.compression import payload_bytes
from p2ptrain.learning.data import Dataset, load, open_source
from p2ptrain.modes.tasks.averaging.exchanges import exchange_due, gossip_config
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.training import PartTraining
from p2ptrain.protocol.gossip import ExchangeEnded, FetchAndMerge, Gossip, MakePayload
from p2ptrain.protocol.machine import NEVER
from p2ptrain.simulation.averaging import MAKE_S, TRANSFER_S
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import LAN, SimulatedNetwork
from p2ptrain.wire.messages import Message, ShardMass

ROUND_S = 1.0
UNLIKE = 0.2
GRACE_S = 5.0
"""Until what is under way after the last round has come."""


class Replica:
    """One peer: a step every ``step_s``, an exchange after a round."""

    def __init__(self, own_id: PeerId, job: Job, training: PartTraining, rng: random.Random) -> None:
        self.machine = Gossip(own_id, rng, gossip_config(job))
        self.training = training
        self.num_payloads = self.num_bytes = 0
        self._job = job
        steps = math.ceil(training.num_samples / job.training.batch_size * job.training.epochs_per_round)
        round_s = ROUND_S * rng.uniform(1 - UNLIKE, 1 + UNLIKE)
        self._step_s = round_s / steps
        self._next = rng.random() * 0.1 * round_s

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        return list(self.machine.received(sender, message, now))  # type: ignore[arg-type]

    def tick(self, now: float) -> list[object]:
        effects: list[object] = list(self.machine.tick(now))
        if self._next <= now:
            self._next = now + self._step_s
            if self.training.step():
                number = exchange_due(self._job, self.training.round, finished=self.training.finished)
                effects += [] if number is None else self.machine.round_finished(number, now)
            if self.training.finished:
                self._next = NEVER
        return effects

    def next_deadline(self) -> float:
        return min(self.machine.next_deadline(), self._next)

    def state(self) -> dict[str, torch.Tensor]:
        return {n: t.detach().clone() for n, t in self.training.trainer.model.state_dict().items()}


def train(job: Job, data: Sequence[Dataset], test: Dataset) -> dict[str, float]:
    """A group of one peer for each share of the samples, to the end of training; and what came out."""
    torch.set_num_threads(1)
    names = peer_ids(len(data))
    counts = [tuple(int((share.y == c).sum()) for c in range(len(job.data.classes))) for share in data]
    plan = first_plan(job, [PeerSnapshot(n, 1e9, 0, c, ()) for n, c in zip(names, counts, strict=True)], names[0])
    hosts: dict[PeerId, Replica] = {}
    blobs: dict[BlobId, tuple[tuple[ShardMass, ...], dict[str, torch.Tensor]]] = {}
    published: dict[tuple[PeerId, int], BlobId] = {}
    rng = random.Random(f"{job.seed}/{len(data)}")
    distances: dict[int, float] = {}

    def make(who: PeerId, effect: MakePayload) -> None:
        host = hosts[who]
        if not host.machine.awaits_payload(effect.exchange):  # the half that it would take along stays
            return
        masses, tensors = host.training.make_payload(effect.shards, effect.partner)
        payload = {n: t.clone() for n, t in tensors.items()}
        host.num_payloads += 1
        host.num_bytes += payload_bytes(payload)
        blob = blob_id(f"{who}{effect.exchange}".encode())
        sent = tuple(ShardMass(shard, mass) for shard, mass in masses.items())
        blobs[blob], published[who, effect.exchange] = (sent, payload), blob
        network.perform(who, host.machine.payload_ready(effect.exchange, blob, 32, sent, network.now))

    def merge(who: PeerId, effect: FetchAndMerge, payload: dict[str, torch.Tensor]) -> None:
        masses = {mass.shard: mass.mass for mass in effect.masses}
        hosts[who].training.merge(masses, payload, effect.sender, reply=effect.reply)
        network.perform(who, hosts[who].machine.merged(effect.exchange, network.now))

    def carry_out(who: PeerId, effect: Any, now: float) -> list[object]:
        if isinstance(effect, MakePayload):
            network.at(now + rng.uniform(*MAKE_S), lambda: make(who, effect))
        elif isinstance(effect, FetchAndMerge):
            if effect.blob not in blobs:
                return list(hosts[who].machine.failed(effect.exchange, now))
            payload = blobs.pop(effect.blob)[1]
            network.at(now + rng.uniform(*TRANSFER_S), lambda: merge(who, effect, payload))
        elif isinstance(effect, ExchangeEnded):
            blob = published.pop((who, effect.exchange), None)
            if blob in blobs and effect.outcome != "done":
                hosts[who].training.reclaim({mass.shard: mass.mass for mass in blobs.pop(blob)[0]})
        return []

    network = SimulatedNetwork(job.seed, LAN, on_effect=carry_out)
    for number, (name, share) in enumerate(zip(names, data, strict=True)):
        own = random.Random(f"{job.seed}/{number}")
        training = PartTraining(job, Parts(job, plan), 0, share, name)
        hosts[name] = host = Replica(name, job, training, own)
        shards = frozenset(training.masses)
        host.machine.shards(dict.fromkeys(names, shards), shards, 1, 0.0)
        host.machine.peers_alive([other for other in names if other != name], 0.0)
        network.add(name, host)

    def look() -> bool:
        slowest = min(host.training.round for host in hosts.values())
        if slowest not in distances:
            distances[slowest] = 100 * consensus_distance([h.state() for h in hosts.values()], relative=True)
        return all(host.training.finished for host in hosts.values())

    network.run(100 * ROUND_S * job.training.rounds, look, every_s=ROUND_S / 20)
    network.run(network.now + GRACE_S)
    everyone = list(hosts.values())
    distance = 100 * consensus_distance([h.state() for h in everyone], relative=True)
    model = Parts(job, plan).model
    model.load_state_dict(weighted_mean([(float(h.training.trainer.num_samples), h.state()) for h in everyone]))
    rounds = job.training.rounds
    own_accuracies = [
        measure.accuracy(h.training.trainer.model, test, len(job.data.classes)).accuracy for h in everyone
    ]
    return {
        "accuracy": 100 * measure.accuracy(model, test, len(job.data.classes)).accuracy,
        "own_accuracy": 100 * statistics.fmean(own_accuracies),
        "sent_mb": statistics.fmean(h.num_bytes for h in everyone) / 1e6,
        "payloads_a_round": statistics.fmean(h.num_payloads for h in everyone) / rounds,
        "distance": distance,
        "mean_distance": statistics.fmean(d for number, d in distances.items() if number),
    }


def digits_shares(job: Job, num_peers: int) -> tuple[list[Dataset], Dataset]:
    """The training samples, a share for each peer; and the test samples."""
    source = open_source("digits")
    whole = load(source, job.data, "train")
    order = random.Random(f"{job.seed}/shares").sample(range(len(whole)), len(whole))
    return [whole.subset(sorted(order[peer::num_peers])) for peer in range(num_peers)], load(source, job.data, "test")

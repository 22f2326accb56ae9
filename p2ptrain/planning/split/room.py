"""A checked task as tables: what each peer's blocks, links, memory and exchange cost.

Bytes of memory are those of ``pipeline.cost``: weights, gradients, optimizer state and buffers; for each micro-batch
under way the stored activations and the input; once the two largest activations, for the gradients between blocks.

Invariant: pure; two peers with the same task compute the same tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from p2ptrain.planning.pipeline.cost import CostModel, Floats
from p2ptrain.planning.pipeline.fleet import micro_batch_choices
from p2ptrain.planning.split.rounds.handing import carried_s
from p2ptrain.planning.split.task import SplitTask, check_split_task


@dataclass(frozen=True, slots=True)
class Alone:
    """What an owner without a helper does."""

    micro_batches: int
    batch_s: float
    round_s: float
    exchange_s: float


class Room:
    """The tables. Peers go by name, cuts by their place in ``cuts``."""

    def __init__(self, task: SplitTask) -> None:
        """Raises ``UserError``, as ``check_split_task`` does."""
        check_split_task(task)
        self.task = task
        self.tables = CostModel(task.as_pipeline)
        self.cuts = self.tables.cuts
        """Block index of every place where the model may be cut, its two ends among them."""
        self.peers = {peer.name: peer for peer in sorted(task.peers, key=lambda peer: peer.name)}
        self.owners = tuple(name for name, peer in self.peers.items() if peer.samples)
        self.helpers = tuple(name for name, peer in self.peers.items() if peer.may_help)
        """Who may be one, if it has the memory."""
        blocks = task.model.blocks
        travels = np.array([0, *(block.parameter_bytes + block.buffer_bytes for block in blocks)], dtype=np.float64)
        self.block_bytes: Floats = travels.cumsum()[np.array(self.cuts)]
        """Up to each cut: what averaging its blocks sends."""
        self._links = {frozenset((pair.one, pair.other)): pair.bytes_per_s for pair in task.pair_rates}
        self._seconds: dict[tuple[str, int], tuple[Floats, Floats]] = {}
        self._alone: dict[tuple[str, int], Alone | None] = {}

    @cached_property
    def tail_stop(self) -> int:
        """Where every tail ends, a place in ``cuts``: at the last one or, where labels stay, at the one before."""
        return len(self.cuts) - 1 - (self.task.labels == "stay")

    def kept_s(self, owner: str, samples: float) -> float:
        """Forward and backward of the blocks that an owner keeps behind its helper's, and the loss."""
        return float(sum(up_to[-1] - up_to[self.tail_stop] for up_to in self.seconds(owner, samples)))

    @cached_property
    def steps_a_round(self) -> int:
        """How often copies are averaged: with shared tails the gradients, after every step."""
        return self.task.batches_of(self.task.owners[0], 1) if self.task.tails == "shared" else 1

    def rate(self, sender: str, receiver: str) -> float:
        """Bytes/s that a link carries, whatever else goes on."""
        rates = [self.peers[sender].up, self.peers[receiver].down, self.task.medium_bytes_per_s]
        return min(*rates, self._links.get(frozenset((sender, receiver)), math.inf))

    def whole_rates(self, helper: str) -> tuple[float, float]:
        """Bytes/s, to the helper and from it, of all that its units share. Of a shared medium half is for each way."""
        if self.task.medium == "shared":
            return self.task.medium_bytes_per_s / 2, self.task.medium_bytes_per_s / 2
        return self.peers[helper].down, self.peers[helper].up

    def granted(self, owner: str, helper: str, share: float) -> tuple[float, float]:
        """Bytes/s up and down of a unit with that share."""
        there, back = self.whole_rates(helper)
        return min(self.rate(owner, helper), share * there), min(self.rate(helper, owner), share * back)

    def exchange_s(self, peer: str, num_bytes: float) -> float:
        """To send so many bytes of blocks and to receive their average, as often as a round takes it."""
        return float(self.exchanges_s(peer, np.array([num_bytes]))[0])

    def exchanges_s(self, peer: str, num_bytes: Floats) -> Floats:
        """Likewise of several numbers of bytes."""
        its, medium = self.peers[peer], self.task.medium_bytes_per_s
        up, down = (carried_s(its.device.flops_per_s, num_bytes, min(rate, medium)) for rate in (its.up, its.down))
        each = up + down + 2 * self.task.latency_s
        found: Floats = self.steps_a_round * np.where(num_bytes > 0, each, 0.0)
        return found

    def carried_s(self, peer: str, num_bytes: float, bytes_per_s: float) -> float:
        """To carry a blob of so many bytes at that rate, with what that takes of this peer, at one of its ends."""
        found = carried_s(self.peers[peer].device.flops_per_s, np.array([num_bytes]), bytes_per_s)
        return float(found[0]) + (2 * self.task.latency_s if num_bytes else 0.0)

    def fetch_s(self, peer: str, num_bytes: float) -> float:
        """To receive so many bytes of blocks."""
        return self.carried_s(peer, num_bytes, min(self.peers[peer].down, self.task.medium_bytes_per_s))

    def micro_batch_choices(self, owner: str) -> tuple[int, ...]:
        """Into how many parts its batch may be cut, the most first."""
        batch, least = self.task.batch_of(self.peers[owner]), self.task.model.least_samples
        fit = (num for num in micro_batch_choices(self.task.micro_batches) if num == 1 or batch // num >= least)
        return tuple(fit)

    def seconds(self, peer: str, samples: float) -> tuple[Floats, Floats]:
        """Forward and backward up to each cut. What is between two whole numbers of samples lies on a line."""
        low = max(1, math.floor(samples))
        one = self._whole(peer, low)
        if samples <= low:
            return one
        part, other = samples - low, self._whole(peer, low + 1)
        return one[0] + part * (other[0] - one[0]), one[1] + part * (other[1] - one[1])

    def _whole(self, peer: str, samples: int) -> tuple[Floats, Floats]:
        if (peer, samples) not in self._seconds:
            device = self.peers[peer].device
            if device.times is None:
                pace = samples * device.slowdown / device.flops_per_s
                found = (pace * self.tables.forward_flops, pace * self.tables.backward_flops)
            else:
                at = np.array(self.cuts)
                rows = (device.times.forward(samples), device.times.backward(samples))
                forward, backward = (np.concatenate([[0.0], np.cumsum(row)])[at] * device.slowdown for row in rows)
                found = (forward, backward)
            self._seconds[peer, samples] = found
        return self._seconds[peer, samples]

    def update_s(self, peer: str) -> float:
        """Of the optimizer's step, for each byte of parameters."""
        device = self.peers[peer].device
        return device.times.update_s_per_byte * device.slowdown if device.times else 0.0

    def alone(self, owner: str, micro_batches: int = 1) -> Alone | None:
        """None where it has not the memory. In ``micro_batches`` parts at least, as they let work of others between."""
        key = (owner, micro_batches)
        if key not in self._alone:
            self._alone[key] = self._find_alone(*key)
        return self._alone[key]

    def _find_alone(self, owner: str, micro_batches: int) -> Alone | None:
        peer, last = self.peers[owner], self.tables.num_units
        best: tuple[float, int, float] | None = None
        choices = self.micro_batch_choices(owner)
        for num in choices:
            if num < min(micro_batches, choices[0]) or self.own_bytes(owner, num) > peer.device.memory_bytes:
                continue
            forward, backward = self.seconds(owner, self.task.micro_batch_of(peer, num))
            batch_s = num * float(forward[last] + backward[last])
            batch_s += self.update_s(owner) * float(self.tables.parameter_bytes[last])
            round_s = batch_s * self.task.batches_of(peer, num)
            if best is None or round_s < best[0]:
                best = (round_s, num, batch_s)
        if best is None:
            return None
        is_shared = len(self.owners) > 1
        exchange_s = self.exchange_s(owner, float(self.block_bytes[-1]) if is_shared else 0.0)
        return Alone(best[1], best[2], best[0], exchange_s)

    def alone_as_helper(self, owner: str) -> Alone | None:
        """In as many parts as a batch may be cut into, as work of others has to come between them."""
        return self.alone(owner, self.task.micro_batches)

    def own_bytes(self, owner: str, micro_batches: int) -> float:
        """Memory of training alone."""
        last, samples = self.tables.num_units, math.ceil(self.task.micro_batch_of(self.peers[owner], micro_batches))
        return self.tables.fixed_bytes(0, last) + samples * self.tables.sample_bytes(0, last, 1)

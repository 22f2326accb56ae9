"""A checked task as tables: what a front, a tail and the link between them cost, for every pair of peers.

For one owner and one helper there is an *option* for each cut, number of micro-batches and coding (``Options``). Its
batch takes at least as long as each of several *paths*, the waits that the owner, the link one way, the helper, or the
window of micro-batches in flight force by itself. The helper is taken to have no other unit: what it does for others
is counted in its load, and played through in ``simulation``. On the share of the helper's link that the unit is
granted, a number from 0 to 1, a path's seconds depend as ``a + c / share``. So the least share for a time is known in
closed form: ``max over paths of c / (time - a)``.

Bytes of memory are those of ``pipeline.cost``: weights, gradients, optimizer state and buffers; for each micro-batch
under way the stored activations and the input; once the two largest activations, for the gradients between blocks. A
helper computes one micro-batch at a time, and keeps the activations of those that wait.

Invariant: pure; two peers with the same task compute the same tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from p2ptrain.config import Coding
from p2ptrain.planning.pipeline.cost import CostModel, Floats
from p2ptrain.planning.pipeline.fleet import BYTE_FLOPS, PARCEL_BYTES, PARCEL_FLOPS, micro_batch_choices
from p2ptrain.planning.pipeline.task import WIRE
from p2ptrain.planning.split.task import SplitPeer, SplitTask, check_split_task

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of each step of one unit, for one micro-batch; the link's at its full rate or at what was granted."""

    forward_s: float
    backward_s: float
    up_s: float
    tail_s: float
    """Forward and backward, one after the other."""
    down_s: float
    update_s: float
    """Of the front, once a batch."""
    tail_update_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Options:
    """What one owner and one helper could do: an entry of each array for every option."""

    owner: str
    helper: str
    batches: float
    """Of a round."""
    cuts: Ints
    """Places in ``Room.cuts``."""
    micro_batches: Ints
    in_flight: Ints
    codings: tuple[Coding, ...]
    coding: Ints
    """Places in ``codings``."""
    fixed_s: Floats
    """[path, option]: seconds of a batch that no share of the link changes, ..."""
    shared_s: Floats
    """... and those of a share of 1, which grow as it falls."""
    helper_s: Floats
    """Of the helper's time, a round."""
    tail_bytes: Floats
    """Of the helper's memory, for as long as the unit lives: parameters and what goes with them ..."""
    queue_bytes: Floats
    """... activations that wait ..."""
    work_bytes: Floats
    """... and while it computes."""
    owner_exchange_s: Floats
    """At the round's end, of the front."""
    helper_exchange_s: Floats
    """Likewise of the tail, if others hold its blocks too."""

    def __len__(self) -> int:
        return len(self.cuts)

    def only(self, which: npt.NDArray[np.bool_] | Ints) -> Options:
        """Some of them."""
        arrays = ("cuts", "micro_batches", "in_flight", "coding", "helper_s", "tail_bytes", "queue_bytes")
        arrays += ("work_bytes", "owner_exchange_s", "helper_exchange_s")
        kept = {name: getattr(self, name)[which] for name in arrays}
        paths = {name: getattr(self, name)[:, which] for name in ("fixed_s", "shared_s")}
        return Options(self.owner, self.helper, self.batches, codings=self.codings, **kept, **paths)

    @property
    def least_s(self) -> Floats:
        """Of a batch, however large the share."""
        seconds: Floats = self.fixed_s.max(axis=0)
        return seconds

    def shares(self, round_s: float) -> Floats:
        """The least share of the link with which each ends in time; infinite where none will do."""
        left = round_s / self.batches - self.fixed_s
        needed: Floats = np.full(left.shape, np.inf)
        np.divide(self.shared_s, left, out=needed, where=left > 0)
        return needed.max(axis=0)

    def round_s(self, share: float) -> Floats:
        """Of each option with that share."""
        seconds: Floats = self.batches * (self.fixed_s + self.shared_s / share).max(axis=0)
        return seconds


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
        self._options: dict[tuple[str, str], Options] = {}
        self._alone: dict[tuple[str, int], Alone | None] = {}

    @cached_property
    def steps_a_round(self) -> float:
        """How often copies are averaged: with shared tails the gradients, after every step."""
        return self.task.batches_of(self.task.owners[0]) if self.task.tails == "shared" else 1.0

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
        if num_bytes <= 0:
            return 0.0
        its, medium = self.peers[peer], self.task.medium_bytes_per_s
        each = num_bytes / min(its.up, medium) + num_bytes / min(its.down, medium) + 2 * self.task.latency_s
        return self.steps_a_round * each

    def micro_batch_choices(self, owner: str) -> tuple[int, ...]:
        """Into how many parts its batch may be cut, the most first."""
        batch, least = self.task.batch_of(self.peers[owner]), self.task.model.least_samples
        fit = (num for num in micro_batch_choices(self.task.micro_batches) if num == 1 or batch / num >= least)
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
        best: tuple[float, int] | None = None
        choices = self.micro_batch_choices(owner)
        for num in choices:
            if num < min(micro_batches, choices[0]) or self.own_bytes(owner, num) > peer.device.memory_bytes:
                continue
            forward, backward = self.seconds(owner, self.task.batch_of(peer) / num)
            batch_s = num * float(forward[last] + backward[last])
            batch_s += self.update_s(owner) * float(self.tables.parameter_bytes[last])
            if best is None or batch_s < best[0]:
                best = (batch_s, num)
        if best is None:
            return None
        is_shared = len(self.owners) > 1
        exchange_s = self.exchange_s(owner, float(self.block_bytes[-1]) if is_shared else 0.0)
        return Alone(best[1], best[0], best[0] * self.task.batches_of(peer), exchange_s)

    def alone_as_helper(self, owner: str) -> Alone | None:
        """In as many parts as a batch may be cut into, as work of others has to come between them."""
        return self.alone(owner, self.task.micro_batches)

    def own_bytes(self, owner: str, micro_batches: int) -> float:
        """Memory of training alone."""
        last, samples = self.tables.num_units, math.ceil(self.task.batch_of(self.peers[owner]) / micro_batches)
        return self.tables.fixed_bytes(0, last) + samples * self.tables.sample_bytes(0, last, 1)

    def options(self, owner: str, helper: str) -> Options:
        """All that both have the memory for, as if the helper had no other unit."""
        if (owner, helper) not in self._options:
            found = [
                self._of(owner, helper, num, coding)
                for num in self.micro_batch_choices(owner)
                for coding in range(len(self.task.codings))
            ]
            self._options[owner, helper] = _joined(found)
        return self._options[owner, helper]

    def steps(
        self,
        owner: str,
        helper: str,
        cut: int,
        samples: float,
        codings: tuple[Coding, Coding],
        rates: tuple[float, float],
    ) -> Steps:
        """Of one micro-batch of so many samples, with these rates up and down, bytes/s."""
        steps = self._steps(owner, helper, np.array([cut]), samples, *codings)
        one = {name: float(value[0]) for name, value in steps.items()}
        up_s, down_s = one.pop("up_bytes") / rates[0], one.pop("down_bytes") / rates[1]
        return Steps(up_s=up_s, down_s=down_s, latency_s=self.task.latency_s, **one)

    def _steps(
        self, owner: str, helper: str, cuts: Ints, samples: float, activations: Coding, gradients: Coding
    ) -> dict[str, Floats]:
        tables, last = self.tables, self.tables.num_units
        raw = tables.cut_bytes[cuts] * samples
        sent = (raw * WIRE[activations], raw * WIRE[gradients])
        extra = {
            name: [
                self._passing_s(self.peers[name], raw, each, way, coding)
                for way, (each, coding) in enumerate(zip(sent, (activations, gradients), strict=True))
            ]
            for name in (owner, helper)
        }
        forward, backward = self.seconds(owner, samples)
        there, back = self.seconds(helper, samples)
        tail = there[last] - there[cuts] + back[last] - back[cuts]
        return {
            "forward_s": forward[cuts] + extra[owner][0],
            "backward_s": backward[cuts] + extra[owner][1],
            "up_bytes": sent[0],
            "tail_s": tail + extra[helper][0] + extra[helper][1],
            "down_bytes": sent[1],
            "update_s": self.update_s(owner) * tables.parameter_bytes[cuts],
            "tail_update_s": self.update_s(helper) * (tables.parameter_bytes[last] - tables.parameter_bytes[cuts]),
        }

    @staticmethod
    def _passing_s(peer: SplitPeer, raw: Floats, sent: Floats, way: int, coding: Coding) -> Floats:
        """What coding, and handing stage messages on, take of a device: see ``pipeline.fleet``."""
        parcels = np.maximum(1.0, np.ceil(sent / PARCEL_BYTES))
        flops = peer.device.flops_per_s
        handing = (PARCEL_FLOPS * parcels + BYTE_FLOPS * sent) / flops if flops > 0 else 0.0 * sent
        passing: Floats = handing + peer.coding_s(coding)[way] * raw
        return passing

    def _of(self, owner: str, helper: str, num: int, coding: int) -> Options:
        task, tables, last = self.task, self.tables, self.tables.num_units
        cuts = np.arange(1, last)
        name = task.codings[coding]
        its, batches = self.peers[owner], task.batches_of(self.peers[owner])
        samples = task.batch_of(its) / num
        rows = math.ceil(samples)
        # Memory: as many in flight as the owner can hold.
        flow = np.array([tables.flow_bytes[0, cut] for cut in cuts])
        kept = tables.cut_bytes[0] + tables.stored_bytes[cuts]
        room = its.device.memory_bytes - tables.held_bytes[cuts] - rows * flow
        in_flight = np.floor(room / np.maximum(rows * kept, 1e-9)).clip(-1, num).astype(np.int64)
        held = tables.held_bytes[last] - tables.held_bytes[cuts]
        inputs = rows * tables.cut_bytes[cuts]
        flow = np.array([tables.flow_bytes[cut, last] for cut in cuts])
        work = rows * (tables.stored_bytes[last] - tables.stored_bytes[cuts] + flow)
        queue = in_flight * inputs
        able = (in_flight >= 1) & (held + queue + work <= self.peers[helper].device.memory_bytes)
        cuts, in_flight, held, queue, work = cuts[able], in_flight[able], held[able], queue[able], work[able]
        steps = self._steps(owner, helper, cuts, samples, name, name)
        fixed, shared = self._paths(owner, helper, steps, num, in_flight)
        is_shared = len(self.owners) > 1
        own, tail = self.block_bytes[cuts], self.block_bytes[last] - self.block_bytes[cuts]
        return Options(
            owner,
            helper,
            batches,
            cuts,
            np.full(len(cuts), num),
            in_flight,
            task.codings,
            np.full(len(cuts), coding),
            fixed,
            shared,
            batches * (num * steps["tail_s"] + steps["tail_update_s"]),
            held,
            queue,
            work,
            np.array([self.exchange_s(owner, each) if is_shared else 0.0 for each in own]),
            np.array([self.exchange_s(helper, each) for each in tail]),
        )

    def _paths(
        self, owner: str, helper: str, steps: dict[str, Floats], num: int, in_flight: Ints
    ) -> tuple[Floats, Floats]:
        """Seconds of a batch that each path takes at least: those that are fixed, those of a share of 1."""
        there, back = self.whole_rates(helper)
        caps = (steps["up_bytes"] / self.rate(owner, helper), steps["down_bytes"] / self.rate(helper, owner))
        whole = (steps["up_bytes"] / there, steps["down_bytes"] / back)
        front, back_s, tail, wait = steps["forward_s"], steps["backward_s"], steps["tail_s"], 2 * self.task.latency_s
        rest = num - in_flight
        """Forward passes that have to wait for a gradient."""
        first = front + tail + wait  # one micro-batch's way to its gradient, without the link
        cycles = -(-num // in_flight)
        once = np.maximum.reduce(
            [
                first + num * back_s + rest * front,  # all that the owner has to do after its first gradient has come
                num * front + rest * back_s + tail + wait + back_s,  # all that it has to do before the last one is sent
                front + wait + num * tail + back_s,
            ]
        )
        ones = np.ones_like(front)
        busy = np.maximum(num * (front + back_s), num * tail + steps["tail_update_s"] - steps["update_s"])
        paths = [
            (busy, 0 * ones, 0 * ones),
            (once, ones, ones),
            (first + back_s, num * ones, ones),
            (first + back_s, ones, num * ones),
            (cycles * (first + back_s), cycles * ones, cycles * ones),
        ]
        fixed, shared = [], []
        for seconds, ups, downs in paths:
            for slow_up in (False, True):
                for slow_down in (False, True):
                    wire = ups * (0 if slow_up else caps[0]) + downs * (0 if slow_down else caps[1])
                    fixed.append(seconds + wire + steps["update_s"])
                    shared.append(ups * (whole[0] if slow_up else 0) + downs * (whole[1] if slow_down else 0))
        pairs = [(a, c) for i, (a, c) in enumerate(zip(fixed, shared, strict=True)) if i == 0 or i > 3]
        return np.stack([a for a, _ in pairs]), np.stack([c for _, c in pairs])


def _joined(parts: Iterable[Options]) -> Options:
    parts = list(parts)
    first = parts[0]
    arrays = ("cuts", "micro_batches", "in_flight", "coding", "helper_s", "tail_bytes", "queue_bytes")
    arrays += ("work_bytes", "owner_exchange_s", "helper_exchange_s")
    kept = {name: np.concatenate([getattr(each, name) for each in parts]) for name in arrays}
    paths = {name: np.concatenate([getattr(each, name) for each in parts], axis=1) for name in ("fixed_s", "shared_s")}
    return Options(first.owner, first.helper, first.batches, codings=first.codings, **kept, **paths)

"""What a pipeline plan costs: seconds of each of its steps, bytes that each peer needs, and the time of a batch.

Seconds come from a peer's FLOP/s, or from its measured times where it has some (``BlockTimes``). A stage takes as long
as its slowest peer, a link the bytes of a micro-batch over the slowest link between the two groups, an all-reduce among
g peers 2(g-1)/g of the stage's parameters over their slowest link. The optimizer's step was measured with the blocks.

A peer of a stage needs: parameters, their gradients and optimizer state, buffers; for each micro-batch under way (at
most ``warm_up``) its samples' stored activations and the stage's input; and once the two largest activations again, for
the gradients that flow between blocks. An estimate from below, like ``learning.blocks.flops.memory_bytes``: kernels'
scratch space comes on top.

Invariant: pure; two peers with the same plan and the same figures compute the same numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2ptrain.errors import LocalError
from p2ptrain.planning.pipeline.schedule import Steps, Timeline, dominant_step_s, play, round_bound_s
from p2ptrain.planning.pipeline.stages import (
    PipelinePlan,
    Stage,
    check_pipeline_plan,
)
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask, check_task

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What ``cost_of`` says of a plan."""

    timeline: Timeline
    steps: Steps
    memory_bytes: tuple[tuple[float, ...], ...]
    """What each stage's peers need."""
    fits: bool
    bound_s: float
    """What a batch of the same steps takes at least."""
    dominant_step_s: float
    """The same by the known latency model."""

    @property
    def batch_s(self) -> float:
        """Seconds a batch, in the schedule played through."""
        return self.timeline.round_s / self.steps.batches


class CostModel:
    """A checked task, as tables of sums, so that any run of blocks costs one subtraction.

    Runs are named by *units*: the pieces between legal cuts. Peers are named by their place in ``task.peers``.
    """

    def __init__(self, task: PipelineTask) -> None:
        """Raises ``UserError``, as ``check_task`` does."""
        check_task(task)
        self.task = task
        blocks = task.model.blocks
        self.cuts = (0, *(i + 1 for i, block in enumerate(blocks[:-1]) if block.cut_after), len(blocks))
        """Block index of every place where a stage may begin or end; unit u is [cuts[u], cuts[u + 1])."""
        self.num_units = len(self.cuts) - 1
        cuts = np.array(self.cuts)
        self.forward_flops = _summed([block.forward_flops for block in blocks])[cuts]
        """Up to each cut; per sample."""
        self.backward_flops = _summed([block.backward_flops for block in blocks])[cuts]
        self.work_flops = self.forward_flops + self.backward_flops
        self.parameter_bytes = _summed([block.parameter_bytes for block in blocks])[cuts]
        copies = 2 + task.optimizer_copies
        self.held_bytes = _summed([copies * b.parameter_bytes + b.buffer_bytes for b in blocks])[cuts]
        self.stored_bytes = _summed([block.stored_activation_bytes for block in blocks])[cuts]
        outputs = (task.model.input_bytes, *(block.activation_bytes for block in blocks))
        self.cut_bytes = np.array([outputs[cut] for cut in self.cuts], dtype=np.float64)
        """What crosses each cut, per sample; the first is the input."""
        self.flow_bytes = self._flow_bytes(outputs)
        self.forward_s, self.backward_s = (
            np.stack(tables) for tables in zip(*(self._times(peer) for peer in task.peers), strict=True)
        )
        """Seconds up to the cut, [peer, samples, cut]."""
        times = [(peer.times.update_s_per_byte if peer.times else 0.0) * peer.slowdown for peer in task.peers]
        self.update_s_per_byte: Floats = np.array(times)
        """Seconds of the optimizer's step for each byte of parameters, by peer."""
        self.link_rates = self._link_rates()
        """Bytes per second, [peer, peer]; on the diagonal a peer's own end."""

    def _flow_bytes(self, outputs: Sequence[int]) -> Floats:
        """[start, stop]: the two largest activations of the run, its input among them; per sample."""
        table = np.zeros((self.num_units + 1, self.num_units + 1))
        for start in range(self.num_units):
            first = second = 0
            at = self.cuts[start]
            for stop in range(start + 1, self.num_units + 1):
                for size in outputs[at : self.cuts[stop] + 1]:
                    if size > first:
                        first, second = size, first
                    elif size > second:
                        second = size
                at = self.cuts[stop] + 1
                table[start, stop] = first + second
        return table

    def _times(self, peer: PipelinePeer) -> tuple[Floats, Floats]:
        cuts, blocks = np.array(self.cuts), self.task.model.blocks
        counts = range(self.task.micro_batch + 1)
        if peer.times is None:
            samples = np.array(counts, dtype=np.float64)[:, None] * (peer.slowdown / peer.flops_per_s)
            return samples * self.forward_flops, samples * self.backward_flops
        tables = []
        for rows in (peer.times.forward, peer.times.backward):
            measured = np.array([rows(count) if count else [0.0] * len(blocks) for count in counts]) * peer.slowdown
            steady = np.maximum.accumulate(measured, axis=0)  # noise must not make fewer samples take longer
            tables.append(np.concatenate([np.zeros((len(counts), 1)), steady.cumsum(axis=1)], axis=1)[:, cuts])
        return tables[0], tables[1]

    def stage_s(self, peer: int, start: int, stop: int, samples: int) -> tuple[float, float]:
        """Forward and backward seconds of one peer."""
        forward, backward = self.forward_s[peer, samples], self.backward_s[peer, samples]
        return float(forward[stop] - forward[start]), float(backward[stop] - backward[start])

    def fixed_bytes(self, start: int, stop: int) -> float:
        """What a peer of the stage holds whatever its share of the samples."""
        return float(self.held_bytes[stop] - self.held_bytes[start])

    def sample_bytes(self, start: int, stop: int, warm_up: int) -> float:
        """What each sample of a micro-batch adds."""
        kept = float(self.cut_bytes[start] + self.stored_bytes[stop] - self.stored_bytes[start])
        return kept * min(warm_up, self.task.most_ahead) + float(self.flow_bytes[start, stop])

    def _link_rates(self) -> Floats:
        place = {peer.name: index for index, peer in enumerate(self.task.peers)}
        ends = np.array([min(peer.link_bytes_per_s, self.task.rate_bytes_per_s) for peer in self.task.peers])
        rates: Floats = np.minimum(ends[:, None], ends)
        for pair in self.task.pair_rates:
            one, other = place[pair.one], place[pair.other]
            rates[one, other] = rates[other, one] = min(rates[one, other], pair.bytes_per_s)
        return rates

    def link_rate(self, peers: Sequence[int], others: Sequence[int] | None = None) -> float:
        """Bytes per second of the slowest link between two groups, or within one."""
        return float(self.link_rates[np.ix_(peers, peers if others is None else others)].min())

    def update_s(self, peers: Sequence[int], num_bytes: Floats) -> Floats:
        """At the end of a batch, for stages with so many bytes of parameters: the gradients' all-reduce among these
        peers, and the optimizer's step."""
        num = len(peers)
        seconds: Floats = self.update_s_per_byte[list(peers)].max() * num_bytes
        if num == 1:
            return seconds
        return seconds + 2 * (num - 1) / num * num_bytes / self.link_rate(peers) + 2 * (num - 1) * self.task.latency_s

    def split(self, peers: Sequence[int], start: int, stop: int, warm_up: int) -> tuple[int, ...] | None:
        """Samples for each peer that let the slowest end soonest, within memory; None where that can't be.

        One sample after the other goes to whom it costs least: exact, because times don't fall with more samples.
        Each gets ``least_samples``.
        """
        fixed, each = self.fixed_bytes(start, stop), self.sample_bytes(start, stop, warm_up)
        total, least = self.task.micro_batch, self.task.model.least_samples
        caps = [most_samples(self.task.peers[peer].memory_bytes, fixed, each, total) for peer in peers]
        if min(caps) < least or sum(caps) < total or total < least * len(peers):
            return None
        if len(peers) == 1:
            return (total,)
        tables = [self.forward_s[peer] + self.backward_s[peer] for peer in peers]
        seconds = [(table[:, stop] - table[:, start]).tolist() for table in tables]
        shares = [least] * len(peers)  # a peer without a sample would be left out instead
        soonest = [(seconds[i][least + 1], i) for i, cap in enumerate(caps) if cap > least and total > least]
        heapq.heapify(soonest)
        for _ in range(total - least * len(peers)):
            i = soonest[0][1]
            shares[i] += 1
            if shares[i] < caps[i]:
                heapq.heapreplace(soonest, (seconds[i][shares[i] + 1], i))
            else:
                heapq.heappop(soonest)
        return tuple(shares)


def most_samples(memory_bytes: float, fixed_bytes: float, sample_bytes: float, limit: int) -> int:
    """Samples of a micro-batch that memory allows, at most ``limit``; 0 when not even the parameters fit."""
    room = memory_bytes - fixed_bytes
    if room < 0:
        return 0
    return limit if sample_bytes * limit <= room else int(room // sample_bytes)


def steps_of(model: CostModel, plan: PipelinePlan) -> Steps:
    """Seconds of each step of a plan for this task. Raises ``LocalError`` for a plan of another one."""
    unit = {cut: index for index, cut in enumerate(model.cuts)}
    known = {peer.name: index for index, peer in enumerate(model.task.peers)}
    forward, backward, update, groups = [], [], [], []
    for stage in plan.stages:
        if stage.start not in unit or stage.stop not in unit or not known.keys() >= set(stage.peers):
            raise LocalError("a pipeline plan that is not of this model and these peers")
        peers, start, stop = [known[name] for name in stage.peers], unit[stage.start], unit[stage.stop]
        took = [model.stage_s(peer, start, stop, n) for peer, n in zip(peers, stage.samples, strict=True)]
        groups.append(peers)
        forward.append(max(seconds for seconds, _ in took))
        backward.append(max(seconds for _, seconds in took))
        update.append(float(model.update_s(peers, model.parameter_bytes[stop] - model.parameter_bytes[start])))
    sent = [
        float(model.cut_bytes[unit[stage.start]]) * plan.micro_batch / model.link_rate(groups[i], groups[i + 1])
        for i, stage in enumerate(plan.stages[1:])
    ]
    return Steps(
        plan.num_micro_batches,
        tuple(forward),
        tuple(backward),
        tuple(update),
        tuple(seconds * model.task.forward_wire for seconds in sent),
        tuple(seconds * model.task.backward_wire for seconds in sent),
        model.task.latency_s,
        model.task.batches,
    )


def cost_of(model: CostModel, plan: PipelinePlan, steps: Steps | None = None) -> PlanCost:
    """Time and memory of a plan, whether or not it fits; of ``steps_of``, if no others are given. Raises
    ``RemoteError`` for a plan that does not hold together."""
    check_pipeline_plan(plan)
    steps = steps or steps_of(model, plan)
    depths = tuple(stage.warm_up for stage in plan.stages)
    memory = tuple(stage_memory_bytes(model, stage) for stage in plan.stages)
    fit = all(fits(model, stage) for stage in plan.stages)
    bounds = (round_bound_s(steps, depths) / steps.batches, dominant_step_s(steps) / steps.batches)
    return PlanCost(play(steps, depths), steps, memory, fit, *bounds)


def fits(model: CostModel, stage: Stage) -> bool:
    """Whether each of the stage's peers has the memory for it."""
    limits = {peer.name: peer.memory_bytes for peer in model.task.peers}
    needs = stage_memory_bytes(model, stage)
    return all(need <= limits[name] for name, need in zip(stage.peers, needs, strict=True))


def stage_memory_bytes(model: CostModel, stage: Stage) -> tuple[float, ...]:
    """Of each of the stage's peers."""
    start, stop = model.cuts.index(stage.start), model.cuts.index(stage.stop)
    fixed, each = model.fixed_bytes(start, stop), model.sample_bytes(start, stop, stage.warm_up)
    return tuple(fixed + samples * each for samples in stage.samples)


def _summed(values: Sequence[int]) -> Floats:
    """Sums of the first 0, 1, ... values."""
    return np.concatenate([[0.0], np.cumsum(np.array(values, dtype=np.float64))])

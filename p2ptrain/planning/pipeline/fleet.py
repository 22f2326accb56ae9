"""The peers of a fleet with their figures: what each pipeline of theirs would cost, in any number of micro-batches.

Beside what the cost model knows, a device's node takes computing from its trainer: for every stage message that it
hands on or takes in, and for each byte of it. And its trainer codes what it sends. With a flush after every batch, the
norm of the whole gradient goes along the pipeline at its end, and is told to all (``learning.pipeline.grad_norm``).

Invariant: pure; the same figures give the same seconds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from dataclasses import dataclass, replace

from p2ptrain.errors import LocalError
from p2ptrain.planning.pipeline.cost import CostModel, PlanCost, cost_of, fits, steps_of
from p2ptrain.planning.pipeline.schedule import Steps, round_s
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.planning.pipeline.task import PipelineTask, batches_in_a_row

MESSAGE_BYTES = 1 << 20
"""A stage message is cut into smaller ones where it would be larger; a single row never is."""
MESSAGE_FLOPS, BYTE_FLOPS = 5e7, 100.0
"""What a device could compute while its node hands on one stage message, or takes one in, and for each byte of it:
sockets, encryption, and an event loop in Python. Of a core of 17 GFLOP/s it is 2.9 ms, and 6.2 ms a megabyte: of that
three fifths are the node's own CPU time (which benchmark ``pipeline`` measures); the rest is by how much longer batches
of VGG-11 took there than with that alone, whatever it is. What the trainer does for stage messages each device measures
itself (``BlockTimes.activation_s_per_byte``)."""


@dataclass(frozen=True, slots=True)
class _Traffic:
    """What a peer takes in and hands on one way: stage messages, bytes of float32, and bytes as they are sent."""

    num_messages: int
    num_bytes: float
    sent_bytes: float


def micro_batch_choices(most: int) -> tuple[int, ...]:
    """The numbers of micro-batches that a plan may have: the most, its halves, and one.

    Fewer and larger ones compute faster, more of them keep a pipeline full: a peer alone is best off with one. The
    gradient of a batch is the same, but for BatchNorm, which takes its statistics from a micro-batch.
    """
    choices = [most]
    while choices[-1] % 2 == 0:
        choices.append(choices[-1] // 2)
    return tuple(choices) if choices[-1] == 1 else (*choices, 1)


class Fleet:
    """What the pipelines of these peers cost, for each number of micro-batches."""

    def __init__(self, task: PipelineTask, batches_a_round: float = 1) -> None:
        """``task``: with the most micro-batches; ``batches_a_round``: from flush to flush, 1 = after every batch."""
        self.task = task
        self.choices = micro_batch_choices(task.num_micro_batches)
        self._batches_a_round = batches_a_round
        self._costs: dict[int, CostModel] = {}
        self._peers = {peer.name: peer for peer in task.peers}

    def knows(self, peers: Collection[str]) -> bool:
        """Whether all of them can be planned with."""
        return self._peers.keys() >= set(peers)

    def costs(self, num_micro_batches: int) -> CostModel:
        """Raises ``UserError`` where no plan can be computed from the figures."""
        if num_micro_batches not in self._costs:
            task = replace(
                self.task,
                micro_batch=self.task.micro_batch * self.task.num_micro_batches // num_micro_batches,
                num_micro_batches=num_micro_batches,
                batches=batches_in_a_row(num_micro_batches, self._batches_a_round),
            )
            self._costs[num_micro_batches] = CostModel(task)
        return self._costs[num_micro_batches]

    def steps(self, pipeline: PipelinePlan) -> Steps:
        """With the work that passing stage messages on is for the devices themselves, which the search knows nothing
        of."""
        costs = self.costs(pipeline.num_micro_batches)
        steps = steps_of(costs, pipeline)
        passing = [[self.passing_s(pipeline, peer) for peer in stage.peers] for stage in pipeline.stages]
        there, back = ([max(each[way] for each in stage) for stage in passing] for way in (0, 1))
        ends = [max(self._ending_s(costs, pipeline, peer) for peer in stage.peers) for stage in pipeline.stages]
        return replace(
            steps,
            forward_s=tuple(map(operator.add, steps.forward_s, there)),
            backward_s=tuple(map(operator.add, steps.backward_s, back)),
            update_s=tuple(map(operator.add, steps.update_s, ends)),
        )

    def passing_s(self, pipeline: PipelinePlan, peer: str) -> tuple[float, float]:
        """What a peer of the pipeline takes in and hands on of each micro-batch: with activations, with gradients."""
        costs = self.costs(pipeline.num_micro_batches)
        traffic = self._traffic(costs, pipeline, peer)
        there, back = (
            self._handing_s(peer, each.num_messages, each.sent_bytes) + coding_s * each.num_bytes
            for each, coding_s in zip(traffic, self._coding_s(peer), strict=True)
        )
        return there, back

    def node_s(self, pipeline: PipelinePlan, peer: str) -> float:
        """What its node takes of that in a batch, with the gradients that the stage's peers exchange, and their norm; 0
        for one that is not in the pipeline."""
        if pipeline.stage_of(peer) is None:
            return 0.0
        costs = self.costs(pipeline.num_micro_batches)
        traffic = self._traffic(costs, pipeline, peer)
        passing_s = sum(self._handing_s(peer, each.num_messages, each.sent_bytes) for each in traffic)
        return pipeline.num_micro_batches * passing_s + self._ending_s(costs, pipeline, peer)

    @staticmethod
    def _traffic(costs: CostModel, pipeline: PipelinePlan, peer: str) -> tuple[_Traffic, _Traffic]:
        """Of a micro-batch, to and from the stages on both sides: activations, gradients."""
        at = pipeline.stage_of(peer)
        if at is None:
            raise LocalError(f"{peer} passes nothing on in this pipeline")
        stage = pipeline.stages[at]
        samples = stage.samples[stage.peers.index(peer)]
        sides = [(stage.start, at - 1), (stage.stop, at + 1)]
        neighbours = [(cut, pipeline.stages[i]) for cut, i in sides if 0 <= i < len(pipeline.stages)]

        def one_way(wire: float) -> _Traffic:
            num_messages, total, sent = 0, 0.0, 0.0
            for cut, other in neighbours:
                num_bytes = float(costs.cut_bytes[costs.cuts.index(cut)]) * samples
                receivers = math.ceil(samples * len(other.peers) / pipeline.micro_batch)
                num_messages += max(receivers, math.ceil(num_bytes * wire / MESSAGE_BYTES))
                total, sent = total + num_bytes, sent + num_bytes * wire
            return _Traffic(num_messages, total, sent)

        return one_way(costs.task.forward_wire), one_way(costs.task.backward_wire)

    def _coding_s(self, peer: str) -> tuple[float, float]:
        """Of its trainer, for each byte before it is coded; nothing where it was not measured."""
        known = self._peers[peer]
        if known.times is None:
            return 0.0, 0.0
        return (
            known.slowdown * known.times.activation_s_per_byte,
            known.slowdown * known.times.gradient_s_per_byte,
        )

    def _ending_s(self, costs: CostModel, pipeline: PipelinePlan, peer: str) -> float:
        """What a peer of the pipeline hands on, and takes in, at a batch's end."""
        stages, at = pipeline.stages, pipeline.stage_of(peer)
        if at is None:
            raise LocalError(f"{peer} passes nothing on in this pipeline")
        num_norms = 0
        if self._batches_a_round == 1:
            leads = peer == stages[at].peers[0]
            others = sum(len(stage.peers) for stage in stages) - 1
            num_norms = others if peer == stages[0].peers[0] else 1
            num_norms += leads * ((at > 0) + (at + 1 < len(stages)))  # of this stage, and of those behind it
        return self._averaging_s(costs, stages[at], peer) + self._handing_s(peer, num_norms, 0.0)

    def _averaging_s(self, costs: CostModel, stage: Stage, peer: str) -> float:
        """Of a batch: the gradients that the stage's peers exchange, sent and received."""
        num = len(stage.peers)
        start, stop = costs.cuts.index(stage.start), costs.cuts.index(stage.stop)
        num_bytes = 4 * (num - 1) / num * float(costs.parameter_bytes[stop] - costs.parameter_bytes[start])
        return self._handing_s(peer, math.ceil(num_bytes / MESSAGE_BYTES), num_bytes)

    def _handing_s(self, peer: str, num_messages: int, num_bytes: float) -> float:
        """Nothing for a peer whose speed nobody knows."""
        flops_per_s = self._peers[peer].flops_per_s
        return (MESSAGE_FLOPS * num_messages + BYTE_FLOPS * num_bytes) / flops_per_s if flops_per_s > 0 else 0.0

    def batch_s(self, pipeline: PipelinePlan) -> float:
        """Predicted seconds of a batch."""
        steps = self.steps(pipeline)
        return round_s(steps, tuple(stage.warm_up for stage in pipeline.stages)) / steps.batches

    def cost(self, pipeline: PipelinePlan) -> PlanCost:
        """All of what it costs."""
        return cost_of(self.costs(pipeline.num_micro_batches), pipeline, self.steps(pipeline))

    def fits(self, pipeline: PipelinePlan) -> bool:
        costs = self.costs(pipeline.num_micro_batches)
        return all(fits(costs, stage) for stage in pipeline.stages)

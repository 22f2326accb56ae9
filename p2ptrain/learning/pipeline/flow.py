"""What flows between neighbouring stages: activations one way, their gradients the other, for one peer of a stage.

Micro-batches are numbered through all batches: number = step x micro-batches + unit.

Invariant: what a peer holds of others' tensors is bounded by the schedule. Of activations: those micro-batches that the
stage before may be ahead (its warm-up) of this peer's backward passes. Of gradients: micro-batches in flight here.
Everything is checked on arrival; what is not due raises ``RemoteError`` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.config import Coding
from p2ptrain.errors import RemoteError
from p2ptrain.learning.blocks.chain import Chain, Crossing
from p2ptrain.learning.pipeline.codec import Encoder, decode
from p2ptrain.learning.pipeline.rows import (
    Inbox,
    Spec,
    StageMessage,
    Work,
    cut_rows,
    label_shapes,
    overlapping,
    row_ranges,
)
from p2ptrain.planning.pipeline.stages import PipelinePlan

_LABELS = "y"


class Flow:
    """``index``: of the own stage in the pipeline. ``with_labels``: they travel with the activations."""

    def __init__(
        self,
        chain: Chain,
        pipeline: PipelinePlan,
        index: int,
        own: str,
        *,
        num_classes: int,
        activations: Coding,
        gradients: Coding,
        gradient_feedback: bool = True,
        with_labels: bool = True,
    ) -> None:
        stages = pipeline.stages
        stage = stages[index]
        self.rows = row_ranges(stage)[own]
        """The own rows of every micro-batch."""
        self.is_first, self.is_last = index == 0, index + 1 == len(stages)
        self.next_forward = self.next_backward = 0
        """Numbers of the micro-batches whose forward and backward pass come next."""
        self._num_units = pipeline.num_micro_batches
        self._before = {} if self.is_first else overlapping(self.rows, row_ranges(stages[index - 1]))
        self._behind = {} if self.is_last else overlapping(self.rows, row_ranges(stages[index + 1]))
        self._ahead = 0 if self.is_first else stages[index - 1].warm_up
        self._coming = _specs(chain.inputs(stage.start))
        shapes = label_shapes(chain.blocks[-1].outputs[0].shape, chain.input.shape[-1])
        self._labels = {_LABELS: Spec(shapes, torch.int64, range(num_classes))} if with_labels else {}
        self._returning = _specs(chain.blocks[stage.stop - 1].outputs)
        self._codings: dict[Work, Coding] = {"forward": activations, "backward": gradients}
        self._activations = Encoder(activations, feedback=False)
        self._gradients = Encoder(gradients, feedback=gradient_feedback)
        self._forward_in = Inbox(self.rows, self._before)
        self._backward_in = Inbox(self.rows, self._behind)

    def receive(self, message: StageMessage) -> None:
        number = message.step * self._num_units + message.unit
        if message.work == "forward":
            senders, inbox = self._before, self._forward_in
            first, stop = self.next_forward, self.next_backward + self._ahead
            specs = self._coming | self._labels
        else:
            senders, inbox, specs = self._behind, self._backward_in, self._returning
            first, stop = self.next_backward, self.next_forward
        if message.peer not in senders:
            raise RemoteError("stage-message-peer", f"{message.work} from a peer that sends none here")
        if not 0 <= message.unit < self._num_units or not first <= number < stop:
            raise RemoteError(
                "stage-message-step", f"{message.work} of micro-batch {message.unit} of batch {message.step}"
            )
        tensors, num_rows = decode(self._codings[message.work], message.tensors, specs)
        inbox.add(message.peer, number, message.row, tensors, num_rows)

    # --- forward ---

    def has_inputs(self) -> bool:
        return self.is_first or self._forward_in.complete(self.next_forward)

    def take_inputs(self) -> tuple[list[Tensor], Tensor | None]:
        """The tensors that cross to this stage ``[own rows, ...]``, and the labels, if they travel."""
        tensors = self._forward_in.take(self.next_forward)
        return [tensors[name] for name in self._coming], tensors.get(_LABELS)

    def send_outputs(self, outputs: Sequence[Tensor], y: Tensor | None) -> list[StageMessage]:
        """And count the forward pass."""
        tensors = {str(index): tensor for index, tensor in enumerate(outputs)}
        if self._labels and y is not None:
            tensors[_LABELS] = y
        messages = self._messages("forward", self.next_forward, tensors, self._behind, self._activations)
        self.next_forward += 1
        return messages

    # --- backward ---

    def has_gradients(self) -> bool:
        return self.is_last or self._backward_in.complete(self.next_backward)

    def take_gradients(self) -> list[Tensor]:
        """Of the tensors that cross to the next stage ``[own rows, ...]``; after the last stage, none."""
        if self.is_last:
            return []
        tensors = self._backward_in.take(self.next_backward)
        return [tensors[name] for name in self._returning]

    def send_gradients(self, gradients: Sequence[Tensor]) -> list[StageMessage]:
        """And count the backward pass."""
        tensors = {str(index): tensor for index, tensor in enumerate(gradients)}
        messages = self._messages("backward", self.next_backward, tensors, self._before, self._gradients)
        self.next_backward += 1
        return messages

    def restart(self, step: int) -> None:
        """Drop what is in flight; the next pass is that of a batch's first micro-batch."""
        self.next_forward = self.next_backward = step * self._num_units
        self._forward_in.clear()
        self._backward_in.clear()

    def _messages(
        self, work: Work, number: int, tensors: Mapping[str, Tensor], receivers: Mapping[str, range], encoder: Encoder
    ) -> list[StageMessage]:
        step, unit = divmod(number, self._num_units)
        return [
            StageMessage(peer, work, step, unit, row, encoder.encode(cut))
            for peer, row, cut in cut_rows(tensors, self.rows, receivers, encoder.row_bytes(tensors))
        ]


def _specs(crossings: Sequence[Crossing]) -> dict[str, Spec]:
    return {str(index): Spec((crossing.shape,), crossing.dtype) for index, crossing in enumerate(crossings)}

"""The norm of the whole model's gradient, which no peer holds: passed along the pipeline, from its end to its start.

The first peer of each stage adds the squares of its own parameters' gradients, last parameter first, to what comes from
the stage behind it. So the sum is the same, to the bit, wherever the model is cut.

Invariant: a total says that every stage has the gradient of the whole batch; infinite, that some stage's is not finite.
Each number comes once a batch, from the one peer that has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from p2ptrain.errors import RemoteError
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.planning.pipeline.stages import PipelinePlan

_PARTIAL, _TOTAL = 0, 1
_SQUARE = "square"


class NormChain:
    """One peer's part in it. ``total``: the square of the norm, once it is known."""

    def __init__(self, pipeline: PipelinePlan, index: int, own: str) -> None:
        leaders = [stage.peers[0] for stage in pipeline.stages]
        self._own = own
        self._leads = own == leaders[index]
        self._first = leaders[0]
        self._before = leaders[index - 1] if index else None
        self._behind = leaders[index + 1] if index + 1 < len(leaders) else None
        self._others = [peer for stage in pipeline.stages for peer in stage.peers if peer != own]
        self.reset()

    def reset(self) -> None:
        """Between two batches."""
        self.total: float | None = None
        self._partial = 0.0 if self._behind is None else None
        self._passed = not self._leads

    def receive(self, message: StageMessage, step: int) -> None:
        """Raises ``RemoteError`` for what is not due, and then changes nothing."""
        partial = message.unit == _PARTIAL and self._leads and message.peer == self._behind
        total = message.unit == _TOTAL and message.peer == self._first and self._own != self._first
        if not (partial or total):
            raise RemoteError("stage-message-peer", "a norm from a peer that has none for us")
        if message.step != step or message.row != 0:
            raise RemoteError("stage-message-step", f"a norm of batch {message.step} in batch {step}")
        if (self._partial if partial else self.total) is not None:
            raise RemoteError("stage-message-twice", "a norm")
        tensor = message.tensors.get(_SQUARE)
        if tensor is None or len(message.tensors) > 1 or tensor.dtype != torch.float64 or tuple(tensor.shape) != (1,):
            raise RemoteError("tensor-names", "a norm is one number")
        square = float(tensor)
        if not square >= 0:
            raise RemoteError("tensor-negative", "the square of a norm")
        if partial:
            self._partial = square
        else:
            self.total = square

    def due(self) -> bool:
        """Whether this peer is the next to add its squares."""
        return not self._passed and self._partial is not None

    def add(self, squares: Sequence[float], step: int) -> list[StageMessage]:
        """Add the own squares, in this order, and pass the sum on."""
        square = self._partial if self._partial is not None else math.inf
        for own in squares:
            square += own
        self._passed = True
        if self._before is None:
            self.total = square
        unit, receivers = (_TOTAL, self._others) if self._before is None else (_PARTIAL, [self._before])
        tensors = {_SQUARE: torch.tensor([square], dtype=torch.float64)}
        return [StageMessage(peer, "norm", step, unit, 0, tensors) for peer in receivers]

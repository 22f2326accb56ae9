"""The end of a batch in one stage of a pipeline, when all of its micro-batches have been through.

    close      the gradient is complete here
    exchange   the peers of the stage add theirs up, if there are several
    norm       "sync": the norm of the whole model's gradient is found along the pipeline; "async": that of the stage

Invariant: once ``square`` is known, the stage's gradient is that of the whole batch, the same bits on all its peers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from p2ptrain.errors import JobError, RemoteError
from p2ptrain.learning.pipeline.all_reduce import Exchange
from p2ptrain.learning.pipeline.grad_norm import NormChain
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.planning.pipeline.stages import PipelinePlan


class BatchEnd:
    """``limit``: how long a gradient may be whose norm is the root of ``square``."""

    def __init__(self, pipeline: PipelinePlan, index: int, own: str, model: StageModel, *, sync: bool) -> None:
        stage = pipeline.stages[index]
        self._model = model
        self._share = stage.samples[stage.peers.index(own)] / pipeline.micro_batch
        self._exchange = Exchange(stage.peers, own, model.vector) if len(stage.peers) > 1 else None
        self._norm = NormChain(pipeline, index, own) if sync else None
        # With each stage's square below its share of the limit's, that of the whole model is below the limit's.
        share = 1.0 if sync else math.sqrt((stage.stop - stage.start) / pipeline.num_blocks)
        self.limit = model.config.max_norm * share
        self._closed = False
        self._own_square: float | None = None
        self._checked_buffers = self._exchange is None

    def receive(self, message: StageMessage, step: int) -> None:
        """Raises ``RemoteError`` for what is not due, and then changes nothing."""
        if message.work == "norm" and self._norm is not None:
            self._norm.receive(message, step)
        elif message.work in ("reduce", "gather") and self._exchange is not None:
            self._exchange.receive(message, step)
        else:
            raise RemoteError("stage-message-peer", f"{message.work}, which this stage has no use for")

    def work(self, step: int) -> Callable[[], list[StageMessage]] | None:
        """What can be done next; ``None``: something must come first, or there is nothing left."""
        if not self._closed:
            return partial(self._close, step)
        if self._exchange is not None and not self._exchange.done:
            return self._exchange.advance if self._exchange.ready() else None
        due = self._norm.due() if self._norm is not None else self._own_square is None
        return partial(self._add_squares, step) if due else None

    @property
    def square(self) -> float | None:
        """Of the gradient's norm, infinite if the batch is of no use; ``None`` before everything is done."""
        if not self._closed or (self._exchange is not None and not self._exchange.done):
            return None
        return self._own_square if self._norm is None else self._norm.total

    def next_batch(self) -> None:
        self._closed = False
        self._own_square = None
        if self._norm is not None:
            self._norm.reset()
        if self._exchange is not None:
            self._exchange.end()

    def abandon(self) -> None:
        """Drop the batch, and all that came for it and for the next."""
        self.next_batch()
        if self._exchange is not None:
            self._exchange.abandon()

    def _close(self, step: int) -> list[StageMessage]:
        self._closed = True
        self._model.close(self._share)
        if not self._checked_buffers and not self._model.bad:
            self._checked_buffers = True  # a graph without branches changes the same buffers in every batch
            if names := self._model.unaveraged():
                raise JobError(
                    f"training changes buffer {names[0]!r}, which is no running mean or variance, so peers that share "
                    "a stage can't average it; give that stage a single peer"
                )
        if self._exchange is not None:
            self._exchange.begin(step, bad=self._model.bad)
        return []

    def _add_squares(self, step: int) -> list[StageMessage]:
        self._model.bad = self._model.bad or (self._exchange is not None and self._exchange.bad)
        squares = self._model.squares()
        if self._norm is not None:
            return self._norm.add(squares, step)
        self._own_square = math.fsum(squares)
        return []

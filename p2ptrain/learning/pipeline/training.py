"""One peer's training of its stage of a pipeline: what it does next, what must have come for it, and what it sends.

Micro-batches are numbered through all batches: number = step x micro-batches + unit. A stage runs up to ``warm_up`` of
them ahead of its backward passes (1F1B, see ``pipeline_schedule.stage_order``). A batch is one optimizer step:

    forward, backward   of each micro-batch; rows go on to the next stage, gradients back to the one before
    exchange, norm      the gradient of the whole batch, and how long it is (``batch_end``)
    apply               clip it, and an optimizer step

With "sync" the pipeline is empty between two batches and the gradient is that of the whole batch. With "async" it is
emptied after each round only: a stage steps when its own gradient is there, clipped to its share of the norm allowed;
weights are stashed for micro-batches in flight, and now and then averaged over the versions in flight (FTPipeHD).

Invariant: which parameters come out doesn't hang on the order in which stage messages come in. With "sync" nobody
applies a batch before all have computed it, so no two peers are more than one batch apart, and all stop after the same
one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p2ptrain.config import Coding, Schedule, TrainingConfig
from p2ptrain.errors import DataError, JobError, LocalError, RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.initial import fit, start_from
from p2ptrain.learning.pipeline.batch_end import BatchEnd
from p2ptrain.learning.pipeline.flow import Flow
from p2ptrain.learning.pipeline.rows import StageMessage, Work
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.snapshots import Progress, Snapshot, restore_pieces, take_piece
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.learning.training import MAX_BAD_STEPS, DivergedError, has_batch_norm
from p2ptrain.planning.pipeline.stages import PipelinePlan

__all__ = ["StageMessage", "StageTraining", "StageUse", "Work"]

VAL_BATCH = 64
AVERAGE_EVERY = 10
"""Batches from one averaging of the versions in flight to the next ("async")."""


@dataclass(slots=True)
class StageUse:
    """What a stage computed. Seconds of all passes together; a pass is one micro-batch's."""

    busy_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0
    num_forward: int = 0
    num_backward: int = 0
    batches: int = 0


class StageTraining:
    """Call ``advance`` while ``ready``, send what it returns, and give ``receive`` what others' sent.

    ``build`` makes the whole model, of which only the own blocks are ever held (``Chain.build_slice``). ``data``: of
    peers in the first stage. ``init``: a checkpoint's tensors to start from. ``is_restored``: nothing is done before
    ``restore`` has brought all weights, so none are drawn. ``kept_labels``: of micro-batches between first and last
    stage, by number, where one peer has both and keeps them; None: they travel with the activations.
    """

    def __init__(
        self,
        training: TrainingConfig,
        chain: Chain,
        pipeline: PipelinePlan,
        own: str,
        *,
        build: Callable[[], nn.Module],
        data: Dataset | None,
        peer_name: str,
        seed: int,
        steps_per_round: int,
        num_classes: int,
        augment: bool = False,
        schedule: Schedule = "sync",
        activations: Coding = "none",
        gradients: Coding = "none",
        gradient_feedback: bool = True,
        device: torch.device | str = "cpu",
        init: Mapping[str, Tensor] | None = None,
        is_restored: bool = False,
        kept_labels: dict[int, Tensor] | None = None,
    ) -> None:
        index = pipeline.stage_of(own)
        if index is None or pipeline.num_blocks != len(chain.blocks):
            raise LocalError(f"{own} is not in the pipeline, or it is not one of {len(chain.blocks)} blocks")
        shape = list(chain.blocks[-1].outputs[0].shape)
        if num_classes not in (shape[-1], *(shape[:1] if shape[1:] == [1] * len(shape[1:]) else ())):
            raise JobError(
                f"the model returns {shape} for a sample, where the job has {num_classes} classes: give its last layer "
                "num_classes outputs"
            )
        stage = pipeline.stages[index]
        self.start, self.stop = stage.start, stage.stop
        self.step = 0
        """How many batches are done."""
        self.num_samples = 0
        """Samples that have trained the model, the whole group's."""
        self.last_loss = math.nan
        """Mean of the last batch that counted; known in the last stage."""
        self._round_losses: tuple[int, list[float]] = (0, [])
        """Of a round: its number, and of its batches so far."""
        self._steps_per_round = max(1, steps_per_round)
        self._total_steps = training.rounds * self._steps_per_round
        self.stop_at = self._total_steps
        """No batch after this many, not even one begun. With "async": full rounds, set before the last one begins."""
        self._chain = chain
        self._index = index
        self._seed = seed
        self._num_classes = num_classes
        self._warm_up = stage.warm_up
        self._num_units = pipeline.num_micro_batches
        self._batch_rows = pipeline.micro_batch * pipeline.num_micro_batches
        self._sync = schedule == "sync"
        self._peer_name = peer_name
        self._flow = Flow(
            chain,
            pipeline,
            index,
            own,
            num_classes=num_classes,
            activations=activations,
            gradients=gradients,
            gradient_feedback=gradient_feedback,
            with_labels=kept_labels is None,
        )
        self._kept_labels = kept_labels
        self._samples: SampleStream | None = None
        self._drawn = 0
        if self._flow.is_first:
            if data is None:
                raise DataError(f"{peer_name} is in the pipeline's first stage and has no data; give it --data")
            self._samples = SampleStream(data, seed=seed, peer_name=peer_name, augment=augment)
        names = chain.tensor_names(self.start, self.stop)
        blank = chain.blank_slice(self.start, self.stop) if is_restored else None
        module = chain.build_slice(build, self.start, self.stop) if blank is None else blank
        if init is not None and blank is None:
            start_from(module.state_dict(), fit(init, chain.model.state_dict()))
        self._stage = StageModel(
            module,
            names,
            training,
            total_steps=self._total_steps,
            device=torch.device(device),
            stashing=not self._sync,
        )
        if has_batch_norm(module) and min(stage.samples) == 1:
            raise JobError(
                f"stage {index + 1} of the pipeline has batch normalisation, and a peer of it gets a single sample of "
                "each micro-batch; make the micro-batches larger (pipeline.micro_batches, training.batch_size)"
            )
        self._end = BatchEnd(pipeline, index, own, self._stage, sync=self._sync)
        self._bad_in_a_row = 0
        self._use = StageUse()

    @property
    def round(self) -> int:
        return self.step // self._steps_per_round

    @property
    def round_loss(self) -> float:
        """Mean over the batches of the round under way, or of the last one; NaN where none is known."""
        losses = self._round_losses[1]
        return math.fsum(losses) / len(losses) if losses else math.nan

    @property
    def finished(self) -> bool:
        return self.step >= self._total_steps

    @property
    def drawn(self) -> int:
        """Samples of its own that this peer has drawn for the batches done, in all passes."""
        begun = self._flow.next_forward - self.step * self._num_units
        return self._drawn if self._samples is None else self._samples.drawn - begun * len(self._flow.rows)

    @property
    def num_held(self) -> int:
        """Micro-batches whose activations are held for a backward pass."""
        return self._stage.num_held

    @property
    def num_versions(self) -> int:
        """Copies of the weights that are held for them ("async")."""
        return self._stage.num_versions

    def use(self) -> StageUse:
        """Since the last call."""
        used, self._use = self._use, StageUse()
        return used

    # --- what comes in ---

    def receive(self, message: StageMessage) -> None:
        """Take what another peer sent. Raises ``RemoteError`` for what is not due or not sound, and keeps nothing."""
        if message.work in ("forward", "backward"):
            self._flow.receive(message)
        else:
            self._end.receive(message, self.step)

    # --- what is done ---

    def ready(self) -> bool:
        """Whether ``advance`` can do something now."""
        return self._next() is not None

    def advance(self) -> list[StageMessage]:
        """Do the next piece of work, and return what is to be sent for it."""
        work = self._next()
        if work is None:
            raise LocalError("nothing can be done before something comes")
        start = time.perf_counter()
        messages = work()
        self._use.busy_s += time.perf_counter() - start
        return messages

    def _next(self) -> Callable[[], list[StageMessage]] | None:
        flow, stop = self._flow, min(self.stop_at, self._total_steps)
        if self.step >= stop:
            return None
        if flow.next_backward < (self.step + 1) * self._num_units:
            end = self.step + 1 if self._sync else min(stop, (self.round + 1) * self._steps_per_round)
            if flow.next_forward < min(flow.next_backward + self._warm_up, end * self._num_units):
                return self._forward if flow.has_inputs() else None
            return self._backward if flow.has_gradients() else None
        return self._end.work(self.step) if self._end.square is None else self._apply

    def _forward(self) -> list[StageMessage]:
        start, flow = time.perf_counter(), self._flow
        number = flow.next_forward
        y: Tensor | None
        if self._samples is not None:
            x, y = self._samples.draw(len(flow.rows))
            inputs = [x.to(self._chain.input.dtype) if x.is_floating_point() else x]
        else:
            inputs, y = flow.take_inputs()
        if self._kept_labels is not None:
            if y is not None:
                self._kept_labels[number] = y
            elif flow.is_last:
                y = self._kept_labels.pop(number)
        seed = self._seed
        for where in (*divmod(number, self._num_units), self._index, flow.rows.start):
            seed = seed * 1_000_003 + where
        outputs: tuple[Tensor, ...] = ()
        if flow.is_last and y is not None:
            weight = len(flow.rows) / self._batch_rows
            self._stage.forward_to_loss(number, inputs, y, weight, seed, first=flow.is_first)
        else:
            outputs = self._stage.forward(number, inputs, seed, first=flow.is_first)
        messages = flow.send_outputs(outputs, y)
        self._use.forward_s += time.perf_counter() - start
        self._use.num_forward += 1
        return messages

    def _backward(self) -> list[StageMessage]:
        start, flow = time.perf_counter(), self._flow
        gradients = self._stage.backward(flow.next_backward, flow.take_gradients())
        messages = flow.send_gradients(gradients)
        self._use.backward_s += time.perf_counter() - start
        self._use.num_backward += 1
        return messages

    def _apply(self) -> list[StageMessage]:
        """An optimizer step, unless the batch is of no use."""
        square = math.inf if self._end.square is None else self._end.square
        if math.isfinite(square):
            if self._flow.is_last:
                self.last_loss = self._stage.loss
                if self._round_losses[0] != self.round:
                    self._round_losses = (self.round, [])
                self._round_losses[1].append(self.last_loss)
            self._stage.apply(self.step, math.sqrt(square), self._end.limit)
            self._stage.next_batch()
            self.num_samples += self._batch_rows
            self._bad_in_a_row = 0
        else:
            self._stage.discard(held=False)
            self._bad_in_a_row += 1
        self.step += 1
        self._use.batches += 1
        self._end.next_batch()
        if not self._sync and self.step % AVERAGE_EVERY == 0:
            self._stage.average_versions()
        if self._bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"the loss was not a finite number in {MAX_BAD_STEPS} batches in a row (batch {self.step} of "
                f"{self._total_steps}); lower training.learning_rate or look for samples that are not finite"
            )
        return []

    def accuracy(self, samples: Dataset | None) -> float:
        """Of the whole model, between two batches, on these samples; -1: there are none, or others hold some blocks."""
        if samples is None or not len(samples) or self.stop - self.start < len(self._chain.blocks):
            return -1.0
        batches = (samples.tensors(slice(i, i + VAL_BATCH)) for i in range(0, len(samples), VAL_BATCH))
        return evaluate(self._stage.module, batches, self._num_classes, device=self._stage.device).accuracy

    # --- back to what was ---

    def abandon_batch(self) -> None:
        """Drop the unfinished batch and all that came for it: everything is as it was after ``step`` batches."""
        if self._samples is not None:
            self._samples.drawn = self.drawn
        self._start_from(self.step)

    def snapshot(
        self, start: int | None = None, stop: int | None = None, *, copy: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Own blocks, all of them by default, as after ``step`` batches: see ``snapshots``.

        With "async" only one taken after a full round has all that training goes on from to the bit.
        """
        first, last = self.start if start is None else start, self.stop if stop is None else stop
        drawn = {self._peer_name: self.drawn} if self.drawn else {}
        progress = Progress(self.step, self._total_steps, self.num_samples, drawn)
        return take_piece(self._stage, self._chain, first, last, progress, copy=copy)

    def restore(self, pieces: Sequence[Snapshot], step: int) -> None:
        """Go on from pieces of ``step`` that together cover the own blocks; else ``RemoteError``, and nothing changed.

        One of them should be this peer's own of that step, whatever its blocks: it says which samples come next.
        """
        if step > self._total_steps:
            raise RemoteError("snapshot", f"after {step} batches of {self._total_steps}")
        progress = restore_pieces(self._stage, self._chain, self.start, self.stop, pieces, step)
        self.step, self.num_samples = progress.step, progress.samples
        self._drawn = progress.drawn.get(self._peer_name, 0)
        if self._samples is not None:
            self._samples.drawn = self._drawn
        self._bad_in_a_row = 0
        self._stage.keep_buffers()
        self._start_from(step)

    def begin(self, pieces: Sequence[Snapshot], mark: int, step: int) -> None:
        """Begin at ``step`` from pieces marked ``mark`` that are nobody's own, such as the average of a round.

        The first stage has one peer, which has drawn its samples of all steps before. Where the pieces have no
        optimizer state it starts anew. Raises ``RemoteError`` for pieces that don't fit, and then changes nothing.
        """
        if not 0 <= step <= self._total_steps:
            raise RemoteError("snapshot", f"after {step} batches of {self._total_steps}")
        progress = restore_pieces(self._stage, self._chain, self.start, self.stop, pieces, mark)
        self.step, self.num_samples = step, progress.samples
        if self._samples is not None:
            self._drawn = self._samples.drawn = step * self._num_units * len(self._flow.rows)
        self._bad_in_a_row, self._round_losses = 0, (self.round, [])
        self._stage.keep_buffers()
        self._start_from(step)

    def _start_from(self, step: int) -> None:
        if self._kept_labels is not None:
            self._kept_labels.clear()
        self._stage.discard(held=True)
        self._flow.restart(step)
        self._end.abandon()

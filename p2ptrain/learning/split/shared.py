"""Units that train one model together, step by step: ``tails = "shared"``.

A step is one optimizer step over a global batch (``draws``): each owner passes its share of the rows through its front,
its helper passes them through the tail, gradients of each block are added up over all who hold it (``shared_sum``), and
all apply the same step. So it trains what one process would on all samples together, whatever the cuts (SplitFedV2 in
lock-step; GPSL, arXiv 2407.15738), and a helper needs one tail in place of one for each owner.

    passes   of every unit's micro-batches; a tail's forward and backward pass are one piece of work
    sum      the own vector goes to the collector, and the sum comes back
    apply    clip it, and an optimizer step

Invariant: all copies of a block are equal after every step. A helper serves its owners as they come, so gradients are
added up in another order each time: parameters are the same to rounding, not to the bit. Running statistics of norms
follow the rows in that order, as they do in one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.initial import fit, start_from
from p2ptrain.learning.pipeline.optimizer_state import state_tensors
from p2ptrain.learning.pipeline.rows import Spec, StageMessage, label_shapes
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.snapshots import Snapshot, restore_pieces
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.learning.pipeline.training import StageUse
from p2ptrain.learning.snapshots import shared_on_cpu
from p2ptrain.learning.split.draws import Draws, micro_batches
from p2ptrain.learning.split.shared_sum import SharedSum, held_runs
from p2ptrain.learning.split.track import LABELS, Track
from p2ptrain.learning.split.update import Copy, make_update
from p2ptrain.learning.training import MAX_BAD_STEPS, DivergedError
from p2ptrain.planning.split.units import SplitPlan, Unit


class SharedUnits:
    """As ``Units``, of one model. ``collector``: the peer to whom all gradients go. ``seed``: of the job."""

    def __init__(
        self,
        own: str,
        plan: SplitPlan,
        samples: Mapping[str, int],
        chain: Chain,
        *,
        collector: str,
        training: TrainingConfig,
        data: Dataset | None,
        peer_name: str,
        seed: int,
        num_classes: int,
        build: Any,
        augment: bool = False,
        after_s: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        runs = held_runs([(unit.owner, unit.helper, unit.cut) for unit in plan.units], plan.num_blocks)
        if own not in runs or collector not in runs:
            raise LocalError(f"{own} or {collector} neither trains nor helps")
        self._own, self._chain, self._plan = own, chain, plan
        self._rounds, self._seed = training.rounds, seed
        self._after_s = after_s or {}
        self.first, self.stop = runs[own]
        owned = {unit.owner: samples[unit.owner] for unit in plan.units}
        self._draws = Draws(owned, plan.batch_size, seed=seed, passes=training.epochs_per_round)
        self._per_round = self._draws.steps_per_round
        self._samples: SampleStream | None = None
        self._num_own = owned.get(own, 0)
        if self._num_own:
            if data is None:
                raise LocalError(f"{own} owns a unit and has no data")
            self._samples = SampleStream(data, seed=seed, peer_name=peer_name, augment=augment)
        names = chain.tensor_names(self.first, self.stop)
        module = chain.build_slice(build, self.first, self.stop)
        if init is not None:
            start_from(module.state_dict(), fit(init, chain.model.state_dict()))
        self._stage = StageModel(
            module, names, training, total_steps=self._rounds * self._per_round, device=torch.device(device)
        )
        self._sum = SharedSum(chain, runs, own, collector, self._stage.vector)
        labels = Spec(
            label_shapes(chain.blocks[-1].outputs[0].shape, chain.input.shape[-1]), torch.int64, range(num_classes)
        )
        self._tracks = {
            unit.owner: self._track(place, unit, labels)
            for place, unit in enumerate(plan.units)
            if own in (unit.owner, unit.helper)
        }
        self._by_peer = {
            (track.unit.helper if own == track.unit.owner else track.unit.owner): track
            for track in self._tracks.values()
        }
        self.round = 0
        self._steps: list[dict[str, int]] = []
        """Of this round, by owner the rows of the global batch."""
        self._step = 0
        """In this round."""
        self._counted = dict.fromkeys(self._tracks, 0)
        self.samples_before = 0
        """That the rounds before this one were trained on."""
        self._given = False
        """The own vector, to the collector."""
        self._bad_in_a_row = 0
        self._losses: list[float] = []
        """Of this round's batches that counted."""
        self._use = {owner: StageUse() for owner in self._tracks}

    def _track(self, place: int, unit: Unit, labels: Spec) -> Track:
        is_tail = unit.helper == self._own
        blocks = (unit.cut, self._plan.num_blocks) if is_tail else (0, unit.cut)
        run = self._chain.slice(*blocks, self._stage.module).train()
        return Track(unit, place, is_tail, blocks, run, self._chain, labels)

    # --- how far it is ---

    @property
    def done(self) -> bool:
        """Whether nothing of this round is left to do here."""
        return self._step >= len(self._steps)

    @property
    def num_samples(self) -> int:
        """Samples that the units held here have been trained on in this round."""
        return sum(self._counted.values())

    @property
    def num_steps(self) -> int:
        """Batches of this round that are done."""
        return self._step

    @property
    def num_held(self) -> int:
        """Micro-batches whose activations are held for a backward pass."""
        return self._stage.num_held

    @property
    def losses(self) -> dict[str, float]:
        """Mean over the global batches of this round that counted, which are those of all units."""
        mean = math.fsum(self._losses) / len(self._losses) if self._losses else math.nan
        return dict.fromkeys(self._tracks, mean)

    def use(self) -> dict[str, StageUse]:
        """What was computed since the last call, by owner."""
        used, self._use = self._use, {owner: StageUse() for owner in self._tracks}
        return used

    # --- a round ---

    def begin(self, round: int, pieces: Sequence[Snapshot]) -> None:
        """As ``Units.begin``. The optimizers go on as the pieces have them: all copies are equal."""
        if not 0 <= round <= self._rounds or (round > 0 and not pieces):
            raise RemoteError("snapshot", f"round {round} of {self._rounds} from {len(pieces)} pieces")
        if not pieces and self._step:
            raise LocalError("the initial weights are trained already; make these units anew")
        if pieces:
            progress = restore_pieces(self._stage, self._chain, self.first, self.stop, pieces, round)
            self.samples_before = progress.samples
            self._stage.keep_buffers()
        self.round, self._step, self._losses = round, 0, []
        self._steps = self._draws.of_round(round) if round < self._rounds else []
        self._counted = dict.fromkeys(self._tracks, 0)
        if self._samples is not None:
            self._samples.drawn = round * self._num_own  # each round begins a pass of its own
        self._stage.discard(held=True)
        self._sum.end()
        for track in self._tracks.values():
            track.came.clear()
        self._begin_step()

    def _begin_step(self) -> None:
        self._given = False
        for owner, track in self._tracks.items():
            track.begin(self._rows(owner, self._step))

    def _rows(self, owner: str, step: int) -> list[int]:
        if step >= len(self._steps):
            return []
        return micro_batches(self._steps[step].get(owner, 0), self._tracks[owner].unit.micro_batches)

    def update(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """As ``Units.update``."""
        if not self.done:
            raise LocalError("the round is not over")
        tensors = self._stage_tensors()
        copies = []
        for owner, track in sorted(self._tracks.items()):
            copies.append(Copy(*track.blocks, self._counted[owner], tensors))
        return make_update(self._chain, self.round, copies, with_optimizer=True, are_equal=True)

    def _stage_tensors(self) -> dict[str, Tensor]:
        stage, tensors = self._stage, {f"model.{name}": t for name, t in self._stage.state().items()}
        for name, parameter in stage.parameters.items():
            tensors |= state_tensors(stage.config, stage.optimizer, name, parameter, shared_on_cpu)
        return {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}

    # --- within a round ---

    def receive(self, message: StageMessage) -> None:
        """Take what another peer sent. Raises ``RemoteError`` for what is not due or not sound, and keeps nothing."""
        if self.done:
            raise RemoteError("stage-message-step", f"{message.work} after the round")
        if message.work in ("reduce", "gather", "norm"):
            self._sum.receive(message, self._global(self._step))
            return
        track = self._by_peer.get(message.peer)
        if track is None:
            raise RemoteError("stage-message-peer", f"{message.work} from a peer that sends none here")
        step = message.step - self._global(0)
        track.take(message, step - self._step, self._rows(track.unit.owner, step))

    def ready(self) -> bool:
        """Whether ``advance`` can do something now."""
        return not self.done and (self._next_track() is not None or self._sum_is_due() or self._sum_is_here())

    def advance(self) -> list[StageMessage]:
        """Do the next piece of work, and return what is to be sent for it: of several passes that of the unit whose
        owner needs longest afterwards, and the own one last."""
        track = self._next_track()
        if track is not None:
            return self._pass(track)
        if self._sum_is_due():
            return self._give()
        if self._sum_is_here():
            messages = self._sum.combine() if self._sum.ready() else []
            self._apply()
            return messages
        raise LocalError("nothing can be done before something comes")

    def _next_track(self) -> Track | None:
        ready = [owner for owner, track in self._tracks.items() if track.can_pass()]
        if not ready:
            return None
        urgent = min(ready, key=lambda owner: (owner == self._own, -self._after_s.get(owner, 0.0), owner))
        return self._tracks[urgent]

    def _sum_is_due(self) -> bool:
        return not self._given and all(track.done for track in self._tracks.values())

    def _sum_is_here(self) -> bool:
        return self._given and (self._sum.ready() or self._sum.square is not None)

    def _global(self, step: int) -> int:
        return self.round * self._per_round + step

    # --- passes ---

    def _pass(self, track: Track) -> list[StageMessage]:
        start, use = time.perf_counter(), self._use[track.unit.owner]
        if track.is_tail or track.unit.helper is None:
            messages = self._whole_pass(track)
            use.forward_s += time.perf_counter() - start
            use.num_forward, use.num_backward = use.num_forward + 1, use.num_backward + 1
        elif track.can_forward():
            messages = self._forward(track)
            use.forward_s += time.perf_counter() - start
            use.num_forward += 1
        else:
            gradients = track.came.pop(track.next_backward)
            self._stage.backward(track.number(track.next_backward), [gradients[name] for name in track.coming])
            track.next_backward += 1
            messages = []
            use.backward_s += time.perf_counter() - start
            use.num_backward += 1
        use.busy_s += time.perf_counter() - start
        return messages

    def _whole_pass(self, track: Track) -> list[StageMessage]:
        """Forward to the loss and back, at a tail or alone."""
        at, is_tail = track.next_forward, track.is_tail
        if is_tail:
            tensors = track.came.pop(at)
            y = tensors.pop(LABELS)
            inputs = [tensors[name] for name in track.coming if name != LABELS]
        else:
            inputs, y = self._draw(track.rows[at])
        number, weight = track.number(at), track.rows[at] / self._draws.batch_size
        seed = self._pass_seed(track, at, is_tail)
        self._stage.forward_to_loss(number, inputs, y, weight, seed, first=not is_tail, run=track.run)
        gradients = self._stage.backward(number, [])
        track.next_forward, track.next_backward = at + 1, at + 1
        if not is_tail:
            return []
        payload = track.encoder.encode({str(index): each for index, each in enumerate(gradients)})
        return [StageMessage(track.unit.owner, "backward", self._global(self._step), at, 0, payload)]

    def _forward(self, track: Track) -> list[StageMessage]:
        at = track.next_forward
        inputs, y = self._draw(track.rows[at])
        seed = self._pass_seed(track, at, False)
        outputs = self._stage.forward(track.number(at), inputs, seed, first=True, run=track.run)
        track.next_forward += 1
        payload = track.encoder.encode({str(index): each for index, each in enumerate(outputs)} | {LABELS: y})
        return [StageMessage(str(track.unit.helper), "forward", self._global(self._step), at, 0, payload)]

    def _draw(self, rows: int) -> tuple[list[Tensor], Tensor]:
        if self._samples is None:
            raise LocalError("a unit without samples")
        x, y = self._samples.draw(rows)
        return [x.to(self._chain.input.dtype) if x.is_floating_point() else x], y

    def _pass_seed(self, track: Track, at: int, is_tail: bool) -> int:
        seed = self._seed
        for where in (self._global(self._step), track.place, at, int(is_tail)):
            seed = seed * 1_000_003 + where
        return seed

    # --- the end of a step ---

    def _give(self) -> list[StageMessage]:
        self._given = True
        stage, batch = self._stage, self._draws.batch_size
        rows = {
            block: sum(sum(t.rows) for t in self._tracks.values() if t.blocks[0] <= block < t.blocks[1])
            for block in range(self.first, self.stop)
        }
        shares = {name: rows[block] / batch for block in rows for name in self._chain.tensor_names(block, block + 1)}
        stage.close({name: shares[name] for name in stage.statistics})
        return self._sum.begin(self._global(self._step), bad=stage.bad)

    def _apply(self) -> None:
        """An optimizer step, unless the batch is of no use."""
        start, stage = time.perf_counter(), self._stage
        square = math.inf if self._sum.square is None else self._sum.square
        if math.isfinite(square):
            self._losses.append(stage.loss)
            stage.apply(self._global(self._step), math.sqrt(square), stage.config.max_norm)
            stage.next_batch()
            for owner in self._tracks:
                self._counted[owner] += self._steps[self._step].get(owner, 0)
            self._bad_in_a_row = 0
        else:
            stage.discard(held=False)
            self._bad_in_a_row += 1
        self._sum.end()
        self._step += 1
        self._begin_step()
        for use in self._use.values():
            use.batches += 1
            use.busy_s += (time.perf_counter() - start) / len(self._use)
        if self._bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"the loss was not a finite number in {MAX_BAD_STEPS} batches in a row; lower training.learning_rate "
                "or look for samples that are not finite"
            )

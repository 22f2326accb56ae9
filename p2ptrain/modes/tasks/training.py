"""One peer's training of one part: rounds over its own samples, push-sum masses, payloads, merges and snapshots.

Invariant: a snapshot holds everything that training goes on from (parameters, buffers, optimizer, masses, round), and
is taken at the end of a round; batches follow from (job seed, peer name, round) alone, so a peer that resumes from a
snapshot sees the batches that it would have seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import numpy as np
from torch import Tensor

from p2ptrain.config import Job
from p2ptrain.errors import DataError, RemoteError, UserError
from p2ptrain.ids import lot
from p2ptrain.learning.averaging import merge_checked
from p2ptrain.learning.compression import Compressor, decompress
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.evaluation import evaluate, own_class_accuracy
from p2ptrain.learning.robust.means import FEWEST
from p2ptrain.learning.robust.merging import MergeGuard
from p2ptrain.learning.round_end import RoundEnd, equal_work
from p2ptrain.learning.snapshots import read_count
from p2ptrain.learning.training import LocalTrainer, check_batch_size
from p2ptrain.learning.work import Work
from p2ptrain.modes.tasks.averaging.outer import PREFIX, OuterNesterov
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.plan import body_of
from p2ptrain.modes.tasks.planning.budget import affordable_passes, unaffordable

Masses = dict[str, float]

VAL_BATCH = 256


class PartTraining:
    """Call ``step`` until ``finished``; everything else may happen between two steps."""

    def __init__(
        self,
        job: Job,
        parts: Parts,
        part: int,
        data: Dataset,
        peer_name: str,
        device: str = "cpu",
        val: Dataset | None = None,
        work: Work | None = None,
    ) -> None:
        self.part = part
        self.work = work if work is not None else Work()
        self._num_run, self._num_looked = 0, 0
        """Samples that went through the model since its work was counted last: forward and backward, forward alone."""
        self.round = 0
        self.step_in_round = 0
        self.last_loss = math.nan
        """Mean over the samples of the round under way, or of the last one; NaN where none was learnt from, or where
        there is a single class, of which the loss is always nothing."""
        self._val = val
        self._job = job
        self._parts = parts
        self._spec = parts.body.parts[part]
        targets = parts.body.targets if parts.decoupling is not None else "all"
        own = self._spec.classes
        self._data = data.subset(np.flatnonzero(np.isin(data.y, own))) if targets == "own" else data
        if not len(self._data):
            raise DataError("no sample of this device is of a class of its part; let it have data of those classes")
        config = job.training
        present = np.unique(self._data.y).tolist()
        self._val_classes = sorted(set(present) & set(own)) if targets == "rest" else present
        self._val_outputs = () if targets == "all" else own
        submodel = parts.submodel(part)
        check_batch_size(submodel, config.batch_size)
        most, asked = 1.0, tasks_of(job).passes
        if parts.decoupling is not None and asked != 1:
            most = max(1.0, equal_work(parts.whole_flops(), parts.flops(part)))
        passes = min(asked or most, most)
        # What a part of a few classes is for, the others' samples, is not among the own validation samples.
        self._looks = asked == 0 and targets != "own" and val is not None and len(val) > 0
        self._steps_per_pass = self._data.num_batches(config.batch_size)
        steps = self._steps_per_pass * config.epochs_per_round
        self._steps_per_round = math.ceil(steps * passes)
        if tasks_of(job).budget and parts.decoupling is not None:
            most = affordable_passes(job, parts, part, len(self._data), self._num_val, looks=self._looks)
            if steps * most < 1:
                raise UserError(unaffordable(job, parts))
            self._steps_per_round = min(self._steps_per_round, math.floor(steps * most))
        self._fewest_steps = min(math.ceil(steps), self._steps_per_round)
        self.trainer = LocalTrainer(
            submodel,
            config,
            num_classes=len(job.data.classes),
            total_steps=config.rounds * self._steps_per_round,
            targets=targets,
            own_classes=own,
            present=None if job.data.kind == "text" else present,
            seed=job.seed,
            device=device,
            samples=self._data.tensors(slice(0, 2))[0],
        )
        self._end = RoundEnd()
        self._is_ending = False
        self._losses: list[float] = []
        """The loss of each step of the pass under way."""
        self._learnt, self._loss_sum = 0, 0.0
        """Samples of this round that trained the model, and the sum of their losses."""
        self._bad_before = 0
        self._targets = targets
        self._seed = lot(peer_name, 8)
        self.masses: Masses = dict.fromkeys(self._spec.shards, 0.0)
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._compressor = Compressor(job.group.compression, job.group.topk_fraction, submodel.state_dict())
        self._guard = MergeGuard(job.group.robust)
        self._exchange_every = tasks_of(job).exchange_every
        self._outer: OuterNesterov | None = None
        if tasks_of(job).outer != "none" and parts.decoupling is None:
            parameters = {n: p for n, p in submodel.named_parameters() if p.requires_grad}
            self._outer = OuterNesterov(parameters, tasks_of(job).outer_rate, tasks_of(job).outer_momentum)
        self._answers: dict[str, dict[str, Tensor]] = {}
        """By partner: the coordinates that its last payload brought, for top-k to answer with the same."""

    @property
    def num_samples(self) -> int:
        """Samples that this peer can train the part on."""
        return len(self._data)

    @property
    def _num_val(self) -> int:
        return len(self._val) if self._val is not None else 0

    def work_flops(self) -> int:
        """Of this device for the job so far, all in all."""
        cost = self._parts.flops(self.part)
        self.work.ran(cost.total, self._num_run)
        self.work.ran(cost.forward, self._num_looked)
        self._num_run = self._num_looked = 0
        return self.work.flops

    def central_flops(self) -> int:
        """What central training of the whole job comes to, at least."""
        return self._parts.central_flops()

    @property
    def num_skipped(self) -> int:
        """Batches of the round under way, or of the last one, whose loss was not a finite number."""
        return self.trainer.num_bad_steps - self._bad_before

    @property
    def finished(self) -> bool:
        is_over = self._is_ending and self.step_in_round == 0 and self.round > 0
        return is_over or self.round >= self._job.training.rounds or self._steps_per_round == 0

    def finish_round(self) -> None:
        """The round under way is the last one; between two rounds the one before was."""
        self._is_ending = True

    def step(self) -> bool:
        """Train on one batch; true when that ends a round."""
        if self.step_in_round == 0:
            if any(self._is_guarded(shard) for shard in self.masses) and not self._guard.is_under_way:
                self._guard.begin_round(self._tensors(tuple(self.masses)))
            self.trainer.begin_round()
            self._batches, self._end, self._losses = self._round_batches(), RoundEnd(), []
            self._learnt, self._loss_sum = 0, 0.0
            self._bad_before = self.trainer.num_bad_steps
        x, y = next(self._batches)
        before = self.trainer.num_samples
        loss = self.trainer.step(x, y)
        self._num_run += len(y)
        learnt = self.trainer.num_samples - before
        if loss is not None:
            self._learnt += learnt
            self._loss_sum += learnt * loss
            self._losses.append(loss)
            if self.trainer.num_outputs > 1:
                self.last_loss = self._loss_sum / self._learnt
        for shard in self.masses:
            self.masses[shard] += learnt
        self.step_in_round += 1
        if self.step_in_round < self._steps_per_round:
            if not self._ends_early():
                return False
            self.trainer.skip(self._steps_per_round - self.step_in_round)  # the learning rate is that of the round
        if not self._learnt:
            raise UserError(f"round {self.round + 1} of part {self.part}: {self.trainer.why_nothing_was_learnt()}")
        self.step_in_round = 0
        self.round += 1
        if not self.round % self._exchange_every:  # copies part for so long, and the guard takes that for a round
            if self._outer is not None:
                self._outer.step()
            self._guard.end_round(self.trainer.model.state_dict())
        return True

    def _ends_early(self) -> bool:
        """After each pass: whether more of them would bring nothing, by the own validation samples."""
        if not self._looks or self.step_in_round % self._steps_per_pass:
            return False
        losses, self._losses = self._losses, []
        validation_loss = self.trainer.loss_on(self._val_batches())
        self._num_looked += self._num_val
        is_near = self._end.is_near(math.fsum(losses) / max(1, len(losses)), validation_loss)
        return is_near and self.step_in_round >= self._fewest_steps

    def accuracy(self) -> float:
        """On the own validation samples, asked among the classes that are trained here; -1 = there are none."""
        if self._val is None or not len(self._val):
            return -1.0
        self._num_looked += self._num_val
        batches = self._val_batches()
        if self._job.data.kind == "text":
            found = evaluate(self.trainer.model, batches, len(self._job.data.classes), device=self.trainer.device)
            return found.accuracy
        share = own_class_accuracy(
            self.trainer.model, batches, self._val_classes, outputs=self._val_outputs, device=self.trainer.device
        )
        return share if math.isfinite(share) else -1.0

    def _val_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self._num_val, VAL_BATCH):
            assert self._val is not None
            yield self._val.tensors(slice(start, start + VAL_BATCH))

    def _round_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self._job.seed, self._seed, self.round])
        own_fraction = tasks_of(self._job).own_fraction if self._targets != "own" else 0.0
        while True:  # a round may be several passes
            yield from self._data.batches(
                rng,
                self._job.training.batch_size,
                own_classes=self._spec.classes,
                own_fraction=own_fraction,
                augment=self._job.data.changes_samples,
            )

    # --- snapshots ---

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """That of the job's last round has no optimizer's state: nothing is trained on from it."""
        tensors, metadata = self.trainer.snapshot()
        if self.round >= self._job.training.rounds:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("optim.")}
        elif self._outer is not None:
            tensors |= self._outer.tensors()
        own = {"part": str(self.part), "round": str(self.round), "masses": json.dumps(self.masses)}
        own["work"] = str(self.work_flops())
        return tensors, metadata | own | {"partition": self._parts.plan.partition}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, own: bool) -> None:
        """Go on from a snapshot; from another peer's with its parameters, and no mass of our own yet."""
        if metadata.get("part") != str(self.part) or not metadata.get("round", "").isdigit():
            raise RemoteError("snapshot", f"of part {metadata.get('part')!r:.20}, expected {self.part}")
        if metadata.get("partition") != self._parts.plan.partition:
            raise RemoteError("snapshot", "of a plan that divides the model otherwise")
        outer = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        self.trainer.restore({name: tensor for name, tensor in tensors.items() if name not in outer}, metadata)
        if self._outer is not None:
            self._outer.restore(outer)
        self.round = min(int(metadata["round"]), self._job.training.rounds)
        self.step_in_round = 0
        if own:
            self.work.resumed(read_count(metadata, "work") if "work" in metadata else 0)
            stored = json.loads(metadata.get("masses", "{}"))
            self.masses = {shard: float(stored.get(shard, 0.0)) for shard in self.masses}

    # --- gossip (push-sum; Kempe, Dobra, Gehrke 2003) ---

    def make_payload(self, shards: tuple[str, ...], partner: str) -> tuple[Masses, dict[str, Tensor]]:
        """Half of the mass of these shards, and their tensors, compressed. The other half of the mass stays."""
        halves = {shard: self.masses[shard] / 2 for shard in shards if self.masses.get(shard, 0.0) > 0}
        for shard, half in halves.items():
            self.masses[shard] = half
        answering = self._answers.pop(partner, None)
        return halves, self._compressor.compress(self._tensors(tuple(halves)), answering=answering)

    def merge(self, masses: Mapping[str, float], payload: Mapping[str, Tensor], partner: str, *, reply: bool) -> None:
        """Take in another peer's half. A payload that does not fit raises ``RemoteError`` and changes nothing.

        What is far from what honest copies are counts less, and so does its mass (``MergeGuard``).
        """
        unknown = set(masses) - set(self.masses)
        if unknown:
            raise RemoteError("gossip", f"shards {sorted(unknown)[:3]} are not ours")
        current = self._tensors(tuple(masses))
        incoming, indices = decompress(payload, current)  # which checks every number
        if reply and indices:
            self._answers[partner] = indices
        with self._outer.merging() if self._outer is not None else nullcontext():
            for shard, mass in masses.items():
                names = self._parts.shard_names(self.part, shard)
                self.masses[shard] += mass * self._merge_shard(
                    {n: current[n] for n in names},
                    {n: incoming[n] for n in names},
                    (self.masses[shard], mass),
                    {n: indices[n] for n in names if n in indices},
                    partner if self._is_guarded(shard) else "",
                )

    def _merge_shard(
        self,
        current: Mapping[str, Tensor],
        incoming: Mapping[str, Tensor],
        masses: tuple[float, float],
        indices: Mapping[str, Tensor],
        guarded_from: str,
    ) -> float:
        """The share of the mass that counts."""
        if not guarded_from:
            merge_checked(current, incoming, *masses, indices=indices)
            return 1.0
        counts = self._guard.begin_merge(guarded_from, current, incoming, indices)
        try:
            merge_checked(current, incoming, *masses, indices=indices, toward=self._guard.toward)
        finally:
            self._guard.end_merge(current)
        return counts

    def _is_guarded(self, shard: str) -> bool:
        """Whether merges of it are bounded: of two that hold it none can be told to be wrong."""
        parts = body_of(self._parts.plan).parts
        num_holders = sum(len(part.trainers) for part in parts if shard in part.shards)
        return self._job.group.robust != "none" and num_holders >= FEWEST

    def reclaim(self, masses: Mapping[str, float]) -> None:
        """The halves that a payload would have taken along, had anybody fetched it."""
        for shard in self.masses.keys() & masses.keys():
            self.masses[shard] += masses[shard]

    def _tensors(self, shards: tuple[str, ...]) -> dict[str, Tensor]:
        state = self.trainer.model.state_dict()
        names = frozenset[str]().union(*(self._parts.shard_names(self.part, shard) for shard in shards))
        return {name: state[name] for name in sorted(names)}

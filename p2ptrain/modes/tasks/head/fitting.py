"""One peer's share of the group's work on the head: features of its own samples, and what it contributes to each step.

    where the head is fitted: step 0 the moments, then the gradients of ``head_fit``; in any case, last: the counts
    of right answers on the own validation samples (``validation``)

Invariant: the features stay here; what leaves are sums over samples. Only tensors that change are sent with every
step: those that don't (mean, whitening) travel with the first state, now and then, and with the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from p2ptrain.config import Job
from p2ptrain.errors import RemoteError
from p2ptrain.learning import candidates, head_fit, validation
from p2ptrain.learning.averaging import check_state, weighted_mean
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.validation import Head, Member
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.parts import Parts

FIXED = ("mean", "whiten", "class_weight")
FULL_EVERY = 25
"""Steps between states that carry the fixed tensors too, for a peer that missed the first."""
BATCH_SIZE = 256

Kind = Literal["moments", "gradient", "validation"]


class HeadFitting:
    """``session`` names the snapshots; give them with ``add_copy``, then answer step by step."""

    def __init__(
        self, job: Job, parts: Parts, session: str, data: Dataset, val: Dataset | None = None, device: str = "cpu"
    ) -> None:
        self.session = session
        self._config = head_fit.FitConfig(steps=tasks_of(job).head_fit_steps)
        self._fits = parts.body.fit_head
        self._parts = parts
        self._data = data
        self._val = val
        self._device = device
        self._num_classes = len(job.data.classes)
        self._copies: list[tuple[float, dict[str, Tensor]]] = []
        """Of the part that is being added, with their weights."""
        self._columns: list[tuple[Tensor, Tensor | None]] = []
        self._val_columns: list[tuple[Tensor, Tensor | None]] = []
        self._seen: set[tuple[int, str]] = set()
        self._members: dict[str, Member] = {}
        """What each peer trained, by its name."""
        self._heads: dict[int, dict[str, Tensor]] = {}
        """The head's own tensors of each part."""
        self._y = torch.zeros(0, dtype=torch.int64)
        self._val_y = torch.zeros(0, dtype=torch.int64)
        self._features: tuple[Tensor, Tensor] | None = None
        """[n, F] of the training samples (none where nothing is fitted) and of the validation samples."""
        self._whole: dict[str, Tensor] | None = None
        """Counts of the one part that is all of the model, where nothing is fitted: nobody needs its features."""
        self._head: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}

    @property
    def num_samples(self) -> int:
        return len(self._data)

    def add_copy(self, part: int, trainer: str, state: Mapping[str, Tensor], weight: float, *, last: bool) -> None:
        """A frozen copy of a part, as its ``trainer`` had it; with the ``last`` their mean runs over the own samples.

        Raises ``RemoteError`` for a copy that does not fit; ``UserError`` where the model has no head to fit.
        """
        ended = self._features is not None or self._whole is not None or part in self._heads
        if ended or (part, trainer) in self._seen:
            raise RemoteError("head-fit", f"part {part} of {trainer} came twice")
        self._seen.add((part, trainer))
        submodel = self._parts.submodel(part)
        check_state(state, submodel.state_dict())
        submodel.load_state_dict(dict(state))
        classes = self._parts.trained_classes(part, trainer)
        _, (right,) = self._answers(submodel, self._parts.outputs(part), [classes])
        if trainer not in self._members or trainer in self._parts.body.parts[part].trainers:
            self._members[trainer] = Member(classes, right)  # one that changed its part has left a copy of the former
        self._copies.append((weight, dict(state)))
        if not last:  # no more than two are in memory
            self._copies = [(sum(each for each, _ in self._copies), weighted_mean(self._copies))]
            return
        mean, self._copies = weighted_mean(self._copies), []
        submodel.load_state_dict(mean)
        if not self._fits and self._parts.decoupling is None:
            self._whole = self._counts_of(submodel)
            return
        head, columns = self._parts.head, self._parts.head_columns(part)
        if self._fits:
            x, self._y = head_fit.features(submodel, head, self._own_batches(self._data), device=self._device)
            self._columns.append((x, columns))
        x, self._val_y = head_fit.features(submodel, head, self._own_batches(self._val), device=self._device)
        self._val_columns.append((x, columns))
        self._heads[part] = self._parts.head_of(mean)

    def kind(self, step: int) -> Kind:
        """What ``step`` is about."""
        if not self._fits or step > self._config.steps:
            return "validation"
        return "moments" if step == 0 else "gradient"

    def contribute(self, step: int, state: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """(samples, sums) for ``step``; the state of step 0 is empty."""
        kind = self.kind(step)
        if kind == "validation":
            return self.num_samples, self._validate(state)
        x, _ = self._joined()
        if kind == "moments":
            return self.num_samples, head_fit.moments(x, self._y, self._num_classes)
        sums, samples = head_fit.gradient(self._full(state), x, self._y, step)
        return samples, sums

    def combine(
        self, step: int, state: Mapping[str, Tensor], contributions: Sequence[tuple[int, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """The state after ``step``, as lead."""
        kind = self.kind(step)
        if kind == "validation":
            counts = validation.add([sums for _, sums in contributions], self._num_classes)
            samples = sum(number for number, _ in contributions)
            counts[candidates.SAMPLES] = torch.tensor([float(samples)], dtype=torch.float64)
            return (self._full(state) if self._fits else {}) | counts
        self._joined()
        if kind == "moments":
            after = head_fit.begin(self._head, [sums for _, sums in contributions], self._config)
            self._fixed = {name: after[name] for name in FIXED}
            return after
        after = head_fit.advance(self._full(state), contributions, step, self._config)
        last = step == self._config.steps
        return after if last or step % FULL_EVERY == 0 else {n: t for n, t in after.items() if n not in FIXED}

    def combine_sound(
        self, step: int, state: Mapping[str, Tensor], contributions: Sequence[tuple[int, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """``combine``, without those contributions that alone would be refused. Raises ``RemoteError``."""
        try:
            return self.combine(step, state, contributions)
        except RemoteError:
            sound = [each for each in contributions if self._is_sound(step, state, each)]
            if not 0 < len(sound) < len(contributions):
                raise
            return self.combine(step, state, sound)

    def _is_sound(self, step: int, state: Mapping[str, Tensor], contribution: tuple[int, Mapping[str, Tensor]]) -> bool:
        try:
            self.combine(step, state, [contribution])
        except RemoteError:
            return False
        return True

    def _full(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        carried = {name: state[name] for name in FIXED if name in state}
        full = dict(state) | (self._fixed if not carried else {})
        head_fit.check_fit_state(full, self._num_classes, self._joined()[1].shape[1])
        if carried:
            self._fixed = carried
        return full

    # --- validation ---

    def _validate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._whole is not None:
            return self._whole
        _, x = self._joined()
        joined = Head(self._head["weight"], self._head.get("bias", torch.zeros(self._num_classes)))
        heads = {candidates.JOINED: joined}
        if self._fits:
            plain = head_fit.plain_head(self._full(state))
            heads = {candidates.FITTED: Head(plain["weight"], plain["bias"]), **heads}
        if len(self._heads) > 1 and self._parts.body.targets == "all" and "bias" in self._head:
            alone = {part: self._parts.head_alone(part, tensors) for part, tensors in sorted(self._heads.items())}
            known = {c for _, classes in alone.values() for c in classes}
            # A part that lacks a class would never name it, however well it does otherwise: no class is given up.
            # (It is the bias that rules classes out.)
            whole = {part: head for part, (head, classes) in alone.items() if known.issubset(classes)}
            heads |= {candidates.alone(part): head for part, head in whole.items()}
        if not len(self._val_y):
            return validation.empty(heads, self._members, self._num_classes)
        return validation.count(x, self._val_y, heads, self._members, main=next(iter(heads)))

    def _counts_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Of a model as it is, beside the copies that it is the mean of."""
        everything = range(self._num_classes)
        sets = [everything, *(member.classes for member in self._members.values())]
        total, (right, *within) = self._answers(model, everything, sets)
        sums = {candidates.TOTAL: total, candidates.CORRECT + candidates.JOINED: right}
        for (peer, member), group in zip(self._members.items(), within, strict=True):
            sums[candidates.WITHIN + peer] = validation.within(total, member, group)
        return sums

    def _answers(
        self, model: nn.Module, outputs: Sequence[int], sets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, list[Tensor]]:
        batches = self._own_batches(self._val)
        return validation.answers_of(model, batches, self._num_classes, outputs, sets, self._device)

    # --- features ---

    def _joined(self) -> tuple[Tensor, Tensor]:
        """[n, F] of all parts, in the columns of the global head; after this no part can be added."""
        if self._features is None:
            self._head = self._parts.joined_head(self._heads)
            num_columns = self._head["weight"].shape[1]
            x = head_fit.join_columns(self._columns, num_columns) if self._columns else torch.zeros(0, num_columns)
            self._features = x, head_fit.join_columns(self._val_columns, num_columns)
            self._columns.clear()
            self._val_columns.clear()
        return self._features

    @staticmethod
    def _own_batches(data: Dataset | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Own samples in order, normalised a batch at a time."""
        for start in range(0, len(data) if data is not None else 0, BATCH_SIZE):
            assert data is not None
            yield data.tensors(slice(start, start + BATCH_SIZE))

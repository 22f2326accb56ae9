"""One peer's share of the group's work on the head: features of its own samples, and what it contributes to each step.

    where the head is fitted: step 0 the moments, then the gradients of ``head_fit``; in any case, last: the counts
    of right answers on the own validation samples (``validation``)

Invariant: the features stay here; what leaves are sums over samples. Only tensors that change are sent with every
step: those that don't (mean, whitening) travel with the first state, now and then, and with the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Literal

import torch
from torch import Tensor, nn

from p2ptrain.config import Job
from p2ptrain.errors import RemoteError
from p2ptrain.learning import candidates, head_fit, validation
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.robust.fitting import GradientWatch, bounded_gradients, bounded_moments
from p2ptrain.learning.robust.means import FEWEST, sound
from p2ptrain.learning.snapshots import put_state
from p2ptrain.learning.validation import Head, Member
from p2ptrain.learning.work import Work
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
        self,
        job: Job,
        parts: Parts,
        session: str,
        data: Dataset,
        val: Dataset | None = None,
        device: str = "cpu",
        work: Work | None = None,
    ) -> None:
        self.session = session
        self.work = work if work is not None else Work()
        asked = tasks_of(job)
        self._config = head_fit.FitConfig(steps=asked.head_fit_steps, weight_decay=asked.head_fit_decay)
        self._fits = parts.body.fit_head
        self._parts = parts
        self._data = data
        self._val = val
        self._device = device
        self._num_classes = len(job.data.classes)
        self._watch = GradientWatch()
        self._is_bounded = job.group.robust != "none"
        self._copies: dict[str, tuple[float, dict[str, Tensor]]] = {}
        """Of the part that is being added, by trainer, with their weights."""
        self._columns: list[tuple[Tensor, Tensor | None]] = []
        self._val_columns: list[tuple[Tensor, Tensor | None]] = []
        self._val_without: dict[str, dict[int, Tensor | None]] = {}
        """By trainer and part: the part's features of the validation samples without its copy; None: there are none."""
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

        One that does not fit counts for nothing, as long as there is another. Raises ``RemoteError`` where none of a
        part fits; ``UserError`` where the model has no head to fit.
        """
        ended = self._features is not None or self._whole is not None or part in self._heads
        if ended or (part, trainer) in self._seen:
            raise RemoteError("head-fit", f"part {part} of {trainer} came twice")
        self._seen.add((part, trainer))
        submodel = self._parts.submodel(part)
        classes = self._parts.trained_classes(part, trainer)
        right = among_all = torch.zeros(self._num_classes, dtype=torch.float64)
        copy = (weight, dict(state))
        if sound([copy], submodel.state_dict()):
            put_state(submodel, copy[1])
            sets = [classes, range(self._num_classes)]
            _, (right, among_all) = self._answers(submodel, part, self._parts.outputs(part), sets)
        if trainer not in self._members or trainer in self._parts.body.parts[part].trainers:
            # One that changed its part has left a copy of the former.
            self._members[trainer] = Member(classes, right, among_all)
        self._copies[trainer] = copy
        if last:
            copies, self._copies = self._copies, {}
            self._add_part(part, copies)

    def _add_part(self, part: int, copies: Mapping[str, tuple[float, dict[str, Tensor]]]) -> None:
        submodel = self._parts.submodel(part)
        mean = self._parts.mean_of(part, list(copies.values()))
        put_state(submodel, mean)
        if not self._fits and self._parts.decoupling is None:
            self._whole = self._counts_of(submodel, part, copies)
            return
        columns = self._parts.head_columns(part)
        if self._fits:
            x, self._y = self._features_of(submodel, part, self._data)
            self._columns.append((x, columns))
        x, self._val_y = self._features_of(submodel, part, self._val)
        self._val_columns.append((x, columns))
        self._heads[part] = self._parts.head_of(mean)
        for trainer in copies:
            without = self._without(part, copies, trainer)
            if without is not None:
                put_state(submodel, without)
                x, _ = self._features_of(submodel, part, self._val)
            self._val_without.setdefault(trainer, {})[part] = x if without is not None else None

    def _without(
        self, part: int, copies: Mapping[str, tuple[float, dict[str, Tensor]]], trainer: str
    ) -> dict[str, Tensor] | None:
        """The mean of the others' copies, if there are any that are sound."""
        others = [copy for each, copy in copies.items() if each != trainer]
        try:
            return self._parts.mean_of(part, others) if others else None
        except RemoteError:
            return None

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
            self._count_moments(x)
            return self.num_samples, head_fit.moments(x, self._y, self._num_classes)
        full = self._full(state)
        self._count_gradient(full, x)
        sums, samples = head_fit.gradient(full, x, self._y, step)
        return samples, sums

    @property
    def caught(self) -> tuple[str, ...]:
        """Peers whose sums count no more."""
        return self._watch.caught

    def combine(
        self,
        step: int,
        state: Mapping[str, Tensor],
        contributions: Sequence[tuple[int, Mapping[str, Tensor]]],
        peers: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """The state after ``step``, as lead. ``peers``: whose the contributions are, as far as that is known."""
        kind = self.kind(step)
        if kind == "validation":
            counts = validation.add([sums for _, sums in contributions], self._num_classes)
            samples = sum(number for number, _ in contributions)
            counts[candidates.SAMPLES] = torch.tensor([float(samples)], dtype=torch.float64)
            return (self._full(state) if self._fits else {}) | counts
        self._joined()
        expected = (head_fit.moments_of if kind == "moments" else head_fit.gradient_of)(*self._head["weight"].shape)
        for _, sums in contributions:
            head_fit.check_contribution(sums, expected)
        if kind == "moments":
            self._count_whitening()
            moments = [sums for _, sums in contributions]
            if self._is_bounded:
                columns = [each for part in sorted(self._heads) if (each := self._parts.head_columns(part)) is not None]
                after = head_fit.begin(self._head, bounded_moments(moments), self._config, columns)
            else:
                after = head_fit.begin(self._head, moments, self._config)
            self._fixed = {name: after[name] for name in FIXED}
            return after
        full = self._full(state)
        gradients = self._bounded(full, contributions, peers) if self._is_bounded else contributions
        after = head_fit.advance(full, gradients, step, self._config)
        last = step == self._config.steps
        return after if last or step % FULL_EVERY == 0 else {n: t for n, t in after.items() if n not in FIXED}

    def _bounded(
        self,
        state: Mapping[str, Tensor],
        contributions: Sequence[tuple[int, Mapping[str, Tensor]]],
        peers: Sequence[str],
    ) -> Sequence[tuple[float, Mapping[str, Tensor]]]:
        if len(contributions) >= FEWEST and len(peers) == len(contributions):
            self._watch.look(state, dict(zip(peers, contributions, strict=True)))
            honest = [each for peer, each in zip(peers, contributions, strict=True) if peer not in self._watch.caught]
            contributions = honest or contributions
        return bounded_gradients(contributions)

    def combine_sound(
        self,
        step: int,
        state: Mapping[str, Tensor],
        contributions: Sequence[tuple[int, Mapping[str, Tensor]]],
        peers: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """``combine``, without those contributions that alone would be refused. Raises ``RemoteError``."""
        try:
            return self.combine(step, state, contributions, peers)
        except RemoteError:
            sound = [self._is_sound(step, state, each) for each in contributions]
            if not 0 < sum(sound) < len(contributions):
                raise
            return self.combine(step, state, list(compress(contributions, sound)), list(compress(peers, sound)))

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
        first = next(iter(heads))
        fitted = self._full(state) if self._fits else {}
        for part in sorted(self._heads):
            if self._parts.may_leave_out(part, is_fitted=self._fits):
                heads[candidates.less(part)] = self._parts.head_without([part], self._heads, fitted)
        without = {
            trainer: each
            for trainer, parts in sorted(self._val_without.items())
            if (each := self._less(x, parts, heads[first], fitted)) is not None
        }
        num_less = sum(candidates.part_left_out(name) is not None for name in heads)
        num_gone = sum(None in parts.values() for parts in self._val_without.values() if len(parts) < len(self._heads))
        folds = 1 + num_less + num_gone if self._fits else 0
        self.work.multiplied(len(self._val_y), x.shape[1], self._num_classes, times=len(heads) + 1 + len(without))
        self.work.multiplied(self._num_classes, x.shape[1], x.shape[1], times=folds)
        if not len(self._val_y):
            return validation.empty(heads, self._members, self._num_classes, without) | self._copies_alone()
        counts = validation.count(x, self._val_y, heads, self._members, main=first, without=without)
        return counts | self._copies_alone()

    def _copies_alone(self) -> dict[str, Tensor]:
        """Right answers of each peer's own copy, where that is a whole model and lacks no class that another knows."""
        if self._parts.decoupling is not None or len(self._members) < 2:
            return {}
        known = {c for member in self._members.values() for c in member.classes}
        whole = {peer: member for peer, member in self._members.items() if known.issubset(member.classes)}
        return {candidates.CORRECT + candidates.copy_of(peer): member.among_all for peer, member in whole.items()}

    def _less(
        self, x: Tensor, without: Mapping[int, Tensor | None], head: Head, fitted: Mapping[str, Tensor]
    ) -> tuple[Tensor, Head] | None:
        """Features and head without what one peer trained; None where nothing is left. ``without``: by part."""
        gone = [part for part, features in without.items() if features is None]
        if len(gone) == len(self._heads):
            return None
        if gone:
            head = self._parts.head_without(gone, self._heads, fitted)
        x = x.clone()
        for part, features in without.items():
            columns = self._parts.head_columns(part)
            if features is not None:
                x[:, columns if columns is not None else slice(None)] = features
        return x, head

    def _counts_of(
        self, model: nn.Module, part: int, copies: Mapping[str, tuple[float, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """Of a model as it is, beside the copies that it is the mean of."""
        everything = range(self._num_classes)
        sets = [everything, *(member.classes for member in self._members.values())]
        total, (right, *within) = self._answers(model, part, everything, sets)
        sums = {candidates.TOTAL: total, candidates.CORRECT + candidates.JOINED: right}
        for (peer, member), group in zip(self._members.items(), within, strict=True):
            sums[candidates.WITHIN + peer] = validation.within(total, member, group)
        for trainer in copies:
            without = self._without(part, copies, trainer)
            if without is not None:
                put_state(model, without)
                _, (sums[candidates.WITHOUT + trainer],) = self._answers(model, part, everything, [everything])
        return sums | self._copies_alone()

    def _answers(
        self, model: nn.Module, part: int, outputs: Sequence[int], sets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, list[Tensor]]:
        self.work.ran(self._parts.flops(part).forward, len(self._val) if self._val is not None else 0)
        batches = self._own_batches(self._val)
        return validation.answers_of(model, batches, self._num_classes, outputs, sets, self._device)

    # --- features ---

    def _features_of(self, submodel: nn.Module, part: int, data: Dataset | None) -> tuple[Tensor, Tensor]:
        """What the head reads, of these samples, and their labels."""
        self.work.ran(self._parts.flops(part).forward, len(data) if data is not None else 0)
        return head_fit.features(submodel, self._parts.head, self._own_batches(data), device=self._device)

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

    def _count_moments(self, x: Tensor) -> None:
        if x.shape[1] <= head_fit.MAX_WHITENED:
            self.work.multiplied(x.shape[1], x.shape[0], x.shape[1])

    def _count_whitening(self) -> None:
        size = self._head["weight"].shape[1]
        if size <= head_fit.MAX_WHITENED:
            self.work.found_eigenvectors(size)
            self.work.multiplied(size, size, size, times=2)
            self.work.multiplied(self._num_classes, size, size)

    def _count_gradient(self, state: Mapping[str, Tensor], x: Tensor) -> None:
        """Outputs and gradient of each sample; folding the whitening into the head, and taking it out again."""
        self.work.multiplied(min(len(x), head_fit.MAX_ROWS), x.shape[1], self._num_classes, times=2)
        if state["whiten"].dim() == 2:
            self.work.multiplied(self._num_classes, x.shape[1], x.shape[1], times=2)

    @staticmethod
    def _own_batches(data: Dataset | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Own samples in order, normalised a batch at a time."""
        for start in range(0, len(data) if data is not None else 0, BATCH_SIZE):
            assert data is not None
            yield data.tensors(slice(start, start + BATCH_SIZE))

"""What the group found when it looked at its model: read off the last state of the head fit, without torch.

Invariant: everyone who has the state reads the same numbers and takes the same head.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import Literal

import numpy as np

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.learning.candidates import (
    CORRECT,
    FITTED,
    JOINED,
    SAMPLES,
    TOTAL,
    WITHIN,
    WITHOUT,
    less,
    owner_of,
    part_left_out,
    part_of,
)
from p2ptrain.wire import tensorfile

CLEAR = 2.0
"""A class is named as worse where the difference is this many standard errors, and two samples."""


@dataclass(frozen=True, slots=True)
class Worse:
    """Classes of which a member's own copy knows more than the group's model, asked among that member's classes."""

    peer: PeerId
    classes: tuple[int, ...]
    own_accuracy: float
    """Of all validation samples of the member's classes; beside it, the group's."""
    group_accuracy: float


@dataclass(frozen=True, slots=True)
class Spoils:
    """A member whose contribution makes the model worse, or whose own copy knows far less than the others' do."""

    peer: PeerId
    without_accuracy: float
    """Of all validation samples the group's model gets so many right without it; beside it, with it."""
    accuracy: float
    own_accuracy: float
    """Among its own classes, what it trained; beside it, the median of the others'. NaN without samples."""
    others_accuracy: float
    is_worse: bool
    """Without it the model is clearly better."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A part that the model is better without, for all that anybody knows."""

    part: int
    why: Literal["knows little", "outvotes"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Right answers by class on the validation samples of all, of each candidate for the last layer."""

    totals: tuple[int, ...]
    correct: Mapping[str, tuple[int, ...]]
    within: Mapping[PeerId, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    """By member: samples of its classes; asked among these, the right answers of its own copy, and the group's."""
    train_samples: int
    """Training samples of all who took part."""
    without: Mapping[PeerId, tuple[int, ...]] = field(default_factory=dict)
    """By member: right answers of the first candidate without what that member trained."""

    @property
    def samples(self) -> int:
        return sum(self.totals)

    @property
    def chosen(self) -> str:
        """The first of fitted, joined, all parts but one, parts and copies alone, unless another gets more right by a
        standard error; in place of the first, all parts but one that is in ``doubt``.

        A sample or two of a few hundred says nothing of which is better.
        """
        right = {name: sum(self.correct[name]) for name in self.order}
        first = less(self.doubt.part) if self.doubt is not None else self.order[0]
        best = max(self.order, key=lambda name: (right[name], -self.order.index(name)))
        return best if self.samples and _clearly_less(right[first], right[best], self.samples, 1.0) else first

    @property
    def doubt(self) -> Doubt | None:
        """The part that is left out though that may change little here: nobody knows what it does elsewhere.

        It knows little by itself, or no other part's vote changes anything beside it; and without it the model is not
        clearly worse. Of several, the one without which most is right.
        """
        parts = {part: row for name, row in self.correct.items() if (part := part_of(name)) is not None}
        first, found = self.correct[self.order[0]], []
        for part, own in sorted(parts.items()):
            rest = [sum(row) for other, row in parts.items() if other != part]
            without = self.correct.get(less(part))
            if not self.samples or len(rest) < 2 or without is None:
                continue
            knows_little = _clearly_less(sum(own), round(statistics.median(rest) / 2), self.samples)
            others = (self.correct.get(less(other)) for other in parts if other != part)
            outvotes = self.order[0] == JOINED and all(row == own for row in (first, *others))
            if (knows_little or outvotes) and not _clearly_less(sum(without), sum(first), self.samples, 1.0):
                found.append((sum(without), Doubt(part, "knows little" if knows_little else "outvotes")))
        return max(found, key=lambda each: each[0])[1] if found else None

    @property
    def order(self) -> list[str]:
        first = [name for name in (FITTED, JOINED) if name in self.correct]
        for number in (part_left_out, part_of):
            found = [(part, name) for name in self.correct if (part := number(name)) is not None]
            first += [name for _, name in sorted(found)]
        return first + sorted(name for name in self.correct if owner_of(name) is not None)

    def accuracy(self, candidate: str = "") -> float:
        """Of the chosen candidate, or another; NaN without samples."""
        return sum(self.correct[candidate or self.chosen]) / self.samples if self.samples else math.nan

    def per_class(self) -> tuple[float, ...]:
        """Of the chosen candidate; NaN for classes without validation samples."""
        right = self.correct[self.chosen]
        return tuple(r / n if n else math.nan for r, n in zip(right, self.totals, strict=True))

    @property
    def best_member(self) -> tuple[PeerId, float, float] | None:
        """The member whose own copy knows most samples among its classes: its accuracy there, and the group's."""
        found = []
        for peer in sorted(self.within):
            asked, own, group = map(sum, self.within[peer])
            if asked:
                found.append((own, peer, own / asked, group / asked))
        return max(found, key=lambda each: each[0])[1:] if found else None

    def spoilers(self) -> list[Spoils]:
        """Whose contribution the model would be better without, or is hardly one."""
        found: list[Spoils] = []
        whole = sum(self.correct[self.order[0]])
        for peer, right in sorted(self.without.items()):
            rows = self.within.get(peer)
            asked, own = (sum(rows[0]), sum(rows[1])) if rows else (0, 0)
            shares = [sum(o) / sum(a) for p, (a, o, _) in self.within.items() if p != peer and any(a)]
            others = statistics.median(shares) if shares else math.nan
            is_worse = bool(self.samples) and _clearly_less(whole, sum(right), self.samples)
            knows_little = len(shares) > 1 and asked > 0 and _clearly_less(own, round(others / 2 * asked), asked)
            if is_worse or knows_little:
                own_share = own / asked if asked else math.nan
                accuracies = (sum(right) / self.samples, whole / self.samples, own_share, others)
                found.append(Spoils(peer, *accuracies, is_worse))
        return found

    def worse(self) -> list[Worse]:
        """Where the group made something worse that one of its members can do."""
        if self.chosen not in (FITTED, JOINED):
            return []
        found = []
        for peer, (asked, own, group) in sorted(self.within.items()):
            classes = tuple(c for c, n in enumerate(asked) if n and _clearly_less(group[c], own[c], n))
            total = sum(asked)
            if total and (classes or _clearly_less(sum(group), sum(own), total)):
                found.append(Worse(peer, classes, sum(own) / total, sum(group) / total))
        return found


def _clearly_less(few: int, many: int, n: int, errors: float = CLEAR) -> bool:
    """Whether so many right answers of ``n`` differ by more than chance gives: by so many standard errors."""
    p, q = few / n, many / n
    error = math.sqrt((p * (1 - p) + q * (1 - q)) / n)
    return many - few >= 2 and q - p > errors * error


def read_verdict(state: bytes | memoryview | mmap) -> Verdict | None:
    """What the last state of a head fit says; None where nobody looked. Raises ``RemoteError`` for nonsense."""
    arrays = tensorfile.read(state).arrays()
    if TOTAL not in arrays:
        return None
    totals = _counts(arrays[TOTAL], 1)
    correct = {n.removeprefix(CORRECT): _counts(a, 1) for n, a in arrays.items() if n.startswith(CORRECT)}
    within = {_peer(n, WITHIN): _counts(a, 2) for n, a in arrays.items() if n.startswith(WITHIN)}
    without = {_peer(n, WITHOUT): _counts(a, 1) for n, a in arrays.items() if n.startswith(WITHOUT)}
    if not (correct.keys() & {FITTED, JOINED}) or not all(map(_is_candidate, correct)):
        raise RemoteError("validation", f"candidates {sorted(correct)[:5]}")
    rows = [(totals, row) for row in (*correct.values(), *without.values())]
    for asked, own, group in within.values():
        rows += [(totals, asked), (asked, own), (asked, group)]
    if any(len(row) != len(most) or any(r > n for r, n in zip(row, most, strict=True)) for most, row in rows):
        raise RemoteError("validation", "more right answers than samples")
    samples = _counts(arrays[SAMPLES], 1) if SAMPLES in arrays else (0,)
    return Verdict(totals, correct, within, int(samples[0]) if samples else 0, without)


def _is_candidate(name: str) -> bool:
    numbers = (part_of(name), part_left_out(name), owner_of(name))
    return name in (FITTED, JOINED) or any(each is not None for each in numbers)


def _counts(array: np.ndarray, dimensions: int) -> tuple:  # type: ignore[type-arg]
    if array.ndim != dimensions or array.dtype != np.float64 or not bool(((array >= 0) & (array < 2**53)).all()):
        raise RemoteError("validation", f"{array.dtype} {array.shape}: no counts")
    rows: Sequence = array.astype(np.int64).tolist()  # type: ignore[type-arg]
    if dimensions == 1:
        return tuple(rows)
    if len(rows) != 3:
        raise RemoteError("validation", f"counts of shape {array.shape}")
    return tuple(tuple(row) for row in rows)


def _peer(name: str, prefix: str) -> PeerId:
    peer = name.removeprefix(prefix)
    if len(peer) != 16 or not (peer.isascii() and peer.isalnum()):
        raise RemoteError("validation", f"counts of {peer[:20]!r}")
    return PeerId(peer)

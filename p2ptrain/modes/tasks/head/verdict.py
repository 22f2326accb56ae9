"""What the group found when it looked at its model: read off the last state of the head fit, without torch.

Invariant: everyone who has the state reads the same numbers and takes the same head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap

import numpy as np

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.learning.candidates import CORRECT, FITTED, JOINED, SAMPLES, TOTAL, WITHIN, part_of
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
class Verdict:
    """Right answers by class on the validation samples of all, of each candidate for the last layer."""

    totals: tuple[int, ...]
    correct: Mapping[str, tuple[int, ...]]
    within: Mapping[PeerId, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    """By member: samples of its classes; asked among these, the right answers of its own copy, and the group's."""
    train_samples: int
    """Training samples of all who took part."""

    @property
    def samples(self) -> int:
        return sum(self.totals)

    @property
    def chosen(self) -> str:
        """The first of fitted, joined, the parts alone, unless another gets more right by a standard error.

        A sample or two of a few hundred says nothing of which is better.
        """
        right = {name: sum(self.correct[name]) for name in self.order}
        first = self.order[0]
        best = max(self.order, key=lambda name: (right[name], -self.order.index(name)))
        return best if self.samples and _clearly_less(right[first], right[best], self.samples, 1.0) else first

    @property
    def order(self) -> list[str]:
        first = [name for name in (FITTED, JOINED) if name in self.correct]
        return first + sorted(
            (name for name in self.correct if part_of(name) is not None), key=lambda n: part_of(n) or 0
        )

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

    def worse(self) -> list[Worse]:
        """Where the group made something worse that one of its members can do."""
        if part_of(self.chosen) is not None:
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
    within = {_peer(n): _counts(a, 2) for n, a in arrays.items() if n.startswith(WITHIN)}
    if not correct or not all(name in (FITTED, JOINED) or part_of(name) is not None for name in correct):
        raise RemoteError("validation", f"candidates {sorted(correct)[:5]}")
    rows = [(totals, row) for row in correct.values()]
    for asked, own, group in within.values():
        rows += [(totals, asked), (asked, own), (asked, group)]
    if any(len(row) != len(most) or any(r > n for r, n in zip(row, most, strict=True)) for most, row in rows):
        raise RemoteError("validation", "more right answers than samples")
    samples = _counts(arrays[SAMPLES], 1) if SAMPLES in arrays else (0,)
    return Verdict(totals, correct, within, int(samples[0]) if samples else 0)


def _counts(array: np.ndarray, dimensions: int) -> tuple:  # type: ignore[type-arg]
    if array.ndim != dimensions or array.dtype != np.float64 or not bool(((array >= 0) & (array < 2**53)).all()):
        raise RemoteError("validation", f"{array.dtype} {array.shape}: no counts")
    rows: Sequence = array.astype(np.int64).tolist()  # type: ignore[type-arg]
    if dimensions == 1:
        return tuple(rows)
    if len(rows) != 3:
        raise RemoteError("validation", f"counts of shape {array.shape}")
    return tuple(tuple(row) for row in rows)


def _peer(name: str) -> PeerId:
    peer = name.removeprefix(WITHIN)
    if len(peer) != 16 or not (peer.isascii() and peer.isalnum()):
        raise RemoteError("validation", f"counts of {peer[:20]!r}")
    return PeerId(peer)

"""A validation split for data sets that come without one: some of each class's training samples are held out.

A sample is held out if the hash of what names it (``Source.hashes``) is below ``val`` * 2^64. So the same sample is on
the same side on every device that has it, whatever else that device has and whichever share it takes; and what a small
``val`` holds out, a larger one does too. Two rules of a class's size come on top: of five samples or more at least one
is held out, and of none more than half. They matter in classes of a few samples only, and there alone a device with a
part of the class may differ from one with all of it.

Invariant: training, validation and test split have no sample in common, and together they are all of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import LocalError
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import Hashes, Indices, Kind, Shape, Source, Split

MIN_DIVIDED = 5
"""A class of so many samples has at least one to validate with."""


def with_validation(source: Source, val: float) -> Source:
    """``source`` itself if it has validation samples, or if none can be spared; else with a ``val`` part held out."""
    if not val or source.num_samples("val"):
        return source
    held = held_out(source.labels("train"), source.hashes(), val)
    if not held.any():
        return source
    rows: dict[Split, Indices] = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
    return subset(source, rows, val)


def held_out(labels: Indices, hashes: Hashes, val: float) -> NDArray[np.bool_]:
    """Which training samples are for validation ``[N]``: of every class those with the lowest hashes."""
    order = np.lexsort((hashes, labels))
    counts = np.bincount(labels)
    below = np.bincount(labels[hashes < np.uint64(int(val * 2**64))], minlength=len(counts))
    wanted = np.minimum(np.maximum(below, counts >= MIN_DIVIDED), counts // 2)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class, in that order
    held = np.zeros(len(labels), np.bool_)
    held[order] = rank < np.repeat(wanted, counts)
    return held


def subset(source: Source, rows: dict[Split, Indices], val: float = 0.0) -> SubsetSource:
    """``source`` with other splits: ``rows`` of its training split; those that are not named stay as they are."""
    return SubsetSource(
        source.spec,
        source.kind,
        source.classes,
        source.natural_shape,
        source.sample_rate,
        source,
        rows,
        source.resizable,
        source.vocabulary,
        val or (source.val if isinstance(source, SubsetSource) else 0.0),
    )


@dataclass(frozen=True, slots=True, eq=False)
class SubsetSource(Source):
    """``rows``: splits that are rows of another source's training split. The others are that source's own."""

    spec: str
    kind: Kind
    classes: tuple[str, ...]
    natural_shape: Shape
    sample_rate: int
    base: Source
    rows: dict[Split, Indices]
    resizable: bool
    vocabulary: int = 0
    val: float = 0.0
    """The part that was held out for validation, here or in ``base``; 0 = none."""

    def labels(self, split: Split) -> Indices:
        return self.base.labels("train")[self.rows[split]] if split in self.rows else self.base.labels(split)

    def fitted(self, contract: DataConfig) -> Source:
        """Raises ``LocalError`` if a test split was cut after the source had been fitted to another ``val``."""
        if not self.val or contract.val == self.val:
            return with_validation(self, contract.val)
        if "val" not in self.rows:
            raise LocalError(f"{self.spec}: fitted to val = {self.val:g}, then cut, then fitted to {contract.val:g}")
        return self.base.fitted(contract)

    def hashes(self) -> Hashes:
        return self.base.hashes()[self.rows["train"]] if "train" in self.rows else self.base.hashes()

    def decode(
        self, split: Split, indices: Indices, contract: DataConfig, reading: Reading | None = None
    ) -> NDArray[Any]:
        if split in self.rows:
            return self.base.decode("train", self.rows[split][indices], contract, reading)
        return self.base.decode(split, indices, contract, reading)

    def notes(self) -> Sequence[str]:
        return self.base.notes()

    def survey_notes(self) -> Sequence[str]:
        return self.base.survey_notes()

    def white(self, indices: Indices) -> float:
        return self.base.white(self.rows["train"][indices] if "train" in self.rows else indices)

    def check_files(self, split: Split, contract: DataConfig | None = None) -> list[str]:
        """Of all training files, those held out among them."""
        return [] if split in self.rows and split != "train" else self.base.check_files(split, contract)

    def durations_s(self, indices: Indices) -> list[float]:
        return self.base.durations_s(self.rows["train"][indices] if "train" in self.rows else indices)

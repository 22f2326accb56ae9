"""A source whose samples are read one by one: what the libraries have in common that give them.

Invariant: a text longer than the job's samples is cut, one that is shorter is padded with ``PADDING``, and how many
were cut is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import PADDING, Indices, Kind, Shape, Source, Split, class_notes
from p2ptrain.learning.data.validation import with_validation

Read = Callable[[Split, int, DataConfig, Reading | None], NDArray[Any]]
Found = TypeVar("Found")
MOST_TOKENS = 512
"""In a sample, as proposed; ``--input-shape`` overrules it."""
SURVEYED = 256
LENGTH_STEP = 8
NUM_BYTES = 256
"""Where no tokenizer says what tokens are, they are bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleSource(Source):
    """``read``: a sample in the contract's shape; of tokens, ``[T]`` of any length. It may raise ``DataError``."""

    spec: str
    kind: Kind
    classes: tuple[str, ...]
    natural_shape: Shape
    classes_of: Mapping[Split, Indices]
    read: Read
    vocabulary: int = 0
    sample_rate: int = 0
    resizable: bool = True
    said: tuple[str, ...] = ()

    def labels(self, split: Split) -> Indices:
        return self.classes_of.get(split, np.empty(0, np.int64))

    def fitted(self, contract: DataConfig) -> Source:
        return with_validation(self, contract.val)

    def notes(self) -> Sequence[str]:
        return [*self.said, *class_notes(self)]

    def decode(
        self, split: Split, indices: Indices, contract: DataConfig, reading: Reading | None = None
    ) -> NDArray[Any]:
        shape = cast(Shape, contract.input_shape)
        rows: list[NDArray[Any]] = []
        for row, index in enumerate(indices.tolist()):
            try:
                sample = self.read(split, index, contract, reading)
                rows.append(self._tokens(sample, shape[2], reading) if self.kind == "tokens" else sample)
            except DataError as error:
                if reading is None or reading.strict:
                    raise
                reading.broken[row] = str(error)
                rows.append(np.zeros(shape, np.int32 if self.kind == "tokens" else np.uint8))
        empty = np.empty((0, *shape), np.int32 if self.kind == "tokens" else np.uint8)
        return np.stack(rows) if rows else empty

    def check_files(self, split: Split, contract: DataConfig | None = None) -> list[str]:
        broken: list[str] = []
        for index in range(self.num_samples(split) if contract is not None else 0):
            reading = Reading()
            self.decode(split, np.array([index]), cast(DataConfig, contract), reading)
            broken += reading.broken.values()
        return broken

    def _tokens(self, sample: NDArray[Any], length: int, reading: Reading | None) -> NDArray[np.int32]:
        if reading is not None and len(sample) > length:
            reading.count(cut=1)
        return one_text(sample, length)


def one_text(tokens: NDArray[Any], length: int) -> NDArray[np.int32]:
    """``[1, 1, length]``: cut, or padded, from tokens ``[T]``."""
    row = np.full((1, 1, length), PADDING, np.int32)
    row[0, 0, : min(len(tokens), length)] = tokens[:length]
    return row


def usual_length(lengths: Sequence[int]) -> int:
    """Of a sample, that 95 % of these texts fit into; whole steps, so that like data propose the same."""
    if not lengths:
        return LENGTH_STEP
    long = int(np.quantile(lengths, 0.95, method="higher"))
    return min(MOST_TOKENS, max(LENGTH_STEP, -(-long // LENGTH_STEP) * LENGTH_STEP))


def surveyed(num_samples: int, look: Callable[[int], Found]) -> list[Found]:
    """What some samples show, spread evenly, without those that can't be read. Raises ``DataError`` if none can."""
    found: list[Found] = []
    first: DataError | None = None
    for index in np.unique(np.linspace(0, num_samples - 1, min(num_samples, SURVEYED)).astype(int)).tolist():
        try:
            found.append(look(index))
        except DataError as error:
            first = first or error
    if first is not None and not found:
        raise first
    return found


def usual_shape(shapes: Sequence[Shape]) -> Shape:
    """Of most pictures: colour if any is in colour, and the median of sizes."""
    channels = max(shape[0] for shape in shapes)
    height, width = (int(np.median([shape[axis] for shape in shapes])) for axis in (1, 2))
    return channels, height, width

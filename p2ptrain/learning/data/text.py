"""``text:FILE``: the bytes of any file as tokens, cut into windows of the job's context length.

A sample is a window; its label is the byte that follows, and inside it every byte is followed by the next. The last
tenth of the file is the test split, and the last windows before it are for validation, as many as the job says.

Invariant: for a given context and share for validation the samples of a file are the same everywhere, and no byte is in
two splits. The file is mapped, not read, until samples are decoded.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data.beginnings import packed_with
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import MAX_ARRAY_BYTES, Indices, Kind, Shape, Source, Split

BYTES = tuple(str(byte) for byte in range(256))
"""Class names: the numbers of the bytes."""
USUAL_CONTEXT = 128
TEST_SHARE = 10
"""One part in so many is for testing."""
_EXPECTED = "expected a file of plain text, such as text:book.txt"
_BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LOOKED_AT = 4096
"""Bytes at each of the places at which a file is looked at."""
_PLACES = 16
_CONTROLS = np.array([byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in range(256)])
"""Bytes that text in ASCII, UTF-8 and the ISO-8859 codings has none of."""


@dataclass(frozen=True, slots=True, eq=False)
class TextSource(Source):
    """``text``: the mapped file."""

    spec: str
    text: NDArray[np.uint8]
    natural_shape: Shape = (1, 1, USUAL_CONTEXT)
    classes: tuple[str, ...] = BYTES
    kind: Kind = "text"
    sample_rate: int = 0
    resizable: bool = True
    val: float = 0.0
    """Share of the windows before the test split that are for validation."""

    @property
    def context(self) -> int:
        return self.natural_shape[2]

    def fitted(self, contract: DataConfig) -> Source:
        shape = contract.input_shape
        if contract.kind != "text":
            return self
        if len(shape) != 3 or shape[0] != 1 or shape[1] != 1 or shape[2] < 1:
            raise DataError(f"data.input_shape: expected [1, 1, bytes in a sample] for text, got {list(shape)}")
        fitted = dataclasses.replace(self, natural_shape=(1, 1, shape[2]), val=contract.val)
        required: tuple[Split, ...] = ("train", "test")
        for split in required:
            if not fitted.num_samples(split):
                raise DataError(
                    f"{self.spec}: {len(self.text)} bytes, of which a tenth is for testing, hold no {split} sample of "
                    f"{shape[2]} bytes and the one that follows; expected at least {TEST_SHARE * (shape[2] + 1)}: give "
                    "a longer text, or make the job with a shorter --input-shape 1,1,BYTES"
                )
        return fitted

    def notes(self) -> Sequence[str]:
        return [note] if (note := _unlike_text(self.text)) else []

    def num_samples(self, split: Split) -> int:
        return max(0, len(self._part(split)) - 1) // self.context

    def labels(self, split: Split) -> Indices:
        following = self._part(split)[self.context :: self.context]
        return following.astype(np.int64)

    def decode(
        self, split: Split, indices: Indices, contract: DataConfig, reading: Reading | None = None
    ) -> NDArray[Any]:
        source = dataclasses.replace(self, natural_shape=cast(Shape, contract.input_shape))
        num_samples = source.num_samples(split)
        windows = source._part(split)[: num_samples * source.context].reshape(num_samples, 1, 1, source.context)
        return np.asarray(windows[indices])

    def _part(self, split: Split) -> NDArray[np.uint8]:
        start_of_test = len(self.text) - len(self.text) // TEST_SHARE
        start_of_val = start_of_test - self._val_bytes(start_of_test)
        parts: dict[Split, NDArray[np.uint8]] = {
            "train": self.text[:start_of_val],
            "val": self.text[start_of_val:start_of_test],
            "test": self.text[start_of_test:],
        }
        return parts[split]

    def _val_bytes(self, num_bytes: int) -> int:
        """How many of the ``num_bytes`` before the test split are for validation.

        Whole windows and the byte that follows the last, or none where that would leave no window to train on.
        """
        num_windows = max(0, num_bytes - 1) // self.context
        num_val = max(1, round(self.val * num_windows)) if self.val else 0
        val_bytes = num_val * self.context + 1
        return val_bytes if num_val and num_bytes - val_bytes > self.context else 0


def open_text(spec: str, path: Path) -> Source:
    """``text:FILE``. Raises ``DataError`` if it is no file, packed, or shorter than a sample in each split."""
    if not path.is_file():
        raise DataError(f"{path}: not a file; {_EXPECTED}")
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path}: an empty file; {_EXPECTED}")
        if size > MAX_ARRAY_BYTES:
            raise DataError(f"{path}: {size:,} bytes; at most {MAX_ARRAY_BYTES:,} are supported; split the file")
        text = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}); {_EXPECTED}") from None
    if packed := packed_with(text[:512].tobytes()):
        raise DataError(f"{path}: packed with {packed}; unpack it first; {_EXPECTED}")
    return TextSource(spec, text)


def _unlike_text(text: NDArray[np.uint8]) -> str:
    """What to say of a file that is not plain text, at places spread over it; "" of one that is."""
    places = np.linspace(0, max(0, len(text) - _LOOKED_AT), _PLACES).astype(int)
    looked_at = np.concatenate([text[at : at + _LOOKED_AT] for at in np.unique(places & ~3)])
    few, many = sorted(float((looked_at[first::2] == 0).mean()) for first in (0, 1))
    is_marked = text[:2].tobytes() in _BYTE_ORDER_MARKS and text[2:4].any()  # UTF-32 begins like UTF-16
    if is_marked or (few < 0.01 and many > 0.5):
        return (
            "looks like UTF-16, where two bytes are a letter, and each byte is learnt; better: iconv -f UTF-16 -t UTF-8"
        )
    num = int(_CONTROLS[looked_at].sum())
    if 100 * num > len(looked_at):
        return (
            f"doesn't look like text: {100 * num / len(looked_at):.0f} % of the bytes are control characters; each "
            "byte is learnt as it is: if this is a document or an archive, save it as plain text first"
        )
    return ""

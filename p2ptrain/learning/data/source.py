"""What every data set can tell, and how a spec such as ``images:DIR`` names one.

Invariant: opening a source and asking for its classes, labels and shape decodes no sample; ``decode`` alone does, and
it raises ``DataError`` (never a decoder's own error) for whatever the files hold.
"""

from __future__ import annotations

import difflib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import MAX_CLASSES, DataConfig, DataKind
from p2ptrain.errors import DataError
from p2ptrain.learning.data.reading import Reading
from p2ptrain.words import folded, listed

Kind = DataKind
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Shape = tuple[int, int, int]
Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]

MAX_NAME = 255
_MISSING = frozenset({"nan", "NaN", "NaT", "<NA>", "None", "null", "NULL"})
"""What other programs write for no label."""
PADDING = 0
"""The token after the last one of a sequence that is shorter than others."""
MAX_ARRAY_BYTES = 16 * 2**30
"""No single file is read to more than this."""


class Source(ABC):
    """A data set that is open but not decoded. Labels and ``classes`` are the source's own, not yet the job's."""

    __slots__ = ()

    spec: str
    kind: Kind
    classes: tuple[str, ...]
    natural_shape: Shape
    """``(channels, height, width)``: of most samples; of the log-mels of one second; of a usual piece of text."""
    sample_rate: int
    """Of most recordings, in Hz; 0 for other data."""

    vocabulary: int = 0
    """Of tokens: every one is a number below this."""

    resizable: bool
    """True if ``decode`` stretches pictures to the contract's shape instead of refusing another."""

    @abstractmethod
    def labels(self, split: Split) -> Indices:
        """Class of every sample ``[N]``, as an index into ``classes``; none of a split that is not there.

        Not to be written to.
        """

    @abstractmethod
    def fitted(self, contract: DataConfig) -> Source:
        """The source as a job divides it into samples and splits, with a validation split wherever there can be one.

        Where it has none of its own, training samples are held out as ``validation`` says. Fitting what is fitted to
        the same contract changes nothing; fitting it to another is as good as fitting the source that was opened.
        """

    def hashes(self) -> Hashes:
        """A hash of what names each training sample ``[N]``: equal wherever that sample is, whatever else is there.

        What has no name of its own is named by its row.
        """
        return row_hashes(self.num_samples("train"))

    @abstractmethod
    def decode(
        self, split: Split, indices: Indices, contract: DataConfig, reading: Reading | None = None
    ) -> NDArray[Any]:
        """Samples ``[n, C, H, W]`` in the contract's shape: uint8, or float16/float32 that are not yet normalised.

        What can't be read is noted in ``reading``, and its row means nothing; without it, or if it is strict, the first
        such raises.
        """

    def notes(self) -> Sequence[str]:
        """What a person should know of how the data set is read: what is not, which names are taken for one."""
        return ()

    def survey_notes(self) -> Sequence[str]:
        """In what its samples differ, where one of them can't stand for all."""
        return ()

    def white(self, indices: Indices) -> float:
        """White in these training samples, where they are pictures of more than 8 bits; 0 = there are none."""
        return 0.0

    def check_files(self, split: Split, contract: DataConfig | None = None) -> list[str]:
        """What is wrong with each file that can't be read: by its header, or decoded as the contract wants it."""
        return []

    def durations_s(self, indices: Indices) -> list[float]:
        """Lengths of training recordings, from their headers; nothing for other data."""
        return []

    def num_samples(self, split: Split) -> int:
        return len(self.labels(split))

    def counts(self, split: Split) -> dict[str, int]:
        """Samples of each class, in the order of ``classes``."""
        counts = np.bincount(self.labels(split), minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))


def row_hashes(num_rows: int) -> Hashes:
    """splitmix64's first numbers: one for each row, the same on every machine and with every version of NumPy."""
    z = np.arange(1, num_rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64, as are the others
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sorted_classes(names: Iterable[str], where: object) -> tuple[str, ...]:
    """Class names in the one order that all peers get: by number if all are numbers, else by code point."""
    distinct = set(names)
    if len(distinct) > MAX_CLASSES:
        raise DataError(f"{where}: {len(distinct)} classes; at most {MAX_CLASSES} are supported")
    for name in distinct:
        if not 0 < len(name) <= MAX_NAME or any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
            raise DataError(
                f"{where}: {name[:MAX_NAME]!a} can't name a class; use 1 to {MAX_NAME} printable characters"
            )
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def matched_names(train: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """The class that each name of a validation or test split means: one of ``train``'s, or itself."""
    known = set(train)
    by_fold: dict[str, list[str]] = {}
    for name in known:
        by_fold.setdefault(folded(name), []).append(name)
    out: dict[str, str] = {}
    for name in set(others):
        found = by_fold.get(folded(name), [])
        out[name] = found[0] if name not in known and len(found) == 1 else name
    return out


def class_notes(source: Source) -> list[str]:
    """Of classes that training does not know, and of names that differ in case alone."""
    train = source.counts("train")
    lines, known = [], [name for name, n in train.items() if n]
    for split in ("val", "test"):
        counts = source.counts(split)
        extra = [name for name, n in counts.items() if n and not train[name]]
        if extra:
            lines.append(
                f"{listed(extra)}: in {split}/ only, not to train on; a job made from these data does not know "
                f"{'it' if len(extra) == 1 else 'them'}"
            )
    by_fold: dict[str, list[str]] = {}
    for name in known:
        by_fold.setdefault(folded(name), []).append(name)
    lines += [
        f"{' and '.join(_quoted(names))} are different classes, though their names differ in case, space, spelling of "
        "accents or zeros in front alone"
        for names in by_fold.values()
        if len(names) > 1
    ]
    if missing := [name for name in known if name in _MISSING]:
        lines.append(f"{listed(missing)}: read as a class; if it means that a label is missing, leave its samples out")
    return lines


def _quoted(names: Sequence[str]) -> list[str]:
    """With what can't be seen of them."""
    return [name if name.isprintable() and name.strip() == name else ascii(name) for name in names]


def check_distinct(names: Sequence[str], where: object) -> None:
    """Refuse a name for two classes, whose samples would be one class then."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: {listed(twice)} names more than one class; give each its own name")


def closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    by_fold = {folded(k): k for k in known}
    match = difflib.get_close_matches(folded(name), by_fold, n=1)
    return f"; did you mean {by_fold[match[0]]!r}?" if match else ""


def check_memory(num_bytes: int, what: object) -> None:
    """Refuse what would not fit into the memory that is free now, before it is allocated."""
    import psutil

    free_bytes = int(psutil.virtual_memory().available)
    if num_bytes > min(free_bytes, MAX_ARRAY_BYTES):
        raise DataError(
            f"{what}: needs {num_bytes / 2**30:.1f} GiB of memory, {free_bytes / 2**30:.1f} GiB are free; "
            "take a share of the samples (--shard 1/4) or a smaller data.input_shape"
        )

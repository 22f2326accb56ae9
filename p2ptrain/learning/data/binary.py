"""Data sets that come as arrays: scikit-learn's digits, the MNIST family (idx), CIFAR's binary release.

Invariant: every header is checked against the file's size and against its partner (labels and images of equal number)
when the source is opened, before any image is read.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data.images import resize_pixels
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import (
    MAX_ARRAY_BYTES,
    Indices,
    Kind,
    Shape,
    Source,
    Split,
    check_memory,
    class_notes,
    matched_names,
    sorted_classes,
)
from p2ptrain.learning.data.validation import with_validation

Pixels = Callable[[Split, Indices], NDArray[Any]]

DIGITS_TEST_SAMPLES = 360
_GZIP_ERRORS = (OSError, EOFError, zlib.error)
_IDX_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "dev"), "test": ("t10k", "test")}
"""Words in files' names."""


@dataclass(frozen=True, slots=True, eq=False)
class ArraySource(Source):
    """Samples are rows of arrays. ``pixels`` reads some, ``[n, C, H, W]`` in the natural shape.

    ``classes_of`` has the splits that are there, ``pixels`` is asked for no others.
    """

    spec: str
    classes: tuple[str, ...]
    natural_shape: Shape
    classes_of: dict[Split, Indices]
    pixels: Pixels
    resizable: bool = True
    kind: Kind = "image"
    sample_rate: int = 0
    unread: tuple[str, ...] = ()
    """What is said of parts that are missing or not read."""

    def labels(self, split: Split) -> Indices:
        return self.classes_of.get(split, np.empty(0, np.int64))

    def fitted(self, contract: DataConfig) -> Source:
        return with_validation(self, contract.val)

    def notes(self) -> list[str]:
        return [*self.unread, *class_notes(self)]

    def decode(
        self, split: Split, indices: Indices, contract: DataConfig, reading: Reading | None = None
    ) -> NDArray[Any]:
        shape: Shape = cast(Shape, contract.input_shape)
        if not self.resizable and shape != self.natural_shape:
            raise DataError(
                f"{self.spec}: samples have shape {list(self.natural_shape)}, the job expects {list(shape)}; "
                "write the arrays in that shape, or give the pictures as images:DIR, which resizes them"
            )
        if split not in self.classes_of:
            return np.empty((0, *shape), np.uint8)
        pixels = self.pixels(split, indices)
        return pixels if shape == self.natural_shape else resize_pixels(pixels, shape)

    def check_files(self, split: Split, contract: DataConfig | None = None) -> list[str]:
        """Raises ``DataError``: of an array no sample is left out."""
        if contract is not None:
            self.decode(split, np.arange(self.num_samples(split)), contract)
        return []


def named_source(spec: str, names: dict[Split, list[str]], shape: Shape, pixels: Pixels, **options: Any) -> ArraySource:
    """A source whose labels are given by name, sample by sample."""
    names = {split: [unicodedata.normalize("NFC", name) for name in given] for split, given in names.items()}
    for split in names.keys() - {"train"}:
        meant = matched_names(names["train"], names[split])
        names[split] = [meant[name] for name in names[split]]
    classes = sorted_classes([name for split in names.values() for name in set(split)], spec)
    index = {name: i for i, name in enumerate(classes)}
    labels = {split: np.array([index[n] for n in split_names], np.int64) for split, split_names in names.items()}
    if not len(labels["train"]):
        raise DataError(f"{spec}: holds no training samples")
    return ArraySource(spec, classes, shape, labels, pixels, **options)


def label_names(labels: NDArray[Any]) -> list[str]:
    return [str(label) for label in labels.tolist()]


# digits


def open_digits(spec: str) -> Source:
    """1,797 handwritten digits, split 1,437 / 360 by class and the same everywhere."""
    table = _digits_table()
    raw, target = table[:, :-1], table[:, -1]
    x: NDArray[np.uint8] = np.rint(raw * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = stratified_sample(target, DIGITS_TEST_SAMPLES, np.random.RandomState(1797))
    train = np.setdiff1d(np.arange(len(x)), test)
    rows: dict[Split, Indices] = {"train": train, "test": test}

    def pixels(split: Split, indices: Indices) -> NDArray[Any]:
        return x[rows[split][indices]]

    return named_source(spec, {split: label_names(target[r]) for split, r in rows.items()}, (1, 8, 8), pixels)


def _digits_table() -> NDArray[np.int64]:
    """A digit a row: 64 pixels of 0 to 16, and which digit it is. scikit-learn's own file is read, and the package not
    imported: that takes as long as torch."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found else []:
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, np.int64, delimiter=",")
    raise DataError('digits: needs scikit-learn; install it with pip install "p2ptrain[demo]"')


def stratified_sample(labels: Indices, num_samples: int, rng: np.random.RandomState) -> Indices:
    """Sorted indices of ``num_samples`` samples with the class shares of all (largest remainders).

    ``RandomState``, because NumPy promises that its stream never changes, and all peers must draw alike.
    """
    counts = np.bincount(labels)
    exact = counts * (num_samples / max(1, len(labels)))
    take = np.floor(exact).astype(np.int64)
    short = num_samples - int(take.sum())
    take[np.argsort(take - exact, kind="stable")[:short]] += 1
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(take)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


# idx (MNIST, Fashion-MNIST, KMNIST, EMNIST)


def open_idx(spec: str, path: Path) -> Source:
    """``idx:DIR``: files such as train-images-idx3-ubyte and t10k-labels-idx1-ubyte, packed with gzip or not."""
    names: dict[Split, list[str]] = {}
    images: dict[Split, tuple[Path, tuple[int, ...]]] = {}
    for split, words in _IDX_SPLITS.items():
        image_file, label_file = _idx_file(path, words, "images"), _idx_file(path, words, "labels")
        if split != "train" and image_file is None and label_file is None:
            continue
        if image_file is None or label_file is None:
            missing = "images-idx3-ubyte" if image_file is None else "labels-idx1-ubyte"
            raise DataError(
                f"{path}: no {words[0]}-{missing} (or .gz); expected the MNIST family's files in one folder"
            )
        dims, (num_labels,) = _idx_dims(image_file, 3), _idx_dims(label_file, 1)
        if dims[0] != num_labels:
            raise DataError(f"{image_file}: {dims[0]} images, but {num_labels} labels in {label_file.name}")
        names[split] = label_names(_idx_read(label_file, (num_labels,)))
        images[split] = image_file, dims
    sizes = {dims[1:] for _, dims in images.values()}
    if len(sizes) > 1:
        raise DataError(f"{path}: train and test images differ in size: {sorted(sizes)}")
    height, width = sizes.pop()

    def pixels(split: Split, indices: Indices) -> NDArray[Any]:
        file, dims = images[split]
        return _idx_read(file, dims)[indices][:, None]

    unread = [f"{path}: EMNIST's pictures lie on their side in its files, and are read so"]
    is_turned = any("emnist" in file.name.lower() for file, _ in images.values())
    return named_source(spec, names, (1, height, width), pixels, unread=tuple(unread if is_turned else ()))


def _idx_file(folder: Path, words: Sequence[str], what: str) -> Path | None:
    try:
        found = sorted(
            p
            for p in folder.iterdir()
            if "idx" in p.name and what in p.name and any(word in p.name for word in words) and p.is_file()
        )
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror}); expected a folder with idx files") from None
    plain = {p.name.removesuffix(".gz") for p in found}
    if len(plain) > 1:
        raise DataError(f"{folder}: several {words[0]} {what}: {', '.join(sorted(plain))}; keep one set in the folder")
    return found[0] if found else None


def _is_gzip(path: Path) -> bool:
    """By its first bytes: what downloads such files may unpack them, or take the suffix off."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _idx_open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if _is_gzip(path) else path.open("rb")


def _idx_dims(path: Path, num_dims: int) -> tuple[int, ...]:
    expected = f"expected an idx file of unsigned bytes with {num_dims} dimensions"
    try:
        with _idx_open(path) as file:
            header = file.read(4 + 4 * num_dims)
        size = 0 if _is_gzip(path) else path.stat().st_size
    except _GZIP_ERRORS as error:
        raise DataError(f"{path}: can't be read ({error}); {expected}; download it again") from None
    if header[:4] != bytes([0, 0, 8, num_dims]) or len(header) < 4 + 4 * num_dims:
        raise DataError(f"{path}: begins with {header[:4].hex()}; {expected}; download it again")
    dims = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
    if not all(1 <= d <= 4096 for d in dims[1:]) or math.prod(dims) > MAX_ARRAY_BYTES:
        raise DataError(f"{path}: absurd dimensions {list(dims)}; {expected}")
    if size and size != len(header) + math.prod(dims):
        raise DataError(f"{path}: {size} bytes, but its header says {len(header) + math.prod(dims)}; download it again")
    return dims


def _idx_read(path: Path, dims: tuple[int, ...]) -> NDArray[np.uint8]:
    num_bytes = math.prod(dims)
    check_memory(num_bytes, path)
    try:
        with _idx_open(path) as file:
            file.seek(4 + 4 * len(dims))
            data = file.read(num_bytes + 1)
    except _GZIP_ERRORS as error:
        raise DataError(f"{path}: can't be read ({error}); download it again") from None
    if len(data) != num_bytes:
        at_least = "more" if len(data) > num_bytes else f"{len(data)} bytes"
        raise DataError(f"{path}: {at_least} of data where its header says {num_bytes} bytes; download it again")
    return np.frombuffer(data, np.uint8).reshape(dims)


# CIFAR, binary version

_PIXEL_BYTES = 3 * 32 * 32
_BATCH_RECORDS = 10_000


def open_cifar(spec: str, path: Path) -> Source:
    """``cifar:DIR``: the binary version of CIFAR-10, or of CIFAR-100 with its fine labels."""
    return _open_cifar(spec, path, coarse=False)


def open_cifar_coarse(spec: str, path: Path) -> Source:
    """``cifar-coarse:DIR``: the binary version of CIFAR-100 with its 20 coarse labels."""
    return _open_cifar(spec, path, coarse=True)


def _open_cifar(spec: str, path: Path, *, coarse: bool) -> Source:
    expected = (
        "expected CIFAR-10's data_batch_1.bin ... and batches.meta.txt, "
        "or CIFAR-100's train.bin and fine_label_names.txt"
    )
    if coarse:
        expected = "expected CIFAR-100's train.bin and coarse_label_names.txt"
    batches: list[Path] = []
    inner = [path, path / "cifar-10-batches-bin", path / "cifar-100-binary"]
    for folder in inner:
        if not coarse and (folder / "batches.meta.txt").is_file():
            batches = [folder / f"data_batch_{i}.bin" for i in range(1, 6)]
            names = _cifar_names(folder / "batches.meta.txt", 10)
            train, test, label_at, num_labels = [b for b in batches if b.is_file()], folder / "test_batch.bin", 0, 1
            break
        names_file = folder / ("coarse_label_names.txt" if coarse else "fine_label_names.txt")
        if names_file.is_file():
            names = _cifar_names(names_file, 20 if coarse else 100)
            # Of each record's two labels the first is the coarse one.
            train, test, label_at, num_labels = [folder / "train.bin"], folder / "test.bin", int(not coarse), 2
            break
    else:
        raise DataError(f"{path}: no label names there; {expected}")
    if not train or not train[0].is_file():
        raise DataError(f"{folder}: no training batches there; {expected}")
    record_bytes = num_labels + _PIXEL_BYTES
    files: dict[Split, list[Path]] = {"train": train}
    if test.is_file():
        files["test"] = [test]
    labels = {split: _cifar_labels(paths, record_bytes, label_at, len(names)) for split, paths in files.items()}

    def pixels(split: Split, indices: Indices) -> NDArray[Any]:
        out = np.empty((len(indices), 3, 32, 32), np.uint8)
        start = 0
        for file in files[split]:
            records = _cifar_records(file, record_bytes)
            here = (indices >= start) & (indices < start + len(records))
            out[here] = records[indices[here] - start, num_labels:].reshape(-1, 3, 32, 32)
            start += len(records)
        return out

    missing = [b.name for b in batches if not b.is_file()]
    missing += [] if test.is_file() else [test.name]
    unread = [f"{folder}: without {', '.join(missing)}: that is not all of the data set"] if missing else []
    whole = _BATCH_RECORDS if batches else 5 * _BATCH_RECORDS
    for file in train:
        if (found := len(_cifar_records(file, record_bytes))) != whole:
            unread.append(f"{file}: {found:,} samples, where the data set's own file has {whole:,}")
    return ArraySource(spec, names, (3, 32, 32), labels, pixels, unread=tuple(unread))


def _cifar_names(path: Path, num_classes: int) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error}); expected {num_classes} class names") from None
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise DataError(f"{path}: {len(names)} names; expected {num_classes} different class names, one a line")
    return names


def _cifar_records(path: Path, record_bytes: int) -> NDArray[np.uint8]:
    """The file's records ``[N, record_bytes]``, mapped and not read."""
    try:
        size = path.stat().st_size
        if size == 0 or size % record_bytes:
            raise DataError(f"{path}: {size} bytes; expected a multiple of {record_bytes}; download it again")
        return np.memmap(path, np.uint8, "r", shape=(size // record_bytes, record_bytes))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}); download it again") from None


def _cifar_labels(paths: Sequence[Path], record_bytes: int, label_at: int, num_classes: int) -> Indices:
    parts = [np.empty(0, np.int64)]
    for path in paths:
        labels = _cifar_records(path, record_bytes)[:, label_at].astype(np.int64)
        if labels.max() >= num_classes:
            raise DataError(f"{path}: label {labels.max()} where {num_classes} classes are named; download it again")
        parts.append(labels)
    return np.concatenate(parts)

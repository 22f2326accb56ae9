"""Image and audio trees, one folder a class, as a directory or as a zip that is never unpacked.

Invariant: the order of classes and samples depends on names alone, so peers with equal trees number them equally.
``trees.layout`` says which file is what.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import audio as wav
from p2ptrain.learning.data import images
from p2ptrain.learning.data.reading import Brightest, Reading
from p2ptrain.learning.data.source import (
    Hashes,
    Indices,
    Kind,
    Shape,
    Source,
    Split,
    class_notes,
    matched_names,
    sorted_classes,
)
from p2ptrain.learning.data.trees.layout import class_folders
from p2ptrain.learning.data.trees.tree import Tree, open_tree
from p2ptrain.learning.data.validation import with_validation

_CHUNK = 32
_SURVEYED = 256
"""So many files, evenly spread, say what most are like."""
_HEAD_BYTES = 64 * 1024
"""Holds the header of nearly all files; of others the whole file is read."""
THREADED_BYTES = 12 * 1024
"""Below it, threads lose more by waiting for the interpreter lock than the decoders gain by releasing it."""


@dataclass(frozen=True, slots=True, eq=False)
class FolderSource(Source):
    """Samples are files; see the module's docstring for the layout."""

    spec: str
    kind: Kind
    classes: tuple[str, ...]
    natural_shape: Shape
    sample_rate: int
    tree: Tree
    files: dict[Split, tuple[str, ...]]
    classes_of: dict[Split, Indices]
    unread: tuple[str, ...] = ()
    """What is said of files that are no samples, and of names."""
    differences: tuple[str, ...] = ()
    resizable: bool = True

    def labels(self, split: Split) -> Indices:
        return self.classes_of[split]

    def fitted(self, contract: DataConfig) -> Source:
        return with_validation(self, contract.val)

    def hashes(self) -> Hashes:
        """Of CLASS/FILE, so that copies of the folder agree, and copies of a part of it, packed or not."""
        names = (_sample_name(file).encode("utf-8", "surrogatepass") for file in self.files["train"])
        digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.frombuffer(digests, "<u8").astype(np.uint64)

    def notes(self) -> list[str]:
        return [*self.unread, *class_notes(self)]

    def survey_notes(self) -> tuple[str, ...]:
        return self.differences

    def decode(
        self, split: Split, indices: Indices, contract: DataConfig, reading: Reading | None = None
    ) -> NDArray[Any]:
        """Large files are decoded on as many threads as there are visible cores."""
        shape = cast(Shape, contract.input_shape)
        names = [self.files[split][i] for i in indices]
        out = np.empty((len(names), *shape), np.uint8 if self.kind == "image" else np.float16)
        largest_bytes = 0

        def read(name: str) -> NDArray[Any]:
            nonlocal largest_bytes
            data, where = self.tree.read(name), self._where(name)
            largest_bytes = max(largest_bytes, len(data))
            if self.kind == "audio":
                return wav.decode_wav(data, contract.audio, where, reading)
            return images.decode_image(data, shape, where, contract.white, reading)

        def fill(start: int, stop: int) -> None:
            for i in range(start, stop):
                try:
                    out[i] = read(names[i])
                except DataError as error:
                    if reading is None or reading.strict:
                        raise
                    reading.broken[i] = str(error)

        first = min(_CHUNK, len(names))
        fill(0, first)
        num_threads = _visible_cores()
        if largest_bytes < THREADED_BYTES or num_threads == 1:
            fill(first, len(names))
            return out
        with ThreadPoolExecutor(num_threads) as pool:
            cuts = [*range(first, len(names), _CHUNK), len(names)]
            jobs = [pool.submit(fill, start, stop) for start, stop in pairwise(cuts)]
            try:
                for job in jobs:  # in order, so the first broken file is always the one named
                    job.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return out

    def durations_s(self, indices: Indices) -> list[float]:
        """Lengths of training recordings, from their headers; of those that have a sound one."""
        found = (self._head(self.files["train"][i]) for i in indices)
        return [head.seconds for head in found if isinstance(head, wav.WavInfo)]

    def white(self, indices: Indices) -> float:
        found = Brightest()
        for i in indices if self.kind == "image" else ():
            name = self.files["train"][i]
            head = self._head(name)
            if isinstance(head, images.ImageHead) and head.is_wide:
                with contextlib.suppress(DataError):  # counted where all are read
                    images.find_brightest(self.tree.read(name), self._where(name), found)
        return found.white

    def check_files(self, split: Split, contract: DataConfig | None = None) -> list[str]:
        if contract is None:
            return [head for head in map(self._head, self.files[split]) if isinstance(head, str)]
        broken: list[str] = []
        for start in range(0, self.num_samples(split), _SURVEYED):  # all at once may not fit into memory
            reading = Reading()
            stop = min(start + _SURVEYED, self.num_samples(split))
            self.decode(split, np.arange(start, stop), contract, reading)
            broken += [reading.broken[i] for i in sorted(reading.broken)]
        return broken

    def _where(self, name: str) -> str:
        return f"{self.tree.path}: {name}"

    def _head(self, name: str) -> images.ImageHead | wav.WavInfo | str:
        """What a file's header says, or what is wrong with it."""
        return _read_head(self.tree, self.kind, name)


def _read_head(tree: Tree, kind: Kind, name: str) -> images.ImageHead | wav.WavInfo | str:
    where = f"{tree.path}: {name}"
    try:
        if kind == "audio":  # whose length has to be checked against the whole file's
            return wav.wav_info(tree.read(name), where)
        start = tree.read(name, _HEAD_BYTES)
        try:
            return images.image_head(start, where)
        except DataError:
            if len(start) < _HEAD_BYTES:
                raise
            return images.image_head(tree.read(name), where)
    except DataError as error:
        return str(error)


def open_images(spec: str, path: Path) -> Source:
    """``images:DIR_OR_ZIP``."""
    return _open(spec, path, "image")


def open_audio(spec: str, path: Path) -> Source:
    """``audio:DIR_OR_ZIP``."""
    return _open(spec, path, "audio")


def _open(spec: str, path: Path, kind: Kind) -> Source:
    tree = open_tree(path)
    by_split, unread = class_folders(tree, kind)
    for split in ("val", "test"):
        meant = matched_names(by_split["train"], by_split[split])
        folders: dict[str, list[str]] = {}
        for name, names in by_split[split].items():
            folders.setdefault(meant[name], []).extend(names)
        by_split[split] = folders
    classes = sorted_classes({name for folders in by_split.values() for name in folders}, path)
    files: dict[Split, tuple[str, ...]] = {}
    labels: dict[Split, Indices] = {}
    for split, folders in by_split.items():
        order = [name for name in classes if name in folders]
        files[split] = tuple(file for name in order for file in sorted(folders[name]))
        repeats = [len(folders[name]) for name in order]
        labels[split] = np.repeat(np.array([classes.index(name) for name in order], np.int64), repeats)
    shape, rate, differences = _survey(tree, kind, files["train"])
    return FolderSource(spec, kind, classes, shape, rate, tree, files, labels, tuple(unread), tuple(differences))


def _survey(tree: Tree, kind: Kind, files: tuple[str, ...]) -> tuple[Shape, int, list[str]]:
    """What most files are like: colour if any has colour, the median of sizes, the most common rate; and what differs.

    Raises ``DataError`` if none of those looked at can be read.
    """
    chosen = np.linspace(0, len(files) - 1, min(_SURVEYED, len(files))).round().astype(int)
    found = [_read_head(tree, kind, files[i]) for i in chosen]
    sound = [head for head in found if not isinstance(head, str)]
    if not sound:
        raise DataError(str(found[0]))
    looked = f"of {len(sound)} files looked at"
    recordings = [head for head in sound if isinstance(head, wav.WavInfo)]
    if recordings:
        rates = Counter(head.sample_rate for head in recordings)
        rate = max(rates, key=lambda each: (rates[each], each))
        many = ", ".join(f"{n} at {each:,} Hz" for each, n in sorted(rates.items()))
        lines = [f"{looked}: {many}; all are read at one rate"] if len(rates) > 1 else []
        return wav.feature_shape(wav.natural_audio(rate)), rate, lines
    pictures = [head for head in sound if isinstance(head, images.ImageHead)]
    grey = sum(head.channels == 1 for head in pictures)
    heights, widths = sorted(head.height for head in pictures), sorted(head.width for head in pictures)
    lines = []
    if 0 < grey < len(pictures):
        lines.append(f"{looked}: {grey} grey, {len(pictures) - grey} in colour; all are read in colour")
    if heights[0] < heights[-1] or widths[0] < widths[-1]:
        lines.append(
            f"{looked}, heights are {heights[0]} to {heights[-1]} and widths {widths[0]} to {widths[-1]} pixels: all "
            "are stretched to one size"
        )
    middle = len(pictures) // 2
    return (1 if grey == len(pictures) else 3, heights[middle], widths[middle]), 0, lines


def _sample_name(file: str) -> str:
    parts = [part for part in file.replace("\\", "/").split("/") if part != "."]
    return unicodedata.normalize("NFC", "/".join(parts[-2:]))


def _visible_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1

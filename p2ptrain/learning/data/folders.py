"""Image and audio trees, one folder a class, as a directory or as a zip that is never unpacked.

Invariant: the order of classes and samples depends on names alone, so peers with equal trees number them equally; a
file is either a sample, a side file (hidden, text) that ``notes`` counts, or an error that names it: nothing is skipped
in silence, and what could be a sample by its suffix is no side file.

    [wrapper/] [train/ | val/ | test/] <class>/<file>        (val/ may be called valid/ or validation/)
    [wrapper/] <class>/<file>, validation_list.txt, testing_list.txt, _background_noise_/    (speech commands)
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
from pathlib import Path, PurePosixPath
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
from p2ptrain.learning.data.trees.lists import LISTS, NOISE_FOLDER, read_lists
from p2ptrain.learning.data.trees.tree import Tree, is_hidden, is_litter, open_tree
from p2ptrain.learning.data.validation import with_validation

_SIDE_SUFFIXES = frozenset(
    {".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".html", ".yaml", ".yml", ".toml", ".ini", ".db", ".rst", ".pdf"}
)
_SIDE_NAMES = frozenset({"README", "LICENSE", "LICENCE", "NOTICE", "COPYING", "MAKEFILE"})
_SUFFIXES: dict[Kind, frozenset[str]] = {"image": images.SUFFIXES, "audio": frozenset({".wav", ".wave"})}
_LAYOUT = "expected CLASS/FILE, with optional train/, val/ and test/ folders above"
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
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
                return wav.decode_wav(data, contract.audio, where)
            return images.decode_image(data, shape, where, contract.white, reading)

        def fill(start: int, stop: int) -> None:
            for i in range(start, stop):
                try:
                    out[i] = read(names[i])
                except DataError as error:
                    if reading is None:
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
    by_split, unread = _class_folders(tree, kind)
    if not by_split["train"]:
        raise DataError(f"{path}: no class folders with {kind} files to train on; {_LAYOUT}")
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


def _class_folders(tree: Tree, kind: Kind) -> tuple[dict[Split, dict[str, list[str]]], list[str]]:
    """Files by split and class name, and what is not read. Raises ``DataError`` for what does not fit the layout."""
    paths: list[tuple[tuple[str, ...], str]] = []  # (parts; a folder ends with "") and the name to read by
    hidden: list[str] = []
    side: list[str] = []
    times = Counter(tree.names())
    for name in times:
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part != ".")
        if ".." in parts or not parts or not parts[0]:
            raise DataError(f"{tree.path}: {name}: not a relative name; make the zip again")
        if any(is_hidden(part) for part in parts if part):
            if parts[-1] and not any(is_litter(part) for part in parts if part):
                hidden.append(name)
        elif _is_side_file(parts[-1], kind):
            side.append(name)
        else:
            paths.append((parts, name))
    if kind == "audio" and (noise := [name for parts, name in paths if NOISE_FOLDER in parts[:-1]]):
        paths = [(parts, name) for parts, name in paths if NOISE_FOLDER not in parts[:-1]]
        side += [name for name in noise if not name.endswith("/")]
    unread: list[str] = []
    if repeated := [name for name, n in times.items() if n > 1 and not name.endswith("/")]:
        unread.append(f"more than once in the zip, of which the last is read: {_some(repeated, 'repeated')}")
    above = ""
    while _is_wrapped(paths):
        above += f"{paths[0][0][0]}/"
        paths = [(parts[1:], name) for parts, name in paths if len(parts) > 2 or parts[-1]]
    by_split: dict[Split, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
    # A folder train/ with files in it is a class (of vehicles, say).
    has_splits = any(len(parts) > 2 and parts[0].lower() == "train" for parts, _ in paths)
    if has_splits:
        _check_one_validation_folder(tree, {parts[0] for parts, _ in paths if len(parts) > 1})
    lists = {} if has_splits else {each: above + each for each in LISTS if above + each in side}
    listed = read_lists(tree, lists, {"/".join(parts) for parts, _ in paths} if lists else ())
    side = [name for name in side if name not in lists.values()]
    left = [f"not read: {_some(names, what)}" for names, what in ((hidden, "hidden"), (side, "side")) if names]
    unread = [*left, *listed.notes, *unread]
    for parts, name in paths:
        where = f"{tree.path}: {name}"
        split: Split = "train"
        if has_splits and len(parts) > 1:
            if parts[0].lower() not in _SPLIT_FOLDERS:
                raise DataError(
                    f"{where}: found beside train/; only train/, val/ and test/ are read: rename or move {parts[0]}/"
                )
            split = _SPLIT_FOLDERS[parts[0].lower()]
            parts = parts[1:]
        folders = by_split[split]
        if len(parts) > 2 and parts[-1]:
            raise DataError(f"{where}: nested too deep; {_LAYOUT}")
        if not parts[-1]:
            if len(parts) == 2:
                folders.setdefault(_class_name(parts[0]), [])
        else:
            _check_sample(parts[-1], kind, where)
            if len(parts) == 1:
                raise DataError(f"{where}: not in a class folder; {_LAYOUT}")
            folders = folders if has_splits else by_split[listed.split("/".join(parts))]
            folders.setdefault(_class_name(parts[0]), []).append(name)
    if not has_splits and (odd := sorted(n for n in by_split["train"] if n.lower() in _SPLIT_FOLDERS)):
        unread.append(f"{', '.join(odd)}: read as a class, as there is no train/ with class folders in it")
    for split, folders in by_split.items():
        for class_name, files in folders.items():
            if not files:
                where = f"{split}/{class_name}" if has_splits else class_name
                raise DataError(
                    f"{tree.path}: {where}: class folder without {kind} files; "
                    f"add {_suffixes(kind)} files or remove the folder"
                )
    return by_split, unread


def _some(names: list[str], what: str) -> str:
    """``3 hidden files (a/.x, ...)``."""
    one = len(names) == 1
    return f"{len(names)} {what} file{'' if one else 's'} ({min(names)}{'' if one else ', ...'})"


def _check_one_validation_folder(tree: Tree, tops: set[str]) -> None:
    found = sorted(top for top in tops if _SPLIT_FOLDERS.get(top.lower()) == "val")
    if len({top.lower() for top in found}) > 1:
        names = " and ".join(f"{top}/" for top in found)
        raise DataError(f"{tree.path}: {names} are both validation data; put them into one folder val/")


def _is_wrapped(paths: list[tuple[tuple[str, ...], str]]) -> bool:
    """True if everything lies in one folder that is neither a class (files in it) nor train/."""
    tops = {parts[0] for parts, _ in paths}
    if len(tops) != 1 or next(iter(tops)).lower() in ("train", "test"):
        return False
    has_files = any(len(parts) <= 2 and parts[-1] for parts, _ in paths)
    return not has_files and any(len(parts) > 2 for parts, _ in paths)


def _check_sample(file: str, kind: Kind, where: str) -> None:
    suffix = PurePosixPath(file).suffix.lower()
    if suffix in _SUFFIXES[kind]:
        return
    hint = f"; convert it, e.g. {'ffmpeg -i FILE OUT.wav' if kind == 'audio' else 'magick FILE OUT.jpg'}"
    raise DataError(f"{where}: not {kind} data that can be read; expected {_suffixes(kind)}{hint}")


def _suffixes(kind: Kind) -> str:
    return ", ".join(sorted(_SUFFIXES[kind]))


def _is_side_file(name: str, kind: Kind) -> bool:
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES[kind]:
        return False
    return suffix in _SIDE_SUFFIXES or (not suffix and path.stem.upper() in _SIDE_NAMES)


def _class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", folder)  # macOS stores accents apart


def _sample_name(file: str) -> str:
    parts = [part for part in file.replace("\\", "/").split("/") if part != "."]
    return unicodedata.normalize("NFC", "/".join(parts[-2:]))


def _visible_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1

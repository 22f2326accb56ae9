"""Image and audio trees, one folder a class, as a directory or as a zip that is never unpacked.

Invariant: the order of classes and samples depends on names alone, so peers with equal trees number them equally; a
file is either a sample, a known side file (hidden, text), or an error that names it: nothing is skipped in silence.

    [wrapper/] [train/ | val/ | test/] <class>/<file>        (val/ may be called valid/ or validation/)
"""

from __future__ import annotations

import hashlib
import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import audio as wav
from p2ptrain.learning.data import images
from p2ptrain.learning.data.source import Hashes, Indices, Kind, Shape, Source, Split, sorted_classes
from p2ptrain.learning.data.validation import with_validation

MAX_FILE_BYTES = 128 * 2**20
MAX_FILES = 5_000_000
MAX_RATIO, RATIO_FREE_BYTES = 200, 16 * 2**20
"""A packed file above ``RATIO_FREE_BYTES`` that shrank by more than ``MAX_RATIO`` is a bomb, not a sample."""

_SIDE_SUFFIXES = frozenset(
    {".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".html", ".yaml", ".yml", ".toml", ".ini", ".db"}
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
_MAX_DEPTH = 5
_CHUNK = 32
THREADED_BYTES = 12 * 1024
"""Below it, threads lose more by waiting for the interpreter lock than the decoders gain by releasing it."""
_ZIP_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,  # encrypted; and NotImplementedError: an unknown packing
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    zlib.error,
)


class Tree(Protocol):
    """Where files live: a directory or a zip. Names are relative, with forward slashes."""

    @property
    def path(self) -> Path: ...

    def names(self) -> Iterator[str]:
        """All files, and all folders with a slash at the end."""

    def read(self, name: str) -> bytes:
        """One file, whole. May be called from several threads."""


@dataclass(frozen=True, slots=True)
class DirTree:
    path: Path

    def names(self) -> Iterator[str]:
        yield from self._scan(self.path, "", 1)

    def _scan(self, folder: Path, prefix: str, depth: int) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.is_dir()) for entry in entries]
        except OSError as error:
            raise DataError(f"{folder}: can't be listed ({error.strerror}); check its permissions") from None
        for name, is_dir in found:
            yield f"{prefix}{name}{'/' if is_dir else ''}"
            if is_dir and depth < _MAX_DEPTH and not _is_side(name):  # the depth also ends loops of links
                yield from self._scan(folder / name, f"{prefix}{name}/", depth + 1)

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror}); check that it is still there") from None
        if len(data) > MAX_FILE_BYTES:
            raise _too_large(str(path), MAX_FILE_BYTES)
        return data


@dataclass(frozen=True, slots=True)
class ZipTree:
    """``archive`` stays open for the source's life: reading the list of a large zip again costs a second."""

    path: Path
    archive: zipfile.ZipFile

    def names(self) -> Iterator[str]:
        infos = self.archive.infolist()
        if len(infos) > MAX_FILES:
            raise DataError(f"{self.path}: {len(infos)} files; at most {MAX_FILES:,} are supported")
        for info in infos:
            yield info.filename

    def read(self, name: str) -> bytes:
        where = f"{self.path}: {name}"
        try:
            info = self.archive.getinfo(name)
            if info.file_size > MAX_FILE_BYTES:
                raise _too_large(where, info.file_size)
            if info.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * info.compress_size):
                raise DataError(f"{where}: unpacks to {info.file_size:,} bytes from {info.compress_size:,}: refused")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{where}: packed in an unusual way; make the zip again with the usual deflate")
            with self.archive.open(info) as file:
                return file.read()  # zipfile stops at file_size and checks the CRC
        except _ZIP_ERRORS as error:
            raise DataError(f"{where}: can't be unpacked ({error}); make the zip again") from None


def open_tree(path: Path) -> Tree:
    """A folder or a zip. Raises ``DataError`` if it is neither."""
    if path.is_dir():
        return DirTree(path)
    try:
        return ZipTree(path, zipfile.ZipFile(path))
    except _ZIP_ERRORS as error:
        raise DataError(f"{path}: not a readable zip ({error}); expected a folder or a zip of class folders") from None


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

    def decode(self, split: Split, indices: Indices, contract: DataConfig) -> NDArray[Any]:
        """Large files are decoded on as many threads as there are visible cores."""
        shape = cast(Shape, contract.input_shape)
        names = [self.files[split][i] for i in indices]
        out = np.empty((len(names), *shape), np.uint8 if self.kind == "image" else np.float16)
        largest_bytes = 0

        def fill(start: int, stop: int) -> None:
            nonlocal largest_bytes
            for i in range(start, stop):
                data, where = self.tree.read(names[i]), f"{self.tree.path}: {names[i]}"
                largest_bytes = max(largest_bytes, len(data))
                if self.kind == "image":
                    out[i] = images.decode_image(data, shape, where)
                else:
                    out[i] = wav.decode_wav(data, contract.audio, where)

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
        """Lengths of training recordings, from their headers."""
        names = [self.files["train"][i] for i in indices]
        return [wav.wav_info(self.tree.read(name), f"{self.tree.path}: {name}").seconds for name in names]


def open_images(spec: str, path: Path) -> Source:
    """``images:DIR_OR_ZIP``."""
    return _open(spec, path, "image")


def open_audio(spec: str, path: Path) -> Source:
    """``audio:DIR_OR_ZIP``."""
    return _open(spec, path, "audio")


def _open(spec: str, path: Path, kind: Kind) -> Source:
    tree = open_tree(path)
    by_split = _class_folders(tree, kind)
    found = {name for folders in by_split.values() for name in folders}
    if not by_split["train"]:
        raise DataError(f"{path}: no class folders with {kind} files to train on; {_LAYOUT}")
    classes = sorted_classes(found, path)
    files: dict[Split, tuple[str, ...]] = {}
    labels: dict[Split, Indices] = {}
    for split, folders in by_split.items():
        order = [name for name in classes if name in folders]
        files[split] = tuple(file for name in order for file in sorted(folders[name]))
        repeats = [len(folders[name]) for name in order]
        labels[split] = np.repeat(np.array([classes.index(name) for name in order], np.int64), repeats)
    first = files["train"][0]
    data = tree.read(first)
    if kind == "image":
        return FolderSource(spec, kind, classes, images.image_shape(data, f"{path}: {first}"), 0, tree, files, labels)
    rate = wav.wav_info(data, f"{path}: {first}").sample_rate
    shape = wav.feature_shape(wav.natural_audio(rate))
    return FolderSource(spec, kind, classes, shape, rate, tree, files, labels)


def _class_folders(tree: Tree, kind: Kind) -> dict[Split, dict[str, list[str]]]:
    """Files by split and class name. Raises ``DataError`` for what does not fit the layout."""
    paths: list[tuple[tuple[str, ...], str]] = []  # (parts; a folder ends with "") and the name to read by
    for name in dict.fromkeys(tree.names()):
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part != ".")
        if ".." in parts or not parts or not parts[0]:
            raise DataError(f"{tree.path}: {name}: not a relative name; make the zip again")
        if not any(_is_side(part) for part in parts if part) and not _is_side_file(parts[-1]):
            paths.append((parts, name))
    while _is_wrapped(paths):
        paths = [(parts[1:], name) for parts, name in paths if len(parts) > 2 or parts[-1]]
    by_split: dict[Split, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
    # A folder train/ with files in it is a class (of vehicles, say).
    has_splits = any(len(parts) > 2 and parts[0].lower() == "train" for parts, _ in paths)
    if has_splits:
        _check_one_validation_folder(tree, {parts[0] for parts, _ in paths if len(parts) > 1})
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
            folders.setdefault(_class_name(parts[0]), []).append(name)
    for split, folders in by_split.items():
        for class_name, files in folders.items():
            if not files:
                where = f"{split}/{class_name}" if has_splits else class_name
                raise DataError(
                    f"{tree.path}: {where}: class folder without {kind} files; "
                    f"add {_suffixes(kind)} files or remove the folder"
                )
    return by_split


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
    hint = "; convert it, e.g. ffmpeg -i FILE OUT.wav" if kind == "audio" else ""
    raise DataError(f"{where}: not {kind} data that can be read; expected {_suffixes(kind)}{hint}")


def _suffixes(kind: Kind) -> str:
    return ", ".join(sorted(_SUFFIXES[kind]))


def _is_side(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX" or part.lower() in ("thumbs.db", "desktop.ini")


def _is_side_file(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _SIDE_SUFFIXES or path.stem.upper() in _SIDE_NAMES


def _class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", folder)  # macOS stores accents apart


def _sample_name(file: str) -> str:
    parts = [part for part in file.replace("\\", "/").split("/") if part != "."]
    return unicodedata.normalize("NFC", "/".join(parts[-2:]))


def _too_large(where: str, num_bytes: int) -> DataError:
    return DataError(f"{where}: {num_bytes:,} bytes or more; at most {MAX_FILE_BYTES:,} a file are read")


def _visible_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1

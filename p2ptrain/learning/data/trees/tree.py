"""Where class folders live: a directory, or a zip that is never unpacked.

Invariant: what is listed is all that is there but for the insides of hidden folders; nothing is read that is no
ordinary file, no file to more than ``MAX_FILE_BYTES``, and no packed file that claims to grow absurdly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from p2ptrain.errors import DataError
from p2ptrain.learning.data.beginnings import packed_with

MAX_FILE_BYTES = 128 * 2**20
MAX_FILES = 5_000_000
MAX_RATIO, RATIO_FREE_BYTES = 200, 16 * 2**20
"""A packed file above ``RATIO_FREE_BYTES`` that shrank by more than ``MAX_RATIO`` is a bomb, not a sample."""

_MAX_DEPTH = 32
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


_LITTER = frozenset(
    {"__macosx", ".ds_store", "icon\r", ".appledouble"}  # macOS
    | {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"}
    | {"lost+found", "@eadir", "#recycle", "@recycle", "picasa.ini", "__pycache__"}
)
_UTF8_NAME = 0x800
"""A zip entry's flag."""
_UNICODE_PATH = 0x7075
"""The extra field in which Info-ZIP keeps a name that is stored in another coding (APPNOTE 4.6.9)."""


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is the system's, or meant to be hidden."""
    return part.startswith(".") or is_litter(part)


def is_litter(part: str) -> bool:
    """What systems leave behind, and nobody misses."""
    return part.startswith("._") or part.lower() in _LITTER


class Tree(Protocol):
    """Where files live: a directory or a zip. Names are relative, with forward slashes."""

    @property
    def path(self) -> Path: ...

    def names(self) -> Iterator[str]:
        """All files, and all folders with a slash at the end."""

    def notes(self) -> list[str]:
        """What a person should know of the names."""

    def read(self, name: str, most: int = MAX_FILE_BYTES) -> bytes:
        """One file: whole, or its first ``most`` bytes. May be called from several threads. Raises ``DataError``."""


@dataclass(frozen=True, slots=True)
class DirTree:
    path: Path

    def names(self) -> Iterator[str]:
        yield from self._scan(self.path, "", ())

    def notes(self) -> list[str]:
        return []

    def _scan(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """``above``: device and inode of the folders that this one lies in, by which loops of links are seen."""
        try:
            found_at = folder.stat()
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.is_dir()) for entry in entries]
        except OSError as error:
            raise DataError(f"{folder}: can't be listed ({error.strerror}); check its permissions") from None
        here = (found_at.st_dev, found_at.st_ino)
        if here in above:
            raise DataError(f"{folder}: a link to a folder that it lies in itself; remove the link")
        if len(above) >= _MAX_DEPTH:
            raise DataError(f"{folder}: more than {_MAX_DEPTH} folders deep; name a folder further down with --data")
        for name, is_dir in found:
            yield f"{prefix}{name}{'/' if is_dir else ''}"
            if is_dir and not is_hidden(name):
                yield from self._scan(folder / name, f"{prefix}{name}/", (*above, here))

    def read(self, name: str, most: int = MAX_FILE_BYTES) -> bytes:
        path = self.path / name
        try:
            with open(path, "rb", opener=_open_regular) as file:
                data = file.read(most + (most == MAX_FILE_BYTES))  # one more, to see that there is more
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror}); check that it is still there") from None
        if len(data) > MAX_FILE_BYTES:
            raise _too_large(str(path), MAX_FILE_BYTES)
        return data


def _open_regular(path: str, flags: int) -> int:
    """A pipe without a writer would be waited for, for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "no ordinary file")
    return os.open(path, flags)


@dataclass(frozen=True, slots=True)
class ZipTree:
    """``archive`` stays open for the source's life: reading the list of a large zip again costs a second.

    ``renamed``: entries whose names are not what ``archive`` takes them for.
    """

    path: Path
    archive: zipfile.ZipFile
    renamed: Mapping[str, zipfile.ZipInfo]

    def names(self) -> Iterator[str]:
        infos = self.archive.infolist()
        if len(infos) > MAX_FILES:
            raise DataError(f"{self.path}: {len(infos)} files; at most {MAX_FILES:,} are supported")
        for info in infos:
            yield _entry_name(info) or info.filename

    def notes(self) -> list[str]:
        unsure = [info for info in self.archive.infolist() if _entry_name(info) == ""]
        folders = sorted({str(PurePosixPath(info.filename.replace("\\", "/")).parent) for info in unsure})
        if not (odd := [folder for folder in folders if not folder.isascii()]):
            return []
        return [
            f"the zip does not say how its names are coded: read as by DOS, {odd[0]} is one; if that is not the name, "
            "make the zip again, or give the folder"
        ]

    def read(self, name: str, most: int = MAX_FILE_BYTES) -> bytes:
        where = f"{self.path}: {name}"
        try:
            info = self.renamed.get(name) or self.archive.getinfo(name)
            if info.file_size > MAX_FILE_BYTES:
                raise _too_large(where, info.file_size)
            if info.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * info.compress_size):
                raise DataError(f"{where}: unpacks to {info.file_size:,} bytes from {info.compress_size:,}: refused")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{where}: packed in an unusual way; make the zip again with the usual deflate")
            with self.archive.open(info) as file:
                return file.read(most)  # zipfile stops at file_size and checks the CRC
        except _ZIP_ERRORS as error:
            raise DataError(f"{where}: can't be unpacked ({error}); make the zip again") from None


def open_tree(path: Path) -> Tree:
    """A folder or a zip. Raises ``DataError`` if it is neither."""
    if path.is_dir():
        return DirTree(path)
    try:
        archive = zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if (packed := packed_with(file.read(512))) not in ("", "zip"):
                raise DataError(f"{path}: packed with {packed}; unpack it, and give the folder") from None
        raise DataError(f"{path}: not a readable zip ({error}); expected a folder or a zip of class folders") from None
    renamed = {name: info for info in archive.infolist() if (name := _entry_name(info))}
    return ZipTree(path, archive, renamed)


def _entry_name(info: zipfile.ZipInfo) -> str | None:
    """The name in a zip entry that does not say how it is coded, which ``zipfile`` takes for cp437, that of DOS.

    Most such names are UTF-8. None: the entry says it, or it is the same in all codings; "": no telling.
    """
    if info.flag_bits & _UTF8_NAME or info.filename.isascii():
        return None
    try:
        raw = info.filename.encode("cp437")
        return _unicode_path(info.extra, raw) or raw.decode("utf-8")
    except UnicodeError:
        return ""


def _unicode_path(extra: bytes, raw: bytes) -> str:
    """The name in Info-ZIP's field, "" if there is none that belongs to this name."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field, at = extra[at + 4 : at + 4 + size], at + 4 + size
        if kind == _UNICODE_PATH and field[:1] == b"\x01" and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return field[5:].decode("utf-8")
    return ""


def _too_large(where: str, num_bytes: int) -> DataError:
    return DataError(f"{where}: {num_bytes:,} bytes or more; at most {MAX_FILE_BYTES:,} a file are read")

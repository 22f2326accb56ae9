"""``npz:FILE``: arrays as NumPy saves them.

Invariant: every header is checked against the file's size and against its partner (labels and samples of equal number)
when the source is opened, before any sample is read; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2ptrain.errors import DataError
from p2ptrain.learning.data.binary import label_names, named_source
from p2ptrain.learning.data.source import SPLITS, Indices, Shape, Source, Split, check_distinct, check_memory

_NPZ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    SyntaxError,
    RuntimeError,
    OverflowError,
    MemoryError,
    zipfile.BadZipFile,
    tokenize.TokenError,  # from NumPy's header parser
    struct.error,
    zlib.error,
)


def open_npz(spec: str, path: Path) -> Source:
    """``npz:FILE``: x_train ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]``, y_train ``[N]``, and more splits.

    Those are x_val, y_val and x_test, y_test; a split with neither of its arrays is empty. Labels are whole numbers,
    one-hot rows or strings; an array ``classes`` may name the numbers. Bytes are pixels; floats are used as they are.
    The smaller of the outer two axes of a sample is its channels; where that is not clear, an array ``layout`` says
    "NCHW" or "NHWC".
    """
    arrays = _NpzFile(path)
    keys = arrays.headers()
    _refuse_misnamed(path, keys)
    class_names = _class_names(arrays) if "classes" in keys else []
    names: dict[Split, list[str]] = {}
    shapes: dict[Split, tuple[int, ...]] = {}
    for split in SPLITS:
        if split != "train" and not {f"x_{split}", f"y_{split}"} & keys.keys():
            continue
        for key in (f"x_{split}", f"y_{split}"):
            if key not in keys:
                raise DataError(
                    f"{path}: no array {key}; expected x_train, y_train, and x_val, y_val, x_test, y_test where there "
                    f"are such splits; has {sorted(keys)}"
                )
        shape, dtype = keys[f"x_{split}"]
        if len(shape) not in (3, 4) or not all(1 <= n <= 4096 for n in shape[1:]):
            raise DataError(f"{path}: x_{split} has shape {list(shape)}; expected [N, H, W] or [N, C, H, W]")
        if dtype != np.uint8 and dtype.kind != "f":
            raise DataError(
                f"{path}: x_{split} holds {dtype}; expected uint8 pixels or floats: save x.astype('uint8') if they go "
                "from 0 to 255, else x / largest, with one largest for all devices"
            )
        names[split] = _npz_labels(arrays, f"y_{split}", shape[0], class_names)
        shapes[split] = shape
    if len({s[1:] for s in shapes.values()}) > 1:
        found = ", ".join(f"x_{split} {list(shape)}" for split, shape in shapes.items())
        raise DataError(f"{path}: samples differ in shape: {found}; write all splits in one shape")
    axes, natural = _axes(shapes["train"], _layout(arrays) if "layout" in keys else "", path)

    def pixels(split: Split, indices: Indices) -> NDArray[Any]:
        x = arrays.read(f"x_{split}")[indices].reshape(len(indices), *shapes[split][1:])
        x = x[:, None] if x.ndim == 3 else x.transpose(axes)
        if x.dtype == np.uint8:
            return np.ascontiguousarray(x, np.uint8)
        with np.errstate(over="ignore"):  # what overflows is caught as infinite
            x = np.ascontiguousarray(x, np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{path}: x_{split} holds infinite or missing numbers; clean them")
        return x

    others = sorted(keys.keys() - {"classes", "layout"} - {f"{which}_{split}" for which in "xy" for split in SPLITS})
    unread = (f"not read: arrays {', '.join(others)}",) if others else ()
    return named_source(spec, names, natural, pixels, resizable=False, unread=unread)


def _refuse_misnamed(path: Path, keys: Iterable[str]) -> None:
    """Arrays whose names say that they are samples must not be left out."""
    for key in keys:
        which, _, split = key.lower().partition("_")
        meant = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}
        split = meant.get(split, split)
        if which in ("x", "y") and split in SPLITS and key != f"{which}_{split}":
            raise DataError(f"{path}: array {key}: call it {which}_{split}, by which it is read")


def _class_names(arrays: _NpzFile) -> list[str]:
    named, where = arrays.read("classes").reshape(-1), f"{arrays.path}: classes"
    names = label_names(_decoded(named, where) if named.dtype.kind == "S" else named)
    check_distinct(names, where)
    return names


def _layout(arrays: _NpzFile) -> str:
    given = arrays.read("layout").reshape(-1)
    layout = str(given[0]).upper() if len(given) == 1 else ""
    if layout not in ("NCHW", "NHWC"):
        raise DataError(f'{arrays.path}: layout: expected "NCHW" or "NHWC", got {layout[:20]!r}')
    return layout


def _axes(shape: tuple[int, ...], layout: str, path: Path) -> tuple[tuple[int, ...], Shape]:
    """How to bring an array to [N, C, H, W], and the shape of a sample then. Raises ``DataError`` if unclear."""
    if len(shape) == 3:
        return (), (1, shape[1], shape[2])
    _, first, middle, last = shape
    if (first == 1) != (last == 1):
        layout = layout or ("NCHW" if first == 1 else "NHWC")
    square_says = "" if (first == middle) == (middle == last) else "NHWC" if first == middle else "NCHW"
    size_says = "" if first == last else "NCHW" if first < last else "NHWC"
    coloured = first == 3 and last == 2  # colours of pixels that are two wide, or something of two channels?
    odd = middle < min(first, last) or coloured or square_says not in ("", size_says)
    if not layout and (odd or not size_says):
        raise DataError(
            f"{path}: x_train has shape {list(shape)}, which may be channels first or channels last; say which it is "
            'with one more array: numpy.savez(..., layout="NCHW"), or "NHWC"'
        )
    if (layout or size_says) == "NHWC":
        return (0, 3, 1, 2), (last, first, middle)
    return (0, 1, 2, 3), (first, middle, last)


def _npz_labels(arrays: _NpzFile, key: str, num_samples: int, class_names: list[str]) -> list[str]:
    y, where = arrays.read(key), f"{arrays.path}: {key}"
    if y.dtype.kind == "S":
        y = _decoded(y, where)
    if y.ndim == 2 and len(y) == num_samples and y.shape[1] > 1:
        y = _of_one_hot(y, where)
    if y.shape not in ((num_samples,), (num_samples, 1), (1, num_samples)):
        raise DataError(f"{where} has shape {list(y.shape)}; expected [{num_samples}], a label for each sample")
    y = y.reshape(-1)
    if y.dtype.kind == "U":
        return label_names(y)
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.rint(y)).all() and (np.abs(y) < 2**31).all()):
        raise DataError(f"{where} holds numbers that are not whole; classes are whole numbers or strings")
    y = y.astype(np.int64)
    if len(y) and (y.min() < 0 or (class_names and y.max() >= len(class_names))):
        top = f"{len(class_names) - 1}, as classes names" if class_names else "anything"
        raise DataError(f"{where} holds labels from {y.min()} to {y.max()}; expected 0 to {top}")
    return [class_names[i] for i in y.tolist()] if class_names else label_names(y)


def _of_one_hot(rows: NDArray[Any], where: str) -> NDArray[Any]:
    """``[N]`` of rows with a single 1 each ``[N, C]``. Raises ``DataError`` for rows of another kind."""
    bad = len(rows)
    if rows.dtype.kind in "buif":
        fine = ((rows == 0) | (rows == 1)).all(1) & (rows.sum(1, dtype=np.float64) == 1)
        if fine.all():
            return rows.argmax(1)
        bad = int(np.argmin(fine))
    raise DataError(
        f"{where} has shape {list(rows.shape)}, and row {bad} is not one 1 among zeros, which would be a class: "
        "save a number or a name for each sample"
    )


def _decoded(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Byte strings as text. Raises ``DataError``."""
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} holds byte strings that are no UTF-8 ({error.reason}): save them as str") from None


@dataclass(frozen=True, slots=True)
class _NpzFile:
    """Arrays of an npz file, read one at a time and only after their headers were checked."""

    path: Path

    def headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of every array. Raises ``DataError`` for object arrays and wrong lengths."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
                return {i.filename.removesuffix(".npy"): self._header(archive, i) for i in infos}
        except _NPZ_ERRORS as error:
            raise self._broken(error) from None

    def read(self, key: str) -> NDArray[Any]:
        """One array, whole."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(f"{key}.npy")
                self._header(archive, info)
                check_memory(info.file_size, f"{self.path}: {key}")
                with archive.open(info) as file:
                    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype.kind == "U" and array.size:
                codes = array.reshape(-1).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
                if codes.max() > sys.maxunicode:
                    raise ValueError(f"{key} holds no valid text")
            return array
        except _NPZ_ERRORS as error:
            raise self._broken(error) from None

    def _header(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} is packed in an unusual way")
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"npy version {version}")
            start = file.tell()
        if dtype.kind not in "buifUS":
            raise DataError(
                f"{self.path}: {info.filename} holds {dtype}; expected plain numbers or strings"
                + (": of objects save numpy.stack(x), or y.astype(str)" if dtype.kind == "O" else "")
            )
        if not all(n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != info.file_size - start:
            raise ValueError(f"{info.filename}: header and length differ")
        return shape, dtype

    def _broken(self, error: BaseException) -> DataError:
        return DataError(f"{self.path}: not a readable npz file ({error}); write it with numpy.savez")

"""Named tensors as bytes in the safetensors format, without torch; and the strict reading of what others sent.

Invariant: ``read`` returns only what holds in every respect: a header within its bounds, known types, byte ranges that
match the shapes and cover the data exactly, without overlap or hole. Arrays are views of the bytes given, never
copies. bfloat16 has no numpy type: such an array is its raw ``uint16``, and its spec says ``bf16``. A header is parsed
entry by entry: a few bytes of JSON can be many of Python's, so what is parsed at once is small, however many there are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Literal, get_args

import numpy as np

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.wire.shared_bytes import SharedBytes, shared_or_not

DType = Literal["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool"]
_NUMPY: dict[DType, np.dtype[Any]] = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "i16": np.dtype("<i2"),
    "i8": np.dtype("i1"),
    "u8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
_DTYPES: dict[str, DType] = {name.upper(): name for name in get_args(DType)}
"""NumPy's dtypes by their names in a safetensors header."""
_METADATA = "__metadata__"
_FROM_NUMPY: dict[np.dtype[Any], DType] = {dtype: name for name, dtype in _NUMPY.items() if name != "bf16"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an untrusted file may claim."""

    header_bytes: int = 1 << 25
    tensors: int = 1 << 16
    name_length: int = 256
    entry_bytes: int = 1 << 10
    """Of one tensor, without its name."""
    dimensions: int = 8
    total_bytes: int = 1 << 34
    metadata_entries: int = 256
    metadata_bytes: int = 1 << 19


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a file: C order, little endian, bytes ``[start, end)`` of the file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a checked file holds: specs in the order of their bytes, and its string metadata."""

    specs: tuple[TensorSpec, ...]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A checked file over the bytes it was read from."""

    header: Header
    data: bytes | bytearray | memoryview | mmap

    @property
    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    def arrays(self) -> dict[str, np.ndarray]:
        """All tensors by name, as read-only views where the bytes are read-only."""
        return {spec.name: _array(self.data, spec) for spec in self.header.specs}

    def bf16_names(self) -> frozenset[str]:
        """The tensors whose arrays are raw bfloat16."""
        return frozenset(spec.name for spec in self.header.specs if spec.dtype == "bf16")


def pack(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, bf16: Collection[str] = ()
) -> bytes:
    """The arrays as safetensors bytes; those named in ``bf16`` are uint16 and mean bfloat16."""
    head, typed = _laid_out(arrays, metadata, bf16)
    return b"".join([head, *(array.tobytes() for array in typed)])


def pack_to_share(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, bf16: Collection[str] = ()
) -> bytes | SharedBytes:
    """As ``pack``, written where another process can map them, if there are many bytes and there is room."""
    head, typed = _laid_out(arrays, metadata, bf16)
    shared = shared_or_not(len(head) + sum(array.nbytes for array in typed))
    if shared is None:
        return b"".join([head, *(array.tobytes() for array in typed)])
    position = shared.write(head, 0)
    for array in typed:
        position = shared.write(array.reshape(-1).view(np.uint8).data, position)
    return shared


def _laid_out(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None, bf16: Collection[str]
) -> tuple[bytes, list[np.ndarray]]:
    """What a file begins with, and the contiguous arrays that follow it, in their order."""
    typed: list[tuple[str, DType, np.ndarray]] = []
    for name, array in arrays.items():
        plain = np.asarray(array)
        little = plain.dtype.newbyteorder("<")
        dtype: DType | None = "bf16" if name in bf16 and little == _NUMPY["bf16"] else _FROM_NUMPY.get(little)
        if dtype is None or (name in bf16 and dtype != "bf16") or name == _METADATA:
            raise LocalError(f"tensor {name}: {plain.dtype} can't be written")
        typed.append((name, dtype, plain.astype(little, order="C", copy=False)))
    typed.sort(key=lambda item: (-item[2].dtype.itemsize, item[0]))  # so that every tensor lies aligned
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, array in typed:
        end = position + array.nbytes
        header[name] = {"dtype": dtype.upper(), "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [array for _, _, array in typed]


def read(data: bytes | bytearray | memoryview | mmap, limits: Limits | None = None) -> TensorFile:
    """Check ``data`` and give its tensors. Raises ``RemoteError``."""
    return TensorFile(check(data, limits), data)


def read_untrusted(
    data: bytes | bytearray | memoryview | mmap, limits: Limits | None = None, *, constants: str = ""
) -> Header:
    """``check``, and no number in it is infinite or not a number. Raises ``RemoteError``.

    ``constants``: tensors whose names begin so may have infinities, as masks have: whoever takes them in compares them
    with its own ("" = none).
    """
    header = check(data, limits)
    for spec in header.specs:
        check_values(spec, _array(data, spec), infinite=bool(constants) and spec.name.startswith(constants))
    return header


def check(data: bytes | bytearray | memoryview | mmap, limits: Limits | None = None) -> Header:
    """What ``data`` holds, everything about its form checked. Raises ``RemoteError``."""
    limits = limits or Limits()
    size = len(data)
    if size < 8:
        raise _bad(f"{size} bytes are too few")
    if size > limits.total_bytes:
        raise _bad(f"{size} bytes, allowed {limits.total_bytes}")
    header_bytes = int.from_bytes(data[:8], "little")
    if not 2 <= header_bytes <= min(limits.header_bytes, size - 8):
        raise _bad(f"a header of {header_bytes} bytes in a file of {size}")
    base = 8 + header_bytes
    metadata: dict[str, str] | None = None
    found: dict[str, TensorSpec] = {}
    for name, entry in _entries(bytes(data[8:base]), limits):
        if name in found or (name == _METADATA and metadata is not None):
            raise _bad(f"{name!r:.64} is given twice")
        if name == _METADATA:
            metadata = _check_metadata(entry, limits)
        elif len(found) == limits.tensors:
            raise _bad(f"more than {limits.tensors} tensors")
        else:
            found[name] = _check_spec(name, entry, base, limits)
    specs = sorted(found.values(), key=_place)
    position = base
    for spec in specs:
        if spec.start != position:
            raise _bad(f"tensor {spec.name!r:.64}: its bytes start at {spec.start}, expected {position}")
        position = spec.end
    if position != size:
        raise _bad(f"{size - position} bytes after the last tensor")
    return Header(tuple(specs), metadata or {})


def check_values(spec: TensorSpec, array: np.ndarray, *, infinite: bool = False) -> None:
    """No infinity unless it may be, no NaN, and truth values that are 0 or 1. Raises ``RemoteError``."""
    if spec.dtype == "bf16":
        sound = bool((((array & 0x7F80) != 0x7F80) | (infinite and (array & 0x7F) == 0)).all())
    elif spec.dtype == "bool":
        sound = bool((array.view(np.uint8) <= 1).all())
    elif spec.dtype in ("f64", "f32", "f16"):
        sound = bool((~np.isnan(array) if infinite else np.isfinite(array)).all())
    else:
        sound = True
    if not sound:
        raise RemoteError("tensor-values", f"tensor {spec.name!r:.64} ({spec.dtype}) holds a value that is no number")


def _array(data: bytes | bytearray | memoryview | mmap, spec: TensorSpec) -> np.ndarray:
    if spec.num_elements == 0:
        return np.zeros(spec.shape, _NUMPY[spec.dtype])
    return np.frombuffer(data, _NUMPY[spec.dtype], spec.num_elements, spec.start).reshape(spec.shape)


def _bad(detail: str) -> RemoteError:
    return RemoteError("tensor-file", detail)


def _place(spec: TensorSpec) -> tuple[int, int]:
    return spec.start, spec.end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is given twice")
    return keys


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_BLANK = re.compile(rb"[ \t\n\r]*")


def _entries(header: bytes, limits: Limits) -> Iterator[tuple[str, Any]]:
    """What a header says, by name."""
    if header[:1] != b"{":
        raise _bad("the header does not start with a brace")
    first = _after_blank(header, 1)
    at = first if header[first : first + 1] == b"}" else 0  # of the last brace, or of what comes before an entry
    while header[at : at + 1] == (b"," if at else b"{"):
        name, at = _value(header, at + 1, 6 * limits.name_length + 2)
        if not isinstance(name, str) or header[at : at + 1] != b":":
            raise _bad("the header is not JSON (a name and a colon are missing)")
        value, at = _value(header, at + 1, 2 * limits.metadata_bytes if name == _METADATA else limits.entry_bytes)
        yield name, value
    if header[at : at + 1] != b"}" or _after_blank(header, at + 1) != len(header):
        raise _bad("the header is not JSON (it does not end with its brace)")


def _value(header: bytes, at: int, most: int) -> tuple[Any, int]:
    """The JSON that begins there, of at most so many bytes, and where what follows it begins."""
    at = _after_blank(header, at)
    text = header[at : at + most].decode("utf-8", "ignore")  # a character may be cut at the end
    try:
        value, length = _JSON.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the header is not JSON ({error!s:.100}), or an entry is too long") from None
    taken = text[:length].encode()
    if header[at : at + len(taken)] != taken:
        raise _bad("the header is not UTF-8")
    return value, _after_blank(header, at + len(taken))


def _after_blank(header: bytes, at: int) -> int:
    found = _BLANK.match(header, at)
    return found.end() if found else at


def _check_metadata(raw: object, limits: Limits) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise _bad("its metadata is not a map of strings")
    if len(raw) > limits.metadata_entries or sum(len(k) + len(v) for k, v in raw.items()) > limits.metadata_bytes:
        raise _bad("too much metadata")
    return raw


def _is_count(value: object, high: int) -> bool:
    return type(value) is int and 0 <= value <= high


def _check_spec(name: str, entry: object, base: int, limits: Limits) -> TensorSpec:
    where = f"tensor {name!r:.64}"
    if not 1 <= len(name) <= limits.name_length:
        raise _bad(f"{where}: a name of {len(name)} characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _bad(f"{where}: type {dtype!r:.32} is not allowed")
    if not isinstance(shape, list) or len(shape) > limits.dimensions:
        raise _bad(f"{where}: not a shape of up to {limits.dimensions} dimensions")
    if not all(_is_count(n, limits.total_bytes) for n in shape):
        raise _bad(f"{where}: shape {shape!r:.64} is not allowed")
    if math.prod(max(n, 1) for n in shape) > limits.total_bytes:
        raise _bad(f"{where}: shape {shape!r:.64} is too large")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n, limits.total_bytes) for n in offsets):
        raise _bad(f"{where}: byte range {offsets!r:.64} is not allowed")
    start, end = offsets
    num_bytes = math.prod(shape) * _NUMPY[_DTYPES[dtype]].itemsize
    if end - start != num_bytes:
        raise _bad(f"{where}: {end - start} bytes, its shape needs {num_bytes}")
    return TensorSpec(name, _DTYPES[dtype], tuple(shape), base + start, base + end)

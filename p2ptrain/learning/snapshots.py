"""What all snapshots of training have in common: tensors under ``model.`` and ``optim.``, and counts in the metadata.

Invariant: what is read from a snapshot, which may be another peer's, is checked, and is a ``RemoteError`` if it is odd.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save, save_file
from torch import Tensor, nn

from p2ptrain.errors import RemoteError, UserError
from p2ptrain.wire.shared_bytes import SharedBytes
from p2ptrain.wire.tensorfile import DType, Header, Limits, TensorSpec, check, pack_to_share, read_untrusted

Bytes = bytes | bytearray | memoryview | mmap
_DTYPES: dict[DType, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
DTYPES = frozenset(_DTYPES.values())
"""Of tensors that can be exchanged."""
MAX_NAME = Limits().name_length - 56
"""Characters of the name of a model's tensor: ``optim.`` and what an optimizer calls its numbers go before it."""
MAX_DIMENSIONS = Limits().dimensions
MAX_TENSORS = Limits().tensors // 4
"""Of a model: with each goes what an optimizer remembers of it, in up to three."""


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy, also of what is on the CPU already."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def shared_on_cpu(tensor: Tensor) -> Tensor:
    """The tensor itself, as far as it is on the CPU and contiguous: to be written before it changes."""
    return tensor.detach().to("cpu").contiguous()


def save_whole(tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str]) -> None:
    """A safetensors file. Raises ``OSError`` for whatever keeps it from being written."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:  # of a disk that is full, too
        raise OSError(str(error)) from None


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: Path | None) -> bytes | str:
    """The path of a new file with them, in the safetensors format; without a folder, or room in it, the bytes.

    Of a file's bytes there is no copy in memory. Whoever gets them finds out soon enough when the disk is full.
    """
    tensors = _apart(tensors)
    if folder is not None:
        path = folder / f"{uuid.uuid4().hex}.tmp"
        try:
            save_whole(tensors, path, metadata)
            return str(path)
        except OSError:
            path.unlink(missing_ok=True)
    return save(tensors, dict(metadata))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The format has no tensors that share memory, as tied weights do."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return apart


def split_state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's tensors and the optimizer's, without their prefixes."""
    model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    optimizer = {n.removeprefix("optim."): t for n, t in tensors.items() if n.startswith("optim.")}
    if len(model) + len(optimizer) != len(tensors):
        raise RemoteError("snapshot", "a tensor belongs neither to the model nor to the optimizer")
    return model, optimizer


def read_count(metadata: Mapping[str, str], key: str) -> int:
    """A number that is not below zero."""
    text = metadata.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise RemoteError("snapshot", f"{key} is {text[:20]!r}, not a count")
    return int(text)


def read_snapshot(data: Bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of safetensors bytes from anywhere. Raises ``RemoteError`` for what is not sound.

    Of a model (names under ``model.``) there may be infinities in it: constants, which ``check_state`` compares.
    """
    header = read_untrusted(data, constants="model.")
    return _tensors(data, header), dict(header.metadata)


def read_payload(data: Bytes) -> dict[str, Tensor]:
    """As ``read_snapshot``; the numbers are still to be checked. Raises ``RemoteError``."""
    return _tensors(data, check(data))


def _tensors(data: Bytes, header: Header) -> dict[str, Tensor]:
    """Where they lie, if that may be written: nothing is copied of what was mapped for this process alone."""
    writable = bytearray(data) if memoryview(data).readonly else data
    return {spec.name: _tensor(writable, spec) for spec in header.specs}


def _tensor(data: Bytes, spec: TensorSpec) -> Tensor:
    dtype = _DTYPES[spec.dtype]
    if spec.num_elements == 0:
        return torch.zeros(spec.shape, dtype=dtype)
    if spec.start % dtype.itemsize:  # not all processors read what lies askew
        return torch.frombuffer(bytearray(data[spec.start : spec.end]), dtype=dtype).view(spec.shape)
    return torch.frombuffer(data, dtype=dtype, count=spec.num_elements, offset=spec.start).view(spec.shape)


def bytes_to_share(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes | SharedBytes:
    """In the safetensors format, to be handed to the node; tensors are copied once, and may change afterwards."""
    bf16 = {name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
    return pack_to_share({name: _array(tensor) for name, tensor in tensors.items()}, metadata, bf16)


def _array(tensor: Tensor) -> np.ndarray:
    plain = shared_on_cpu(tensor)
    if plain.dtype == torch.bfloat16:  # NumPy has none
        return plain.view(torch.int16).numpy().view(np.uint16)
    return plain.numpy()


def model_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of a part's snapshot."""
    return {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}


@torch.no_grad()
def put_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model a state, by the names of its own ``state_dict``: what it leaves out of that stays as it is.

    Raises ``RuntimeError`` for other names or shapes, as ``load_state_dict`` does.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise RuntimeError(f"missing: {', '.join(missing[:3]) or '-'}; not in the model: {', '.join(extra[:3]) or '-'}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise RuntimeError(f"{name} is {list(state[name].shape)}, where the model has {list(tensor.shape)}")
        tensor.copy_(state[name])


def read_init(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint to start from: its tensors, and its attribution scores by layer, if it holds any."""
    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path}: not a readable .safetensors checkpoint ({error}); `p2ptrain job new --init FILE` makes one of "
            "what torch.save wrote"
        ) from None
    scores = {n.removeprefix("attribution/"): t for n, t in tensors.items() if n.startswith("attribution/")}
    return {n: t for n, t in tensors.items() if not n.startswith("attribution/")}, scores

"""What all snapshots of training have in common: tensors under ``model.`` and ``optim.``, and counts in the metadata.

Invariant: what is read from a snapshot, which may be another peer's, is checked, and is a ``RemoteError`` if it is odd.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save, save_file
from torch import Tensor

from p2ptrain.errors import RemoteError, UserError
from p2ptrain.wire.tensorfile import read_untrusted


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy, also of what is on the CPU already."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def shared_on_cpu(tensor: Tensor) -> Tensor:
    """The tensor itself, as far as it is on the CPU and contiguous: to be written before it changes."""
    return tensor.detach().to("cpu").contiguous()


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: Path | None) -> bytes | str:
    """The path of a new file with them, in the safetensors format; without a folder, or room in it, the bytes.

    Of a file's bytes there is no copy in memory. Whoever gets them finds out soon enough when the disk is full.
    """
    tensors = _apart(tensors)
    if folder is not None:
        path = folder / f"{uuid.uuid4().hex}.tmp"
        try:
            save_file(tensors, path, dict(metadata))
            return str(path)
        except (OSError, SafetensorError):
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


def read_snapshot(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of safetensors bytes from anywhere. Raises ``RemoteError`` for what is not sound."""
    header = read_untrusted(data)
    return load_tensors(data), dict(header.metadata)


def model_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of a part's snapshot."""
    return {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}


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

"""Making gossip payloads smaller: fp16, int8 with a scale a row, or the coordinates that changed most.

A compressed tensor ``name`` travels as tensors named after it:

    none    name                            as it is
    fp16    name:f16                        half precision
    int8    name:q8 + name:scale            whole numbers -127..127, times a scale for each index of the first axis
    topk    name:at + name:of + name:scale  which flat coordinates (a bit for each, or where few go their ascending
                                            int32), their values as whole numbers -127..127, times one scale

Invariant: what compression leaves out is not lost: int8 and top-k add the rounding error of one payload to the next,
top-k keeps counting a coordinate's change until it is sent and sends every coordinate now and then. How near copies
come by top-k hangs on how many coordinates go: of a tenth, each is averaged in every tenth exchange, and copies part by
what they learn meanwhile. So indices and values are short, that many may go. BatchNorm statistics, counters, biases and
other small tensors travel as they are. A payload says itself how it is compressed, and is checked against the
receiver's own tensors before a number is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from p2ptrain.config import Compression
from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import check_state

MIN_NUMEL = 256
"""Smaller tensors are not worth compressing."""
SWEEP_SHARE = 0.1
"""Share of top-k's coordinates that go in turn, changed or not, so that none is left out for ever."""
MAX_F16 = 65504.0


class Compressor:
    """The sending side of one peer; it remembers what its payloads left out.

    ``reference``: what every receiver is known to have (the common initial weights); top-k sends changes against it.
    """

    def __init__(self, kind: Compression, topk_fraction: float = 0.1, reference: Mapping[str, Tensor] | None = None):
        self._kind = kind
        self._fraction = topk_fraction
        self._residual: dict[str, Tensor] = {}  # what rounding took away: flat for top-k
        self._sent: dict[str, Tensor] = {}  # top-k: each coordinate as it was last sent, flat
        self._turn: dict[str, int] = {}
        for name, tensor in (reference or {}).items():
            if kind == "topk" and _compressible(name, tensor):
                self._sent[name] = tensor.detach().cpu().reshape(-1).clone()

    @torch.no_grad()
    def compress(
        self, tensors: Mapping[str, Tensor], *, answering: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """On the CPU, to be written before the live tensors change: what is not compressed may be one of them.

        ``answering``: the indices that ``decompress`` gave for the partner's payload. Top-k then sends these same
        coordinates back, so that the exchange keeps their mean; one-sided pushes favour coordinates that moved far.
        """
        payload: dict[str, Tensor] = {}
        for name, live in tensors.items():
            tensor = live.detach().to("cpu").contiguous()
            if self._kind == "none" or not _compressible(name, tensor) or not _is_finite(tensor):
                payload[name] = tensor
            elif self._kind == "fp16":
                payload[f"{name}:f16"] = tensor.clamp(-MAX_F16, MAX_F16).half()
            elif self._kind == "int8":
                payload[f"{name}:q8"], payload[f"{name}:scale"] = self._quantise(name, tensor)
            else:
                picked = self._pick(name, tensor.view(-1), (answering or {}).get(name))
                payload[f"{name}:at"], payload[f"{name}:of"], payload[f"{name}:scale"] = picked
        return payload

    def _quantise(self, name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
        residual = self._residual.get(name)
        wanted = tensor if residual is None or residual.shape != tensor.shape else tensor + residual
        rows = wanted.flatten(1)  # [rows, rest]
        scale = torch.maximum(rows.amax(1), -rows.amin(1)) / 127.0  # [rows]
        whole = (rows / scale.clamp_min(1e-30).unsqueeze(1)).round_().clamp_(-127, 127)
        steps = whole.to(torch.int8)
        self._residual[name] = whole.mul_(scale.unsqueeze(1)).neg_().add_(rows).view(tensor.shape)
        return steps.view(tensor.shape), scale

    def _pick(self, name: str, flat: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        size = flat.numel()
        sent = self._sent.get(name)
        if sent is None or sent.numel() != size:
            sent = self._sent[name] = torch.zeros_like(flat)
        at = self._choose(name, (flat - sent).abs_()) if at is None else at.to(torch.int64)
        residual = self._residual.get(name)
        if residual is None or residual.numel() != size:
            residual = self._residual[name] = torch.zeros_like(flat)
        sent[at] = flat[at]
        wanted = sent[at] + residual[at]
        scale = wanted.abs().max() / 127.0
        whole = (wanted / scale.clamp_min(1e-30)).round_().clamp_(-127, 127)
        residual[at] = wanted - whole * scale
        return _index(at, size), whole.to(torch.int8), scale.view(1)

    def _choose(self, name: str, change: Tensor) -> Tensor:
        size = change.numel()
        num_picked = min(size, max(2, math.ceil(self._fraction * size)))
        num_in_turn = max(1, round(SWEEP_SHARE * num_picked))
        first = self._turn.get(name, 0)
        picked = torch.zeros(size, dtype=torch.bool)
        picked[change.topk(num_picked - num_in_turn, sorted=False).indices] = True
        picked[torch.arange(first, first + num_in_turn) % size] = True
        self._turn[name] = (first + num_in_turn) % size
        return picked.nonzero().squeeze(1)


@torch.no_grad()
def decompress(
    payload: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a payload, and for those that came as coordinates their flat indices (``merge(indices=...)``).

    Raises ``RemoteError`` for anything but one sound tensor for each of ``like``.
    """
    tensors: dict[str, Tensor] = {}
    indices: dict[str, Tensor] = {}
    num_used = 0
    for name, ours in like.items():
        if name in payload:
            tensors[name] = payload[name]
            num_used += 1
        elif f"{name}:f16" in payload:
            tensors[name] = _typed(payload, f"{name}:f16", torch.float16).to(ours.dtype)
            num_used += 1
        elif f"{name}:q8" in payload:
            tensors[name] = _dequantised(payload, name, ours)
            num_used += 2
        elif f"{name}:at" in payload:
            tensors[name], indices[name] = _coordinates(payload, name, ours)
            num_used += 3
    if num_used != len(payload):
        raise RemoteError("tensor-names", f"{len(payload) - num_used} tensors of the payload are unknown")
    check_state(tensors, like, indices)
    return tensors, indices


def payload_bytes(payload: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors alone, without names and shapes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in payload.values())


def _compressible(name: str, tensor: Tensor) -> bool:
    statistics = name.endswith(("running_mean", "running_var"))
    return tensor.dtype == torch.float32 and tensor.dim() >= 2 and tensor.numel() >= MIN_NUMEL and not statistics


def _is_finite(tensor: Tensor) -> bool:
    """In one pass that makes no other tensor, unless the squares are beyond fp32."""
    return math.isfinite(float(torch.linalg.vector_norm(tensor))) or bool(tensor.isfinite().all())


def _typed(payload: Mapping[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
    if key not in payload:
        raise RemoteError("tensor-names", f"{key} is missing")
    if payload[key].dtype != dtype:
        raise RemoteError("tensor-dtype", f"{key}: {payload[key].dtype} where {dtype} is due")
    return payload[key]


def _dequantised(payload: Mapping[str, Tensor], name: str, ours: Tensor) -> Tensor:
    steps, scale = _typed(payload, f"{name}:q8", torch.int8), _typed(payload, f"{name}:scale", torch.float32)
    if steps.shape != ours.shape or steps.dim() < 1 or tuple(scale.shape) != (ours.shape[0],):
        raise RemoteError("tensor-shape", f"{name}: {tuple(steps.shape)} with {tuple(scale.shape)} scales")
    if bool((scale < 0).any()):
        raise RemoteError("tensor-negative", f"{name}: a scale below zero")
    return (steps.float() * scale.view(-1, *[1] * (steps.dim() - 1))).to(ours.dtype)


def _index(at: Tensor, size: int) -> Tensor:
    """Ascending coordinates below ``size``, as they travel."""
    if 32 * at.numel() <= size:
        return at.to(torch.int32)
    is_picked = torch.zeros(size, dtype=torch.bool)
    is_picked[at] = True
    return torch.from_numpy(np.packbits(is_picked.numpy(), bitorder="little"))


def _coordinates(payload: Mapping[str, Tensor], name: str, ours: Tensor) -> tuple[Tensor, Tensor]:
    steps, scale = _typed(payload, f"{name}:of", torch.int8), _typed(payload, f"{name}:scale", torch.float32)
    at, size = payload[f"{name}:at"], ours.numel()
    if at.dtype == torch.uint8:
        if tuple(at.shape) != (math.ceil(size / 8),):
            raise RemoteError("tensor-shape", f"{name}: {tuple(at.shape)} bytes say which of {size} coordinates")
        at = torch.from_numpy(np.unpackbits(at.numpy(), count=size, bitorder="little")).nonzero().squeeze(1)
    else:
        at = _typed(payload, f"{name}:at", torch.int32).to(torch.int64)
    if at.dim() != 1 or at.shape != steps.shape or not 1 <= at.numel() <= size or tuple(scale.shape) != (1,):
        raise RemoteError("tensor-shape", f"{name}: {tuple(at.shape)} coordinates, {tuple(steps.shape)} values")
    if int(at[0]) < 0 or int(at[-1]) >= size or bool((at[1:] <= at[:-1]).any()):
        raise RemoteError("tensor-indices", f"{name}: coordinates out of range or not ascending")
    if bool((scale < 0).any()):
        raise RemoteError("tensor-negative", f"{name}: a scale below zero")
    return (steps.float() * scale).to(ours.dtype), at

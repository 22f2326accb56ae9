"""Activations and their gradients on the wire: as they are, or in two bytes or one for a number.

    none    0                 as it is
    fp16    0:f16 + 0:scale   half precision, of each row divided by its largest magnitude
    int8    0:q8 + 0:scale    whole numbers -127..127, times a scale for each row (sample)

With the scale, fp16 neither overflows nor loses a large batch's gradients, which are far below its smallest number.

Error feedback: what rounding to int8 takes from the gradients of some rows of a micro-batch is added to the same rows
of the next, so those of a batch sum up to what they were but for the last rounding. The errors are kept by tensor and
first row, one micro-batch in all, and dropped after each batch.

Invariant: nothing of one batch reaches the next, so a snapshot needs none of it; what is decoded is finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.slice_rows import Spec, check_tensors

Coding = Literal["none", "fp16", "int8"]
_SUFFIX = {"fp16": ":f16", "int8": ":q8"}
_DTYPE = {"fp16": torch.float16, "int8": torch.int8}
_LEVELS = {"fp16": 1.0, "int8": 127.0}
_SMALLEST = torch.finfo(torch.float32).tiny
"""Rows of zeros have a scale of zero, and are divided by this instead."""


class Encoder:
    """The sending side of one direction."""

    def __init__(self, coding: Coding, *, feedback: bool) -> None:
        self._coding = coding
        self._feedback = feedback and coding == "int8"
        self._errors: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def encode(self, tensors: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
        """Copies of rows ``[n, ...]``, ready to be sent; whole numbers go as they are. ``row``: the first of them."""
        payload: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if self._coding == "none" or not tensor.is_floating_point():
                payload[name] = tensor.clone(memory_format=torch.contiguous_format)
                continue
            wanted = tensor.float()
            if self._feedback and (name, row) in self._errors:
                wanted = wanted + self._errors[name, row]
            coded, scale = _scaled(wanted, self._coding)
            payload[f"{name}{_SUFFIX[self._coding]}"], payload[f"{name}:scale"] = coded, scale
            if self._feedback:
                self._errors[name, row] = wanted - _unscaled(coded, scale)
        return payload

    def reset(self) -> None:
        """Between two batches."""
        self._errors.clear()

    @property
    def error_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._errors.values())


@torch.no_grad()
def decode(coding: Coding, payload: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> tuple[dict[str, Tensor], int]:
    """The tensors that ``specs`` describe, and how many rows. Raises ``RemoteError`` for anything else."""
    if coding == "none":
        return dict(payload), check_tensors(payload, specs)
    coded = {name: spec for name, spec in specs.items() if spec.dtype.is_floating_point}
    due = {name: spec for name, spec in specs.items() if name not in coded}
    for name, spec in coded.items():
        due[f"{name}{_SUFFIX[coding]}"] = Spec(spec.shapes, _DTYPE[coding], range(-127, 128))
        due[f"{name}:scale"] = Spec(((),), torch.float32)
    num_rows = check_tensors(payload, due)
    tensors = {name: payload[name] for name in specs if name not in coded}
    for name, spec in coded.items():
        scale = payload[f"{name}:scale"]
        if bool((scale < 0).any()):
            raise RemoteError("tensor-negative", f"{name}: a scale below zero")
        tensors[name] = _unscaled(payload[f"{name}{_SUFFIX[coding]}"], scale).to(spec.dtype)
    check_tensors(tensors, specs)  # a scale may be finite, and its multiples not
    return tensors, num_rows


def _scaled(rows: Tensor, coding: Coding) -> tuple[Tensor, Tensor]:
    """Coded numbers ``[n, ...]`` and the scale ``[n]`` of each row."""
    scale = rows.flatten(1).abs().amax(1) / _LEVELS[coding] if rows.dim() > 1 else rows.abs() / _LEVELS[coding]
    levels = rows / scale.clamp_min(_SMALLEST).view(-1, *[1] * (rows.dim() - 1))
    if coding == "int8":
        levels = levels.round_().clamp_(-127, 127)
    return levels.to(_DTYPE[coding]).contiguous(), scale


def _unscaled(coded: Tensor, scale: Tensor) -> Tensor:
    return coded.float() * scale.view(-1, *[1] * (coded.dim() - 1))

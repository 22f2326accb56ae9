"""Activations and their gradients on the wire: as they are, or in two bytes or about one for a number.

    none    0                 as it is
    fp16    0:f16 + 0:scale   half precision, of each row divided by its largest magnitude
    int8    0:i8 + 0:scale    whole numbers -127..127, times a scale for every 64 consecutive numbers of a row
            0:u8 + 0:scale    where nothing is below zero (what ReLU lets through): 0..255, twice as fine

With the scale, fp16 neither overflows nor loses a large batch's gradients, which are far below its smallest number.

Scales of 64 numbers and not of a row: for a sixteenth more bytes the error of a stage's gradient falls by a fifth to
a third. Rounding goes to the nearest: at random it is unbiased, as the proofs of compressed training want it (AQ-SGD;
Wang et al. 2022), but its error was a third larger or more, and at 8 bits no bias of the nearest was to be seen: over
batches the errors of both average out alike.

Error feedback makes sense where what is added up later gets the same factor. Rows are other samples each time: a
parameter's gradient is the sum over samples of (the sample's own Jacobian x what is sent), so one sample's error in
another's place makes up for nothing, and only adds to that one's. What does share its factors, or nearly, is a map: a
convolution uses its weights at each position, on inputs that change little from one to the next. So the error made at
one position is added to the next one of the same 64, and their sum is right to half a step (sigma-delta modulation).
That takes up to a tenth off the error of the gradient behind a map of 8 x 8. It is for gradients of maps of 64
positions or more; smaller ones, and rows that are no maps, are rounded plainly, which is as good there or better.

Invariant: what a row becomes hangs on nothing that was sent before, so a snapshot needs none of it; what is decoded is
finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from p2ptrain.config import Coding
from p2ptrain.errors import RemoteError
from p2ptrain.learning.pipeline.rows import Spec, check_tensors

GROUP = 64
"""Numbers with a scale in common ("int8")."""
SCALE_BYTES = 4
_HALF, _SIGNED, _UNSIGNED = ":f16", ":i8", ":u8"
_FORMS = {
    _HALF: (torch.float16, range(0)),
    _SIGNED: (torch.int8, range(-127, 128)),
    _UNSIGNED: (torch.uint8, range(256)),
}
"""By suffix: dtype, and which whole numbers are allowed."""
_SMALLEST = torch.finfo(torch.float32).tiny
"""Numbers that are all zero have a scale of zero, and are divided by this instead."""
_AT_ONCE = 1 << 17
"""So many numbers are coded at a time, from one to the next of the passes over them in a core's cache."""


class Encoder:
    """The sending side of one direction. ``feedback``: of rounding errors, within a row ("int8")."""

    def __init__(self, coding: Coding, *, feedback: bool) -> None:
        self._coding = coding
        self._feedback = feedback

    def row_bytes(self, tensors: Mapping[str, Tensor]) -> int:
        """Of one of the rows ``[n, ...]`` as it is sent."""
        return sum(self._num_bytes(tensor) for tensor in tensors.values())

    def _num_bytes(self, tensor: Tensor) -> int:
        numbers = math.prod(tensor.shape[1:])
        if self._coding == "none" or not tensor.is_floating_point():
            return numbers * tensor.element_size()
        if self._coding == "fp16":
            return 2 * numbers + SCALE_BYTES
        return numbers + SCALE_BYTES * math.ceil(numbers / GROUP)

    @torch.no_grad()
    def encode(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of rows ``[n, ...]``, ready to be sent; whole numbers go as they are."""
        payload: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if self._coding == "none" or not tensor.is_floating_point():
                payload[name] = tensor.clone(memory_format=torch.contiguous_format)
                continue
            suffix, coded, scale = self._coded(tensor.float())
            payload[f"{name}{suffix}"], payload[f"{name}:scale"] = coded, scale
        return payload

    def _coded(self, rows: Tensor) -> tuple[str, Tensor, Tensor]:
        """Suffix, coded numbers ``[n, ...]``, and scales ``[n, groups]``."""
        numbers = rows.reshape(len(rows), -1)
        size = numbers.shape[1]
        if self._coding == "fp16":
            scale = numbers.abs().amax(1, keepdim=True)
            coded = (numbers / scale.clamp_min(_SMALLEST)).half()
            return _HALF, coded.view(rows.shape), scale
        feedback = self._feedback and rows.dim() == 4 and rows[0, 0].numel() >= GROUP
        levels = 255 if not feedback and bool(numbers.amin() >= 0) else 127 - feedback  # feedback may take one further
        suffix = _UNSIGNED if levels == 255 else _SIGNED
        coded = numbers.new_empty(numbers.shape, dtype=_FORMS[suffix][0])
        scale = numbers.new_empty((len(rows), math.ceil(size / GROUP)))
        some = max(1, _AT_ONCE // size)
        for plain, whole, factor in zip(numbers.split(some), coded.split(some), scale.split(some), strict=True):
            groups = (F.pad(plain, (0, -size % GROUP)) if size % GROUP else plain).view(len(plain), -1, GROUP)
            torch.amax(groups.abs(), 2, out=factor).div_(levels)
            exact = groups / factor.clamp_min(_SMALLEST).unsqueeze(2)
            if feedback:
                sums = exact.cumsum(2).round_()
                exact[..., 0] = sums[..., 0]
                torch.sub(sums[..., 1:], sums[..., :-1], out=exact[..., 1:])
            whole.copy_(exact.round_().flatten(1)[:, :size].clamp_(_FORMS[suffix][1][0], _FORMS[suffix][1][-1]))
        return suffix, coded.view(rows.shape), scale


@torch.no_grad()
def decode(coding: Coding, payload: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> tuple[dict[str, Tensor], int]:
    """The tensors that ``specs`` describe, and how many rows. Raises ``RemoteError`` for anything else."""
    if coding == "none":
        return dict(payload), check_tensors(payload, specs)
    coded = {name: spec for name, spec in specs.items() if spec.dtype.is_floating_point}
    due = {name: spec for name, spec in specs.items() if name not in coded}
    forms: dict[str, str] = {}
    for name, spec in coded.items():
        forms[name] = _form(coding, name, payload)
        num_scales = 1 if coding == "fp16" else math.ceil(math.prod(spec.shapes[0]) / GROUP)
        due[f"{name}{forms[name]}"] = Spec(spec.shapes, *_FORMS[forms[name]])
        due[f"{name}:scale"] = Spec(((num_scales,),), torch.float32)
    num_rows = check_tensors(payload, due)
    tensors = {name: payload[name] for name in specs if name not in coded}
    for name, spec in coded.items():
        scale = payload[f"{name}:scale"]
        if bool((scale < 0).any()):
            raise RemoteError("tensor-negative", f"{name}: a scale below zero")
        tensors[name] = _unscaled(payload[f"{name}{forms[name]}"], scale).to(spec.dtype)
    check_tensors(tensors, specs)  # a scale may be finite, and its multiples not
    return tensors, num_rows


def _form(coding: Coding, name: str, payload: Mapping[str, Tensor]) -> str:
    if coding == "fp16":
        return _HALF
    return _UNSIGNED if f"{name}{_UNSIGNED}" in payload else _SIGNED


def _unscaled(coded: Tensor, scale: Tensor) -> Tensor:
    numbers = coded.reshape(len(coded), -1)
    if scale.shape[1] == 1:
        return (numbers * scale).view(coded.shape)
    plain = torch.empty_like(numbers, dtype=scale.dtype)
    whole = numbers.shape[1] // GROUP  # groups; the last one may be shorter
    ends, groups = GROUP * whole, (whole, GROUP)
    torch.mul(numbers[:, :ends].unflatten(1, groups), scale[:, :whole, None], out=plain[:, :ends].unflatten(1, groups))
    torch.mul(numbers[:, ends:], scale[:, whole:], out=plain[:, ends:])
    return plain.view(coded.shape)

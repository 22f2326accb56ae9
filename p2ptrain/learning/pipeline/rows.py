"""Which rows of a micro-batch go to whom in a pipeline, and what has arrived of them.

The peers of a stage own consecutive rows of every micro-batch, in stage order, as many as their share. Neighbouring
stages may share the rows out differently, so a sender cuts its own by the receivers' and, where that is still much, by
bytes.

Invariant: an inbox takes each row of a micro-batch once, from its owner, and nothing else; so it holds at most the own
rows of those micro-batches that its caller lets in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.planning.pipeline.fleet import MESSAGE_BYTES
from p2ptrain.planning.pipeline.stages import Stage

Work = Literal["forward", "backward", "reduce", "gather", "norm"]


@dataclass(frozen=True, slots=True)
class StageMessage:
    """Some tensors of one piece of work, on their way between two peers. They are on the CPU, contiguous, detached.

    - ``forward``: rows from ``row`` of micro-batch ``unit``, ``"0"``, ``"1"``, ... as they cross the cut, and their
      labels ``"y"``; ``backward``: the gradients of the same rows. Encoded as ``codec`` says.
    - ``reduce``, ``gather``: ``"sum"``, part of shard ``unit`` from position ``row``, or ``"bad"`` for not finite.
    - ``norm``: ``"square"`` of the norm, of the stages from the sender's on (unit 0) or of all of them (unit 1).
    """

    peer: str
    """Whom it goes to or, where it has arrived, from whom it came."""
    work: Work
    step: int
    unit: int
    row: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor must be: ``[rows, *one of shapes]``."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    numbers: range = range(0)
    """Those allowed, where they are whole."""


def row_ranges(stage: Stage) -> dict[str, range]:
    """The rows of every micro-batch that each peer of a stage owns, in stage order."""
    stops = accumulate(stage.samples)
    return {peer: range(stop - num, stop) for peer, num, stop in zip(stage.peers, stage.samples, stops, strict=True)}


def cut_rows(
    tensors: Mapping[str, Tensor], own: range, receivers: Mapping[str, range], row_bytes: int
) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
    """(receiver, first row, tensors) of each stage message that own rows are sent in, of ``row_bytes`` each as they are
    sent.

    The tensors are views.
    """
    most = max(1, MESSAGE_BYTES // max(1, row_bytes))
    for peer, theirs in receivers.items():
        first, stop = max(own.start, theirs.start), min(own.stop, theirs.stop)
        for row in range(first, stop, most):
            rows = slice(row - own.start, min(row + most, stop) - own.start)
            yield peer, row, {name: tensor[rows] for name, tensor in tensors.items()}


def check_tensors(tensors: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> int:
    """How many rows these are. Raises ``RemoteError`` for what is not as specified, or not finite."""
    if tensors.keys() != specs.keys():
        raise RemoteError("tensor-names", f"{sorted(tensors)[:4]} where {sorted(specs)[:4]} are due")
    num_rows = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
    for name, spec in specs.items():
        tensor = tensors[name]
        if tensor.dtype != spec.dtype:
            raise RemoteError("tensor-dtype", f"{name}: {tensor.dtype} where {spec.dtype} is due")
        if not tensor.dim() or len(tensor) != num_rows or tuple(tensor.shape[1:]) not in spec.shapes:
            raise RemoteError("tensor-shape", f"{name}: {tuple(tensor.shape)} for {num_rows} rows of {spec.shapes}")
        if tensor.is_floating_point():
            if not is_finite(tensor):
                raise RemoteError("tensor-not-finite", name)
        elif tensor.numel() and not (int(tensor.min()) in spec.numbers and int(tensor.max()) in spec.numbers):
            raise RemoteError("tensor-range", f"{name}: a number that is not in {spec.numbers}")
    return num_rows


def is_finite(tensor: Tensor) -> bool:
    """Whether all of its numbers are."""
    # The sum says so in a tenth of the time. If it is not finite, which large numbers may do, all must be looked at.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


class Inbox:
    """Rows of micro-batches that are not complete, or not used yet. Micro-batches are counted through all batches."""

    def __init__(self, own: range, senders: Mapping[str, range]) -> None:
        self._own = own
        self._senders = senders
        self._rows: dict[int, _Rows] = {}

    def add(self, peer: str, number: int, row: int, tensors: Mapping[str, Tensor], num_rows: int) -> None:
        """Take in checked rows of a micro-batch. Raises ``RemoteError`` for rows not due, and then changes nothing."""
        theirs = self._senders[peer]
        stop = row + num_rows
        if num_rows < 1 or row < max(theirs.start, self._own.start) or stop > min(theirs.stop, self._own.stop):
            raise RemoteError("stage-message-rows", f"rows {row} to {stop - 1} are not between that peer and this one")
        rows = self._rows.get(number)
        if rows is None:
            rows = self._rows[number] = _Rows(len(self._own))
        rows.add(row - self._own.start, tensors, num_rows)

    def complete(self, number: int) -> bool:
        rows = self._rows.get(number)
        return rows is not None and all(rows.here)

    def take(self, number: int) -> dict[str, Tensor]:
        """All own rows ``[own, ...]`` of a complete micro-batch, which the inbox forgets."""
        return self._rows.pop(number).tensors

    def clear(self) -> None:
        self._rows.clear()

    def __len__(self) -> int:
        return len(self._rows)


class _Rows:
    """One micro-batch on its way in."""

    def __init__(self, num: int) -> None:
        self.here = [False] * num
        self.tensors: dict[str, Tensor] = {}

    def add(self, at: int, tensors: Mapping[str, Tensor], num_rows: int) -> None:
        stop = at + num_rows
        if any(self.here[at:stop]):
            raise RemoteError("stage-message-twice", f"rows {at} to {stop - 1} of a micro-batch")
        whole = num_rows == len(self.here)
        if not self.tensors:
            self.tensors = {
                name: tensor if whole else tensor.new_empty((len(self.here), *tensor.shape[1:]))
                for name, tensor in tensors.items()
            }
        if any(self.tensors[name].shape[1:] != tensor.shape[1:] for name, tensor in tensors.items()):
            raise RemoteError("tensor-shape", "rows of one micro-batch have different shapes")
        if not whole:
            for name, tensor in tensors.items():
                self.tensors[name][at:stop] = tensor
        self.here[at:stop] = [True] * num_rows


def overlapping(own: range, others: Mapping[str, range]) -> dict[str, range]:
    """Those of a neighbouring stage that have rows in common with one's own."""
    return {peer: rows for peer, rows in others.items() if rows.start < own.stop and own.start < rows.stop}


def label_shapes(output: Sequence[int], length: int) -> tuple[tuple[int, ...], ...]:
    """Shapes that a sample's labels may have, for an output ``[*positions, classes]`` of samples of a length."""
    return (tuple(output[:-1]),) if len(output) > 1 else ((), (length,))

"""Adding up gradients over unequal runs of blocks, for ``tails = "shared"``: everyone's go to one peer, the collector.

A peer's vector (``StageModel.vector``) has the gradients of its blocks, their running statistics and its loss. It goes
to the collector in pieces (``reduce``), which adds up each block over all who hold it and sends everyone the sums of
its own blocks (``gather``) and the square of the whole gradient's norm (``norm``). What only the collector holds, as
the tails of a single helper, does not travel.

Invariant: the sum is taken in the order of the peers' ids, by one peer, so all end with the same bits. Each piece is
taken once a step, from who is to send it, and nothing else; a vector that is not finite ends the step for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pipeline.rows import MESSAGE_BYTES, StageMessage, Work, is_finite
from p2ptrain.learning.pipeline.stage import statistics_of

Run = tuple[int, int]
"""Blocks [first, stop)."""
_BAD, _SUM, _SQUARE = "bad", "sum", "square"
_ITEM_BYTES = 4


class Layout:
    """Where each tensor of a run of blocks lies in the vector of a peer that holds it."""

    def __init__(self, chain: Chain, run: Run) -> None:
        state = chain.model.state_dict()
        parameters = {n: p for n, p in chain.model.named_parameters() if p.requires_grad}
        names = chain.tensor_names(*run)
        gradients = [name for name in names if name in parameters]
        self.places: dict[str, slice] = {}
        """By tensor: of gradients, then of running statistics."""
        at = 0
        for name in (*gradients, *statistics_of(state, names)):
            self.places[name] = slice(at, at + state[name].numel())
            at += state[name].numel()
        self.gradients = frozenset(gradients)
        self.size = at + 1
        """The last number is the loss."""

    def pieces(self) -> dict[int, int]:
        """First position -> numbers, of each piece that is sent."""
        most = MESSAGE_BYTES // _ITEM_BYTES
        return {at: min(most, self.size - at) for at in range(0, self.size, most)}


class SharedSum:
    """One peer's side. ``runs``: the blocks of every peer. ``vector`` [numbers]: the sum once ``square`` is known."""

    def __init__(self, chain: Chain, runs: Mapping[str, Run], own: str, collector: str, vector: Tensor) -> None:
        self._own, self._collector = own, collector
        self._peers = sorted(runs)
        self._layouts = {peer: Layout(chain, run) for peer, run in runs.items() if own in (peer, collector)}
        if self._layouts[own].size != vector.numel():
            raise LocalError(f"a vector of {vector.numel()} numbers, where {self._layouts[own].size} are due")
        self._vector = vector
        self._step = -1
        self._came: dict[str, Tensor] = {}
        """At the collector, by peer."""
        self._to_come: dict[str, set[int]] = {}
        """By peer: positions of pieces."""
        self._bad = False
        self._square: float | None = None

    @property
    def square(self) -> float | None:
        """Of the norm of the whole gradient, infinite if the step is of no use; None before all sums are here."""
        return None if any(self._to_come.values()) else self._square

    def begin(self, step: int, *, bad: bool) -> list[StageMessage]:
        """Give the own vector in, or say that it can't be used; what is to be sent for it."""
        self._step, self._bad, self._square = step, self._bad or bad, None
        if self._own == self._collector:
            return []
        self._to_come = {self._collector: set(self._layouts[self._own].pieces())}
        return self._messages(self._collector, "reduce", self._vector, bad=bad)

    def end(self) -> None:
        """The step is over."""
        self._step, self._bad, self._square = -1, False, None
        self._came.clear()
        self._to_come.clear()

    def ready(self) -> bool:
        """Whether ``combine`` can be called: at the collector, when everyone's vector is here."""
        others = len(self._peers) - 1
        full = sum(not left for left in self._to_come.values())
        return self._own == self._collector and self._step >= 0 and self._square is None and full == others

    def receive(self, message: StageMessage, step: int) -> None:
        """``step``: the one in work. Raises ``RemoteError`` for what is not due, and then changes nothing."""
        sender = message.peer
        if message.step != step:
            raise RemoteError("stage-message-step", f"{message.work} of step {message.step} in step {step}")
        if self._own == self._collector:
            if sender == self._own or sender not in self._layouts or message.work != "reduce":
                raise RemoteError("stage-message-peer", f"{message.work} from a peer that sends none here")
            self._receive_piece(message, sender, self._layouts[sender])
        elif sender != self._collector or message.work not in ("gather", "norm") or self._step < 0:
            raise RemoteError("stage-message-peer", f"{message.work} from a peer that sends none here, or too early")
        elif message.work == "norm":
            if self._square is not None:
                raise RemoteError("stage-message-twice", "the norm of a step")
            self._square = _square(message.tensors)
        else:
            self._receive_piece(message, sender, self._layouts[self._own])

    def _receive_piece(self, message: StageMessage, sender: str, layout: Layout) -> None:
        left = self._to_come.get(sender)
        if left is None:
            left = set(layout.pieces())
        if message.row not in left:
            raise RemoteError("stage-message-twice", f"position {message.row} of a vector")
        piece = _checked(message.tensors, layout.pieces()[message.row])
        into = self._vector if self._own != self._collector else self._came.get(sender)
        if into is None:
            into = self._came[sender] = torch.zeros(layout.size)
        left.discard(message.row)
        if piece is None:
            left.clear()
            self._bad = True
        else:
            into[message.row : message.row + len(piece)] = piece.to(into.device)
        self._to_come[sender] = left

    @torch.no_grad()
    def combine(self) -> list[StageMessage]:
        """Add up all vectors; the sums that the others get."""
        came, self._came = self._came, {}
        came[self._own] = self._vector
        sums = {} if self._bad else self._sums(came)
        self._square = self._squares(sums) if sums else math.inf
        is_bad = not math.isfinite(self._square)
        number = torch.tensor([self._square], dtype=torch.float64)
        messages: list[StageMessage] = []
        for peer in self._peers:
            if not is_bad:
                self._fill(came[peer], self._layouts[peer], sums)
            if peer != self._own:
                messages += self._messages(peer, "gather", came.get(peer), bad=is_bad)
                messages.append(StageMessage(peer, "norm", self._step, 0, 0, {_SQUARE: number}))
        return messages

    def _sums(self, came: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By tensor, and "" for the loss. Of what only one peer holds, its own numbers."""
        sums: dict[str, Tensor] = {}
        shared: set[str] = set()
        for peer in self._peers:
            vector = came[peer]
            for name, place in (*self._layouts[peer].places.items(), ("", slice(-1, None))):
                if name not in sums:
                    sums[name] = vector[place]
                elif name in shared:
                    sums[name].add_(vector[place].to(sums[name].device))
                else:
                    shared.add(name)
                    sums[name] = sums[name] + vector[place].to(sums[name].device)
        return sums

    def _squares(self, sums: Mapping[str, Tensor]) -> float:
        names = sorted(frozenset[str]().union(*(layout.gradients for layout in self._layouts.values())))
        norms = torch.stack([torch.linalg.vector_norm(sums[name]).double().cpu() for name in names])
        return float((norms * norms).sum())

    def _fill(self, vector: Tensor, layout: Layout, sums: Mapping[str, Tensor]) -> None:
        for name, place in layout.places.items():
            if sums[name].data_ptr() != vector[place].data_ptr():
                vector[place] = sums[name].to(vector.device)
        vector[-1:] = sums[""].to(vector.device)

    def _messages(self, to: str, work: Work, vector: Tensor | None, *, bad: bool) -> list[StageMessage]:
        if bad or vector is None:
            return [StageMessage(to, work, self._step, 0, 0, {_BAD: torch.ones(1, dtype=torch.uint8)})]
        layout = self._layouts[self._own if work == "reduce" else to]
        return [
            StageMessage(to, work, self._step, 0, at, {_SUM: vector[at : at + num].to("cpu", copy=True)})
            for at, num in layout.pieces().items()
        ]


def _square(tensors: Mapping[str, Tensor]) -> float:
    if tensors.keys() != {_SQUARE} or tensors[_SQUARE].dtype != torch.float64 or tensors[_SQUARE].numel() != 1:
        raise RemoteError("tensor-names", f"{sorted(tensors)[:4]} where the square of a norm is due")
    value = float(tensors[_SQUARE])
    if math.isnan(value) or value < 0:
        raise RemoteError("tensor-range", "the square of a norm that can't be one")
    return value


def _checked(tensors: Mapping[str, Tensor], size: int) -> Tensor | None:
    """A piece of a vector; None for one that can't be used."""
    if tensors.keys() == {_BAD} and tensors[_BAD].dtype == torch.uint8 and tensors[_BAD].numel() == 1:
        return None
    if tensors.keys() != {_SUM}:
        raise RemoteError("tensor-names", f"{sorted(tensors)[:4]} where part of a vector is due")
    piece = tensors[_SUM]
    if piece.dtype != torch.float32 or tuple(piece.shape) != (size,):
        raise RemoteError("tensor-shape", f"{piece.dtype} {tuple(piece.shape)} where {size} numbers are due")
    if not is_finite(piece):
        raise RemoteError("tensor-not-finite", "part of a vector")
    return piece


def held_runs(units: Sequence[tuple[str, str | None, int]], num_blocks: int) -> dict[str, Run]:
    """The blocks that each peer holds one copy of. ``units``: owner, helper and cut of each."""
    held: dict[str, Run] = {}
    for owner, helper, cut in units:
        for peer, (first, stop) in ((owner, (0, cut)), (helper, (cut, num_blocks))):
            if peer is not None:
                before = held.get(peer, (first, stop))
                held[peer] = (min(before[0], first), max(before[1], stop))
    return held

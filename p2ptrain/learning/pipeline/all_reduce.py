"""Adding up a vector among the peers of a stage: an all-reduce by shards.

The vector is cut into as many shards as there are peers, and shards into pieces. Each peer sends everyone the pieces of
their shards (``reduce``), adds up those of its own shard as they get complete, and sends the sums to the others
(``gather``): 2(g-1)/g of the vector's bytes in all for each of g peers, none of it waiting for the rest.

Invariant: a piece is added up in stage order, by one peer, so all end with the same bits. A peer whose vector is not
finite says so in place of numbers; then, as with sums that are not finite, nobody has a sum. What others may send is
bounded: each piece of the own shard once from each, for this batch and the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.pipeline.rows import MESSAGE_BYTES, StageMessage, is_finite

_BAD = "bad"
_SUM = "sum"


class Exchange:
    """One peer's side. ``vector`` [numbers]: filled before ``begin``, the sum once ``done``; always the same tensor."""

    def __init__(self, peers: Sequence[str], own: str, vector: Tensor) -> None:
        self._peers = tuple(peers)
        self._own = self._peers.index(own)
        self._vector = vector
        self._pieces = [self._pieces_of(shard) for shard in range(len(peers))]
        """By shard: first position -> numbers, of each piece."""
        self._waiting: dict[tuple[int, int], dict[int, Tensor | None]] = {}
        """By (step, position): what came of the own shard, by peer; ``None`` for a vector that can't be used."""
        self._to_send: deque[tuple[int, int]] = deque()
        self._to_sum: set[int] = set()
        self._to_come: set[tuple[int, int]] = set()
        self._step = -1
        self.bad = False
        """Whether some vector, or some sum, was not finite."""

    def begin(self, step: int, *, bad: bool) -> None:
        """Give the vector in, or say that it can't be used."""
        self._step, self.bad = step, bad
        others = [(self._own + offset) % len(self._peers) for offset in range(1, len(self._peers))]
        pieces = [[(shard, at) for at in self._pieces[shard]] for shard in others]
        # Everyone's first piece, then everyone's second: so no peer has to wait for another's whole shard.
        turns = range(max((len(shard) for shard in pieces), default=0))
        self._to_send.extend(shard[turn] for turn in turns for shard in pieces if turn < len(shard))
        self._to_sum.update(self._pieces[self._own])
        self._to_come.update(piece for shard in pieces for piece in shard)

    @property
    def begun(self) -> bool:
        return self._step >= 0

    @property
    def done(self) -> bool:
        return self.begun and not (self._to_send or self._to_sum or self._to_come)

    def end(self) -> None:
        """The batch is over. What came for the next one stays."""
        self._step, self.bad = -1, False

    def abandon(self) -> None:
        """Drop the batch, and whatever came."""
        for pending in (self._waiting, self._to_send, self._to_sum, self._to_come):
            pending.clear()
        self.end()

    def ready(self) -> bool:
        return self.begun and (bool(self._to_send) or self._complete() is not None)

    def advance(self) -> list[StageMessage]:
        """Add up a piece, if one is complete, else send one."""
        at = self._complete()
        if at is not None:
            return self._add_up(at)
        shard, at = self._to_send.popleft()
        tensors = self._piece(at, self._pieces[shard][at], bad=self.bad)
        return [StageMessage(self._peers[shard], "reduce", self._step, shard, at, tensors)]

    def receive(self, message: StageMessage, step: int) -> None:
        """``step``: the batch in work. Raises ``RemoteError`` for what is not due, and then changes nothing."""
        if message.peer not in self._peers or message.peer == self._peers[self._own]:
            raise RemoteError("stage-message-peer", f"{message.work} from a peer that doesn't share this stage")
        sender = self._peers.index(message.peer)
        if message.work == "reduce":
            due = message.unit == self._own and message.row in self._pieces[self._own]
            if not due or not step <= message.step <= step + 1 or (message.step > step and not self.begun):
                raise RemoteError(
                    "stage-message-unit", f"position {message.row} of shard {message.unit}, batch {message.step}"
                )
            late = self.begun and message.step == step and message.row not in self._to_sum
            if late or sender in self._waiting.get((message.step, message.row), ()):
                raise RemoteError("stage-message-twice", f"position {message.row} of a shard")
            piece = _checked(message.tensors, self._vector.dtype, self._pieces[self._own][message.row])
            self._waiting.setdefault((message.step, message.row), {})[sender] = piece
            return
        key = (message.unit, message.row)
        if message.unit != sender or message.step != step or key not in self._to_come or key in self._to_send:
            raise RemoteError(
                "stage-message-unit", f"position {message.row} of shard {message.unit}, batch {message.step}"
            )
        size = self._pieces[sender][message.row]
        self._keep(message.row, size, _checked(message.tensors, self._vector.dtype, size))
        self._to_come.remove(key)

    def _complete(self) -> int | None:
        """The first piece of the own shard of which everyone's has come."""
        others = len(self._peers) - 1
        return min((at for at in self._to_sum if len(self._waiting.get((self._step, at), ())) == others), default=None)

    @torch.no_grad()
    def _add_up(self, at: int) -> list[StageMessage]:
        size = self._pieces[self._own][at]
        came = self._waiting.pop((self._step, at))
        came[self._own] = None if self.bad else self._vector[at : at + size].cpu()
        total: Tensor | None = torch.zeros(size, dtype=self._vector.dtype)
        for index in range(len(self._peers)):
            piece = came[index]
            total = None if total is None or piece is None else total.add_(piece)
        if total is not None and not is_finite(total):
            total = None
        self._keep(at, size, total)
        self._to_sum.remove(at)
        tensors = self._piece(at, size, bad=total is None)
        return [
            StageMessage(peer, "gather", self._step, self._own, at, tensors)
            for index, peer in enumerate(self._peers)
            if index != self._own
        ]

    def _keep(self, at: int, size: int, total: Tensor | None) -> None:
        if total is None:
            self.bad = True
        else:
            self._vector[at : at + size] = total.to(self._vector.device)

    def _piece(self, at: int, size: int, *, bad: bool) -> dict[str, Tensor]:
        if bad:
            return {_BAD: torch.ones(1, dtype=torch.uint8)}
        return {_SUM: self._vector[at : at + size].to("cpu", copy=True)}

    def _pieces_of(self, shard: int) -> dict[int, int]:
        num, total = len(self._peers), self._vector.numel()
        first, stop = total * shard // num, total * (shard + 1) // num
        most = MESSAGE_BYTES // self._vector.element_size()
        return {at: min(most, stop - at) for at in range(first, stop, most)}


def _checked(tensors: Mapping[str, Tensor], dtype: torch.dtype, size: int) -> Tensor | None:
    if tensors.keys() == {_BAD} and tensors[_BAD].dtype == torch.uint8 and tensors[_BAD].numel() == 1:
        return None
    if tensors.keys() != {_SUM}:
        raise RemoteError("tensor-names", f"{sorted(tensors)[:4]} where a sum is due")
    piece = tensors[_SUM]
    if piece.dtype != dtype:
        raise RemoteError("tensor-dtype", f"{piece.dtype} where {dtype} is due")
    if tuple(piece.shape) != (size,):
        raise RemoteError("tensor-shape", f"{tuple(piece.shape)} where {size} numbers are due")
    if not is_finite(piece):
        raise RemoteError("tensor-not-finite", "part of a sum")
    return piece

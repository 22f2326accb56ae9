"""Units whose labels stay with their owner: it has the first blocks and the last ones, its helper those between (the U
of split learning; Vepakomma et al. 2018).

Such a unit is a pipeline of three stages, of which the first and the last are one peer's. Between the two peers a
message can only be of one of these: what goes forward to the owner is for its last blocks, what goes backward for its
first; so do the gradient's norms. Stages go by names of their own, which nothing on the wire says.

    front (owner)  -- activations -->  middle (helper)  -- activations -->  end (owner), the loss
    front (owner)  <-- gradients --    middle (helper)  <-- gradients --    end (owner)

Invariant: labels, and the model's outputs, are in no message. (The gradients of the last blocks hang on both.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from p2ptrain.learning.data import Dataset
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.pipeline.training import StageTraining, StageUse

END = " (end)"
"""Behind an owner's name: its last stage."""
_PARTIAL = 0
"""Unit of a norm that is not of the whole model yet (``grad_norm``)."""


class Middle(StageTraining):
    """At the helper."""

    def receive(self, message: StageMessage) -> None:
        is_of_end = message.work == "backward" or (message.work == "norm" and message.unit == _PARTIAL)
        super().receive(replace(message, peer=message.peer + END) if is_of_end else message)

    def advance(self) -> list[StageMessage]:
        """What goes to the owner's last stage goes to the owner."""
        return [replace(m, peer=m.peer.removesuffix(END)) for m in super().advance()]


class Ends:
    """Both stages of the owner, to be used as one ``StageTraining``. ``front``, ``end``: what makes either, given the
    labels that the one keeps for the other."""

    def __init__(self, owner: str, make: Callable[[str, dict[int, Tensor]], StageTraining]) -> None:
        labels: dict[int, Tensor] = {}
        self._owner = owner
        self._front, self._end = make(owner, labels), make(owner + END, labels)
        self.parts = (self._front, self._end)
        self.start, self.stop = self._front.start, self._end.stop

    @property
    def step(self) -> int:
        return min(part.step for part in self.parts)

    @property
    def num_samples(self) -> int:
        return min(part.num_samples for part in self.parts)

    @property
    def stop_at(self) -> int:
        return self._front.stop_at

    @stop_at.setter
    def stop_at(self, step: int) -> None:
        for part in self.parts:
            part.stop_at = step

    @property
    def num_held(self) -> int:
        return sum(part.num_held for part in self.parts)

    @property
    def round_loss(self) -> float:
        return self._end.round_loss

    def use(self) -> StageUse:
        """As the plan counts: what the last blocks take is part of a backward pass of the unit's first blocks."""
        front, end = (part.use() for part in self.parts)
        front.busy_s += end.busy_s
        front.backward_s += end.forward_s + end.backward_s
        return front

    def begin(self, pieces: Sequence[Snapshot], mark: int, step: int) -> None:
        """Raises ``RemoteError`` for pieces that don't fit; then both are to be made anew."""
        for part in self.parts:
            part.begin(pieces, mark, step)

    def accuracy(self, samples: Dataset | None) -> float:
        """Others hold some blocks."""
        return -1.0

    def receive(self, message: StageMessage) -> None:
        """From the helper: its activations are for the last blocks, all else is for the first ones."""
        (self._end if message.work == "forward" else self._front).receive(message)

    def ready(self) -> bool:
        return any(part.ready() for part in self.parts)

    def advance(self) -> list[StageMessage]:
        """The last blocks first: their helper waits for them."""
        part = self._end if self._end.ready() else self._front
        sent = []
        for message in part.advance():
            if message.peer == self._owner + END:
                self._end.receive(replace(message, peer=self._owner))
            else:
                sent.append(message)
        return sent

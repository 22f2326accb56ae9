"""One unit's blocks at one peer in a step that all units take together: its micro-batches, and what has come for them.

    front   forward passes ahead of backward ones, as far as the unit's ``in_flight`` allows
    tail    forward and backward of a micro-batch at once, as soon as its activations are here
    alone   likewise, from own samples

Invariant: what is held of the other half's tensors is bounded by ``in_flight``, for the step in work and the next one.
Everything is checked on arrival; what is not due raises ``RemoteError`` and changes nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from p2ptrain.errors import RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pipeline.codec import Encoder, decode
from p2ptrain.learning.pipeline.rows import Spec, StageMessage
from p2ptrain.planning.split.units import Unit

LABELS = "y"
_MOST = 1 << 20
"""Micro-batches of a step, at most."""


class Track:
    """``place``: of the unit among all. ``run``: its blocks here, as a module. ``labels``: what they must be."""

    def __init__(
        self, unit: Unit, place: int, is_tail: bool, blocks: tuple[int, int], run: nn.Module, chain: Chain, labels: Spec
    ) -> None:
        self.unit = unit
        self.place = place
        self.is_tail = is_tail
        self.blocks = blocks
        self.run = run
        self.rows: list[int] = []
        """Of each micro-batch of the step."""
        self.next_forward = self.next_backward = 0
        self.came: dict[int, dict[str, Tensor]] = {}
        """By micro-batch; those of the next step are counted from ``_MOST`` on."""
        crossing = {} if unit.helper is None else chain.inputs(unit.cut)
        self.coming = {str(index): Spec((each.shape,), each.dtype) for index, each in enumerate(crossing)}
        """What a pass needs: activations and labels at a tail, gradients at a front."""
        self._coding = unit.activations if is_tail else unit.gradients
        self.encoder = Encoder(unit.gradients if is_tail else unit.activations, feedback=is_tail)
        if is_tail:
            self.coming[LABELS] = labels

    @property
    def done(self) -> bool:
        """All micro-batches of the step have been through."""
        return self.next_backward == len(self.rows)

    def begin(self, rows: list[int]) -> None:
        """The next step. What came early for it counts now."""
        self.rows = rows
        self.next_forward = self.next_backward = 0
        self.came = {key - _MOST: tensors for key, tensors in self.came.items() if key >= _MOST}

    def number(self, at: int) -> int:
        """Names a micro-batch among those of all units."""
        return self.place * _MOST + at

    def can_pass(self) -> bool:
        """Whether a pass can be made now."""
        if self.done:
            return False
        if self.is_tail:
            return self.next_forward in self.came
        return self.unit.helper is None or self.can_forward() or self.next_backward in self.came

    def can_forward(self) -> bool:
        """Whether the schedule lets a front run one more micro-batch ahead."""
        ahead = self.next_forward - self.next_backward
        return self.next_forward < len(self.rows) and ahead < self.unit.in_flight

    def take(self, message: StageMessage, ahead: int, rows: list[int]) -> None:
        """What came of a step ``ahead`` of the one in work, which has these rows. Raises ``RemoteError``."""
        if (message.work == "forward") != self.is_tail:
            raise RemoteError("stage-message-peer", f"{message.work} from a peer that sends none here")
        # Activations of the next step, too: the owner may have had this step's sum before this peer.
        if ahead not in ((0, 1) if self.is_tail else (0,)):
            raise RemoteError("stage-message-step", f"{message.work} {ahead} steps ahead")
        first = 0 if ahead else self.next_backward
        stop = min(len(rows), first + self.unit.in_flight) if self.is_tail else self.next_forward
        if not first <= message.unit < stop or message.row != 0:
            raise RemoteError("stage-message-step", f"{message.work} of micro-batch {message.unit}, which is not due")
        key = message.unit + ahead * _MOST
        if key in self.came:
            raise RemoteError("stage-message-twice", f"{message.work} of micro-batch {message.unit}")
        tensors, num_rows = decode(self._coding, message.tensors, self.coming)
        if num_rows != rows[message.unit]:
            raise RemoteError("stage-message-rows", f"{num_rows} rows where {rows[message.unit]} are due")
        self.came[key] = tensors

"""Stage messages between the own trainer and its node.

Invariant: no more than ``MESSAGES_AHEAD_BYTES`` and one message wait at the node; what is read is checked first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from p2ptrain.core.stages.commands import MESSAGES_AHEAD_BYTES, Deliver, SendStageMessage, StageMessagesSent
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.wire.tensorfile import read_untrusted


class Outbox:
    """Of one plan at a time: what the last unit of work has made, and the node has no room for yet."""

    def __init__(self, say: Callable[[object], None]) -> None:
        self._say = say
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """From now on all is of the plan of this epoch (0: of none)."""
        self._epoch = epoch
        self._waiting: deque[StageMessage] = deque()
        self._handed_bytes = self._sent_bytes = 0
        """Handed over, and those of them that have left for other peers."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def has_room(self) -> bool:
        """For one more message at the node."""
        return self._handed_bytes - self._sent_bytes < MESSAGES_AHEAD_BYTES

    def add(self, messages: Iterable[StageMessage]) -> None:
        self._waiting.extend(messages)

    def drop(self, from_step: int) -> None:
        """Those of this batch and of later ones are not wanted any more."""
        self._waiting = deque(message for message in self._waiting if message.step < from_step)

    def hand_over(self) -> None:
        """As many as there is room for."""
        while self._waiting and self.has_room:
            message = self._waiting.popleft()
            data = save_tensors(message.tensors)
            self._handed_bytes += len(data)
            where = (message.work, message.step, message.unit, message.row)
            self._say(SendStageMessage(self._epoch, message.peer, *where, data))

    def sent(self, command: StageMessagesSent) -> None:
        if command.epoch == self._epoch:
            self._sent_bytes = max(self._sent_bytes, command.num_bytes)


def read_message(command: Deliver) -> StageMessage:
    """What another stage has sent. Raises ``RemoteError``."""
    read_untrusted(command.message)
    where = (command.sender, command.work, command.step, command.unit, command.row)
    return StageMessage(*where, load_tensors(command.message))  # type: ignore[arg-type]

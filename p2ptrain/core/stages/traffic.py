"""Stage messages between the own trainer and the other stages' peers, by way of the links.

Invariant: stage messages are only exchanged with peers of one plan, the one whose stage the trainer holds, in its
epoch; and the trainer is told as they leave, so that it waits when it is too far ahead of the links.
"""

from __future__ import annotations

from p2ptrain.core.effects import CountRefused, Effects, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import MESSAGES_AHEAD_BYTES, Deliver, SendStageMessage, StageMessagesSent, Taken
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.streams.streams import Delivered, Streams
from p2ptrain.wire import messages as m

LATE_S = 5.0
"""Stage messages that wait for so long are worth a word."""


class StageTraffic:
    """Of one plan at a time."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._streams = Streams()
        self._pushed_bytes = self._told_bytes = 0
        """Of the plan's stage messages: pushed, and how many of them the trainer knows to have left."""

    @property
    def epoch(self) -> int:
        return self._streams.epoch

    @property
    def plan(self) -> str:
        """Its hash."""
        return self._streams.plan

    def begin(self, plan: Plan, name: str, now: float) -> Effects:
        """The trainer holds a stage of this plan."""
        self._pushed_bytes = self._told_bytes = 0
        others = [trainer for trainer in plan.trainers() if trainer != self._group.own_id]
        return list(self._streams.reset(plan.epoch, others, now, name))

    def send(self, event: SendStageMessage, now: float) -> Effects:
        to, work = PeerId(event.to), event.work
        self._pushed_bytes += len(event.message)
        return [
            *self._streams.push(to, work, event.step, event.unit, event.row, event.message, now),  # type: ignore[arg-type]
            *self._tell_sent(),
        ]

    def received(self, sender: PeerId, message: m.StreamData | m.StreamAck, now: float) -> Effects:
        return [*self._streams.received(sender, message, now), *self._tell_sent()]

    def delivered(self, effect: Delivered, now: float) -> Effects:
        where = (effect.sender, effect.work, effect.step, effect.unit, effect.row)
        return [ToTrainer(Deliver(self.epoch, *where, effect.data))]

    def taken(self, event: Taken, now: float) -> Effects:
        """By the trainer, or refused."""
        effects: Effects = []
        if event.epoch != self.epoch:
            return []
        if event.error:
            effects.append(CountRefused("stage-message", event.count))
            effects.append(Note("stage-message-refused", (("peer", event.sender), ("detail", event.error[:200]))))
        return [*effects, *self._streams.taken(PeerId(event.sender), event.count, now)]

    def reconnected(self, other: PeerId, now: float) -> Effects:
        """There is a new link to a peer."""
        return list(self._streams.reconnected(other, now))

    def tick(self, now: float) -> Effects:
        return list(self._streams.tick(now))

    def next_deadline(self) -> float:
        return self._streams.next_deadline()

    def waiting_for(self, now: float) -> str:
        """In words: who has not taken for long what is there for it."""
        waits = [wait for wait in self._streams.waiting() if now - wait.since > LATE_S]
        if not waits:
            return ""
        names = ", ".join(self._group.name_of(wait.peer) for wait in waits)
        return f"{names} to take {sum(wait.num_bytes for wait in waits)} bytes"

    def _tell_sent(self) -> Effects:
        sent = self._pushed_bytes - self._streams.queued_bytes
        if 8 * (sent - self._told_bytes) < MESSAGES_AHEAD_BYTES:
            return []
        self._told_bytes = sent
        return [ToTrainer(StageMessagesSent(self.epoch, sent))]

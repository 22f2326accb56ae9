"""Stage messages between the own trainer and the other stages' peers, by way of the links.

Invariant: stage messages are only exchanged with peers of one plan, the one whose stage the trainer holds, in its
epoch; and the trainer is told as they leave, so that it waits when it is too far ahead of the links.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from p2ptrain.core.effects import CountRefused, Effects, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import MESSAGES_AHEAD_BYTES, Deliver, SendStageMessage, StageMessagesSent, Taken
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.streams.pacing import Pacing
from p2ptrain.protocol.streams.streams import Delivered, Streams
from p2ptrain.wire import messages as m
from p2ptrain.words import scaled

LATE_S = 5.0
"""Stage messages that wait for so long are worth a word."""


class Watch(Protocol):
    """Looks on as stage messages go and come."""

    def sent(self, event: SendStageMessage, now: float) -> None: ...

    def came(self, event: Delivered, now: float) -> None: ...


class StageTraffic:
    """Of one plan at a time."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._streams = Streams()
        self._pacing: Pacing[SendStageMessage] = Pacing()
        self._sent_bytes: Counter[PeerId] = Counter()
        """Since the last look."""
        self._looked_at = 0.0
        self.watch: Watch | None = None
        self.pushed_bytes = 0
        """Of all plans' stage messages, to all."""
        self._pushed_bytes = self._told_bytes = 0
        """Of the plan's stage messages: pushed, and how many of them the trainer knows to have left."""

    @property
    def epoch(self) -> int:
        return self._streams.epoch

    @property
    def plan(self) -> str:
        """Its hash."""
        return self._streams.plan

    def begin(self, plan: Plan, name: str, now: float, rates: Mapping[PeerId, float] | None = None) -> Effects:
        """The trainer holds a stage of this plan. ``rates``: what it may send to others, bytes/s, where it is told."""
        self._pacing = Pacing(rates)
        self._sent_bytes.clear()
        self._looked_at = now
        self._pushed_bytes = self._told_bytes = 0
        others = [trainer for trainer in plan.trainers() if trainer != self._group.own_id]
        return list(self._streams.reset(plan.epoch, others, now, name))

    def send(self, event: SendStageMessage, now: float) -> Effects:
        """What the trainer made under a plan that is over goes nowhere."""
        if event.epoch != self.epoch:
            return []
        self._pushed_bytes += len(event.message)
        if self.watch is not None:
            self.watch.sent(event, now)
        released = self._pacing.add(PeerId(event.to), event, len(event.message), now)
        return [*self._push(released, now), *self._tell_sent()]

    def _push(self, messages: Iterable[SendStageMessage], now: float) -> Effects:
        effects: Effects = []
        for each in messages:
            to, where = PeerId(each.to), (each.step, each.unit, each.row)
            self._sent_bytes[to] += len(each.message)
            self.pushed_bytes += len(each.message)
            effects += self._streams.push(to, each.work, *where, each.message, now)  # type: ignore[arg-type]
        return effects

    def used(self, now: float) -> dict[PeerId, float]:
        """Bytes/s sent to others since the last look."""
        seconds, sent = max(now - self._looked_at, 1e-6), dict(self._sent_bytes)
        self._looked_at = now
        self._sent_bytes.clear()
        return {peer: num_bytes / seconds for peer, num_bytes in sorted(sent.items())}

    def received(self, sender: PeerId, message: m.StreamData | m.StreamAck, now: float) -> Effects:
        return [*self._streams.received(sender, message, now), *self._tell_sent()]

    def delivered(self, effect: Delivered, now: float) -> Effects:
        if self.watch is not None:
            self.watch.came(effect, now)
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
        released = self._push(self._pacing.due(now), now)
        return [*released, *(self._tell_sent() if released else ()), *self._streams.tick(now)]

    def next_deadline(self) -> float:
        return min(self._streams.next_deadline(), self._pacing.next_deadline())

    def waiting_for(self, now: float) -> str:
        """In words: who has not taken for long what is there for it."""
        waits = [wait for wait in self._streams.waiting() if now - wait.since > LATE_S]
        if not waits:
            return ""
        names, num_bytes = self._group.names_of(wait.peer for wait in waits), sum(wait.num_bytes for wait in waits)
        return f"{names} to take {scaled(num_bytes, 'B')}"

    def _tell_sent(self) -> Effects:
        sent = self._pushed_bytes - self._streams.queued_bytes - self._pacing.queued_bytes
        if 8 * (sent - self._told_bytes) < MESSAGES_AHEAD_BYTES:
            return []
        self._told_bytes = sent
        return [ToTrainer(StageMessagesSent(self.epoch, sent))]

"""The two ends of one stream of stage messages: what a sender has out, and what a receiver holds.

Invariant: the sender has at most a window of untaken stage messages out, or a single larger one; the receiver holds at
most twice that. Neither knows of clocks, peers or epochs beyond what it is told; ``streams`` puts them together.

A stage message at the sender:    queued --window--> in flight --ack: arrived--> forgotten, its size kept --ack:
            taken--> gone at the receiver:  early (behind a gap) --> delivered --> taken

Loss. Each sending has a number of its own, and an ack names the highest that came. So what was sent before that one
and is not here is lost (the lane keeps the order), and it takes no guess whether an ack is for a stage message or its
repetition (as in QUIC, RFC 9002). Only the oldest missing stage message is ever sent again: at once when an ack shows
the gap, else when nothing has moved for the time-out of RFC 6298, doubled each time. A receiver that stands still costs
its sender a stage message now and then.

TCP below can't stand in for that: libzmq makes a new connection by itself, says nothing of what the old one held, and a
full queue of the link pushes out what waited longest (``tests/sockets/test_loss.py``).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field

from p2ptrain.errors import RemoteError
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.round_trip import RoundTrip
from p2ptrain.wire.messages import StreamAck, StreamData


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Equal on all peers: a receiver checks its senders against its own window."""

    window_bytes: int = 4 << 20
    """Sent to one peer and not yet taken by its trainer."""
    window_messages: int = 1024
    max_queued_bytes: int = 512 << 20
    """Waiting for all windows together. The trainer is held back long before that."""
    ack_s: float = 0.02
    """A credit waits so long for others to go with it ..."""
    ack_messages: int = 8
    """... or until it is for so many stage messages, or half a window."""
    arrival_ack_s: float = 0.2
    """So long has a trainer to take what arrived, before an ack says only that it arrived."""
    first_repeat_s: float = 0.5
    max_repeat_s: float = 30.0
    """An ack may get lost, and its sender then waits for it: it is repeated, later each time, until more comes."""
    first_timeout_s: float = 3.0
    min_timeout_s: float = 1.0
    max_timeout_s: float = 60.0
    finish_s: float = 60.0
    """So long what was for others under the plan before is still sent."""


@dataclass(slots=True)
class _Sent:
    message: StreamData
    at: float
    sent_at: dict[int, float]
    """When each sending left, by its number."""


@dataclass(slots=True)
class Outgoing:
    """The sender's end. What it returns is to be sent now."""

    config: StreamConfig
    queue: deque[StreamData] = field(default_factory=deque)
    queued_bytes: int = 0
    flight: deque[_Sent] = field(default_factory=deque)
    """Sent and not known to have arrived, the oldest first."""
    untaken: deque[int] = field(default_factory=deque)
    """Sizes of what was sent and not taken; the first is of stage message ``taken``."""
    untaken_bytes: int = 0
    taken: int = 0
    num_sendings: int = 0
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    num_timeouts: int = 0
    """In a row, with nothing arriving in between."""
    arrived_at: float = 0.0
    since: float = 0.0
    """Since when nothing has been taken, while there is something to take."""

    @property
    def waiting_bytes(self) -> int:
        return self.untaken_bytes + self.queued_bytes

    def deadline(self) -> float:
        """When the oldest stage message in flight is to be sent again."""
        if not self.flight:
            return NEVER
        c = self.config
        timeout_s = self.round_trip.timeout_s(c.min_timeout_s, c.max_timeout_s, first_s=c.first_timeout_s)
        wait = timeout_s * 2.0 ** min(self.num_timeouts, 16)
        return max(self.arrived_at, self.flight[0].at) + min(wait, c.max_timeout_s)

    def push(self, message: StreamData, now: float) -> list[StreamData]:
        """``message`` with its place in the stream; it waits for the window."""
        if not self.waiting_bytes:
            self.since = now
        sequence = self.taken + len(self.untaken) + len(self.queue)
        self.queue.append(dataclasses.replace(message, sequence=sequence))
        self.queued_bytes += len(message.data)
        return self._pump(now)

    def acked(self, ack: StreamAck, now: float) -> list[StreamData]:
        """An ack of what was never sent is of a life before this one, and says nothing."""
        if (ack.sequence, ack.arrived, ack.sending) == (0, 0, 0) and self.taken == 0 and self.flight:
            return self._all_again(now)
        num_sent = self.taken + len(self.untaken)
        arrived = max(ack.arrived, ack.sequence)
        if arrived > num_sent or ack.sending > self.num_sendings:
            return []
        while self.flight and self.flight[0].message.sequence < arrived:
            sent = self.flight.popleft()
            if ack.sending in sent.sent_at:
                self.round_trip.add(now - sent.sent_at[ack.sending])
            self.arrived_at, self.num_timeouts = now, 0
        while self.taken < ack.sequence:
            self.untaken_bytes -= self.untaken.popleft()
            self.taken += 1
            self.since = now
        if self.flight and self.flight[0].message.sending < ack.sending:
            return [self.send_again(now), *self._pump(now)]
        return self._pump(now)

    def timed_out(self, now: float) -> StreamData:
        self.num_timeouts += 1
        return self.send_again(now)

    def send_again(self, now: float) -> StreamData:
        """The oldest in flight, as a new sending."""
        sent = self.flight[0]
        sent.message, sent.at = self._numbered(sent.message), now
        sent.sent_at[sent.message.sending] = now
        return sent.message

    def _all_again(self, now: float) -> list[StreamData]:
        """The receiver has only now begun to listen: all that was sent so far went past it."""
        self.num_timeouts = 0
        for sent in self.flight:
            sent.message, sent.at = self._numbered(sent.message), now
        return [sent.message for sent in self.flight]

    def _pump(self, now: float) -> list[StreamData]:
        messages = []
        while self.queue and self._fits(len(self.queue[0].data)):
            message = self._numbered(self.queue.popleft())
            self.queued_bytes -= len(message.data)
            self.flight.append(_Sent(message, now, {message.sending: now}))
            self.untaken.append(len(message.data))
            self.untaken_bytes += len(message.data)
            messages.append(message)
        return messages

    def _fits(self, num_bytes: int) -> bool:
        if not self.untaken:
            return True
        return self.untaken_bytes + num_bytes <= self.config.window_bytes and (
            len(self.untaken) < self.config.window_messages
        )

    def _numbered(self, message: StreamData) -> StreamData:
        self.num_sendings += 1
        return dataclasses.replace(message, sending=self.num_sendings)


@dataclass(slots=True)
class Incoming:
    """The receiver's end: puts stage messages in order, and knows when an ack is due."""

    config: StreamConfig
    early: dict[int, StreamData] = field(default_factory=dict)
    """Behind a gap, by sequence."""
    next: int = 0
    """All before this one have been delivered."""
    untaken: deque[int] = field(default_factory=deque)
    """Sizes of what was delivered and not taken."""
    held_bytes: int = 0
    """Bytes that are early or untaken."""
    sending: int = 0
    num_unacked: int = 0
    unacked_bytes: int = 0
    """Taken since the last ack."""
    ack_at: float = NEVER
    repeat_s: float = 0.0
    repeat_at: float = NEVER

    def deadline(self) -> float:
        return min(self.ack_at, self.repeat_at)

    def received(self, message: StreamData, now: float) -> list[StreamData]:
        """The stage messages to deliver now. Raises ``RemoteError`` for one that the window does not allow."""
        if message.sequence >= self.next and message.sequence not in self.early:
            self._check_window(message)
            self.early[message.sequence] = message
            self.held_bytes += len(message.data)
            self._ack_by(now + self.config.arrival_ack_s)
        else:
            self._ack_by(now + self.config.ack_s)  # its ack got lost
        self.sending = max(self.sending, message.sending)
        delivered = []
        while (whole := self.early.pop(self.next, None)) is not None:
            delivered.append(whole)
            self.untaken.append(len(whole.data))
            self.next += 1
        if self.early:
            self._ack_by(now + self.config.ack_s)
        return delivered

    def take(self, count: int, now: float) -> None:
        """The trainer has taken the next ``count``; more than were delivered are of a stream before this one."""
        for _ in range(min(count, len(self.untaken))):
            num_bytes = self.untaken.popleft()
            self.held_bytes -= num_bytes
            self.unacked_bytes += num_bytes
            self.num_unacked += 1
        enough = self.num_unacked >= self.config.ack_messages or 2 * self.unacked_bytes >= self.config.window_bytes
        if self.num_unacked:
            self._ack_by(now if enough else now + self.config.ack_s)

    def ack(self, epoch: int, plan: str, now: float) -> StreamAck:
        """What is to be said now, and when it is to be repeated."""
        self.ack_at, self.num_unacked, self.unacked_bytes = NEVER, 0, 0
        self.repeat_at = now + self.repeat_s
        self.repeat_s = min(2 * self.repeat_s, self.config.max_repeat_s)
        return StreamAck(epoch, self.next - len(self.untaken), plan, self.next, self.sending)

    def _ack_by(self, when: float) -> None:
        self.ack_at = min(self.ack_at, when)
        self.repeat_s = self.config.first_repeat_s

    def _check_window(self, message: StreamData) -> None:
        """Twice the window, as a sender knows of what was taken only later; a single stage message may be larger."""
        ahead = message.sequence - (self.next - len(self.untaken))
        if ahead >= 2 * self.config.window_messages:
            raise RemoteError("stream-window", f"stage message {message.sequence}, {ahead} ahead of what was taken")
        total = self.held_bytes + len(message.data)
        if self.held_bytes and total > 2 * self.config.window_bytes:
            raise RemoteError(
                "stream-window", f"{total} bytes that nobody has taken, allowed {self.config.window_bytes}"
            )

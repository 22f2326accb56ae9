"""Stage messages from trainer to trainer: for each pair of peers of a plan a stream each way, reliable, in order,
bounded.

Responsible for what a pipeline's peers send each other while they train. Invariant: under one plan every stage message
that is pushed is delivered once, in the order of its stream, however often frames are lost, doubled or held up; and at
most a window of them is out that the receiver's *trainer* has not taken, so that a slow trainer slows its senders down
and nobody's memory fills. ``stream_ends`` holds both ends and says how loss is found.

    push -> StageData, as far as the window lets it   StageData -> Delivered, in order   taken -> StageAck, merged

A new plan starts all streams from nothing (``reset``). Peers change their plans one after another, and rivals of one
epoch come up: so what belongs to another epoch or another plan is ignored, not blamed, and who is ahead repeats. Who
is ahead also goes on to send what it had for the others under the plan before: they may need it to end its last batch.
That ends for each when it shows up under the new plan, for all after ``finish_s``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.streams.ends import Incoming, Outgoing, StreamConfig
from p2ptrain.wire.messages import StageWork, StreamAck, StreamData


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next stage message of ``sender``'s stream, for the trainer; ``taken`` is to be called once it has it."""

    sender: PeerId
    work: StageWork
    step: int
    unit: int
    row: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamWait:
    """``peer`` has taken nothing since then, and so many bytes are for it."""

    peer: PeerId
    since: float
    num_bytes: int


@dataclass(slots=True)
class _Former:
    """What is left of the plan before."""

    epoch: int = 0
    plan: str = ""
    outgoing: dict[PeerId, Outgoing] = field(default_factory=dict)
    until: float = NEVER

    @property
    def waiting_bytes(self) -> int:
        return sum(stream.waiting_bytes for stream in self.outgoing.values())


Effect = Send | Note | Delivered


class Streams:
    """All streams of one peer under one plan; none before the first ``reset``."""

    def __init__(self, config: StreamConfig | None = None) -> None:
        self.epoch = 0
        self.plan = ""
        self._config = config or StreamConfig()
        self._outgoing: dict[PeerId, Outgoing] = {}
        self._incoming: dict[PeerId, Incoming] = {}
        self._former = _Former()

    # --- what others may ask ----------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        """Pushed and not sent yet, to all. Where that is much, the own trainer is to wait.

        It must go on taking what is delivered meanwhile, or two that wait for each other wait for ever.
        """
        return sum(stream.queued_bytes for stream in self._outgoing.values())

    def waiting(self) -> tuple[StreamWait, ...]:
        """Whom this peer waits for, the longest wait first."""
        waits = [
            StreamWait(peer, stream.since, stream.waiting_bytes)
            for peer, stream in self._outgoing.items()
            if stream.waiting_bytes
        ]
        return tuple(sorted(waits, key=lambda wait: (wait.since, wait.peer)))

    def next_deadline(self) -> float:
        resends = min((stream.deadline() for _, stream in self._sending()), default=NEVER)
        acks = min((stream.deadline() for stream in self._incoming.values()), default=NEVER)
        return min(resends, acks, self._former.until)

    def _sending(self) -> list[tuple[PeerId, Outgoing]]:
        """Under this plan and under the one before."""
        return [*self._outgoing.items(), *self._former.outgoing.items()]

    # --- events -----------------------------------------------------------------------------------------------------

    def reset(self, epoch: int, peers: Iterable[PeerId], now: float, plan: str = "") -> list[Effect]:
        """The trainer works by another plan from now on, with these peers; of the last one only what is sent counts.

        ``plan`` is its hash: without it, rivals of one epoch can't be told apart. The peers are told: what they sent
        before that was ignored here.
        """
        notes = self._end_former()
        left = {peer: stream for peer, stream in self._outgoing.items() if stream.waiting_bytes}
        if left:
            self._former = _Former(self.epoch, self.plan, left, now + self._config.finish_s)
        self.epoch, self.plan = epoch, plan
        names = sorted(set(peers))
        self._outgoing = {peer: Outgoing(self._config) for peer in names}
        self._incoming = {peer: Incoming(self._config) for peer in names}
        return [*notes, *(Send(peer, StreamAck(epoch, 0, plan)) for peer in names)]

    def _end_former(self) -> list[Effect]:
        former, self._former = self._former, _Former()
        fields = (("epoch", former.epoch), ("bytes", former.waiting_bytes))
        return [Note("stage-messages-dropped", fields)] if former.waiting_bytes else []

    def push(
        self, to: PeerId, work: StageWork, step: int, unit: int, row: int, data: bytes, now: float
    ) -> list[Effect]:
        """Send a stage message. Raises ``LocalError`` for a peer outside of the plan, and if the trainer was not held
        back."""
        stream = self._outgoing.get(to)
        if stream is None:
            raise LocalError(f"a stage message for {to}, which is not in the plan")
        if self.queued_bytes > self._config.max_queued_bytes:
            raise LocalError(f"{self.queued_bytes} bytes of stage messages wait, and the trainer was not held back")
        message = StreamData(self.epoch, 0, work, step, unit, row, data, self.plan)
        return [Send(to, each) for each in stream.push(message, now)]

    def received(self, sender: PeerId, message: StreamData | StreamAck, now: float) -> list[Effect]:
        """Raises ``RemoteError`` for one who is not in the plan, or who sends more than the window allows."""
        if (message.epoch, message.plan) != (self.epoch, self.plan):
            return self._received_late(sender, message, now)
        self._former.outgoing.pop(sender, None)  # it is through with that plan
        if sender not in self._incoming:
            raise RemoteError("stream-stranger", f"{sender} is not in the plan of epoch {self.epoch}")
        if isinstance(message, StreamAck):
            return [Send(sender, each) for each in self._outgoing[sender].acked(message, now)]
        messages = self._incoming[sender].received(message, now)
        return [Delivered(sender, p.work, p.step, p.unit, p.row, p.data) for p in messages]

    def _received_late(self, sender: PeerId, message: StreamData | StreamAck, now: float) -> list[Effect]:
        former = self._former
        if isinstance(message, StreamData) or (message.epoch, message.plan) != (former.epoch, former.plan):
            return []
        stream = former.outgoing.get(sender)
        return [Send(sender, each) for each in stream.acked(message, now)] if stream else []

    def taken(self, sender: PeerId, count: int, now: float) -> list[Effect]:
        """The own trainer has taken the next ``count`` of the stage messages delivered: room for more."""
        stream = self._incoming.get(sender)
        if stream is None:
            return []  # under the plan before
        stream.take(count, now)
        return self._acks_due(sender, stream, now)

    def reconnected(self, peer: PeerId, now: float) -> list[Effect]:
        """There is a new link to ``peer``: what the old one had queued is lost, so don't wait for the time-outs."""
        incoming = self._incoming.get(peer)
        effects: list[Effect] = []
        for outgoing in [stream for other, stream in self._sending() if other == peer and stream.flight]:
            outgoing.num_timeouts = 0
            effects.append(Send(peer, outgoing.send_again(now)))
        if incoming is not None and incoming.sending:
            effects.append(Send(peer, incoming.ack(self.epoch, self.plan, now)))
        return effects

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = self._end_former() if now >= self._former.until else []
        for peer, outgoing in self._sending():
            if now >= outgoing.deadline():
                message = outgoing.timed_out(now)
                fields = (("peer", peer), ("stage_message", message.sequence), ("timeouts", outgoing.num_timeouts))
                effects += [Send(peer, message), Note("stage-message-sent-again", fields)]
        for peer, incoming in self._incoming.items():
            effects += self._acks_due(peer, incoming, now)
        return effects

    def _acks_due(self, peer: PeerId, stream: Incoming, now: float) -> list[Effect]:
        return [Send(peer, stream.ack(self.epoch, self.plan, now))] if now >= stream.deadline() else []

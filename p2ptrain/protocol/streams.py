"""Parcels from trainer to trainer: for each pair of peers of a plan a stream each way, reliable, in order, bounded.

Responsible for what a pipeline's peers send each other while they train. Invariant: under one plan every parcel that
is pushed is delivered once, in the order of its stream, however often frames are lost, doubled or held up; and at most
a window of them is out that the receiver's *trainer* has not taken, so that a slow trainer slows its senders down and
nobody's memory fills. ``stream_ends`` holds both ends and says how loss is found.

    push -> StageData, as far as the window lets it   StageData -> Delivered, in order   taken -> StageAck, merged

A new plan starts all streams from nothing (``reset``). Peers change their plans one after another, and rivals of one
epoch come up: so what belongs to another epoch or another plan is ignored, not blamed, and who is ahead repeats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.messages import StageAck, StageData, StageWork
from p2ptrain.protocol.stream_ends import Incoming, Outgoing, StreamConfig


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next parcel of ``sender``'s stream, for the trainer; ``taken`` is to be called once it has it."""

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


Effect = Send | Note | Delivered


class Streams:
    """All streams of one peer under one plan; none before the first ``reset``."""

    def __init__(self, config: StreamConfig | None = None) -> None:
        self.epoch = 0
        self.plan = ""
        self._config = config or StreamConfig()
        self._outgoing: dict[PeerId, Outgoing] = {}
        self._incoming: dict[PeerId, Incoming] = {}

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
        resends = min((stream.deadline() for stream in self._outgoing.values()), default=NEVER)
        return min(resends, min((stream.deadline() for stream in self._incoming.values()), default=NEVER))

    # --- events -----------------------------------------------------------------------------------------------------

    def reset(self, epoch: int, peers: Iterable[PeerId], now: float, plan: str = "") -> list[Effect]:
        """The trainer works by another plan from now on, with these peers; nothing of the last one counts any more.

        ``plan`` is its hash: without it, rivals of one epoch can't be told apart. The peers are told: what they sent
        before that was ignored here.
        """
        dropped = sum(stream.waiting_bytes for stream in self._outgoing.values())
        self.epoch, self.plan = epoch, plan
        names = sorted(set(peers))
        self._outgoing = {peer: Outgoing(self._config) for peer in names}
        self._incoming = {peer: Incoming(self._config) for peer in names}
        note = [Note("parcels-dropped", (("epoch", epoch), ("bytes", dropped)))] if dropped else []
        return [*note, *(Send(peer, StageAck(epoch, 0, plan)) for peer in names)]

    def push(
        self, to: PeerId, work: StageWork, step: int, unit: int, row: int, data: bytes, now: float
    ) -> list[Effect]:
        """Send a parcel. Raises ``LocalError`` for a peer outside of the plan, and if the trainer was not held back."""
        stream = self._outgoing.get(to)
        if stream is None:
            raise LocalError(f"a parcel for {to}, which is not in the plan")
        if self.queued_bytes > self._config.max_queued_bytes:
            raise LocalError(f"{self.queued_bytes} bytes of parcels wait, and the trainer was not held back")
        parcel = StageData(self.epoch, 0, work, step, unit, row, data, self.plan)
        return [Send(to, message) for message in stream.push(parcel, now)]

    def received(self, sender: PeerId, message: StageData | StageAck, now: float) -> list[Effect]:
        """Raises ``RemoteError`` for one who is not in the plan, or who sends more than the window allows."""
        if (message.epoch, message.plan) != (self.epoch, self.plan):
            return []
        if sender not in self._incoming:
            raise RemoteError("stream-stranger", f"{sender} is not in the plan of epoch {self.epoch}")
        if isinstance(message, StageAck):
            return [Send(sender, parcel) for parcel in self._outgoing[sender].acked(message, now)]
        parcels = self._incoming[sender].received(message, now)
        return [Delivered(sender, p.work, p.step, p.unit, p.row, p.data) for p in parcels]

    def taken(self, sender: PeerId, count: int, now: float) -> list[Effect]:
        """The own trainer has taken the next ``count`` of the parcels delivered: room for more."""
        stream = self._incoming.get(sender)
        if stream is None:
            return []  # under the plan before
        stream.take(count, now)
        return self._acks_due(sender, stream, now)

    def reconnected(self, peer: PeerId, now: float) -> list[Effect]:
        """There is a new link to ``peer``: what the old one had queued is lost, so don't wait for the time-outs."""
        outgoing, incoming = self._outgoing.get(peer), self._incoming.get(peer)
        effects: list[Effect] = []
        if outgoing is not None and outgoing.flight:
            outgoing.num_timeouts = 0
            effects.append(Send(peer, outgoing.send_again(now)))
        if incoming is not None and incoming.sending:
            effects.append(Send(peer, incoming.ack(self.epoch, self.plan, now)))
        return effects

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer, outgoing in self._outgoing.items():
            if now >= outgoing.deadline():
                parcel = outgoing.timed_out(now)
                fields = (("peer", peer), ("parcel", parcel.sequence), ("timeouts", outgoing.num_timeouts))
                effects += [Send(peer, parcel), Note("parcel-sent-again", fields)]
        for peer, incoming in self._incoming.items():
            effects += self._acks_due(peer, incoming, now)
        return effects

    def _acks_due(self, peer: PeerId, stream: Incoming, now: float) -> list[Effect]:
        return [Send(peer, stream.ack(self.epoch, self.plan, now))] if now >= stream.deadline() else []

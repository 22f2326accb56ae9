"""An in-memory twin of the network: seeded, in virtual time, with everything that goes wrong in a real one.

Invariant: a run is a function of its seed and of what the test does to it. Nothing here reads a clock, and two events
of the same instant happen in the order in which they were scheduled.

Hosts are anything with the three methods of ``Host``; the network carries their messages and calls their ticks. A
message is delayed by ``delay_s`` plus a random jitter (so messages overtake each other), lost, or doubled. A crashed
host is silent for ever; a stalled one does nothing for a while and then finds all that waited for it, as a process
does that was stopped; hosts of different partitions don't hear each other.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Message, lane_of

_MAX_TICKS_AT_ONCE = 1000


class Host(Protocol):
    """A peer, or a part of one."""

    def handle(self, sender: PeerId, message: Message, now: float) -> Iterable[object]: ...

    def tick(self, now: float) -> Iterable[object]: ...

    def next_deadline(self) -> float: ...


class SoleMachine(Protocol):
    """A protocol machine that may be all there is of a peer."""

    def received(self, sender: PeerId, message: Any, now: float) -> Iterable[object]: ...

    def tick(self, now: float) -> Iterable[object]: ...

    def next_deadline(self) -> float: ...


class MachineHost:
    """A peer that is nothing but one machine. ``out``: sees all that it wants done, and may leave some of it out."""

    def __init__(self, machine: SoleMachine, out: Callable[[list[object]], list[object]] = lambda effects: effects):
        self._machine = machine
        self._out = out

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        return self._out(list(self._machine.received(sender, message, now)))

    def tick(self, now: float) -> list[object]:
        return self._out(list(self._machine.tick(now)))

    def next_deadline(self) -> float:
        return self._machine.next_deadline()


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of every link. A message takes ``delay_s`` and up to ``jitter_s`` more, uniformly."""

    delay_s: float = 0.001
    jitter_s: float = 0.004
    loss: float = 0.0
    duplication: float = 0.0


LAN = Conditions(delay_s=0.001, jitter_s=0.003)
WIRELESS = Conditions(delay_s=0.002, jitter_s=0.02, loss=0.01)
"""A busy wireless LAN. TCP repairs most losses; what it can't repair in time counts as lost."""


@dataclass(slots=True)
class _Seat:
    host: Host
    timer: float = NEVER
    """Earliest tick that is in the heap."""
    deadline: float = NEVER
    """As the host last said."""
    stalled_until: float = 0.0
    partition: int = 0
    ticks_at_once: int = 0
    last_tick: float = -1.0


class SimulatedNetwork:
    """``on_effect(peer, effect, now)`` gets every effect that is not a ``Send``; it may return more effects."""

    def __init__(
        self,
        seed: int,
        conditions: Conditions = Conditions(),
        *,
        on_effect: Callable[[PeerId, object, float], Iterable[object] | None] | None = None,
        through_codec: bool = False,
    ) -> None:
        self.seed = seed
        self.conditions = conditions
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        """Messages sent, lost, doubled, delivered, to the dead; and ``refused:<reason>`` for each ``RemoteError``."""
        self._rng = random.Random(seed)
        self._on_effect = on_effect
        self._recode = _through_codec if through_codec else None
        self._seats: dict[PeerId, _Seat] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    # --- what a test does to it -------------------------------------------------------------------------------------

    def add(self, peer: PeerId, host: Host) -> None:
        """A host under a name that is new, or was removed or crashed before."""
        if peer in self._seats:
            raise LocalError(f"{peer} is there already")
        self._seats[peer] = _Seat(host)
        self._set_timer(peer)

    def crash(self, peer: PeerId) -> None:
        """Like ``kill -9``. What it sent is still under way."""
        del self._seats[peer]

    def stall(self, peer: PeerId, seconds: float) -> None:
        """The host does nothing for so long; messages and timers wait."""
        seat = self._seats[peer]
        seat.stalled_until = max(seat.stalled_until, self.now + seconds)

    def at_host(self, peer: PeerId, when: float, action: Callable[[], None]) -> None:
        """Do ``action`` at a virtual time, or when the host's stall is over."""

        def go() -> None:
            seat = self._seats.get(peer)
            if seat is not None and seat.stalled_until > self.now:
                self.at(seat.stalled_until, go)
            else:
                action()

        self.at(when, go)

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Only hosts of one group hear each other; hosts in none of them are a group of their own."""
        self.heal()
        for number, group in enumerate(groups, start=1):
            for peer in group:
                self._seats[peer].partition = number

    def heal(self) -> None:
        for seat in self._seats.values():
            seat.partition = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do ``action`` at a virtual time; it may do to the network whatever a test may."""
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, action))

    def perform(self, peer: PeerId, effects: Iterable[object]) -> None:
        """Carry out what a host that was called from outside wants done."""
        queue = list(effects)
        for effect in queue:
            if isinstance(effect, Send):
                self._send(peer, effect)
            elif self._on_effect is not None:
                queue.extend(self._on_effect(peer, effect, self.now) or ())
        if peer in self._seats:
            self._set_timer(peer)

    def run(self, until: float, stop: Callable[[], bool] | None = None, every_s: float = 0.05) -> bool:
        """Let virtual time pass to ``until``, or to when ``stop()`` (asked ``every_s``) holds. True: it held."""
        ask = self.now
        while self._heap and self._heap[0][0] <= until:
            if stop is not None and self._heap[0][0] >= ask:
                if stop():
                    return True
                ask = self._heap[0][0] + every_s
            when, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            action()
        self.now = until
        return stop() if stop is not None else False

    # --- what happens in it -----------------------------------------------------------------------------------------

    def _send(self, sender: PeerId, send: Send) -> None:
        self.counts["sent"] += 1
        copies = 1
        if self.conditions.duplication and self._rng.random() < self.conditions.duplication:
            self.counts["doubled"] += 1
            copies = 2
        message = self._recode(send.message) if self._recode else send.message
        for _ in range(copies):
            if self.conditions.loss and self._rng.random() < self.conditions.loss:
                self.counts["lost"] += 1
                continue
            delay = self.conditions.delay_s + self.conditions.jitter_s * self._rng.random()
            self.at(self.now + delay, lambda: self._deliver(sender, send.to, message))

    def _deliver(self, sender: PeerId, to: PeerId, message: Message) -> None:
        seat = self._seats.get(to)
        if seat is None:
            self.counts["to the dead"] += 1
            return
        origin = self._seats.get(sender)
        if origin is not None and origin.partition != seat.partition:
            self.counts["cut off"] += 1
            return
        if seat.stalled_until > self.now:
            self.at(seat.stalled_until, lambda: self._deliver(sender, to, message))
            return
        self.counts["delivered"] += 1
        try:
            effects = seat.host.handle(sender, message, self.now)
        except RemoteError as error:
            self.counts[f"refused:{error.reason}"] += 1
            effects = ()
        self.perform(to, effects)

    def _set_timer(self, peer: PeerId) -> None:
        """Timers are only ever moved forward here; one that fires too early sets the next."""
        seat = self._seats[peer]
        seat.deadline = seat.host.next_deadline()
        if seat.deadline < seat.timer:
            self._tick_at(max(seat.deadline, self.now), peer, seat)

    def _tick_at(self, when: float, peer: PeerId, seat: _Seat) -> None:
        seat.timer = when
        self.at(when, lambda: self._tick(when, peer, seat))

    def _tick(self, when: float, peer: PeerId, seat: _Seat) -> None:
        if seat.timer != when or self._seats.get(peer) is not seat:
            return  # an earlier one took its place
        if seat.stalled_until > self.now:
            # Whether a process that wakes up sees its timers or its messages first is anybody's guess.
            self._tick_at(seat.stalled_until + self._rng.choice((0.0, 0.002)), peer, seat)
            return
        seat.timer = NEVER
        if seat.deadline > self.now:  # nothing has happened to it since it said so
            if seat.deadline < NEVER:
                self._tick_at(seat.deadline, peer, seat)
            return
        seat.ticks_at_once = seat.ticks_at_once + 1 if seat.last_tick == self.now else 0
        seat.last_tick = self.now
        if seat.ticks_at_once > _MAX_TICKS_AT_ONCE:
            raise LocalError(f"{peer} wants to be called without end at {self.now}")
        self.perform(peer, seat.host.tick(self.now))


def _through_codec(message: Message) -> Message:
    """To bytes and back, as over a socket."""
    return codec.decode(codec.encode(message), lane_of(message))[1]

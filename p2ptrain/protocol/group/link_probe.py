"""What the links to the other members carry: measured once, and when they are said to have changed, by sending bytes
and waiting for the echo.

Responsible for a figure of every pair in a small group before its first plan. Of two peers the one with the lower id
measures, and a peer takes part in one measurement at a time, or two of them would each see half of its link. A round
trip of nothing gives the latency; then probes grow until one takes long enough to be told from it (on a slow link the
first does), and the best of a few of that size gives the rate: what else goes over the link, or keeps a node from
answering, only ever makes a probe slower. Invariant: at most one probe is out.

    a member comes: waiting --our turn--> nothing sent to and fro, then probes --> LinkMeasured
    it is busy with another: waiting, for about ``busy_s``
    no echo in time: sent again --``max_failures`` in a row--> waiting, for ``rest_s``
    it goes: its figure is good for ``remember_s`` more, should it come back: a break is no other link

Packets sent back to back to estimate a rate: Jain & Dovrolis, SIGCOMM 2002 (there trains of UDP; here one TCP stream).
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import MAX_LINKS, LinkEcho, LinkFigure, LinkProbe

_LEAST_S = 1e-5
"""Nothing is taken to be faster: clocks are not."""


@dataclass(frozen=True, slots=True)
class LinkConfig:
    num_empty: int = 3
    """How many probes tell the latency."""
    num_full: int = 3
    """Probes of the size that the rate is taken from."""
    first_bytes: int = 64 << 10
    growth: int = 4
    most_bytes: int = 1 << 20
    long_s: float = 0.03
    """A probe that takes so much longer than an empty one is large enough."""
    timeout_s: float = 10.0
    max_failures: int = 3
    rest_s: float = 60.0
    remember_s: float = 300.0
    busy_s: float = 0.3
    hold_s: float = 2.0
    """Who probes us has us to itself until so long after that, or until it is done."""


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    figure: LinkFigure


@dataclass(slots=True)
class _Attempt:
    """The link that is being measured now."""

    peer: PeerId
    sequence: int = 0
    num_bytes: int = 1
    sent_at: float = 0.0
    num_done: int = 0
    """How many of this size are done."""
    num_failures: int = 0
    empty_s: float = NEVER
    """The shortest round trip of nothing."""
    full_s: float = NEVER
    """The shortest of this size, less that."""


Effect = Send | LinkMeasured


class LinkMeter:
    """One peer's links."""

    def __init__(self, own_id: PeerId, rng: random.Random, config: LinkConfig | None = None) -> None:
        self.own_id = own_id
        self._config = config or LinkConfig()
        self._rng = rng
        self._known: dict[PeerId, LinkFigure] = {}
        self._gone: OrderedDict[PeerId, float] = OrderedDict()
        """Those known ones that are not here now, and since when."""
        self._waiting: dict[PeerId, float] = {}
        """Not measured yet, or to be measured again, and not before then."""
        self._again: set[PeerId] = set()
        """Of these a figure is known, and may be out of date."""
        self._attempt: _Attempt | None = None
        self._num_sent = 0
        self._prober: tuple[PeerId, float] | None = None
        """Who measures the link to us, and until when it has us to itself."""

    # --- what others may ask ----------------------------------------------------------------------------------------

    def figures(self) -> tuple[LinkFigure, ...]:
        """Of the links measured so far, by peer; some may be gone for now."""
        return tuple(self._known[peer] for peer in sorted(self._known))

    def next_deadline(self) -> float:
        if self._attempt is not None:
            return self._attempt.sent_at + self._config.timeout_s
        free_at = self._prober[1] if self._prober is not None else 0.0
        return max(min(self._waiting.values(), default=NEVER), free_at)

    # --- events -----------------------------------------------------------------------------------------------------

    def members_changed(self, members: Iterable[PeerId], now: float) -> list[Effect]:
        """The group's members; of a large group only the next few are measured."""
        mine = sorted(peer for peer in members if peer > self.own_id)[:MAX_LINKS]
        self._forget(mine, now)
        due = [peer for peer in mine if peer not in self._known or peer in self._again]
        self._waiting = {peer: self._waiting.get(peer, now) for peer in due}
        if self._attempt is not None and self._attempt.peer not in mine:
            self._attempt = None
        return self.tick(now)

    def measure_again(self, peers: Iterable[PeerId], now: float) -> list[Effect]:
        """The links to these may be others than they were; those that the other side measures are left to it."""
        again = {peer for peer in peers if peer in self._known and peer not in self._gone}
        self._again |= again
        self._waiting |= {peer: now for peer in again - self._waiting.keys()}
        return self.tick(now)

    def _forget(self, mine: Collection[PeerId], now: float) -> None:
        """Who is long gone; or not so long, where there are many: a record has room for so many links."""
        for peer in sorted(self._known.keys() - mine - self._gone.keys()):
            self._gone[peer] = now
        for peer, since in list(self._gone.items()):  # the longest gone first
            if since + self._config.remember_s <= now or len(self._gone) + len(mine) > MAX_LINKS:
                del self._known[peer], self._gone[peer]
                self._again.discard(peer)
            elif peer in mine:
                del self._gone[peer]

    def received(self, sender: PeerId, message: LinkProbe | LinkEcho, now: float) -> list[Effect]:
        if isinstance(message, LinkProbe):
            return [Send(sender, LinkEcho(message.sequence, self._is_busy(sender, message, now)))]
        attempt = self._attempt
        if attempt is None or (sender, message.sequence) != (attempt.peer, attempt.sequence):
            return []  # it comes too late
        if message.busy:
            self._attempt, self._waiting[sender] = None, now + self._config.busy_s * self._rng.uniform(0.5, 1.5)
            return self.tick(now)
        return self._echoed(attempt, now - attempt.sent_at, now)

    def _is_busy(self, sender: PeerId, probe: LinkProbe, now: float) -> bool:
        """Whether another link is being measured; if not, the sender's is."""
        taken = self._prober is not None and self._prober[0] != sender and now < self._prober[1]
        if self._attempt is not None or taken:
            return True
        self._prober = None if probe.last else (sender, now + self._config.hold_s)
        return False

    def tick(self, now: float) -> list[Effect]:
        attempt = self._attempt
        if attempt is not None:
            if now < attempt.sent_at + self._config.timeout_s:
                return []
            attempt.num_failures += 1
            if attempt.num_failures < self._config.max_failures:
                return [self._probe(attempt, now)]
            self._attempt, self._waiting[attempt.peer] = None, now + self._config.rest_s
        ready = sorted(peer for peer, not_before in self._waiting.items() if now >= not_before)
        if not ready or (self._prober is not None and now < self._prober[1]):
            return []
        self._attempt = _Attempt(self._rng.choice(ready))
        return [self._probe(self._attempt, now)]

    # --- one link ---------------------------------------------------------------------------------------------------

    def _probe(self, attempt: _Attempt, now: float) -> Send:
        self._num_sent += 1
        attempt.sequence, attempt.sent_at = self._num_sent, now
        last = attempt.num_bytes > 1 and attempt.num_done == self._config.num_full - 1
        return Send(attempt.peer, LinkProbe(attempt.sequence, bytes(attempt.num_bytes), last))

    def _echoed(self, attempt: _Attempt, took_s: float, now: float) -> list[Effect]:
        config = self._config
        attempt.num_failures = 0
        attempt.num_done += 1
        if attempt.num_bytes == 1:
            attempt.empty_s = min(attempt.empty_s, took_s)
            if attempt.num_done == config.num_empty:
                attempt.num_bytes, attempt.num_done = config.first_bytes, 0
            return [self._probe(attempt, now)]
        attempt.full_s = min(attempt.full_s, max(took_s - attempt.empty_s, _LEAST_S))
        if attempt.full_s < config.long_s and attempt.num_bytes < config.most_bytes:
            attempt.num_bytes = min(config.growth * attempt.num_bytes, config.most_bytes)
            attempt.num_done, attempt.full_s = 0, NEVER
        if attempt.num_done < config.num_full:
            return [self._probe(attempt, now)]
        figure = LinkFigure(attempt.peer, attempt.num_bytes / attempt.full_s, attempt.empty_s / 2)
        self._attempt, self._known[attempt.peer] = None, figure
        self._waiting.pop(attempt.peer, None)
        self._again.discard(attempt.peer)
        return [LinkMeasured(figure), *self.tick(now)]

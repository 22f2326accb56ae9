"""Who is in the group: SWIM failure detection and dissemination, with Lifeguard's care for slow observers.

Invariant: nobody is called dead within ``suspicion_min`` seconds of a sign of life that this peer itself saw, nor for
any time during which this peer itself was not running; and whoever is alive and reachable can always talk itself back
to life, by an incarnation that only it raises.

Theory. Every ``period_s`` a member pings the next one of a shuffled round, so each is probed once a round by each
(SWIM, Das, Gupta, Motivala, DSN 2002). No ack within a time learnt from measured round trips: ping again, and ask
``helpers`` others to ping too. Still none: *accuse* it, that is, suspect it and say so, to the suspect as well. Who
hears an accusation suspects the same, and checks for itself before it joins in: so each sender of an accusation is an
independent accuser. The more of them, the shorter the suspicion (Lifeguard, Dadgar, Phillips, Currey, DSN 2018, LHA
Suspicion). A suspect that lives hears of it, raises its incarnation and is believed.

A process on a busy device stops for a second now and then. Of others it shows as a suspicion refuted in time; of
ourselves as a timer that fires late: then nothing that others seemed to omit meanwhile counts against them (all
deadlines move by the delay), and we wait longer for acks until a probe goes well (Lifeguard, LHA Probe).

News rides on all messages, each item at most ``retransmit * ceil(log2(n + 1))`` times, youngest first; besides, each
probe and ack repeats a few random members, so that views that differ for any reason meet again.

    (unknown) --alive(i) or link admitted--> alive(i)                            PeerJoined
    alive(i), suspect(i), dead(i), left(i) --alive(j), j > i--> alive(j)         PeerRefuted from suspect,
                                                                                 PeerJoined from dead and left
    alive(i) --own probe failed, or accusation(j), j >= i--> suspect(j)          PeerSuspected
    suspect(i) --timeout, or dead(j), j >= i, and no recent sign of life--> dead PeerFailed
    alive(i), suspect(i) --left(j), j >= i--> left                               PeerLeft
    dead, left --remember_s--> (unknown)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from functools import lru_cache

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.swim import (
    LAN,
    WAN,
    Effect,
    MembershipConfig,
    News,
    PeerFailed,
    PeerJoined,
    PeerLeft,
    PeerRefuted,
    PeerSuspected,
    Probe,
    RoundTrips,
    Suspicion,
    retransmit_limit,
)
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import Ack, MemberState, Ping, PingRequest, Rumour

__all__ = [
    "LAN",
    "WAN",
    "Effect",
    "Membership",
    "MembershipConfig",
    "PeerFailed",
    "PeerJoined",
    "PeerLeft",
    "PeerRefuted",
    "PeerSuspected",
]

MAX_RUMOURS = 64
MAX_INCARNATION = 2**53
_MAX_RELAYS = 256
_LATE_ACK_S = 2.0
_MAX_GREETING = 16
"""Messages that tell a newcomer of everyone; beyond 16 * 64 members it learns the rest in passing."""


@lru_cache(maxsize=16384)
def _newborn(peer: PeerId) -> Rumour:
    return Rumour(peer, "alive", 0)


class Membership:
    """One member's view of the group. All methods return effects; only ``received`` raises, ``RemoteError`` only."""

    def __init__(
        self,
        own_id: PeerId,
        rng: random.Random,
        now: float,
        config: MembershipConfig = LAN,
        *,
        members: Iterable[PeerId] = (),
        incarnation: int = 0,
    ) -> None:
        """``members`` are taken for alive from the start, without an event."""
        self.own_id = own_id
        self.config = config
        self._rng = rng
        self._incarnation = incarnation
        self._leaving = False
        self._health = 0
        self._sequence = 0
        self._round_trips = RoundTrips()
        self._members = {peer: _newborn(peer) for peer in members if peer != own_id}
        """What we know of each, as we would say it."""
        self._round = list(self._members)
        """Everyone to probe; before ``_position`` those that had their turn."""
        self._position = 0
        self._alive: frozenset[PeerId] | None = None
        self._heard: dict[PeerId, float] = {}
        self._gone: dict[PeerId, float] = {}
        """Dead and left ones, and since when."""
        self._probes: dict[int, Probe] = {}
        self._relays: dict[int, tuple[PeerId, int, PeerId]] = {}
        self._suspicions: dict[PeerId, Suspicion] = {}
        self._news = News()
        self._next_probe = now + rng.random() * config.period_s
        self._next_gossip = now
        self._next_reconnect = now + config.reconnect_s

    # --- what others may ask --------------------------------------------------------------------------------------

    def alive(self) -> frozenset[PeerId]:
        """Members not known to be dead or gone, suspects included, without ourselves."""
        if self._alive is None:
            self._alive = frozenset(self._round)
        return self._alive

    def state(self, peer: PeerId) -> MemberState | None:
        """None: never heard of, or forgotten."""
        member = self._members.get(peer)
        return member.state if member else None

    def incarnation(self, peer: PeerId) -> int | None:
        if peer == self.own_id:
            return self._incarnation
        member = self._members.get(peer)
        return member.incarnation if member else None

    @property
    def health(self) -> int:
        """0 when we ourselves keep up."""
        return self._health

    def ack_timeout_s(self) -> float:
        return self._round_trips.timeout(self.config.ack_floor_s, self.config.ack_ceiling_s) * (1 + self._health)

    def suspicion_min_s(self) -> float:
        return self.config.suspicion_min_s * max(1.0, math.log10(len(self._round) + 1))

    def next_deadline(self) -> float:
        if self._leaving:
            return NEVER
        deadline = self._next_reconnect if self._gone else NEVER
        if self._round:
            deadline = min(deadline, self._next_probe)
            if self._news:
                deadline = min(deadline, self._next_gossip)
        for probe in self._probes.values():
            if probe.deadline < deadline:
                deadline = probe.deadline
        for suspicion in self._suspicions.values():
            deadline = min(deadline, suspicion.deadline, suspicion.next_ping)
        return deadline

    # --- events ---------------------------------------------------------------------------------------------------

    def peer_reachable(self, peer: PeerId, now: float) -> list[Effect]:
        """A link to a fellow member was admitted: it lives. (Never call this for observers.)"""
        effects: list[Effect] = []
        if peer == self.own_id or self._leaving:
            return effects
        self._mind_own_stall(now)
        if peer not in self._members:
            self._believe(Rumour(peer, "alive", 0), now, effects)
            self._greet(peer, effects)
        elif peer in self._gone:
            effects.append(Send(peer, Ping(0, self._rumours(peer))))  # says how it is known, so it can refute
        self._heard_from(peer, now)
        return effects

    def received(self, sender: PeerId, message: Ping | PingRequest | Ack, now: float) -> list[Effect]:
        """Raises ``RemoteError`` before anything is changed."""
        if sender == self.own_id:
            raise RemoteError("membership", "a message from ourselves")
        if len(message.rumours) > MAX_RUMOURS:
            raise RemoteError("membership", "too many rumours")
        if any(not 0 <= rumour.incarnation <= MAX_INCARNATION for rumour in message.rumours):
            raise RemoteError("membership", "incarnation out of range")
        self._mind_own_stall(now)
        effects: list[Effect] = []
        stale: list[PeerId] = []
        member = sender in self._members or any(r.peer == sender and r.state == "alive" for r in message.rumours)
        if member:
            newcomer = sender not in self._members
            for rumour in message.rumours:
                self._hear(sender, rumour, now, effects, stale)
            self._heard_from(sender, now)
            if newcomer and not self._leaving:
                self._greet(sender, effects)
        if isinstance(message, Ack):
            self._acked(sender, message.sequence, now, effects)
        elif isinstance(message, PingRequest):
            if member:
                self._relay(sender, message, effects)
        elif member or self.config.ack_strangers:
            rumours = self._rumours(sender, stale, filler=self.config.filler)
            effects.append(Send(sender, Ack(message.sequence, rumours)))
        return effects

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye to up to 64 members, who pass it on; afterwards only answer."""
        self._leaving = True
        if not self.config.announce:
            return []
        goodbye = (Rumour(self.own_id, "left", self._incarnation),)
        return [Send(peer, Ping(0, goodbye)) for peer in self._sample(64)]

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._leaving:
            return effects
        self._mind_own_stall(now)
        for sequence, probe in list(self._probes.items()):
            if probe.deadline <= now:
                self._probe_overdue(sequence, probe, now, effects)
        for peer, suspicion in list(self._suspicions.items()):
            if suspicion.deadline <= now:
                self._bury(Rumour(peer, "dead", self._members[peer].incarnation), now, effects)
            elif suspicion.next_ping <= now:
                suspicion.next_ping = now + self.config.accuse_period_s
                effects.append(Send(peer, Ping(0, self._rumours(peer))))
        if self._next_probe <= now:
            self._next_probe = now + self.config.period_s
            target = self._next_target()
            if target is not None:
                self._probe(target, now, effects)
        if self._news and self._next_gossip <= now:
            self._next_gossip = now + self.config.gossip_s
            for peer in self._sample(self.config.fanout):
                if self._news:
                    effects.append(Send(peer, Ping(0, self._rumours(peer))))
        if self._next_reconnect <= now:
            self._next_reconnect = now + self.config.reconnect_s
            self._revisit_the_gone(now, effects)
        return effects

    # --- probing --------------------------------------------------------------------------------------------------

    def _next_target(self) -> PeerId | None:
        """Next of a round that is shuffled as it is walked (Fisher-Yates). Those we accuse are pinged anyway."""
        for _ in range(len(self._round)):
            if self._position >= len(self._round):
                self._position = 0
            pick = self._rng.randrange(self._position, len(self._round))
            peer = self._round[pick]
            self._round[pick], self._round[self._position] = self._round[self._position], peer
            self._position += 1
            suspicion = self._suspicions.get(peer)
            if suspicion is None or suspicion.next_ping == NEVER:
                return peer
        return None

    def _probe(self, target: PeerId, now: float, effects: list[Effect]) -> None:
        self._sequence += 1
        self._probes[self._sequence] = Probe(target, now, now + self.ack_timeout_s())
        effects.append(Send(target, Ping(self._sequence, self._rumours(target, filler=self.config.filler))))

    def _probe_overdue(self, sequence: int, probe: Probe, now: float, effects: list[Effect]) -> None:
        if probe.failed or probe.target not in self._members or probe.target in self._gone:
            del self._probes[sequence]
        elif probe.helpers is None:
            others = [peer for peer in self._sample(self.config.helpers + 1) if peer != probe.target]
            probe.helpers = frozenset(others[: self.config.helpers])
            probe.deadline = now + 2 * self.ack_timeout_s()
            effects.append(Send(probe.target, Ping(sequence, self._rumours(probe.target))))
            for helper in others[: self.config.helpers]:
                effects.append(Send(helper, PingRequest(sequence, probe.target, self._rumours(helper))))
        else:
            probe.failed = True  # kept a little, to learn from a late ack how slow acks are
            probe.deadline = now + _LATE_ACK_S
            if self._heard.get(probe.target, -NEVER) < probe.sent:
                self._accuse(probe.target, now, effects)

    def _acked(self, sender: PeerId, sequence: int, now: float, effects: list[Effect]) -> None:
        relay = self._relays.get(sequence)
        if relay is not None:
            asker, their_sequence, target = relay
            if sender == target:
                del self._relays[sequence]
                effects.append(Send(asker, Ack(their_sequence, self._rumours(asker))))
            return
        probe = self._probes.get(sequence)
        if probe is None:
            return
        if sender == probe.target:
            self._round_trips.add(now - probe.sent)
        elif probe.helpers is None or sender not in probe.helpers:
            return
        del self._probes[sequence]
        if not probe.failed:
            self._health = max(0, self._health - 1)
        self._heard_from(probe.target, now)

    def _relay(self, asker: PeerId, request: PingRequest, effects: list[Effect]) -> None:
        if request.target == self.own_id:
            effects.append(Send(asker, Ack(request.sequence, self._rumours(asker))))
        elif request.target in self._members:
            while len(self._relays) >= _MAX_RELAYS:
                del self._relays[next(iter(self._relays))]
            self._sequence += 1
            self._relays[self._sequence] = (asker, request.sequence, request.target)
            effects.append(Send(request.target, Ping(self._sequence, self._rumours(request.target))))

    def _mind_own_stall(self, now: float) -> None:
        """Time in which we did not run counts against nobody; what arrived meanwhile needs a moment to be read."""
        late = now - self.next_deadline()
        if late <= self.config.stall_slack_s:
            return
        self._health = min(self.config.health_max, self._health + 1)
        grace = late + self.ack_timeout_s()
        for probe in self._probes.values():
            probe.deadline += grace
        for suspicion in self._suspicions.values():
            suspicion.shift += grace
            suspicion.set_deadline(self.suspicion_min_s(), self.config.suspicion_stretch)

    # --- suspicion ------------------------------------------------------------------------------------------------

    def _accuse(self, peer: PeerId, now: float, effects: list[Effect]) -> None:
        """We ourselves could not reach it: suspect it, say so, and ask it."""
        suspicion = self._suspicions.get(peer) or self._suspect(peer, self._members[peer].incarnation, now, effects)
        suspicion.accusers.add(self.own_id)
        suspicion.next_ping = min(suspicion.next_ping, now)
        suspicion.set_deadline(self.suspicion_min_s(), self.config.suspicion_stretch)
        self._spread(peer, now)

    def _suspect(self, peer: PeerId, incarnation: int, now: float, effects: list[Effect]) -> Suspicion:
        expected = min(self.config.confirmations, len(self._round) - 1)
        floor = self._heard.get(peer, -NEVER) + self.suspicion_min_s()
        suspicion = Suspicion(now, floor, expected)
        self._suspicions[peer] = suspicion
        self._members[peer] = Rumour(peer, "suspect", incarnation)
        self._news.discard(peer)
        suspicion.set_deadline(self.suspicion_min_s(), self.config.suspicion_stretch)
        effects.append(PeerSuspected(peer))
        return suspicion

    def _heard_from(self, peer: PeerId, now: float) -> None:
        """A sign of life. It does not end a suspicion (only the peer itself can, for all), but puts its end off."""
        if peer in self._members and peer not in self._gone:
            self._heard[peer] = now
            suspicion = self._suspicions.get(peer)
            if suspicion is not None:
                suspicion.floor, suspicion.shift = now + self.suspicion_min_s(), 0.0
                suspicion.set_deadline(self.suspicion_min_s(), self.config.suspicion_stretch)

    # --- rumours --------------------------------------------------------------------------------------------------

    def _hear(self, sender: PeerId, rumour: Rumour, now: float, effects: list[Effect], stale: list[PeerId]) -> None:
        peer = rumour.peer
        if peer == self.own_id:
            self._hear_of_ourselves(rumour, now, effects)
            return
        member = self._members.get(peer)
        if member is None:
            if rumour.state == "alive" and len(self._members) < self.config.max_members:
                self._believe(rumour, now, effects)
        elif rumour.state == "alive":
            if rumour.incarnation > member.incarnation:
                self._believe(rumour, now, effects)
            elif member.state in ("dead", "left") or rumour.incarnation < member.incarnation:
                stale.append(peer)
        elif rumour.incarnation < member.incarnation:
            stale.append(peer)
        elif peer in self._gone:
            return
        elif rumour.state == "left" or (rumour.state == "dead" and not self._heard_lately(peer, now)):
            self._bury(rumour, now, effects)
        else:  # accused, or called dead by one who has not heard what we heard
            self._hear_accusation(sender, rumour, now, effects)

    def _hear_accusation(self, sender: PeerId, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        peer = rumour.peer
        suspicion = self._suspicions.get(peer)
        if suspicion is None:
            suspicion = self._suspect(peer, rumour.incarnation, now, effects)
            if self._rng.random() * len(self._round) < self.config.verifiers:
                self._probe(peer, now, effects)
        self._members[peer] = Rumour(peer, "suspect", rumour.incarnation)
        if len(suspicion.accusers) <= suspicion.expected:
            suspicion.accusers.add(sender)
        suspicion.set_deadline(self.suspicion_min_s(), self.config.suspicion_stretch)

    def _heard_lately(self, peer: PeerId, now: float) -> bool:
        return self._heard.get(peer, -NEVER) + self.suspicion_min_s() > now

    def _hear_of_ourselves(self, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        if self._leaving or rumour.incarnation < self._incarnation:
            return
        if rumour.state == "alive" and rumour.incarnation == self._incarnation:
            return
        if rumour.state != "alive":
            self._health = min(self.config.health_max, self._health + 1)
        self._incarnation = min(rumour.incarnation + 1, MAX_INCARNATION)
        self._spread(self.own_id, now)
        effects.append(Note("refuted", (("state", rumour.state), ("incarnation", self._incarnation))))

    def _believe(self, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        """``rumour`` says alive, and is news."""
        peer, member = rumour.peer, self._members.get(rumour.peer)
        self._members[peer] = rumour
        if member is None or peer in self._gone:
            self._gone.pop(peer, None)
            if not self._round:
                self._next_probe = max(self._next_probe, now)  # slept for want of members, which is no stall
            self._round.append(peer)
            self._alive = None
            effects.append(PeerJoined(peer))
        elif self._suspicions.pop(peer, None) is not None:
            effects.append(PeerRefuted(peer))
        self._spread(peer, now)

    def _bury(self, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        """``rumour`` says dead or left of someone who was in."""
        peer = rumour.peer
        suspicion = self._suspicions.pop(peer, None)
        self._members[peer] = rumour
        if not self._gone:
            self._next_reconnect = now + self.config.reconnect_s
        self._gone[peer] = now
        self._heard.pop(peer, None)
        self._alive = None
        index = self._round.index(peer)
        self._position -= index < self._position
        del self._round[index]
        if rumour.state == "left":
            effects.append(PeerLeft(peer))
        else:
            effects.append(PeerFailed(peer, now - suspicion.started if suspicion else 0.0))
        self._spread(peer, now)

    def _revisit_the_gone(self, now: float, effects: list[Effect]) -> None:
        for peer in [peer for peer, since in self._gone.items() if since + self.config.remember_s <= now]:
            del self._gone[peer]
            self._news.discard(peer)
            del self._members[peer]
        dead = [peer for peer in self._gone if self._members[peer].state == "dead"]
        if dead:
            peer = self._rng.choice(dead)
            effects.append(Send(peer, Ping(0, self._rumours(peer))))

    def _spread(self, peer: PeerId, now: float) -> None:
        if not self._news:
            self._next_gossip = max(self._next_gossip, now)
        self._news.add(peer)

    def _greet(self, peer: PeerId, effects: list[Effect]) -> None:
        """Tell a newcomer of everyone."""
        known = self._sample(_MAX_GREETING * (MAX_RUMOURS - 1))
        own = (self._rumour(self.own_id),) if self.config.announce else ()
        for start in range(0, max(1, len(known)), MAX_RUMOURS - 1):
            batch = tuple(self._rumour(other) for other in known[start : start + MAX_RUMOURS - 1] if other != peer)
            effects.append(Send(peer, Ping(0, own + tuple(r for r in batch if r.state == "alive"))))

    def _rumours(self, to: PeerId, stale: Iterable[PeerId] = (), *, filler: int = 0) -> tuple[Rumour, ...]:
        """What to say in a message: ourselves, how its receiver is known, corrections, news, and a few at random."""
        said: dict[PeerId, None] = {}
        if self.config.announce:
            said[self.own_id] = None
        member = self._members.get(to)
        if member is not None and member.state != "alive":
            said[to] = None
        said.update(dict.fromkeys(peer for peer in stale if peer not in self._suspicions))
        if self._news and len(said) < MAX_RUMOURS:
            limit = retransmit_limit(self.config.retransmit, len(self._round))
            for peer in self._news.take(MAX_RUMOURS - len(said), limit):
                if peer != self.own_id or self.config.announce:
                    said[peer] = None
        if filler and len(said) + filler <= MAX_RUMOURS:
            said.update(dict.fromkeys(peer for peer in self._sample(filler) if peer not in self._suspicions))
        return tuple(map(self._rumour, list(said)[:MAX_RUMOURS]))

    def _rumour(self, peer: PeerId) -> Rumour:
        if peer == self.own_id:
            return Rumour(peer, "left" if self._leaving else "alive", self._incarnation)
        return self._members[peer]

    def _sample(self, count: int) -> list[PeerId]:
        return self._rng.sample(self._round, min(count, len(self._round)))

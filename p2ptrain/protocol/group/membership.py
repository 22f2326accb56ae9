"""Who is in the group: SWIM failure detection and dissemination, with Lifeguard's care for slow observers.

Invariant: nobody is called dead within ``suspicion_min`` seconds of a sign of life that this peer itself saw, nor for
time during which this peer itself was not running, unless its process is known to have ended. Whoever is alive and
reachable can always talk itself back to life, by an incarnation that only it raises, and signs. Only it says it left.

Theory. A round is ``period_s`` long for each near member; in it a member pings those that it has not heard (SWIM, Das,
Gupta, Motivala, DSN 2002, where both of a pair ping: ``roster``). No ack within a time learnt from measured round
trips: ping again, and ask ``helpers`` others to ping too. Still none: *accuse* it, that is, suspect it and say so, to
the suspect as well. Who hears an accusation suspects the same, and checks for itself before it joins in: so each sender
of an accusation is an independent accuser. The more of them, the shorter the suspicion (Lifeguard, Dadgar, Phillips,
Currey, DSN 2018, LHA Suspicion). A suspect that lives hears of it, raises its incarnation and is believed.

A process on a busy device stops for a second now and then. Of others it shows as a suspicion refuted in time; of
ourselves as a timer that fires late: then nothing that others seemed to omit meanwhile counts against them (all
deadlines move by the delay), and we wait longer for acks until a probe goes well (Lifeguard, LHA Probe).

News rides on all messages, each item at most ``retransmit * ceil(log2(n + 1))`` times, youngest first; besides, each
probe and ack repeats a few random members, so that views that differ for any reason meet again.

    (unknown) --alive(i) or link admitted--> alive(i)                            PeerJoined
    alive(i), suspect(i), dead(i), left(i) --alive(j), j > i--> alive(j)         PeerRefuted from suspect,
                                                                                 PeerJoined from dead and left
    alive(i) --own probe failed, or called suspect(j) or dead(j), j >= i--> suspect(j)    PeerSuspected
    suspect(i) --timeout, or dead(j), j >= i, by another than its only accuser, and no recent sign of life--> dead
                                                                                 PeerFailed
    alive(i), suspect(i) --its process has ended--> dead                         PeerFailed
    alive(i), suspect(i) --left(j), j >= i--> left                               PeerLeft
    dead, left --remember_s--> (unknown)
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Collection

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.probing import Probe, Probing
from p2ptrain.protocol.group.roster import NeighboursOf, Roster
from p2ptrain.protocol.group.rumours import MAX_INCARNATION, Rumours, check_rumours
from p2ptrain.protocol.group.swim import (
    LAN,
    Effect,
    MembershipConfig,
    PeerFailed,
    PeerJoined,
    PeerLeft,
    PeerRefuted,
    PeerSuspected,
    Suspicion,
)
from p2ptrain.protocol.group.words import Words
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.signing import Statements
from p2ptrain.wire.messages import Ack, MemberState, Ping, PingRequest, Rumour


class Membership:
    """One member's view of the group. All methods return effects; only ``received`` raises, ``RemoteError`` only."""

    def __init__(
        self,
        own_id: PeerId,
        rng: random.Random,
        now: float,
        config: MembershipConfig = LAN,
        *,
        statements: Statements,
        key_of: Callable[[PeerId], bytes | None],
        refused: Counter[str],
        members: Collection[PeerId] = (),
        linked: Collection[PeerId] | None = None,
        incarnation: int = 0,
    ) -> None:
        """``members`` are taken for alive from the start, without an event, and ``linked`` (None: all) for linked.
        ``key_of``: as far as one is known. ``refused``: here is counted what was not believed."""
        self.own_id = own_id
        self.config = config
        self._rng = rng
        self._leaving = False
        self._words = Words(own_id, statements, key_of, refused)
        self._roster = Roster(self._words.own(incarnation), members, rng, config, now, linked)
        self._rumours = Rumours(self._roster, config, now)
        self._probing = Probing(config)
        self._heard: dict[PeerId, float] = {}
        self._suspicions: dict[PeerId, Suspicion] = {}
        self._next_probe = now + rng.random() * config.period_s
        self._next_reconnect = now + config.reconnect_s

    # --- what others may ask --------------------------------------------------------------------------------------

    def alive(self) -> frozenset[PeerId]:
        """Members not known to be dead or gone, suspects included, without ourselves."""
        return self._roster.alive()

    def state(self, peer: PeerId) -> MemberState | None:
        """None: never heard of, or forgotten."""
        member = self._roster.members.get(peer)
        return member.state if member else None

    def incarnation(self, peer: PeerId) -> int | None:
        member = self._roster.own if peer == self.own_id else self._roster.members.get(peer)
        return member.incarnation if member else None

    @property
    def health(self) -> int:
        """0 when we ourselves keep up."""
        return self._probing.health

    def ack_timeout_s(self) -> float:
        return self._probing.ack_timeout_s()

    def suspicion_min_s(self) -> float:
        return self.config.suspicion_min_s * max(1.0, math.log10(len(self._roster.round) + 1))

    def next_deadline(self) -> float:
        if self._leaving:
            return NEVER
        roster, deadline = self._roster, self._probing.deadline()
        if roster.gone:
            deadline = min(deadline, self._next_reconnect)
        if roster.round:
            deadline = min(deadline, self._next_probe, self._rumours.deadline())
        return min([deadline, *(min(each.deadline, each.next_ping) for each in self._suspicions.values())])

    # --- events ---------------------------------------------------------------------------------------------------

    def peer_reachable(self, peer: PeerId, now: float) -> list[Effect]:
        """A link to a fellow member was admitted: it lives. (Never call this for observers.)"""
        effects: list[Effect] = []
        if peer == self.own_id or self._leaving:
            return effects
        self._mind_own_stall(now)
        is_new = self._roster.link(peer)
        if peer not in self._roster.members:
            self._believe(Rumour(peer, "alive", 0), now, effects)
            effects += self._rumours.greet(peer)
        elif is_new or peer in self._roster.gone:
            effects.append(self._rumours.tell(peer))  # says that we are here, and how it is known, so it can refute
        self.heard_from(peer, now, is_turn=False)
        return effects

    def link_closed(self, peer: PeerId) -> None:
        """There is no link to it any more, as nobody needs one: whether it lives is for others to see."""
        self._roster.unlink(peer)
        self._probing.forget_target(peer)

    def knows_neighbours(self, neighbours_of: NeighboursOf) -> None:
        self._roster.neighbours_of = neighbours_of

    def process_gone(self, peer: PeerId, now: float) -> list[Effect]:
        """Its connection closed, and its device says that nobody listens where it did."""
        effects: list[Effect] = []
        if peer in self._roster.members and peer not in self._roster.gone and not self._leaving:
            self._bury(self._roster.as_known(peer, "dead"), now, effects)
        return effects

    def received(self, sender: PeerId, message: Ping | PingRequest | Ack, now: float) -> list[Effect]:
        """Raises ``RemoteError`` before anything is changed."""
        if sender == self.own_id:
            raise RemoteError("membership", "a message from ourselves")
        check_rumours(message.rumours)
        self._mind_own_stall(now)
        effects: list[Effect] = []
        stale: list[PeerId] = []
        member = sender in self._roster.members or any(r.peer == sender and r.state == "alive" for r in message.rumours)
        if member:
            newcomer = sender not in self._roster.members
            self._roster.link(sender)
            for rumour in message.rumours:
                self._hear(sender, rumour, now, effects, stale)
            self.heard_from(sender, now)
            if newcomer and not self._leaving:
                effects += self._rumours.greet(sender)
        if isinstance(message, Ack):
            self._acked(sender, message.sequence, now, effects)
        elif isinstance(message, PingRequest):
            if member:
                self._relay(sender, message, effects)
        elif member or self.config.ack_strangers:
            rumours = self._rumours.to(sender, stale, filler=self.config.filler)
            effects.append(Send(sender, Ack(message.sequence, rumours)))
        return effects

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye to up to 64 members, who pass it on; afterwards only answer."""
        self._leaving = True
        own = self._roster.own = self._words.own(self._roster.own.incarnation, left=True)
        if not self.config.announce:
            return []
        return [Send(peer, Ping(0, (own,))) for peer in self._roster.sample_near(64)]

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._leaving:
            return effects
        self._mind_own_stall(now)
        for sequence, probe in self._probing.overdue(now):
            self._probe_overdue(sequence, probe, now, effects)
        for peer, suspicion in list(self._suspicions.items()):
            if suspicion.deadline <= now:
                self._bury(self._roster.as_known(peer, "dead"), now, effects)
            elif suspicion.next_ping <= now:
                suspicion.next_ping = now + self.config.accuse_period_s
                effects.append(self._rumours.tell(peer))
        if self._next_probe <= now:
            told = {peer for peer, each in self._suspicions.items() if each.next_ping != NEVER}  # and so pinged anyway
            target, due = self._roster.next_turn(told)
            self._next_probe = due if now < due < NEVER else now + self.config.period_s
            if target is not None and due <= now:
                self._probe(target, now, effects)
        if self._rumours.deadline() <= now:
            effects += self._rumours.gossip(now)
        if self._next_reconnect <= now:
            self._next_reconnect = now + self.config.reconnect_s
            self._revisit_the_gone(now, effects)
        return effects

    # --- probing --------------------------------------------------------------------------------------------------

    def _probe(self, target: PeerId, now: float, effects: list[Effect]) -> None:
        self._roster.had_turn(target, now)
        sequence = self._probing.start(target, now)
        effects.append(Send(target, Ping(sequence, self._rumours.to(target, filler=self.config.filler))))

    def _probe_overdue(self, sequence: int, probe: Probe, now: float, effects: list[Effect]) -> None:
        target = probe.target
        if probe.failed or target not in self._roster.members or target in self._roster.gone:
            self._probing.forget(sequence)
        elif probe.pings < self._probing.most_pings(len(self._roster.round)):
            helpers = self._roster.sample_helpers(self.config.helpers, target)
            self._probing.sent_again(probe, helpers, now)
            effects.append(Send(target, Ping(sequence, self._rumours.to(target))))
            for helper in helpers:
                effects.append(Send(helper, PingRequest(sequence, target, self._rumours.to(helper))))
        else:
            self._probing.fail(probe, now)
            if self._heard.get(target, -NEVER) < probe.sent:
                self._accuse(target, now, effects)

    def _acked(self, sender: PeerId, sequence: int, now: float, effects: list[Effect]) -> None:
        asked = self._probing.relayed(sender, sequence)
        if asked is not None:
            asker, theirs = asked
            effects.append(Send(asker, Ack(theirs, self._rumours.to(asker))))
            return
        if (target := self._probing.acked(sender, sequence, now)) is not None:
            self.heard_from(target, now)

    def _relay(self, asker: PeerId, request: PingRequest, effects: list[Effect]) -> None:
        target = request.target
        if target == self.own_id:
            effects.append(Send(asker, Ack(request.sequence, self._rumours.to(asker))))
        elif target in self._roster.members and self._roster.is_near(target):
            sequence = self._probing.relay(asker, request.sequence, target)
            effects.append(Send(target, Ping(sequence, self._rumours.to(target))))

    def _mind_own_stall(self, now: float) -> None:
        """Time in which we did not run counts against nobody; what arrived meanwhile needs a moment to be read."""
        late = now - self.next_deadline()
        if late <= self.config.stall_slack_s:
            return
        self._probing.lag()
        grace = late + self.ack_timeout_s()
        self._probing.put_off(grace)
        for suspicion in self._suspicions.values():
            suspicion.shift += grace
            self._set_deadline(suspicion)

    # --- suspicion ------------------------------------------------------------------------------------------------

    def _accuse(self, peer: PeerId, now: float, effects: list[Effect]) -> None:
        """We ourselves could not reach it: suspect it, say so, and ask it."""
        suspicion = self._suspicions.get(peer) or self._suspect(self._roster.members[peer], now, effects)
        suspicion.accusers.add(self.own_id)
        suspicion.next_ping = min(suspicion.next_ping, now)
        self._set_deadline(suspicion)
        self._rumours.spread(peer, now)

    def _suspect(self, as_of: Rumour, now: float, effects: list[Effect]) -> Suspicion:
        peer = as_of.peer
        expected = min(self.config.confirmations, len(self._roster.round) - 1)
        times = self._roster.forbearance.times(peer, now)
        floor = self._heard.get(peer, -NEVER) + times * self.suspicion_min_s()
        suspicion = self._suspicions[peer] = Suspicion(now, floor, expected, times)
        self._roster.members[peer] = dataclasses.replace(as_of, state="suspect")
        self._rumours.discard(peer)
        self._set_deadline(suspicion)
        effects.append(PeerSuspected(peer))
        return suspicion

    def _set_deadline(self, suspicion: Suspicion) -> None:
        suspicion.set_deadline(self.suspicion_min_s(), self.config.suspicion_stretch)

    def heard_from(self, peer: PeerId, now: float, *, is_turn: bool = True) -> None:
        """A sign of life. It does not end a suspicion (only the peer itself can, for all), but puts its end off.
        ``is_turn``: and its turn to be probed, as pings and acks do, which carry rumours."""
        if peer in self._roster.members and peer not in self._roster.gone:
            self._heard[peer] = now
            if is_turn:
                self._roster.had_turn(peer, now)
            suspicion = self._suspicions.get(peer)
            if suspicion is not None:
                suspicion.floor, suspicion.shift = now + suspicion.times * self.suspicion_min_s(), 0.0
                self._set_deadline(suspicion)

    # --- rumours --------------------------------------------------------------------------------------------------

    def _hear(self, sender: PeerId, rumour: Rumour, now: float, effects: list[Effect], stale: list[PeerId]) -> None:
        peer = rumour.peer
        if peer == self.own_id:
            self._hear_of_ourselves(rumour, now, effects)
            return
        member = self._roster.members.get(peer)
        if not self._words.is_believed(rumour, member):
            return
        if member is None:
            if rumour.state == "alive" and len(self._roster.members) < self.config.max_members:
                self._believe(rumour, now, effects)
        elif rumour.state == "alive":
            if rumour.incarnation > member.incarnation:
                self._believe(rumour, now, effects)
            elif member.state in ("dead", "left") or rumour.incarnation < member.incarnation:
                stale.append(peer)
        elif rumour.incarnation < member.incarnation:
            stale.append(peer)
        elif peer in self._roster.gone:
            return
        elif rumour.state == "left" or (rumour.state == "dead" and self._is_plausible(sender, peer, now)):
            self._bury(rumour, now, effects)
        else:  # accused, or called dead by one alone, or by one who has not heard what we heard
            newer = rumour.incarnation > member.incarnation
            self._hear_accusation(sender, rumour if newer else member, now, effects)

    def _hear_accusation(self, sender: PeerId, as_of: Rumour, now: float, effects: list[Effect]) -> None:
        peer = as_of.peer
        suspicion = self._suspicions.get(peer)
        if suspicion is None:
            suspicion = self._suspect(as_of, now, effects)
            if self._roster.is_verifier_of(peer, self.config.verifiers):
                self._probe(peer, now, effects)
        self._roster.members[peer] = dataclasses.replace(as_of, state="suspect")
        if len(suspicion.accusers) <= suspicion.expected:
            suspicion.accusers.add(sender)
        self._set_deadline(suspicion)

    def _is_plausible(self, sender: PeerId, peer: PeerId, now: float) -> bool:
        """That it is dead: somebody else, or we ourselves, accuse it, too, and we have not heard it lately."""
        if (suspicion := self._suspicions.get(peer)) is None or suspicion.accusers <= {sender}:
            return False
        return self._heard.get(peer, -NEVER) + suspicion.times * self.suspicion_min_s() <= now

    def _hear_of_ourselves(self, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        own = self._roster.own
        if self._leaving or rumour.incarnation < own.incarnation or not self._words.is_believed(rumour, own):
            return  # what is above our own incarnation has to be of an earlier life of ours
        if rumour.state == "alive" and rumour.incarnation == own.incarnation:
            return
        if rumour.state != "alive":
            self._probing.lag()
        own = self._roster.own = self._words.own(min(rumour.incarnation + 1, MAX_INCARNATION))
        self._rumours.spread(self.own_id, now)
        effects.append(Note("refuted", (("state", rumour.state), ("incarnation", own.incarnation))))

    def _believe(self, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        """``rumour`` says alive, and is news."""
        peer, member = rumour.peer, self._roster.members.get(rumour.peer)
        self._roster.members[peer] = rumour
        if member is None or peer in self._roster.gone:
            if not self._roster.round:
                self._next_probe = max(self._next_probe, now)  # slept for want of members, which is no stall
            self._roster.enter(peer, now, member)
            self._next_probe = min(self._next_probe, now + self.config.period_s)
            effects.append(PeerJoined(peer))
        elif self._suspicions.pop(peer, None) is not None:
            effects.append(PeerRefuted(peer))
        self._rumours.spread(peer, now)

    def _bury(self, rumour: Rumour, now: float, effects: list[Effect]) -> None:
        """``rumour`` says dead or left of someone who was in."""
        peer = rumour.peer
        self._suspicions.pop(peer, None)
        self._roster.members[peer] = rumour
        self._next_reconnect = self._next_reconnect if self._roster.gone else now + self.config.reconnect_s
        self._roster.exit(peer, now)
        self._heard.pop(peer, None)
        effects.append(PeerLeft(peer) if rumour.state == "left" else PeerFailed(peer))
        self._rumours.spread(peer, now)

    def _revisit_the_gone(self, now: float, effects: list[Effect]) -> None:
        for peer in [peer for peer, since in self._roster.gone.items() if since + self.config.remember_s <= now]:
            self._rumours.discard(peer)
            self._roster.forget(peer)
        dead = [peer for peer in self._roster.gone if self._roster.members[peer].state == "dead"]
        if dead:
            effects.append(self._rumours.tell(self._rng.choice(dead)))

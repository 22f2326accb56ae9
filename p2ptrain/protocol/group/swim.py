"""What membership says and how patient it is: its events, its tunables, and what a suspicion is.

Invariant: nothing here sends or decides by itself; ``membership`` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import Rumour


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Defaults are the LAN preset: in a group of 3 to 5, a killed peer is known by all within 3 s.

    The longest wait is about (time to the first probe, ``period_s * (n-1) / (n-1)`` on average) + (probe given up,
    ``pings_min * ack``) + (confirmed by probes of others, as long, inside the suspicion) + ``suspicion_min_s``
    (for some members times more: ``Forbearance``).
    """

    period_s: float = 0.15
    """Of the probes between a member and all others, either way, there is one every ``period_s`` on average."""
    ack_floor_s: float = 0.1
    ack_ceiling_s: float = 0.4
    """ack = clamp(mean + 4 * deviation of round trips, floor, ceiling) * (1 + health): Jacobson 1988."""
    health_max: int = 3
    """Health counts our own late timers and accusations of us, up to this; a probe that goes well takes one off."""
    stall_slack_s: float = 0.05
    """A timer later than this means that we stalled."""
    helpers: int = 3
    """Asked to ping for us, whenever a ping is sent again."""
    pings_min: int = 3
    pings_max: int = 12
    accused_per_s: float = 2.5
    """A probe sends so many pings, ``ack`` apart, that in the whole group no more than this many fail a second by loss
    alone, as far as those numbers allow: of n / 2 period_s probes each fails with lost^pings. (Helpers apart: with loss
    p one of their paths of four messages works with (1-p)^4.)"""
    suspicion_min_s: float = 1.4
    """Longest stall to forgive + time for a refutation through some loss; times max(1, log10 n)."""
    suspicion_stretch: float = 1.3
    """Suspicion starts with stretch * min and falls to min: max - (max-min) * log(c+1)/log(k+1), c accusers besides
    the first, of k = min(confirmations, n - 2) expected."""
    confirmations: int = 3
    verifiers: int = 8
    """Who hears an accusation checks it with probability verifiers / n: all do in a small group, few in a large."""
    accuse_period_s: float = 0.15
    """An accuser tells the suspect this often, so one that comes back has min / this chances to be heard."""
    gossip_s: float = 0.1
    fanout: int = 3
    retransmit: int = 2
    filler: int = 4
    """Random members repeated in each probe and ack, news or not."""
    all_near: int = 128
    """In a larger group than this only those are probed that there is a link to."""
    reconnect_s: float = 2.0
    """One random dead member is pinged this often, so that a healed partition is noticed."""
    remember_s: float = 600.0
    max_members: int = 16384
    ack_strangers: bool = True
    """Answer pings of who never said that it is a member (observers)."""
    announce: bool = True
    """False: watch only. Our own name is never spoken, so we become nobody's member."""


LAN = MembershipConfig()
WAN = MembershipConfig(period_s=1.0, ack_floor_s=0.5, ack_ceiling_s=3.0, suspicion_min_s=5.0, accuse_period_s=0.75)


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """New, or back from the dead."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    """May be dead, still counts as a member."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerRefuted:
    """Was suspected, and answered."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerFailed:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerLeft:
    peer: PeerId


Effect = Send | Note | PeerJoined | PeerSuspected | PeerRefuted | PeerFailed | PeerLeft


def suspicion_timeout(minimum_s: float, maximum_s: float, confirmations: int, expected: int) -> float:
    """Lifeguard's: ``maximum_s`` for a lone accuser, falling logarithmically to ``minimum_s`` at ``expected``."""
    if expected < 1:
        return minimum_s
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(minimum_s, maximum_s - (maximum_s - minimum_s) * share)


@dataclass(slots=True)
class Suspicion:
    """Of one peer, until it refutes or ``deadline`` passes."""

    started: float
    floor: float
    """Not dead before: there was a sign of life."""
    expected: int
    """Confirmations at which the timeout is shortest."""
    times: float = 1.0
    """As long as for others (``Forbearance``)."""
    accusers: set[PeerId] = field(default_factory=set)
    shift: float = 0.0
    """Time that does not count: we were not running."""
    next_ping: float = NEVER
    """When to tell the suspect again; NEVER until we ourselves accuse."""
    deadline: float = NEVER

    def set_deadline(self, minimum_s: float, stretch: float) -> None:
        confirmations, minimum_s = max(0, len(self.accusers) - 1), minimum_s * self.times
        timeout = suspicion_timeout(minimum_s, minimum_s * stretch, confirmations, self.expected)
        self.deadline = max(self.started + timeout, self.floor) + self.shift


MOST_TIMES, CALM_S, SOON_S = 8.0, 120.0, 15.0


class Forbearance:
    """How many times as long as others a member may be silent before it counts as dead.

    A process on a very weak device stands still for longer than is forgiven everybody, again and again. Each time that
    it was called dead and takes it back within ``SOON_S``, it is waited for twice as long, at most ``MOST_TIMES`` as
    long as others; each ``CALM_S`` without that halve it. (Who takes it back later was out of reach. Lifeguard widens a
    member's patience with all others while it is itself slow; this is patience with one that is.) It costs the time
    until this member's death is known, and no other's.
    """

    def __init__(self) -> None:
        self._known: dict[PeerId, tuple[float, float]] = {}
        """How many times, and since when."""

    def is_back(self, dead: Rumour, alive: Rumour, gone_s: float, now: float) -> None:
        """Who was told of as dead says that it is alive. (Who was started again begins its incarnations anew, as a
        rule; where not, it is waited for longer, no more.)"""
        if dead.state == "dead" and alive.incarnation == dead.incarnation + 1 and gone_s <= SOON_S:
            self._known[alive.peer] = min(MOST_TIMES, 2 * self.times(alive.peer, now)), now

    def times(self, peer: PeerId, now: float) -> float:
        times, since = self._known.get(peer, (1.0, now))
        return max(1.0, math.ldexp(times, -int((now - since) // CALM_S)))

    def forget(self, peer: PeerId) -> None:
        self._known.pop(peer, None)

"""Pings that wait for their acks, the own ones and those sent for others, and how patient this peer is with them.

Invariant: an ack counts only from whom it was asked of, and once; what is sent for others is bounded.

    sent --ack_timeout--> sent again, and others asked to ping too --ack_timeout--> sent again ... --> failed
    any --ack of the target or of a helper--> answered            failed --a while--> forgotten

How often a ping is sent again follows from how many get lost, as far as answered ones show it, and from the size of
the group: as often as it takes for ``accused_per_s`` accusations of the living in the whole group. Every accusation is
news to all, and so is its refutation: where there is more of them than messages have room for, refutations come too
late. In a small group three pings are enough, and its members hear of a death the sooner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.swim import MembershipConfig
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.round_trip import RoundTrip

_MAX_RELAYS = 256
_LATE_ACK_S = 2.0
_REMEMBERED = 31 / 32
"""Of how many pings got lost, from one answered probe to the next."""


@dataclass(slots=True)
class Probe:
    """A ping that waits for its ack."""

    target: PeerId
    sent: float
    deadline: float
    pings: int = 1
    """Sent so far."""
    helpers: frozenset[PeerId] = frozenset()
    """Who was asked to ping, too."""
    failed: bool = False


class Probing:
    """``health``: 0 when we ourselves keep up; the higher, the longer we wait."""

    def __init__(self, config: MembershipConfig) -> None:
        self.health = 0
        self._config = config
        self._sequence = 0
        self._round_trip = RoundTrip()
        self._num_pings, self._num_lost = 0.0, 0.0
        """Of late, of probes that were answered."""
        self._probes: dict[int, Probe] = {}
        self._relays: dict[int, tuple[PeerId, int, PeerId]] = {}
        """By our sequence: who asked, under which sequence of its own, and whom it asked for."""

    def ack_timeout_s(self) -> float:
        floor_s, ceiling_s = self._config.ack_floor_s, self._config.ack_ceiling_s
        return self._round_trip.timeout_s(floor_s, ceiling_s, first_s=2 * floor_s) * (1 + self.health)

    def deadline(self) -> float:
        deadline = NEVER
        for probe in self._probes.values():
            if probe.deadline < deadline:
                deadline = probe.deadline
        return deadline

    def start(self, target: PeerId, now: float) -> int:
        """The sequence of a new ping."""
        self._sequence += 1
        self._probes[self._sequence] = Probe(target, now, now + self.ack_timeout_s())
        return self._sequence

    def overdue(self, now: float) -> list[tuple[int, Probe]]:
        return [(sequence, probe) for sequence, probe in self._probes.items() if probe.deadline <= now]

    def most_pings(self, num_members: int) -> int:
        """Of one probe, in a group of so many."""
        config, lost = self._config, (self._num_lost + 0.5) / (self._num_pings + 5)
        missed = min(0.5, 2 * config.accused_per_s * config.period_s / max(1, num_members))
        wanted = math.ceil(math.log(missed) / math.log(min(lost, 0.9)))
        return min(config.pings_max, max(config.pings_min, wanted))

    def sent_again(self, probe: Probe, helpers: Iterable[PeerId], now: float) -> None:
        probe.helpers |= frozenset(helpers)
        probe.pings += 1
        probe.deadline = now + self.ack_timeout_s()

    def fail(self, probe: Probe, now: float) -> None:
        """Nobody answered. It is kept a little, to learn from a late ack how slow acks are."""
        probe.failed = True
        probe.deadline = now + _LATE_ACK_S

    def forget(self, sequence: int) -> None:
        del self._probes[sequence]

    def forget_target(self, target: PeerId) -> None:
        """It is not ours to probe any more."""
        self._probes = {sequence: probe for sequence, probe in self._probes.items() if probe.target != target}

    def acked(self, sender: PeerId, sequence: int, now: float) -> PeerId | None:
        """Whom an ack shows to be alive."""
        probe = self._probes.get(sequence)
        if probe is None:
            return None
        if sender == probe.target:
            self._round_trip.add(now - probe.sent)
        elif sender not in probe.helpers:
            return None
        self._num_pings = _REMEMBERED * self._num_pings + probe.pings
        self._num_lost = _REMEMBERED * self._num_lost + probe.pings - (sender == probe.target)
        del self._probes[sequence]
        if not probe.failed:
            self.health = max(0, self.health - 1)
        return probe.target

    def relay(self, asker: PeerId, sequence: int, target: PeerId) -> int:
        """The sequence of a ping that is sent for ``asker``."""
        while len(self._relays) >= _MAX_RELAYS:
            del self._relays[next(iter(self._relays))]
        self._sequence += 1
        self._relays[self._sequence] = (asker, sequence, target)
        return self._sequence

    def relayed(self, sender: PeerId, sequence: int) -> tuple[PeerId, int] | None:
        """Who waits for this ack, and under which sequence of its own."""
        relay = self._relays.get(sequence)
        if relay is None or sender != relay[2]:
            return None
        del self._relays[sequence]
        return relay[:2]

    def lag(self) -> None:
        """We ourselves are late, or seem dead to others."""
        self.health = min(self._config.health_max, self.health + 1)

    def put_off(self, grace_s: float) -> None:
        """Time that does not count."""
        for probe in self._probes.values():
            probe.deadline += grace_s

"""How a group of any size learns of a death, in virtual time: SWIM as this project has it, and all-to-all heartbeats.

Every peer is a ``Membership`` machine that knows all others from the start, over the simulated network. Not simulated:
sessions (a link from each to each is taken for granted, or with ``is_large`` those that peers of a large group keep),
records, training, and processes that stall.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections import Counter
from functools import partial
from typing import Any

from benchmarks.virtual import NUM_WATCHED, Meter, frame_bytes
from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.swim import LAN, PeerFailed, PeerSuspected
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.protocol.signing import Statements
from p2ptrain.runtime.peer.neighbours import Rings
from p2ptrain.simulation.names import key, peer_ids
from p2ptrain.simulation.network import WIRELESS, Conditions, MachineHost, SimulatedNetwork
from p2ptrain.simulation.signing import SIZED
from p2ptrain.wire.messages import Message, Ping

GIVE_UP_S = 60.0


def _out(effects: list[object], meter: Meter | None, links: frozenset[PeerId] | None) -> list[object]:
    """What is sent to anyone but the ``links`` gets lost, as without a session."""
    if links is not None:
        effects = [e for e in effects if not isinstance(e, Send) or e.to in links]
    return effects if meter is None else meter.counted(effects)


def _wireless(loss: float | None) -> Conditions:
    return WIRELESS if loss is None else dataclasses.replace(WIRELESS, loss=loss)


def detect_death(
    num_peers: int,
    seed: int,
    *,
    is_large: bool = False,
    loss: float | None = None,
    warm_s: float = 2.0,
    window_s: float = 2.0,
) -> dict[str, float]:
    """Steady traffic, then one crash: when did all members know, and who was called dead without being it?

    ``loss``: the share of messages that is lost, if not as on a busy wireless LAN.
    """
    rng = random.Random(f"{seed}/{num_peers}")
    told: dict[PeerId, float] = {}
    num_wrong = num_suspected = 0
    victim = PeerId("")

    def learn(who: PeerId, effect: object, now: float) -> None:
        nonlocal num_wrong, num_suspected
        num_suspected += isinstance(effect, PeerSuspected) and meter.running
        if isinstance(effect, PeerFailed):
            if effect.peer == victim:
                told.setdefault(who, now)
            else:
                num_wrong += 1

    network = SimulatedNetwork(seed, _wireless(loss), on_effect=learn)
    everyone = peer_ids(num_peers)
    key_of = {peer: key(number) for number, peer in enumerate(everyone)}
    links = _links(everyone) if is_large else None
    meter = Meter()
    watched = set(rng.sample(range(1, num_peers), min(NUM_WATCHED, num_peers - 1)))
    for number, peer in enumerate(everyone):
        linked = links[peer] if links is not None else None
        machine = _member(peer, random.Random(f"{seed}/{number}"), everyone, key_of, linked)
        if links is not None:
            machine.knows_neighbours(links.__getitem__)
        out = partial(_out, meter=meter if number in watched else None, links=linked)
        network.add(peer, MachineHost(machine, out))
    network.run(warm_s)
    meter.running = True
    network.run(warm_s + window_s)
    meter.running = False
    steady, suspected_per_s = meter.num_bytes / len(watched) / window_s, num_suspected / window_s
    victim, killed_at = everyone[0], network.now
    network.crash(victim)
    meter.num_bytes, meter.running = 0, True
    all_know = network.run(killed_at + GIVE_UP_S, lambda: len(told) == num_peers - 1)
    spreading_s = network.now - killed_at
    after = sorted(when - killed_at for when in told.values())
    return {
        "peers": num_peers,
        "bytes_per_s": steady,
        "bytes_per_s_after_death": meter.num_bytes / len(watched) / spreading_s,
        "called_dead_wrongly": num_wrong,
        "suspected_per_s": suspected_per_s,
        "told_share": len(told) / (num_peers - 1),
    } | ({"death_known_s": after[-1], "death_known_median_s": statistics.median(after)} if all_know else {})


def _links(everyone: list[PeerId]) -> dict[PeerId, frozenset[PeerId]]:
    """As peers of a large group keep them."""
    rings = Rings(everyone)
    return {peer: rings.neighbours(peer) for peer in everyone}


def _member(
    peer: PeerId,
    rng: random.Random,
    everyone: list[PeerId],
    key_of: dict[PeerId, bytes],
    linked: frozenset[PeerId] | None,
) -> Membership:
    known: dict[str, Any] = {"members": everyone, "linked": linked, "key_of": key_of.get}
    return Membership(peer, rng, 0.0, LAN, statements=Statements(SIZED, b""), refused=Counter(), **known)


def lose_many(
    num_peers: int, seed: int, *, share: float, warm_s: float = 2.0, within_s: float = 60.0
) -> dict[str, float]:
    """That share of the peers crashes at once: when do all the others know it of all of them, and of nobody else?

    The links that are left are all that there is: nobody makes new ones, as a real peer would.
    """
    rng = random.Random(f"{seed}/{num_peers}/many")
    everyone = peer_ids(num_peers)
    gone = set(rng.sample(everyone, round(share * num_peers)))
    told: dict[PeerId, set[PeerId]] = {peer: set() for peer in everyone if peer not in gone}
    num_wrong = 0

    def learn(who: PeerId, effect: object, now: float) -> None:
        nonlocal num_wrong
        if isinstance(effect, PeerFailed):
            num_wrong += effect.peer not in gone
            if who in told:
                told[who].add(effect.peer)

    network = SimulatedNetwork(seed, WIRELESS, on_effect=learn)
    key_of = {peer: key(number) for number, peer in enumerate(everyone)}
    links = _links(everyone)
    for number, peer in enumerate(everyone):
        machine = _member(peer, random.Random(f"{seed}/{number}"), everyone, key_of, links[peer])
        machine.knows_neighbours(links.__getitem__)
        network.add(peer, MachineHost(machine, partial(_out, meter=None, links=links[peer])))
    network.run(warm_s)
    for peer in sorted(gone):
        network.crash(peer)
    all_know = network.run(warm_s + within_s, lambda: all(gone <= its for its in told.values()))
    share_told = sum(len(its & gone) for its in told.values()) / (len(told) * len(gone))
    figures = {"peers": num_peers, "called_dead_wrongly": num_wrong, "told_share": share_told}
    return figures | ({"death_known_s": network.now - warm_s} if all_know else {})


class _Heartbeats:
    """The naive detector: tell everyone every ``period_s``; silent for ``patience_s`` is dead."""

    def __init__(self, others: list[PeerId], period_s: float, patience_s: float, rng: random.Random) -> None:
        self._others = others
        self._period_s = period_s
        self._patience_s = patience_s
        self._next = rng.random() * period_s
        self._expected: dict[PeerId, float] = {}
        self.sent = 0

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        self._expected[sender] = now + self._patience_s
        return []

    def tick(self, now: float) -> list[object]:
        dead = [peer for peer, until in self._expected.items() if until <= now]
        for peer in dead:
            del self._expected[peer]
        effects: list[object] = [PeerFailed(peer) for peer in dead]
        if self._next <= now:
            self._next = now + self._period_s
            self.sent += len(self._others)
            effects += [Send(peer, Ping(0, ())) for peer in self._others]
        return effects

    def next_deadline(self) -> float:
        return min(self._next if self._others else NEVER, min(self._expected.values(), default=NEVER))


def detect_death_by_heartbeats(
    num_peers: int, seed: int, *, everyone_sends: bool, window_s: float = 2.0
) -> dict[str, float]:
    """The baseline: SWIM's period, and the least silence after which SWIM would call a peer dead.

    Without ``everyone_sends`` only the victim's heartbeats travel: the others' do not change when its death is seen,
    and would be ``num_peers * (num_peers - 1) / period_s`` messages a second. Bytes follow from the schedule.
    """
    patience_s = LAN.suspicion_min_s * max(1.0, math.log10(num_peers))
    told: dict[PeerId, float] = {}
    everyone = peer_ids(num_peers)
    victim = everyone[0]
    num_wrong = 0

    def learn(who: PeerId, effect: object, now: float) -> None:
        nonlocal num_wrong
        if isinstance(effect, PeerFailed):
            told.setdefault(who, now)
            num_wrong += effect.peer != victim or now < killed_at

    killed_at = NEVER
    network = SimulatedNetwork(seed, WIRELESS, on_effect=learn)
    for number, peer in enumerate(everyone):
        others = [other for other in everyone if other != peer] if everyone_sends or number == 0 else []
        network.add(peer, _Heartbeats(others, LAN.period_s, patience_s, random.Random(f"{seed}/{number}")))
    network.run(window_s)
    killed_at = network.now
    network.crash(victim)
    network.run(killed_at + GIVE_UP_S, lambda: len(told) == num_peers - 1)
    after = sorted(when - killed_at for when in told.values())
    return {
        "peers": num_peers,
        "bytes_per_s": (num_peers - 1) / LAN.period_s * frame_bytes(Ping(0, ())),
        "called_dead_wrongly": num_wrong,
        "death_known_s": after[-1],
        "death_known_median_s": statistics.median(after),
    }

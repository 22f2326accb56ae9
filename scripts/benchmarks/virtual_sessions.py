"""How many of a group's members each gets a link to, in virtual time: the handshakes of this project's sessions.

Every peer is a ``Sessions`` machine over links that behave like TCP. They come one after another, and each that comes
hears of the addresses of all that are there, and they of its (as from mDNS and records). Every frame goes through the
codec. Not simulated: everything that a session is for.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence

from p2ptrain.protocol.session.sessions import Sessions
from p2ptrain.simulation.network import WIRELESS
from p2ptrain.simulation.world import FrameHost, World
from p2ptrain.wire.messages import Lane

ARRIVAL_S = 0.05
"""Between two peers' starts."""
PROOF_KEY = bytes(32)
CONDITIONS = dataclasses.replace(WIRELESS, loss=0.0)
"""TCP repairs what is lost."""


class _Host(FrameHost):
    """A session machine alone."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__(number)
        self.machine = Sessions(self.key, PROOF_KEY, (self.address,), 40001, random.Random(f"{seed}/{number}"), "-")

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[bytes], now: float) -> list[object]:
        return list(self.machine.frames_received(lane, sender_key, frames, now)[1])

    def tick(self, now: float) -> list[object]:
        return list(self.machine.tick(now))

    def next_deadline(self) -> float:
        return self.machine.next_deadline()


def link_up(num_peers: int, seed: int, *, settle_s: float = 20.0) -> dict[str, float]:
    """Links of each, ``settle_s`` after the last one came."""
    world = World(seed, CONDITIONS)
    hosts: list[_Host] = []

    def arrive(number: int) -> None:
        host, now = _Host(number, seed), world.network.now
        world.place(host)
        world.network.add(host.id, host)
        for other in hosts:
            world.perform(host, host.machine.propose(other.address, now, peer=other.id))
            world.perform(other, other.machine.propose(host.address, now, peer=host.id))
        hosts.append(host)

    for number in range(num_peers):
        world.network.at(number * ARRIVAL_S, lambda number=number: arrive(number))  # type: ignore[misc]
    world.network.run(num_peers * ARRIVAL_S + settle_s)
    links = [len(host.machine.peers()) for host in hosts]
    return {"peers": num_peers, "links_median": statistics.median(links), "links_fewest": min(links)}

"""How many of a group's members each gets a link to, in virtual time: the handshakes of this project's sessions.

Every peer is a ``Sessions`` machine over links that behave like TCP. They come one after another, and each that comes
hears of the addresses of all that are there, and they of its (as from mDNS and records). Every frame goes through the
codec. Not simulated: everything that a session is for.
"""

from __future__ import annotations

import random
import statistics

from benchmarks.virtual import WIRELESS, key
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.net.simulated import SimulatedNetwork
from p2ptrain.protocol.session.sessions import SendFrames, Sessions
from p2ptrain.wire.messages import Message

ARRIVAL_S = 0.05
"""Between two peers' starts."""
PROOF_KEY = bytes(32)


class _Host:
    """The clock's side of a session machine; frames come by ``_Room.send``."""

    def __init__(self, machine: Sessions) -> None:
        self.machine = machine
        self.next_deadline = machine.next_deadline

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        raise NotImplementedError

    def tick(self, now: float) -> list[object]:
        return list(self.machine.tick(now))


def _address(number: int) -> str:
    return f"tcp://10.0.{number // 250}.{number % 250 + 1}:40000"


def link_up(num_peers: int, seed: int, *, settle_s: float = 20.0) -> dict[str, float]:
    """Links of each, ``settle_s`` after the last one came."""
    rng = random.Random(f"{seed}/{num_peers}/sessions")
    numbers = {peer_id(key(number)): number for number in range(num_peers)}
    names = list(numbers)
    at = {_address(number): peer for peer, number in numbers.items()}
    hosts: dict[PeerId, _Host] = {}

    def carry_out(who: PeerId, effect: object, now: float) -> None:
        if isinstance(effect, SendFrames) and (to := at[effect.address]) in hosts:
            wait = WIRELESS.delay_s + WIRELESS.jitter_s * rng.random()
            network.at(now + wait, lambda: deliver(who, to, effect))

    def deliver(sender: PeerId, to: PeerId, sent: SendFrames) -> None:
        _, effects = hosts[to].machine.frames_received(sent.lane, key(numbers[sender]), sent.frames, network.now)
        network.perform(to, effects)

    def arrive(number: int) -> None:
        peer, now, here = names[number], network.now, list(hosts)
        machine = Sessions(key(number), PROOF_KEY, (_address(number),), 40001, random.Random(f"{seed}/{number}"), "-")
        hosts[peer] = _Host(machine)
        network.add(peer, hosts[peer])
        for other in here:
            network.perform(peer, machine.propose(_address(numbers[other]), now, peer=other))
            network.perform(other, hosts[other].machine.propose(_address(number), now, peer=peer))

    network = SimulatedNetwork(seed, on_effect=carry_out)
    for number in range(num_peers):
        network.at(number * ARRIVAL_S, lambda number=number: arrive(number))  # type: ignore[misc]
    network.run(num_peers * ARRIVAL_S + settle_s)
    links = [len(host.machine.peers()) for host in hosts.values()]
    return {"peers": num_peers, "links_median": statistics.median(links), "links_fewest": min(links)}

"""Groups in which a peer has links to few of the others: who is out of reach is not dead, and who is dead is known."""

from __future__ import annotations

import random

import pytest
from records import membership
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.swim import LAN, PeerFailed, PeerSuspected
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import WIRELESS, MachineHost, SimulatedNetwork

NUM_PEERS = 200


def sparse(seed: int, num_links: int, told: dict[PeerId, set[PeerId]]) -> SimulatedNetwork:
    """All know each other, and what is sent to anyone but the own links gets lost."""
    rng, everyone = random.Random(seed), peer_ids(NUM_PEERS)
    chords = rng.sample(range(1, NUM_PEERS // 2), num_links // 2)

    def learn(who: PeerId, effect: object, now: float) -> None:
        if isinstance(effect, PeerFailed):
            told.setdefault(effect.peer, set()).add(who)

    network = SimulatedNetwork(seed, WIRELESS, on_effect=learn)
    for number, peer in enumerate(everyone):
        linked = frozenset(everyone[(number + sign * chord) % NUM_PEERS] for chord in chords for sign in (1, -1))
        machine = membership(peer, random.Random(f"{seed}/{number}"), 0.0, LAN, members=everyone, linked=linked)

        def out(effects: list[object], linked: frozenset[PeerId] = linked) -> list[object]:
            return [effect for effect in effects if not isinstance(effect, Send) or effect.to in linked]

        network.add(peer, MachineHost(machine, out))
    return network


@pytest.mark.parametrize("seed", seeds(1))
def test_one_death_among_200_with_16_links_each_is_known_and_no_other(seed: int) -> None:
    told: dict[PeerId, set[PeerId]] = {}
    network = sparse(seed, 16, told)
    network.run(4.0)
    assert not told
    victim = peer_ids(NUM_PEERS)[7]
    network.crash(victim)
    network.run(24.0, lambda: len(told.get(victim, ())) == NUM_PEERS - 1)
    assert told.keys() == {victim} and len(told[victim]) == NUM_PEERS - 1


def lone(num_members: int, num_linked: int) -> tuple[Membership, list[PeerId]]:
    own, *others = peer_ids(num_members + 1)
    return membership(own, random.Random(1), 0.0, LAN, members=others, linked=others[:num_linked]), others[:num_linked]


def probed(machine: Membership, until: float) -> set[PeerId]:
    found: set[PeerId] = set()
    while (now := machine.next_deadline()) <= until and now != NEVER:
        effects = machine.tick(now)
        found |= {effect.to for effect in effects if isinstance(effect, Send)}
        assert not [e for e in effects if isinstance(e, PeerSuspected) and e.peer not in found]
    return found


def test_in_a_large_group_only_those_are_probed_asked_and_told_that_there_is_a_link_to() -> None:
    machine, linked = lone(LAN.all_near + 1, 5)
    assert probed(machine, 4.0) == set(linked)


def test_in_a_small_group_all_are_as_others_may_have_a_link() -> None:
    machine, linked = lone(12, 2)
    assert probed(machine, 4.0) > set(linked)


def test_who_speaks_to_us_is_linked() -> None:
    machine, _ = lone(LAN.all_near + 1, 0)
    assert probed(machine, 2.0) == set()
    newly = peer_ids(LAN.all_near + 2)[9]
    machine.peer_reachable(newly, 2.0)
    assert probed(machine, 4.0) == {newly}

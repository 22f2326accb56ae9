"""Groups in which a peer has links to few of the others: who is out of reach is not dead, and who is dead is known."""

from __future__ import annotations

import dataclasses
import random

import pytest
from records import membership
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.swim import LAN, PeerFailed, PeerSuspected
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.runtime.peer.neighbours import Rings
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import WIRELESS, MachineHost, SimulatedNetwork
from p2ptrain.wire.messages import PingRequest

NUM_PEERS = 150


def sparse(seed: int, told: dict[PeerId, set[PeerId]], loss: float) -> SimulatedNetwork:
    """All know each other, and what is sent to anyone but the own neighbours gets lost."""
    everyone = peer_ids(NUM_PEERS)
    links = {peer: Rings(everyone).neighbours(peer) for peer in everyone}

    def learn(who: PeerId, effect: object, now: float) -> None:
        if isinstance(effect, PeerFailed):
            told.setdefault(effect.peer, set()).add(who)

    network = SimulatedNetwork(seed, dataclasses.replace(WIRELESS, loss=loss), on_effect=learn)
    for number, peer in enumerate(everyone):
        linked = links[peer]
        machine = membership(peer, random.Random(f"{seed}/{number}"), 0.0, LAN, members=everyone, linked=linked)
        machine.knows_neighbours(links.__getitem__)

        def out(effects: list[object], linked: frozenset[PeerId] = linked) -> list[object]:
            return [effect for effect in effects if not isinstance(effect, Send) or effect.to in linked]

        network.add(peer, MachineHost(machine, out))
    return network


@pytest.mark.parametrize("loss", [0.01, 0.3])
@pytest.mark.parametrize("seed", seeds(1))
def test_one_death_among_150_that_see_their_neighbours_only_is_known_and_no_other(seed: int, loss: float) -> None:
    told: dict[PeerId, set[PeerId]] = {}
    network = sparse(seed, told, loss)
    network.run(2.0)
    assert not told
    victim = peer_ids(NUM_PEERS)[7]
    network.crash(victim)
    network.run(32.0, lambda: len(told.get(victim, ())) == NUM_PEERS - 1)
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


def test_who_has_no_link_any_more_is_not_probed_and_not_suspected() -> None:
    machine, linked = lone(LAN.all_near + 1, 5)
    ticks = iter(lambda: machine.tick(machine.next_deadline()), None)
    first = next(e.to for effects in ticks for e in effects if isinstance(e, Send))
    machine.link_closed(first)
    assert probed(machine, 4.0) == set(linked) - {first}
    assert machine.state(first) == "alive"


def test_of_a_large_group_those_help_who_have_a_link_to_the_target() -> None:
    machine, linked = lone(LAN.all_near + 1, 20)
    machine.knows_neighbours(lambda peer: linked[:2])
    sends = [e for _ in range(40) for e in machine.tick(machine.next_deadline()) if isinstance(e, Send)]
    helpers = {e.to for e in sends if isinstance(e.message, PingRequest)}
    assert helpers == set(linked[:2])


def test_who_speaks_to_us_is_linked() -> None:
    machine, _ = lone(LAN.all_near + 1, 0)
    assert probed(machine, 2.0) == set()
    newly = peer_ids(LAN.all_near + 2)[9]
    machine.peer_reachable(newly, 2.0)
    assert probed(machine, 4.0) == {newly}

"""What a peer says when nothing happens, and while all train: as little as it can, and no news is later for it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from peer_group import Room, job
from records import book, record
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.records import RecordBook, RecordConfig
from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import LAN, MachineHost, SimulatedNetwork
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Records

WINDOW_S = 10.0
SOON_S = RecordConfig().soon_s


class CountingRoom(Room):
    """Counts the messages by kind; what each peer sends in all, which grows all the time, it says as a node does."""

    def __init__(self, num_peers: int, **options: Any) -> None:
        super().__init__(1)
        self.kinds: Counter[str] = Counter()
        for number in range(num_peers):
            self.add(number, **options)
        for device in self.devices.values():
            self.tell_traffic(device.number)

    def tell_traffic(self, number: int) -> None:
        device, network = self.devices[number], self.network
        self.perform(device, device.core.tell(device.now, bytes_sent=sum(device.core.sent.values())))
        network.at_host(device.id, network.now + 1.0, lambda: self.tell_traffic(number))

    def send(self, who: PeerId, effect: SendFrames) -> None:
        self.kinds[codec.decode(effect.frames, effect.lane)[0].kind] += 1
        super().send(who, effect)

    def per_second(self) -> dict[str, float]:
        """Of each kind, what a peer sends in a second from now on."""
        self.kinds.clear()
        self.run(WINDOW_S)
        return {kind: count / WINDOW_S / len(self.devices) for kind, count in self.kinds.items()}


@pytest.mark.parametrize("num_peers", [2, 4, 8])
def test_when_nothing_happens_peers_only_see_that_the_others_live_and_compare_notes(num_peers: int) -> None:
    room = CountingRoom(num_peers)
    room.run(5.0)
    said = room.per_second()
    print(num_peers, said)
    assert said["ping"] <= 4.4 and said["ack"] <= 4.4, "of two that ask each other one is spared the question"
    assert 0.8 <= said["record-digest"] <= 1.3
    assert said.pop("record-changes", 0.0) <= 0.3, "how much each sends in all is nobody's news"
    assert said.keys() == {"ping", "ack", "record-digest"}


def test_while_all_have_news_all_the_time_nobody_compares_notes_oftener() -> None:
    room = CountingRoom(4, job=job(rounds=1000), round_s=1.0)
    room.run(6.0)
    said = room.per_second()
    print(said)
    assert said["record-digest"] <= 2.0
    assert said["records"] <= 9.0, "all that a round brings is told to each in some three messages"
    assert said["ping"] <= 4.0


def group(seed: int, num_peers: int, *, unlinked: int = 0) -> tuple[SimulatedNetwork, dict[PeerId, RecordBook]]:
    """Books that know each other; the first ``unlinked`` have no links among each other."""
    everyone = peer_ids(num_peers)
    network = SimulatedNetwork(seed, LAN)
    books = {peer: book(record(n), random.Random(f"{seed}/{n}")) for n, peer in enumerate(everyone)}
    for peer, own in books.items():
        own.received(peer, Records(tuple(each.own for each in books.values() if each is not own)), 0.0)
        beyond = set(everyone[:unlinked]) if peer in everyone[:unlinked] else {peer}
        own.linked = lambda beyond=beyond: [each for each in everyone if each not in beyond]  # type: ignore[misc]
        own.peers_alive(everyone, 0.0)
        network.add(peer, MachineHost(own))
    network.run(2.0)
    return network, books


def seconds_until_all_know(seed: int, num_peers: int, *, unlinked: int = 0) -> float:
    """Of news of the first, while all have some."""
    network, books = group(seed, num_peers, unlinked=unlinked)
    rng, (first, *_) = random.Random(seed), peer_ids(num_peers)
    until = network.now + 1.0 + rng.random()
    while network.now < until:
        peer = rng.choice(list(books))
        network.perform(peer, books[peer].update(network.now, round=books[peer].own.round + 1))
        network.run(min(until, network.now + rng.expovariate(2 * num_peers)))
    told_at = network.now
    network.perform(first, books[first].update(told_at, vote="a plan"))

    def all_know() -> bool:
        return all((known := each.get(first)) is not None and known.vote == "a plan" for each in books.values())

    assert network.run(told_at + 10.0, all_know, every_s=0.005), f"P2PTRAIN_SEED={seed}"
    return network.now - told_at


@pytest.mark.parametrize("num_peers", [3, 8])
def test_news_is_known_to_all_as_soon_as_its_owner_may_say_it(num_peers: int) -> None:
    waits = [seconds_until_all_know(seed, num_peers) for seed in seeds(5)]
    assert max(waits) <= SOON_S + 0.02


def test_who_has_no_link_to_a_member_hears_its_news_from_the_others_nearly_as_soon() -> None:
    waits = [seconds_until_all_know(seed, 4, unlinked=2) for seed in seeds(10)]
    print(sorted(waits))
    assert max(waits) <= 4 * SOON_S, "at worst it asks one in vain"

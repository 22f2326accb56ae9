"""Small groups on a LAN: a killed peer is known within 3 s, and nobody who lives is called dead."""

from __future__ import annotations

import random
import statistics

import pytest
from records import membership
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.swim import PeerFailed, PeerSuspected
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import Conditions, MachineHost, SimulatedNetwork

Log = list[tuple[float, PeerId, object]]


def group(seed: int, count: int, conditions: Conditions) -> tuple[SimulatedNetwork, list[PeerId], Log]:
    log: Log = []

    def on_effect(who: PeerId, effect: object, now: float) -> None:
        log.append((now, who, effect))

    network = SimulatedNetwork(seed, conditions, on_effect=on_effect)
    everyone = peer_ids(count)
    for number, peer in enumerate(everyone):
        rng = random.Random(f"{seed}/{number}")
        network.add(peer, MachineHost(membership(peer, rng, 0.0, members=everyone)))
    return network, everyone, log


def seconds_until_all_know(seed: int, count: int, conditions: Conditions) -> float:
    network, everyone, log = group(seed, count, conditions)
    killed_at = 2.0 + random.Random(seed).random()
    network.run(killed_at)
    network.crash(everyone[0])
    network.run(killed_at + 4.0)
    told = {who: now for now, who, event in log if isinstance(event, PeerFailed) and event.peer == everyone[0]}
    wrong = [event for _, _, event in log if isinstance(event, PeerFailed) and event.peer != everyone[0]]
    assert set(told) == set(everyone[1:]), f"P2PTRAIN_SEED={seed}: only {len(told)} of {count - 1} know"
    assert not wrong, f"P2PTRAIN_SEED={seed}: {wrong}"
    return max(told.values()) - killed_at


@pytest.mark.parametrize(("count", "num_seeds"), [(3, 50), (4, 200), (5, 50)])
def test_every_survivor_knows_of_a_kill_within_3_s(count: int, num_seeds: int) -> None:
    waits = {seed: seconds_until_all_know(seed, count, Conditions()) for seed in seeds(num_seeds)}
    worst = max(waits, key=waits.__getitem__)
    print(f"{count} peers: the last knows after {statistics.median(waits.values()):.2f} s, at worst {waits[worst]:.2f}")
    assert waits[worst] < 3.0, f"P2PTRAIN_SEED={worst}: {waits[worst]:.2f} s"
    assert statistics.median(waits.values()) < 2.0


def test_a_kill_is_known_soon_even_when_a_fifth_of_the_messages_is_lost() -> None:
    waits = {seed: seconds_until_all_know(seed, 4, Conditions(loss=0.2)) for seed in seeds(100)}
    worst = max(waits, key=waits.__getitem__)
    print(f"20 % loss: the last knows after {statistics.median(waits.values()):.2f} s, at worst {waits[worst]:.2f}")
    assert statistics.median(waits.values()) < 2.5
    assert waits[worst] < 3.5, f"P2PTRAIN_SEED={worst}: {waits[worst]:.2f} s"


def test_no_false_death_when_processes_stall_and_messages_are_lost() -> None:
    num_stalls = num_suspected = 0
    for seed in seeds(200):
        network, everyone, log = group(seed, 4, Conditions(loss=0.2, duplication=0.05))
        rng = random.Random(seed)
        for start in (1.0, 3.5, 6.0):
            victim = rng.choice(everyone)
            network.at(start + rng.random(), lambda network=network, victim=victim: network.stall(victim, 1.0))
            num_stalls += 1
        network.run(9.0)
        deaths = [(round(now, 2), who, event) for now, who, event in log if isinstance(event, PeerFailed)]
        num_suspected += sum(isinstance(event, PeerSuspected) for _, _, event in log)
        assert not deaths, f"P2PTRAIN_SEED={seed}: {deaths}"
    print(f"{num_stalls} stalls of 1 s, 20 % loss: {num_suspected} suspicions, no false death")


def test_all_stalling_at_once_blame_nobody() -> None:
    """A laptop's lid closes over the whole lab."""
    for seed in seeds(20):
        network, everyone, log = group(seed, 4, Conditions())
        network.run(2.0)
        for peer in everyone:
            network.stall(peer, 30.0)
        network.run(40.0)
        assert not [event for _, _, event in log if isinstance(event, PeerFailed)], f"P2PTRAIN_SEED={seed}"

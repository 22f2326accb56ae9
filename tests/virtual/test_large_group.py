"""Two hundred peers on a bad network: joins and deaths, consensus of gossip, a partition that heals, records."""

from __future__ import annotations

import dataclasses

import pytest
from seeds import seeds
from virtual_group import Group

from p2ptrain.protocol.group.swim import LAN, WAN, PeerFailed, PeerJoined
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import Conditions

BAD = Conditions(delay_s=0.002, jitter_s=0.02, loss=0.2, duplication=0.05)
CALM = dataclasses.replace(LAN, period_s=0.5)


@pytest.mark.parametrize("seed", seeds(2))
def test_200_peers_learn_of_a_join_and_of_a_death(seed: int) -> None:
    group = Group(200, seed, BAD, CALM)
    group.network.run(1.0)
    joined_at = group.network.now
    newcomer = group.add(200)
    group.link(newcomer.id, peer_ids(200)[7])
    group.network.run(
        joined_at + 10,
        lambda: len(group.times_of(PeerJoined, newcomer.id)) == 200 and len(newcomer.membership.alive()) == 200,
    )
    known = group.times_of(PeerJoined, newcomer.id)
    assert len(known) == 200, f"P2PTRAIN_SEED={seed}: {len(known)} of 200 know the newcomer"
    assert len(newcomer.membership.alive()) == 200, f"P2PTRAIN_SEED={seed}: the newcomer knows too few"
    killed_at = group.network.now
    victim = peer_ids(200)[3]
    group.crash(victim)
    group.network.run(killed_at + 15, lambda: len(group.times_of(PeerFailed, victim)) == 200)
    told = group.times_of(PeerFailed, victim)
    wrong = [event for _, _, event in group.events if isinstance(event, PeerFailed) and event.peer != victim]
    assert len(told) == 200, f"P2PTRAIN_SEED={seed}: {len(told)} of 200 know the death"
    assert not wrong, f"P2PTRAIN_SEED={seed}: {wrong[:3]}"
    print(
        f"seed {seed}: join known by all after {max(known.values()) - joined_at:.2f} s, "
        f"death after {max(told.values()) - killed_at:.2f} s"
    )


@pytest.mark.parametrize("seed", seeds(2))
def test_200_peers_reach_consensus(seed: int) -> None:
    group = Group(200, seed, BAD, WAN)
    start = group.consensus_distance()
    for peer in group.peers.values():
        peer.begin(group.peers, group.network.now)
    group.network.run(40.0, lambda: group.consensus_distance() < 0.01 * start, every_s=0.5)
    share = group.consensus_distance() / start
    print(f"seed {seed}: {share:.2%} of the distance left after {group.network.now:.1f} s, {group.outcomes}")
    assert share < 0.01, f"P2PTRAIN_SEED={seed}: {share:.1%} of the distance is left after 40 s"


@pytest.mark.parametrize("seed", seeds(3))
def test_a_partition_heals_into_one_view(seed: int) -> None:
    group = Group(24, seed, Conditions(loss=0.1), LAN)
    everyone = peer_ids(24)
    group.network.run(1.0)
    group.network.partition(everyone[:8], everyone[8:])
    group.network.run(12.0)
    for number, peer in enumerate(everyone):
        side = everyone[:8] if number < 8 else everyone[8:]
        assert group.peers[peer].membership.alive() == set(side) - {peer}, f"P2PTRAIN_SEED={seed}"
    group.network.heal()
    whole = group.network.run(40.0, lambda: all(len(peer.membership.alive()) == 23 for peer in group.peers.values()))
    assert whole, f"P2PTRAIN_SEED={seed}: {[len(peer.membership.alive()) for peer in group.peers.values()]}"
    print(f"seed {seed}: one view {group.network.now - 12.0:.2f} s after healing")


@pytest.mark.parametrize("seed", seeds(2))
def test_records_converge_over_the_wire_format(seed: int) -> None:
    group = Group(16, seed, BAD, CALM, codec=True)
    group.network.run(2.0)
    for step, peer in enumerate(group.peers.values()):
        group.network.perform(peer.id, peer.book.update(group.network.now, step=step, phase="training"))
    changed_at = group.network.now

    def same() -> bool:
        truth = {peer.id: peer.book.own for peer in group.peers.values()}
        return all(dict(peer.book.all()) == truth for peer in group.peers.values())

    assert group.network.run(changed_at + 20.0, same), f"P2PTRAIN_SEED={seed}"
    print(f"seed {seed}: all records everywhere after {group.network.now - changed_at:.2f} s")


def test_a_run_repeats_itself() -> None:
    def outcome() -> tuple[object, ...]:
        group = Group(12, 5, BAD)
        for peer in group.peers.values():
            peer.begin(group.peers, 0.0)
        group.network.run(4.0)
        group.crash(peer_ids(12)[2])
        group.network.run(9.0)
        return group.network.counts, group.events, [peer.values for peer in group.peers.values()]

    assert outcome() == outcome()

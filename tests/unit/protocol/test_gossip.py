"""Gossip, one exchange at a time; the numbers of push-sum."""

from __future__ import annotations

import dataclasses
import random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.gossip import (
    Effect,
    ExchangeEnded,
    FetchAndMerge,
    Gossip,
    GossipConfig,
    MakePayload,
)
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.push_sum import halve, merge
from p2ptrain.simulation.averaging import SHARD, Averager, Averaging, distance, weighted_mean
from p2ptrain.simulation.names import peer_ids
from p2ptrain.simulation.network import LAN, SimulatedNetwork
from p2ptrain.wire.messages import GossipPush, ShardMass

ANN, BOB, CAT = (PeerId(name.ljust(16, "x")) for name in ("ann", "bob", "cat"))
BLOB = BlobId("a" * 64)
HELD = {ANN: ("a", "b"), BOB: ("b", "c"), CAT: ("c",)}
PUSH = GossipPush(5, 1, (ShardMass("b", 2.0),), BLOB, 100, True)


K = TypeVar("K")


def machine(own: PeerId = ANN, *, epoch: int = 1, config: GossipConfig | None = None) -> Gossip:
    gossip = Gossip(own, random.Random(str(own)), config or GossipConfig())
    gossip.shards(HELD, HELD[own], epoch, 0.0)
    gossip.peers_alive(HELD.keys() - {own}, 0.0)
    return gossip


def only(kind: type[K], effects: list[Effect]) -> K:
    (found,) = [effect for effect in effects if isinstance(effect, kind)]
    return found


def push_of(effects: list[Effect]) -> GossipPush:
    send = only(Send, effects)
    assert isinstance(send, Send)
    assert isinstance(send.message, GossipPush)
    return send.message


def start(gossip: Gossip, now: float = 0.0) -> int:
    effects = gossip.round_finished(1, now)
    make = only(MakePayload, effects)
    assert isinstance(make, MakePayload)
    return make.exchange


def test_two_swap_halves_and_neither_waits_for_the_others_merge() -> None:
    ann, bob = machine(ANN), machine(BOB)
    (make,) = ann.round_finished(1, 0.0)
    assert isinstance(make, MakePayload)
    assert (make.shards, make.partner) == (("b",), BOB)  # Cat shares nothing with Ann
    assert ann.round_finished(1, 0.1) == []
    push = push_of(ann.payload_ready(make.exchange, BLOB, 100, (ShardMass("b", 2.0),), 0.1))
    assert push.want_reply
    make_back, fetch = bob.received(ANN, push, 0.2)
    assert isinstance(make_back, MakePayload)
    assert (make_back.shards, make_back.partner) == (("b",), ANN)
    assert isinstance(fetch, FetchAndMerge)
    assert (fetch.sender, fetch.masses, fetch.reply) == (ANN, push.masses, False)
    effects = bob.payload_ready(make_back.exchange, BLOB, 100, (ShardMass("b", 4.0),), 0.3)
    assert only(ExchangeEnded, effects).exchange == make_back.exchange
    (fetch_back,) = ann.received(BOB, push_of(effects), 0.4)
    assert isinstance(fetch_back, FetchAndMerge)
    assert (fetch_back.exchange, fetch_back.reply) == (make.exchange, False)
    (ended,) = bob.merged(fetch.exchange, 0.5)
    assert (ended.exchange, ended.outcome) == (fetch.exchange, "done")
    assert bob.next_deadline() == NEVER
    (ended,) = ann.merged(make.exchange, 0.6)
    assert isinstance(ended, ExchangeEnded)
    assert ended.outcome == "done"
    assert ann.waiting() == bob.waiting() == ()


def test_where_the_answer_depends_on_what_came_it_is_made_after_the_merge() -> None:
    bob = machine(BOB, config=GossipConfig(replies_after_merge=True))
    (fetch,) = bob.received(ANN, PUSH, 0.2)
    assert isinstance(fetch, FetchAndMerge)
    assert fetch.reply
    (make_back,) = bob.merged(fetch.exchange, 0.3)
    assert isinstance(make_back, MakePayload)
    assert (make_back.exchange, make_back.shards, make_back.partner) == (fetch.exchange, ("b",), ANN)
    effects = bob.payload_ready(make_back.exchange, BLOB, 100, (ShardMass("b", 4.0),), 0.4)
    assert only(ExchangeEnded, effects).outcome == "done"
    assert not push_of(effects).want_reply
    assert bob.next_deadline() == NEVER


def test_a_swap_of_equal_masses_leaves_both_with_the_mean() -> None:
    """Beside it: with the answer made after the merge, only one of two has moved as far."""
    (kept, sent), (kept_too, sent_too) = halve(3.0), halve(3.0)
    assert merge([0.0], kept, [1.0], sent_too) == merge([1.0], kept_too, [0.0], sent) == ([0.5], 3.0)
    late, mass = merge([1.0], 3.0, [0.0], sent)
    assert late[0] != 0.5
    assert merge([0.0], kept, late, halve(mass)[0])[0][0] != 0.5


def test_what_can_not_be_fetched_does_not_hold_up_the_answer() -> None:
    bob = machine(BOB)
    make_back, fetch = bob.received(ANN, PUSH, 0.2)
    assert only(ExchangeEnded, bob.failed(fetch.exchange, 0.3)).outcome == "failed"
    assert not push_of(bob.payload_ready(make_back.exchange, BLOB, 100, (ShardMass("b", 4.0),), 0.4)).want_reply


def nothing_of(effects: list[Effect], exchange: int) -> GossipPush:
    """An answer without a payload."""
    push = push_of(effects)
    assert (push.exchange, push.num_bytes, push.want_reply) == (exchange, 0, False)
    assert [mass.mass for mass in push.masses] == [0.0]
    assert only(ExchangeEnded, effects).outcome == "failed"
    return push


@pytest.mark.parametrize("later", [False, True], ids=["beside the merge", "after the merge"])
def test_who_can_make_no_payload_says_so_and_nobody_waits_for_it(later: bool) -> None:
    """One that has no mass, say."""
    config = GossipConfig(replies_after_merge=later)
    ann, bob = machine(ANN, config=config), machine(BOB, config=config)
    exchange = start(ann)
    push = push_of(ann.payload_ready(exchange, BLOB, 100, (ShardMass("b", 2.0),), 0.1))
    effects = bob.received(ANN, push, 0.2)
    make_back = only(MakePayload, bob.merged(only(FetchAndMerge, effects).exchange, 0.3) if later else effects)
    answer = nothing_of(bob.failed(make_back.exchange, 0.4), push.exchange)
    (ended,) = ann.received(BOB, answer, 0.5)
    assert isinstance(ended, ExchangeEnded) and ended.outcome == "done"
    assert ann.waiting() == () and ann.received(BOB, answer, 0.6) == []
    assert len(bob.waiting()) == (0 if later else 1), "what it is given it still fetches"


def test_where_pushes_cross_who_can_make_none_says_so_too() -> None:
    ann, bob = member(ANN, PAIR), member(BOB, PAIR)
    of_ann, of_bob = start(ann), start(bob)
    from_ann = push_of(ann.payload_ready(of_ann, BLOB, 100, (ShardMass("b", 2.0),), 0.1))
    assert only(FetchAndMerge, bob.received(ANN, from_ann, 0.2)).exchange != of_bob
    (ended,) = ann.received(BOB, nothing_of(bob.failed(of_bob, 0.3), of_ann), 0.4)
    assert isinstance(ended, ExchangeEnded) and ended.outcome == "done"
    assert ann.waiting() == ()


def test_what_fails_otherwise_is_not_told() -> None:
    """Nobody waits for it, or it would come late."""
    gossip = machine()
    for effects in (gossip.failed(start(gossip), 0.1), gossip.failed(only_fetch(gossip), 0.2)):
        assert not [effect for effect in effects if isinstance(effect, Send)]


def only_fetch(gossip: Gossip) -> int:
    return only(FetchAndMerge, gossip.received(BOB, dataclasses.replace(PUSH, want_reply=False), 0.1)).exchange


def test_every_wait_ends_and_says_so() -> None:
    gossip = machine()
    exchange = start(gossip)
    assert gossip.waiting()[0].stage == "payload"
    assert gossip.tick(gossip.next_deadline() - 0.1) == []
    ended, note = gossip.tick(gossip.next_deadline())
    assert isinstance(ended, ExchangeEnded)
    assert (ended.outcome, ended.stage, ended.waited_s) == ("timeout", "payload", 20.0)
    assert isinstance(note, Note)
    assert gossip.payload_ready(exchange, BLOB, 1, (ShardMass("b", 1.0),), 99.0) == []
    assert gossip.merged(exchange, 99.0) == gossip.failed(exchange, 99.0) == []
    assert gossip.next_deadline() == NEVER


def test_a_half_that_is_not_awaited_any_more_stays() -> None:
    """As ``Exchanges`` gives it back: in virtual time no exchange that ends early takes mass away."""
    network = SimulatedNetwork(1, LAN, on_effect=lambda who, effect, now: averaging.carry_out(who, effect, now))
    hosts = {peer: Averager(member(peer, PAIR), random.Random(1)) for peer in PAIR}
    averaging = Averaging(network, random.Random(1), hosts)
    for peer, host in hosts.items():
        network.add(peer, host)
    ann, mass = hosts[ANN], hosts[ANN].mass
    network.perform(ANN, ann.machine.round_finished(1, 0.0))
    assert [wait.stage for wait in ann.machine.waiting()] == ["payload"]
    network.perform(ANN, ann.machine.peers_alive((), 0.0))
    network.run(1.0)
    assert (ann.mass, ann.num_payloads) == (mass, 0)


def test_nobody_waits_for_the_dead_or_for_an_old_epoch() -> None:
    gossip = machine()
    start(gossip)
    ended = only(ExchangeEnded, gossip.peers_alive([CAT], 1.0))
    assert isinstance(ended, ExchangeEnded)
    assert ended.outcome == "gone"
    assert gossip.round_finished(1, 1.0) == []
    gossip.peers_alive([BOB], 1.0)
    start(gossip, 2.0)
    ended = only(ExchangeEnded, gossip.shards(HELD, HELD[ANN], 2, 3.0))
    assert isinstance(ended, ExchangeEnded)
    assert ended.outcome == "superseded"
    with pytest.raises(LocalError):
        gossip.shards(HELD, HELD[ANN], 1, 3.0)


def test_a_late_reply_is_merged_as_a_push_of_its_own() -> None:
    gossip = machine()
    exchange = start(gossip)
    gossip.payload_ready(exchange, BLOB, 1, (ShardMass("b", 1.0),), 0.1)
    gossip.tick(gossip.next_deadline())
    late = dataclasses.replace(PUSH, exchange=exchange, want_reply=False)
    (fetch,) = gossip.received(BOB, late, 60.0)
    assert isinstance(fetch, FetchAndMerge)
    assert fetch.exchange != exchange
    assert not fetch.reply


def test_a_push_counts_once_and_few_wait() -> None:
    gossip = machine()
    assert only(FetchAndMerge, gossip.received(BOB, PUSH, 0.0))
    assert gossip.received(BOB, PUSH, 0.1) == []
    assert only(FetchAndMerge, gossip.received(BOB, dataclasses.replace(PUSH, exchange=6), 0.1))
    assert gossip.received(BOB, dataclasses.replace(PUSH, exchange=7), 0.2) == [Note("gossip-busy", (("peer", BOB),))]
    assert gossip.round_finished(1, 0.2) == gossip.round_finished(2, 0.2) == []  # Bob's took the place of ours
    exchange = start(gossip, 0.3)  # what we start has a place of its own
    gossip.payload_ready(exchange, BLOB, 1, (ShardMass("b", 1.0),), 0.3)
    reply = dataclasses.replace(PUSH, exchange=exchange, want_reply=False)
    assert isinstance(gossip.received(BOB, reply, 0.4)[0], FetchAndMerge)


@pytest.mark.parametrize("epoch", [0, 2])
def test_another_epoch_is_noted_and_dropped(epoch: int) -> None:
    (note,) = machine().received(BOB, dataclasses.replace(PUSH, epoch=epoch), 0.0)
    assert isinstance(note, Note)


@pytest.mark.parametrize(
    "changes",
    [
        {"masses": (ShardMass("b", float("nan")),)},
        {"masses": (ShardMass("b", float("inf")),)},
        {"masses": (ShardMass("b", -1.0),)},
        {"masses": (ShardMass("b", 1e16),)},
        {"masses": ()},
        {"masses": (ShardMass("b", 1.0), ShardMass("b", 1.0))},
        {"masses": (ShardMass("a", 1.0),)},
        {"masses": (ShardMass("c", 1.0),)},
        {"num_bytes": 0},
        {"num_bytes": 0, "want_reply": False},
        {"num_bytes": 0, "masses": (ShardMass("b", 0.0),)},
        {"num_bytes": 1 << 40},
    ],
)
def test_what_no_honest_peer_sends_is_refused(changes: dict[str, object]) -> None:
    gossip = machine()
    with pytest.raises(RemoteError):
        gossip.received(BOB, dataclasses.replace(PUSH, **changes), 0.0)  # type: ignore[arg-type]
    assert gossip.waiting() == ()


numbers = st.floats(-1e6, 1e6)
masses = st.floats(0, 1e9)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), masses, masses)
def test_a_merge_is_the_weighted_mean_and_keeps_the_mass(
    pairs: list[tuple[float, float]], mass: float, mass_in: float
) -> None:
    values, total = merge([a for a, _ in pairs], mass, [b for _, b in pairs], mass_in)
    assert total == mass + mass_in
    for value, (own, other) in zip(values, pairs, strict=True):
        assert min(own, other) - 1e-6 <= value <= max(own, other) + 1e-6
        if total > 1e-3:
            assert value == pytest.approx((own * mass + other * mass_in) / total, rel=1e-6, abs=1e-5)


@given(masses)
def test_halves_make_a_whole(mass: float) -> None:
    kept, sent = halve(mass)
    assert kept + sent == pytest.approx(mass, abs=1e-300)


PAIR = {ANN: ("b",), BOB: ("b",)}
TRIO = {ANN: ("b",), BOB: ("b",), CAT: ("b",)}


def member(own: PeerId, held: dict[PeerId, tuple[str, ...]]) -> Gossip:
    gossip = Gossip(own, random.Random(str(own)))
    gossip.shards(held, held[own], 1, 0.0)
    gossip.peers_alive(held.keys() - {own}, 0.0)
    return gossip


def answer(gossip: Gossip, sender: PeerId, number: int) -> None:
    """An exchange that ``sender`` started, from its push to the reply."""
    make, fetch = gossip.received(sender, dataclasses.replace(PUSH, exchange=number), 0.0)
    assert isinstance(make, MakePayload) and isinstance(fetch, FetchAndMerge)
    gossip.merged(fetch.exchange, 0.0)
    gossip.payload_ready(make.exchange, BLOB, 1, (ShardMass("b", 1.0),), 0.0)


@pytest.mark.parametrize("bob_is_ready", [True, False], ids=["pushes cross", "one is still making its payload"])
def test_two_that_start_at_the_same_time_have_each_others_answer(bob_is_ready: bool) -> None:
    ann, bob = member(ANN, PAIR), member(BOB, PAIR)
    of_ann, of_bob = start(ann), start(bob)
    from_ann = push_of(ann.payload_ready(of_ann, BLOB, 100, (ShardMass("b", 2.0),), 0.1))
    if bob_is_ready:
        from_bob = push_of(bob.payload_ready(of_bob, BLOB, 100, (ShardMass("b", 3.0),), 0.1))
        (at_bob,) = bob.received(ANN, from_ann, 0.2)
        assert isinstance(at_bob, FetchAndMerge) and at_bob.exchange == of_bob
    else:
        (at_bob,) = bob.received(ANN, from_ann, 0.2)
        effects = bob.payload_ready(of_bob, BLOB, 100, (ShardMass("b", 3.0),), 0.3)
        from_bob = push_of(effects)
        ended = only(ExchangeEnded, effects)
        assert isinstance(ended, ExchangeEnded) and ended.outcome == "done"
    (at_ann,) = ann.received(BOB, from_bob, 0.4)
    assert isinstance(at_ann, FetchAndMerge) and isinstance(at_bob, FetchAndMerge)
    assert (at_ann.exchange, at_ann.masses, at_bob.masses) == (of_ann, from_bob.masses, from_ann.masses)
    assert not at_ann.reply and not at_bob.reply, "two payloads are all that travels"
    for gossip, fetch in ((ann, at_ann), (bob, at_bob)):
        (ended,) = gossip.merged(fetch.exchange, 0.5)
        assert isinstance(ended, ExchangeEnded) and ended.outcome == "done"
        assert gossip.waiting() == ()
        assert gossip.round_finished(2, 1.0), "each has started one, which the other's does not take the place of"


def test_an_exchange_of_anothers_takes_the_place_of_one_of_ours() -> None:
    gossip = member(ANN, PAIR)
    for number in (7, 8):
        answer(gossip, BOB, number)
    assert gossip.round_finished(1, 1.0) == gossip.round_finished(2, 2.0) == []
    assert start(gossip, 3.0)


def test_nobody_keeps_us_from_averaging_with_the_others() -> None:
    gossip = member(ANN, TRIO)
    started = 0
    for number in range(30):
        answer(gossip, BOB, 100 + number)
        for effect in gossip.round_finished(number, float(number)):
            assert isinstance(effect, MakePayload)
            gossip.failed(effect.exchange, float(number))
            started += effect.partner == CAT
    assert started >= 3


@pytest.mark.parametrize("num_peers", [2, 3, 4, 8])
def test_at_even_paces_each_takes_part_in_one_exchange_a_round(num_peers: int) -> None:
    """In virtual time, over a network that loses nothing: bytes a round are those of one payload, and values meet."""
    rng = random.Random(num_peers)
    hosts: dict[PeerId, Averager] = {}
    network = SimulatedNetwork(1, LAN, on_effect=lambda who, effect, now: averaging.carry_out(who, effect, now))
    averaging = Averaging(network, rng, hosts)
    everyone = peer_ids(num_peers)
    for number, peer in enumerate(everyone):
        machine = member(peer, dict.fromkeys(everyone, (SHARD,)))
        hosts[peer] = Averager(machine, random.Random(number))
        hosts[peer].train(1.0, rng.random())
        network.add(peer, hosts[peer])
    mass, mean, start_at = sum(h.mass for h in hosts.values()), weighted_mean(hosts.values()), distance(hosts.values())
    network.run(30.0)
    rounds = sum(host.num_rounds for host in hosts.values())
    assert 0.75 <= sum(host.num_payloads for host in hosts.values()) / rounds <= 1.15
    for host in hosts.values():
        host.train(1.0, NEVER)
    network.run(40.0)
    assert sum(host.mass for host in hosts.values()) == pytest.approx(mass)
    assert weighted_mean(hosts.values()) == pytest.approx(mean)
    assert distance(hosts.values()) < 0.01 * start_at

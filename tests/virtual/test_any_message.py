"""Any well-formed message in any order: ``RemoteError`` or nothing, no endless ticks, bounded memory."""

from __future__ import annotations

import dataclasses
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import book as record_book
from records import membership, record

from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.gossip import ExchangeEnded, FetchAndMerge, Gossip, MakePayload
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.protocol.group.swim import LAN
from p2ptrain.protocol.machine import Send
from p2ptrain.simulation.names import key, peer_ids
from p2ptrain.wire.messages import (
    Ack,
    GossipPush,
    Ping,
    PingRequest,
    RecordChange,
    RecordChanges,
    RecordDigest,
    Records,
    RecordVersion,
    Rumour,
    ShardMass,
)

PEERS = peer_ids(6)
ME = PEERS[0]
SHARDS = ("a", "b", "c")
BLOB = BlobId("0" * 64)

peers = st.sampled_from(PEERS)
sizes = st.integers(0, 2**63 - 1) | st.integers(0, 5)
rumours = st.lists(
    st.builds(Rumour, peers, st.sampled_from(["alive", "suspect", "dead", "left"]), sizes), max_size=4
).map(tuple)
swim = st.builds(Ping, sizes, rumours) | st.builds(PingRequest, sizes, peers, rumours) | st.builds(Ack, sizes, rumours)
known_records = st.builds(
    lambda number, owner, version: dataclasses.replace(record(number), key=key(owner), version=version),
    st.integers(0, 5), st.integers(0, 5), sizes,
)  # fmt: skip
changes = st.builds(
    RecordChange,
    peers,
    sizes,
    sizes,
    st.sampled_from([b"", b"\x90", b"\x91\x92\x0f\x07"]),
    st.sampled_from([b"", b"s" * 64]),
)
notes = (
    st.builds(Records, st.lists(known_records, max_size=4).map(tuple))
    | st.builds(RecordChanges, st.lists(changes, max_size=4).map(tuple))
    | st.builds(
        RecordDigest,
        st.lists(st.builds(RecordVersion, peers, sizes), max_size=6).map(tuple),
        st.booleans(),
        st.booleans(),
        st.binary(max_size=40),
    )
)
pushes = st.builds(
    GossipPush,
    st.integers(0, 6),
    st.integers(0, 3),
    st.lists(st.builds(ShardMass, st.sampled_from(SHARDS), st.floats(0, 1e18)), min_size=1, max_size=3).map(tuple),
    st.just(BLOB),
    sizes,
    st.booleans(),
)
pauses = st.sampled_from([0.0, 0.01, 0.2, 3.0])
many = settings(max_examples=120, deadline=None)


def settle(machine: Membership | RecordBook | Gossip, until: float) -> list[object]:
    effects: list[object] = []
    for _ in range(500):
        deadline = machine.next_deadline()
        if deadline > until:
            return effects
        effects += machine.tick(max(deadline, 0.0))
    raise AssertionError("it ticks without end")


@many
@given(st.lists(st.tuples(pauses, peers, swim | st.sampled_from(["reachable", "leave"])), max_size=40))
def test_membership(steps: list[tuple[float, PeerId, Ping | PingRequest | Ack | str]]) -> None:
    machine = membership(ME, random.Random(1), 0.0, members=PEERS[:3])
    now = 0.0
    for pause, peer, step in steps:
        now += pause
        effects = settle(machine, now)
        try:
            if step == "reachable":
                effects += machine.peer_reachable(peer, now)
            elif step == "leave":
                effects += machine.leave(now) if pause == 3.0 else []
            else:
                assert not isinstance(step, str)
                effects += machine.received(peer, step, now)
        except RemoteError:
            continue
        assert ME not in machine.alive()
        assert all(machine.state(peer) in ("alive", "suspect") for peer in machine.alive())
        sent = [effect.message for effect in effects if isinstance(effect, Send)]
        assert all(len(m.rumours) <= 64 for m in sent if isinstance(m, (Ping, PingRequest, Ack)))
        assert all(effect.to != ME for effect in effects if isinstance(effect, Send))


@many
@given(st.lists(st.tuples(pauses, peers, notes | st.sampled_from(["update", "forget"])), max_size=40))
def test_records(steps: list[tuple[float, PeerId, RecordDigest | Records | RecordChanges | str]]) -> None:
    book = record_book(record(0), random.Random(1), 0.0)
    book.peers_alive(PEERS, 0.0)
    now, version = 0.0, 0
    for number, (pause, peer, step) in enumerate(steps):
        now += pause
        settle(book, now)
        try:
            if step == "update":
                book.update(now, step=number)
            elif step == "forget":
                book.forget(peer)
            else:
                assert not isinstance(step, str)
                book.received(peer, step, now)
        except RemoteError:
            pass
        assert book.own.version >= version
        assert book.own.name == record(0).name
        version = book.own.version
        assert all(kept.peer == peer and kept.key == key(PEERS.index(peer)) for peer, kept in book.all().items())


@many
@given(st.lists(st.tuples(pauses, peers, pushes | st.sampled_from(["round", "answer", "fail", "epoch"])), max_size=40))
def test_gossip(steps: list[tuple[float, PeerId, GossipPush | str]]) -> None:
    gossip = Gossip(ME, random.Random(1))
    now, epoch = 0.0, 0
    open_exchanges: dict[int, MakePayload | FetchAndMerge] = {}

    def note(effects: list[object]) -> None:
        for effect in effects:
            if isinstance(effect, (MakePayload, FetchAndMerge)):
                open_exchanges[effect.exchange] = effect
            elif isinstance(effect, ExchangeEnded):
                del open_exchanges[effect.exchange]  # exactly once

    for pause, peer, step in steps:
        now += pause
        note(settle(gossip, now))
        try:
            if step == "round":
                note(list(gossip.round_finished(0, now)))
            elif step == "epoch":
                epoch += 1
                note(list(gossip.shards(dict.fromkeys(PEERS[:4], SHARDS[:2]), SHARDS, epoch, now)))
                note(list(gossip.peers_alive(PEERS[1:], now)))
            elif isinstance(step, GossipPush):
                note(list(gossip.received(peer, step, now)))
            elif open_exchanges:
                handle, wanted = next(iter(open_exchanges.items()))
                if step == "fail":
                    note(list(gossip.failed(handle, now)))
                elif isinstance(wanted, MakePayload):
                    masses = tuple(ShardMass(shard, 1.0) for shard in wanted.shards)
                    note(list(gossip.payload_ready(handle, BLOB, 1, masses, now)))
                else:
                    note(list(gossip.merged(handle, now)))
        except RemoteError:
            pass
        assert len(gossip.waiting()) == len(open_exchanges) <= 3
    note(settle(gossip, now + 200.0))
    assert not open_exchanges


@pytest.mark.parametrize("seed", [1, 2])
def test_a_flood_does_not_fill_the_memory(seed: int) -> None:
    """A member that makes up peers, requests and records, thousands of them."""
    rng = random.Random(seed)
    members = membership(ME, rng, 0.0, dataclasses.replace(LAN, max_members=100), members=PEERS[1:])
    gossip = Gossip(ME, rng)
    gossip.shards(dict.fromkeys(PEERS, SHARDS), SHARDS, 1, 0.0)
    sizes = []
    for number in range(6000):
        now = number * 0.001
        made_up = PeerId(f"{rng.getrandbits(60):016x}")
        said = (Rumour(made_up, rng.choice(["alive", "suspect", "dead", "left"]), rng.randrange(9)),)
        members.received(PEERS[1], PingRequest(number, rng.choice(PEERS), said), now)
        gossip.received(PEERS[1], GossipPush(number, 1, (ShardMass("a", 1.0),), BLOB, 1, True), now)
        settle(members, now)
        if number % 2000 == 1999:
            sizes.append(sum(map(len, map(pickle.dumps, (members._roster, members._probing, gossip)))))
    assert len(members.alive()) <= 100
    assert sizes[-1] < 1.3 * sizes[0], sizes

"""Custody: who keeps what, offers until acked, and never without a copy."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.replication import (
    CancelSnapshot,
    DiscardSnapshot,
    FetchSnapshot,
    Replication,
    ReplicationConfig,
    freshness,
    rank_custodians,
)
from p2ptrain.wire.messages import NO_PART, CustodyAck, CustodyOffer, Holding


def peer(n: int) -> PeerId:
    return PeerId(f"{n:016d}")


ME = peer(0)


def holding(trainer: PeerId = ME, round: int = 1, epoch: int = 1, part: int = 0, num_bytes: int = 10) -> Holding:
    return Holding(
        part, trainer, epoch, round, 0, 0, f"{part:08d}{int(trainer):08d}{epoch:024d}{round:024d}", num_bytes
    )


def offers(effects) -> list[tuple[PeerId, Holding]]:
    return [(e.to, e.message.holding) for e in effects if isinstance(e, Send) and isinstance(e.message, CustodyOffer)]


def acks(effects) -> list[tuple[PeerId, str]]:
    return [(e.to, e.message.blob) for e in effects if isinstance(e, Send) and isinstance(e.message, CustodyAck)]


def of(kind, effects) -> list:
    return [e for e in effects if isinstance(e, kind)]


# --- choice ---


def test_the_choice_is_even_and_moves_little():
    members = {peer(n): n for n in range(20)}
    chosen = {n: rank_custodians(n, peer(n), members)[0] for n in range(20)}
    assert all(chosen[n] != peer(n) for n in range(20))
    assert max(Counter(chosen.values()).values()) <= 6
    gone = peer(7)
    less = {p: n for p, n in members.items() if p != gone}
    for n in range(20):
        if chosen[n] != gone and n != 7:
            assert rank_custodians(n, peer(n), less)[0] == chosen[n]


def test_peers_of_another_part_come_first():
    members = {peer(n): 0 if n < 10 else 1 for n in range(12)}
    ranked = rank_custodians(0, ME, members)
    assert set(ranked[:2]) == {peer(10), peer(11)}
    assert len(ranked) == 11


# --- owner ---


def owner(num_members: int = 3, **config) -> Replication:
    custody = Replication(ME, ReplicationConfig(**config))
    custody.members_changed({peer(n): n for n in range(num_members + 1)}, 0.0)
    return custody


def test_offers_with_backoff_until_acked():
    custody = owner()
    assert custody.next_deadline() == NEVER
    ((to, offered),) = offers(custody.snapshot(holding(), 0.0))
    assert offered == holding()
    assert custody.pinned() == {holding().blob}
    times = []
    for _ in range(3):
        now = custody.next_deadline()
        times.append(now)
        assert custody.tick(now - 0.01) == []
        assert offers(custody.tick(now)) == [(to, holding())]
    assert times == [5.0, 15.0, 35.0]
    assert of(Note, custody.received(to, CustodyAck(holding().blob), 36.0))
    assert custody.next_deadline() == NEVER
    assert custody.pinned() == frozenset()
    assert custody.custodians() == {to: holding()}
    assert custody.received(to, CustodyAck(holding().blob), 37.0) == []


def test_only_the_newest_is_offered_and_what_may_be_under_way_stays_pinned():
    custody = owner()
    ((to, _),) = offers(custody.snapshot(holding(round=1), 0.0))
    for n in range(2, 9):
        assert offers(custody.snapshot(holding(round=n), float(n) / 10)) == [(to, holding(round=n))]
    assert holding(round=1).blob in custody.pinned()
    assert holding(round=8).blob in custody.pinned()
    assert len(custody.pinned()) <= 3
    assert offers(custody.tick(custody.next_deadline())) == [(to, holding(round=8))]
    custody.received(to, CustodyAck(holding(round=1).blob), 6.0)
    assert custody.custodians() == {to: holding(round=1)}
    assert custody.next_deadline() < NEVER, "the newest is not acked yet"
    custody.received(to, CustodyAck(holding(round=8).blob), 7.0)
    assert custody.pinned() == frozenset()


def test_a_dead_custodian_is_replaced():
    custody = owner(num_custodians=2)
    first = [to for to, _ in offers(custody.snapshot(holding(), 0.0))]
    assert len(set(first)) == 2
    for to in first:
        custody.received(to, CustodyAck(holding().blob), 1.0)
    alive = {peer(n): n for n in range(4) if peer(n) != first[0]}
    ((to, offered),) = offers(custody.members_changed(alive, 2.0))
    assert to not in first
    assert offered == holding()
    assert set(custody.custodians()) == {first[1], to}
    assert offers(custody.members_changed(alive, 3.0)) == []


def test_an_unwilling_custodian_is_passed_over_for_a_while():
    custody = owner(max_offers=3, unwilling_s=500.0)
    ((first, _),) = offers(custody.snapshot(holding(), 0.0))
    seen = [first]
    now = 0.0
    while seen[-1] == first:
        now = custody.next_deadline()
        assert now < 200
        seen += [to for to, _ in offers(custody.tick(now))]
    assert seen.count(first) == 3
    custody.received(seen[-1], CustodyAck(holding().blob), now)
    back = custody.next_deadline()
    assert offers(custody.tick(back)) == [(first, holding())], "later it gets another chance"


def test_alone_or_with_nobody_willing_nothing_breaks():
    custody = Replication(ME)
    assert custody.snapshot(holding(), 0.0) == []
    assert custody.holdings() == (holding(),)
    assert custody.members_changed({ME: 0}, 1.0) == []
    assert custody.next_deadline() == NEVER
    assert offers(custody.members_changed({ME: 0, peer(1): 1}, 2.0))
    num_offers = 0
    for _ in range(50):
        num_offers += len(offers(custody.tick(custody.next_deadline())))
    assert num_offers >= 40, "the only one is asked on and on"
    assert custody.received(peer(9), CustodyAck(holding().blob), 1.0) == []


# --- custodian ---


def test_what_a_kill_left_behind_is_discarded_at_the_next_start():
    one, two = holding(peer(1), 1), holding(peer(1), 2)
    custody = Replication(ME, kept=[two, one, holding(peer(2))])
    assert custody.members_changed({}, 0.0) == [DiscardSnapshot(one)]
    assert custody.members_changed({}, 0.0) == []
    assert set(custody.kept()) == {two, holding(peer(2))}


def test_keeps_acks_and_discards_the_older_only_then():
    custody = Replication(ME)
    one, two = holding(peer(1), 1), holding(peer(1), 2)
    assert custody.received(peer(1), CustodyOffer(one), 0.0) == [FetchSnapshot(one, peer(1))]
    assert custody.received(peer(1), CustodyOffer(one), 1.0) == [], "on its way already"
    assert custody.holdings() == ()
    assert custody.stored(one, 2.0) == [Send(peer(1), CustodyAck(one.blob))]
    assert custody.holdings() == (one,)
    assert custody.received(peer(1), CustodyOffer(one), 3.0) == [Send(peer(1), CustodyAck(one.blob))]
    assert custody.received(peer(1), CustodyOffer(two), 4.0) == [FetchSnapshot(two, peer(1))]
    assert custody.holdings() == (one,)
    assert custody.stored(two, 5.0) == [DiscardSnapshot(one), Send(peer(1), CustodyAck(two.blob))]
    assert custody.holdings() == (two,)
    (note,) = custody.received(peer(1), CustodyOffer(one), 6.0)
    assert note.kind == "custody-refused"


def test_a_newer_offer_waits_for_the_fetch_under_way():
    custody = Replication(ME)
    custody.received(peer(1), CustodyOffer(holding(peer(1), 1)), 0.0)
    for n in (2, 4, 3):
        assert custody.received(peer(1), CustodyOffer(holding(peer(1), n)), 1.0) == []
    assert of(FetchSnapshot, custody.stored(holding(peer(1), 1), 2.0)) == [FetchSnapshot(holding(peer(1), 4), peer(1))]
    assert custody.fetch_failed(holding(peer(1), 1), 3.0) == []
    assert custody.fetch_failed(holding(peer(1), 4), 3.0) == []
    assert custody.holdings() == (holding(peer(1), 1),)
    assert custody.received(peer(1), CustodyOffer(holding(peer(1), 4)), 4.0) == [
        FetchSnapshot(holding(peer(1), 4), peer(1))
    ]


def test_speaks_for_somebody_else():
    custody = Replication(ME)
    bad = [(peer(2), holding(peer(1))), (ME, holding(ME)), (peer(1), holding(peer(1), num_bytes=0))]
    bad.append((peer(1), dataclasses.replace(holding(peer(1)), part=NO_PART)))
    for sender, offered in bad:
        with pytest.raises(RemoteError):
            custody.received(sender, CustodyOffer(offered), 0.0)


def test_old_epochs_are_refused_and_their_fetches_cancelled():
    custody = Replication(ME, kept=[holding(peer(3), epoch=1)])
    custody.received(peer(1), CustodyOffer(holding(peer(1), epoch=1)), 0.0)
    custody.received(peer(2), CustodyOffer(holding(peer(2), epoch=1)), 0.0)
    custody.received(peer(2), CustodyOffer(holding(peer(2), epoch=2)), 0.0)
    effects = custody.epoch_changed(2, 1.0)
    assert of(CancelSnapshot, effects) == [
        CancelSnapshot(holding(peer(1), epoch=1)),
        CancelSnapshot(holding(peer(2), epoch=1)),
    ]
    assert of(FetchSnapshot, effects) == [FetchSnapshot(holding(peer(2), epoch=2), peer(2))]
    assert of(FetchSnapshot, custody.received(peer(1), CustodyOffer(holding(peer(1), 9, epoch=1)), 2.0)) == []
    assert custody.holdings() == (holding(peer(3), epoch=1),), "what is kept stays"
    assert custody.forget_before(2) == [DiscardSnapshot(holding(peer(3), epoch=1))]
    assert custody.holdings() == ()


@pytest.mark.parametrize(
    "config",
    [{"max_holdings": 2}, {"max_total_bytes": 25}, {"max_snapshot_bytes": 9}, {"max_holdings_per_trainer": 0}],
)
def test_bounds(config):
    custody = Replication(ME, ReplicationConfig(**config))
    for n in range(1, 6):
        for effect in of(FetchSnapshot, custody.received(peer(n), CustodyOffer(holding(peer(n))), 0.0)):
            custody.stored(effect.holding, 0.0)
    assert len(custody.holdings()) == (2 if "max_holdings" in config or "max_total_bytes" in config else 0)


def test_past_epochs_make_room_and_one_trainer_can_not_take_all_of_it():
    config = ReplicationConfig(max_holdings=3, max_holdings_per_trainer=2)
    custody = Replication(ME, kept=[holding(peer(1), part=p) for p in range(2)] + [holding(peer(2))], config=config)
    (note,) = custody.received(peer(1), CustodyOffer(holding(peer(1), part=5)), 0.0)
    assert note.kind == "custody-refused"
    custody.epoch_changed(2, 0.0)
    effects = custody.received(peer(1), CustodyOffer(holding(peer(1), part=5, epoch=2)), 0.0)
    assert effects == [
        DiscardSnapshot(holding(peer(1), part=0)),
        FetchSnapshot(holding(peer(1), part=5, epoch=2), peer(1)),
    ]
    assert holding(peer(2)) in custody.holdings()


def test_the_record_shows_no_more_than_fits():
    config = ReplicationConfig(max_holdings=1000)
    custody = Replication(ME, kept=[holding(peer(n), round=n) for n in range(1, 400)], config=config)
    custody.snapshot(holding(round=1), 0.0)
    shown = custody.holdings()
    assert len(shown) == 256
    assert shown[0] == holding(round=1)
    assert shown[1].round == 399


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["offer", "stored", "failed"]), st.integers(1, 3), st.integers(1, 6))))
def test_what_was_acked_is_never_lost(steps):
    custody = Replication(ME)
    under_way: dict[PeerId, Holding] = {}
    disk: set[Holding] = set()
    acked: dict[PeerId, Holding] = {}
    for what, n, round in steps:
        trainer = peer(n)
        effects = []
        if what == "offer":
            effects = custody.received(trainer, CustodyOffer(holding(trainer, round)), 0.0)
        elif trainer in under_way and what == "stored":
            done = under_way.pop(trainer)
            disk.add(done)
            effects = custody.stored(done, 0.0)
            acked[trainer] = done
        elif trainer in under_way:
            effects = custody.fetch_failed(under_way.pop(trainer), 0.0)
        for effect in effects:
            if isinstance(effect, FetchSnapshot):
                assert effect.source not in under_way, "one fetch at a time for each"
                under_way[effect.source] = effect.holding
            elif isinstance(effect, DiscardSnapshot):
                disk.remove(effect.holding)
        assert set(custody.holdings()) == disk
        for trainer, safe in acked.items():
            assert any(h.trainer == trainer and freshness(h) >= freshness(safe) for h in disk)


# --- snapshots that are of use together only ---


def test_older_ones_stay_as_long_as_they_are_needed():
    custody = Replication(ME, ReplicationConfig(past_epochs=True))
    needed = {holding(peer(1), 1).blob}
    custody.surplus = lambda older: [h for h in older if h.blob not in needed]
    for n in (1, 2, 3):
        each = holding(peer(1), n)
        assert of(FetchSnapshot, custody.received(peer(1), CustodyOffer(each), 0.0))
        custody.stored(each, 0.0)
    assert [h.round for h in custody.kept()] == [3, 1] and {h.round for h in custody.holdings()} == {3, 1}
    assert acks(custody.received(peer(1), CustodyOffer(holding(peer(1), 1)), 0.0)), "it is here"
    needed.clear()
    assert of(DiscardSnapshot, custody.members_changed({}, 1.0)) == [DiscardSnapshot(holding(peer(1), 1))]
    assert [h.round for h in custody.kept()] == [3]


def test_after_a_restart_nothing_is_let_go_before_it_is_known_what_is_needed():
    kept = [holding(peer(1), n) for n in (1, 2, 3)]
    custody = Replication(ME, ReplicationConfig(past_epochs=True), kept)
    custody.surplus = lambda older: []
    assert not of(DiscardSnapshot, custody.members_changed({}, 0.0)) and set(custody.kept()) == set(kept)


@pytest.mark.parametrize("past_epochs", [False, True])
def test_snapshots_of_past_epochs_are_taken_where_they_are_of_use(past_epochs):
    custody = Replication(ME, ReplicationConfig(past_epochs=past_epochs))
    fetching = holding(peer(1), 1, epoch=1)
    custody.received(peer(1), CustodyOffer(fetching), 0.0)
    assert bool(of(CancelSnapshot, custody.epoch_changed(2, 1.0))) == (not past_epochs)
    offered = custody.received(peer(2), CustodyOffer(holding(peer(2), 1, epoch=1)), 2.0)
    assert bool(of(FetchSnapshot, offered)) == past_epochs

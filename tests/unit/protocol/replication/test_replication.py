"""Replication: who keeps what, offers until acked, and never without a copy."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.replication.replication import Replication
from p2ptrain.protocol.replication.rules import (
    CancelSnapshot,
    DiscardSnapshot,
    FetchSnapshot,
    ReplicationConfig,
    freshness,
    rank_holders,
)
from p2ptrain.wire.messages import NO_PART, ReplicaAck, ReplicaOffer, SnapshotRef


def peer(n: int) -> PeerId:
    return PeerId(f"{n:016d}")


ME = peer(0)


def holding(trainer: PeerId = ME, round: int = 1, epoch: int = 1, part: int = 0, num_bytes: int = 10) -> SnapshotRef:
    return SnapshotRef(
        part, trainer, epoch, round, 0, 0, f"{part:08d}{int(trainer):08d}{epoch:024d}{round:024d}", num_bytes
    )


def offers(effects) -> list[tuple[PeerId, SnapshotRef]]:
    return [(e.to, e.message.holding) for e in effects if isinstance(e, Send) and isinstance(e.message, ReplicaOffer)]


def acks(effects) -> list[tuple[PeerId, str]]:
    return [(e.to, e.message.blob) for e in effects if isinstance(e, Send) and isinstance(e.message, ReplicaAck)]


def of(kind, effects) -> list:
    return [e for e in effects if isinstance(e, kind)]


# --- choice ---


def test_the_choice_is_even_and_moves_little():
    members = {peer(n): n for n in range(20)}
    chosen = {n: rank_holders(n, peer(n), members)[0] for n in range(20)}
    assert all(chosen[n] != peer(n) for n in range(20))
    assert max(Counter(chosen.values()).values()) <= 6
    gone = peer(7)
    less = {p: n for p, n in members.items() if p != gone}
    for n in range(20):
        if chosen[n] != gone and n != 7:
            assert rank_holders(n, peer(n), less)[0] == chosen[n]


def test_peers_of_another_part_come_first():
    members = {peer(n): 0 if n < 10 else 1 for n in range(12)}
    ranked = rank_holders(0, ME, members)
    assert set(ranked[:2]) == {peer(10), peer(11)}
    assert len(ranked) == 11


# --- owner ---


def owner(num_members: int = 3, **config) -> Replication:
    replication = Replication(ME, ReplicationConfig(**config))
    replication.members_changed({peer(n): n for n in range(num_members + 1)}, 0.0)
    return replication


def test_offers_with_backoff_until_acked():
    replication = owner()
    assert replication.next_deadline() == NEVER
    ((to, offered),) = offers(replication.owner.saved(holding(), 0.0))
    assert offered == holding()
    assert replication.owner.pinned() == {holding().blob}
    times = []
    for _ in range(3):
        now = replication.next_deadline()
        times.append(now)
        assert replication.tick(now - 0.01) == []
        assert offers(replication.tick(now)) == [(to, holding())]
    assert times == [5.0, 15.0, 35.0]
    assert of(Note, replication.received(to, ReplicaAck(holding().blob)))
    assert replication.next_deadline() == NEVER
    assert replication.owner.pinned() == frozenset()
    assert replication.owner.holders() == {to: holding()}
    assert replication.received(to, ReplicaAck(holding().blob)) == []


def test_only_the_newest_is_offered_and_what_may_be_under_way_stays_pinned():
    replication = owner()
    ((to, _),) = offers(replication.owner.saved(holding(round=1), 0.0))
    for n in range(2, 9):
        assert offers(replication.owner.saved(holding(round=n), float(n) / 10)) == [(to, holding(round=n))]
    assert holding(round=1).blob in replication.owner.pinned()
    assert holding(round=8).blob in replication.owner.pinned()
    assert len(replication.owner.pinned()) <= 3
    assert offers(replication.tick(replication.next_deadline())) == [(to, holding(round=8))]
    replication.received(to, ReplicaAck(holding(round=1).blob))
    assert replication.owner.holders() == {to: holding(round=1)}
    assert replication.next_deadline() < NEVER, "the newest is not acked yet"
    replication.received(to, ReplicaAck(holding(round=8).blob))
    assert replication.owner.pinned() == frozenset()


def test_a_dead_holder_is_replaced():
    replication = owner(num_holders=2)
    first = [to for to, _ in offers(replication.owner.saved(holding(), 0.0))]
    assert len(set(first)) == 2
    for to in first:
        replication.received(to, ReplicaAck(holding().blob))
    alive = {peer(n): n for n in range(5) if peer(n) != first[0]}
    ((to, offered),) = offers(replication.members_changed(alive, 2.0))
    assert to not in first
    assert offered == holding()
    assert set(replication.owner.holders()) == {first[1], to}
    assert offers(replication.members_changed(alive, 3.0)) == []


def test_an_unwilling_holder_is_passed_over_for_a_while():
    replication = owner(max_offers=3, unwilling_s=500.0)
    ((first, _),) = offers(replication.owner.saved(holding(), 0.0))
    seen = [first]
    now = 0.0
    while seen[-1] == first:
        now = replication.next_deadline()
        assert now < 200
        seen += [to for to, _ in offers(replication.tick(now))]
    assert seen.count(first) == 3
    replication.received(seen[-1], ReplicaAck(holding().blob))
    back = replication.next_deadline()
    assert offers(replication.tick(back)) == [(first, holding())], "later it gets another chance"


def test_alone_or_with_nobody_willing_nothing_breaks():
    replication = Replication(ME)
    assert replication.owner.saved(holding(), 0.0) == []
    assert replication.holdings() == (holding(),)
    assert replication.members_changed({ME: 0}, 1.0) == []
    assert replication.next_deadline() == NEVER
    assert offers(replication.members_changed({ME: 0, peer(1): 1}, 2.0))
    num_offers = 0
    for _ in range(50):
        num_offers += len(offers(replication.tick(replication.next_deadline())))
    assert num_offers >= 40, "the only one is asked on and on"
    assert replication.received(peer(9), ReplicaAck(holding().blob)) == []


# --- holder ---


def test_what_a_kill_left_behind_is_discarded_at_the_next_start():
    one, two = holding(peer(1), 1), holding(peer(1), 2)
    replication = Replication(ME, kept=[two, one, holding(peer(2))])
    assert replication.members_changed({}, 0.0) == [DiscardSnapshot(one)]
    assert replication.members_changed({}, 0.0) == []
    assert set(replication.holder.kept()) == {two, holding(peer(2))}


def test_keeps_acks_and_discards_the_older_only_then():
    replication = Replication(ME)
    one, two = holding(peer(1), 1), holding(peer(1), 2)
    assert replication.received(peer(1), ReplicaOffer(one)) == [FetchSnapshot(one, peer(1))]
    assert replication.received(peer(1), ReplicaOffer(one)) == [], "on its way already"
    assert replication.holdings() == ()
    assert replication.holder.stored(one) == [Send(peer(1), ReplicaAck(one.blob))]
    assert replication.holdings() == (one,)
    assert replication.received(peer(1), ReplicaOffer(one)) == [Send(peer(1), ReplicaAck(one.blob))]
    assert replication.received(peer(1), ReplicaOffer(two)) == [FetchSnapshot(two, peer(1))]
    assert replication.holdings() == (one,)
    assert replication.holder.stored(two) == [DiscardSnapshot(one), Send(peer(1), ReplicaAck(two.blob))]
    assert replication.holdings() == (two,)
    (note,) = replication.received(peer(1), ReplicaOffer(one))
    assert note.kind == "replica-refused"


def test_a_newer_offer_waits_for_the_fetch_under_way():
    replication = Replication(ME)
    replication.received(peer(1), ReplicaOffer(holding(peer(1), 1)))
    for n in (2, 4, 3):
        assert replication.received(peer(1), ReplicaOffer(holding(peer(1), n))) == []
    assert of(FetchSnapshot, replication.holder.stored(holding(peer(1), 1))) == [
        FetchSnapshot(holding(peer(1), 4), peer(1))
    ]
    assert replication.holder.fetch_failed(holding(peer(1), 1)) == []
    assert replication.holder.fetch_failed(holding(peer(1), 4)) == []
    assert replication.holdings() == (holding(peer(1), 1),)
    assert replication.received(peer(1), ReplicaOffer(holding(peer(1), 4))) == [
        FetchSnapshot(holding(peer(1), 4), peer(1))
    ]


def test_speaks_for_somebody_else():
    replication = Replication(ME)
    bad = [(peer(2), holding(peer(1))), (ME, holding(ME)), (peer(1), holding(peer(1), num_bytes=0))]
    bad.append((peer(1), dataclasses.replace(holding(peer(1)), part=NO_PART)))
    bad.append((peer(1), dataclasses.replace(holding(peer(1)), kind="head")))
    for sender, offered in bad:
        with pytest.raises(RemoteError):
            replication.received(sender, ReplicaOffer(offered))


def test_old_epochs_are_refused_and_their_fetches_cancelled():
    replication = Replication(ME, kept=[holding(peer(3), epoch=1)])
    replication.received(peer(1), ReplicaOffer(holding(peer(1), epoch=1)))
    replication.received(peer(2), ReplicaOffer(holding(peer(2), epoch=1)))
    replication.received(peer(2), ReplicaOffer(holding(peer(2), epoch=2)))
    effects = replication.epoch_changed(2, 1.0)
    assert of(CancelSnapshot, effects) == [
        CancelSnapshot(holding(peer(1), epoch=1)),
        CancelSnapshot(holding(peer(2), epoch=1)),
    ]
    assert of(FetchSnapshot, effects) == [FetchSnapshot(holding(peer(2), epoch=2), peer(2))]
    assert of(FetchSnapshot, replication.received(peer(1), ReplicaOffer(holding(peer(1), 9, epoch=1)))) == []
    assert replication.holdings() == (holding(peer(3), epoch=1),), "what is kept stays"


@pytest.mark.parametrize(
    "config",
    [{"max_holdings": 2}, {"max_total_bytes": 25}, {"max_snapshot_bytes": 9}, {"max_holdings_per_trainer": 0}],
)
def test_bounds(config):
    replication = Replication(ME, ReplicationConfig(**config))
    for n in range(1, 6):
        for effect in of(FetchSnapshot, replication.received(peer(n), ReplicaOffer(holding(peer(n))))):
            replication.holder.stored(effect.holding)
    assert len(replication.holdings()) == (2 if "max_holdings" in config or "max_total_bytes" in config else 0)


def test_past_epochs_make_room_and_one_trainer_can_not_take_all_of_it():
    config = ReplicationConfig(max_holdings=3, max_holdings_per_trainer=2)
    replication = Replication(ME, kept=[holding(peer(1), part=p) for p in range(2)] + [holding(peer(2))], config=config)
    (note,) = replication.received(peer(1), ReplicaOffer(holding(peer(1), part=5)))
    assert note.kind == "replica-refused"
    replication.epoch_changed(2, 0.0)
    effects = replication.received(peer(1), ReplicaOffer(holding(peer(1), part=5, epoch=2)))
    assert effects == [
        DiscardSnapshot(holding(peer(1), part=0)),
        FetchSnapshot(holding(peer(1), part=5, epoch=2), peer(1)),
    ]
    assert holding(peer(2)) in replication.holdings()


def test_the_record_shows_no_more_than_fits():
    config = ReplicationConfig(max_holdings=1000)
    replication = Replication(ME, kept=[holding(peer(n), round=n) for n in range(1, 400)], config=config)
    replication.owner.saved(holding(round=1), 0.0)
    shown = replication.holdings()
    assert len(shown) == 256
    assert shown[0] == holding(round=1)
    assert shown[1].round == 399


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["offer", "stored", "failed"]), st.integers(1, 3), st.integers(1, 6))))
def test_what_was_acked_is_never_lost(steps):
    replication = Replication(ME)
    under_way: dict[PeerId, SnapshotRef] = {}
    disk: set[SnapshotRef] = set()
    acked: dict[PeerId, SnapshotRef] = {}
    for what, n, round in steps:
        trainer = peer(n)
        effects = []
        if what == "offer":
            effects = replication.received(trainer, ReplicaOffer(holding(trainer, round)))
        elif trainer in under_way and what == "stored":
            done = under_way.pop(trainer)
            disk.add(done)
            effects = replication.holder.stored(done)
            acked[trainer] = done
        elif trainer in under_way:
            effects = replication.holder.fetch_failed(under_way.pop(trainer))
        for effect in effects:
            if isinstance(effect, FetchSnapshot):
                assert effect.source not in under_way, "one fetch at a time for each"
                under_way[effect.source] = effect.holding
            elif isinstance(effect, DiscardSnapshot):
                disk.remove(effect.holding)
        assert set(replication.holdings()) == disk
        for trainer, safe in acked.items():
            assert any(h.trainer == trainer and freshness(h) >= freshness(safe) for h in disk)


# --- snapshots that are of use together only ---


def test_older_ones_stay_as_long_as_they_are_needed():
    replication = Replication(ME, ReplicationConfig(past_epochs=True))
    needed = {holding(peer(1), 1).blob}
    replication.holder.surplus = lambda older: [h for h in older if h.blob not in needed]
    for n in (1, 2, 3):
        each = holding(peer(1), n)
        assert of(FetchSnapshot, replication.received(peer(1), ReplicaOffer(each)))
        replication.holder.stored(each)
    assert [h.round for h in replication.holder.kept()] == [3, 1] and {h.round for h in replication.holdings()} == {
        3,
        1,
    }
    assert acks(replication.received(peer(1), ReplicaOffer(holding(peer(1), 1)))), "it is here"
    needed.clear()
    assert of(DiscardSnapshot, replication.members_changed({}, 1.0)) == [DiscardSnapshot(holding(peer(1), 1))]
    assert [h.round for h in replication.holder.kept()] == [3]


def test_after_a_restart_nothing_is_let_go_before_it_is_known_what_is_needed():
    kept = [holding(peer(1), n) for n in (1, 2, 3)]
    replication = Replication(ME, ReplicationConfig(past_epochs=True), kept)
    replication.holder.surplus = lambda older: []
    assert not of(DiscardSnapshot, replication.members_changed({}, 0.0)) and set(replication.holder.kept()) == set(kept)


@pytest.mark.parametrize("past_epochs", [False, True])
def test_snapshots_of_past_epochs_are_taken_where_they_are_of_use(past_epochs):
    replication = Replication(ME, ReplicationConfig(past_epochs=past_epochs))
    fetching = holding(peer(1), 1, epoch=1)
    replication.received(peer(1), ReplicaOffer(fetching))
    assert bool(of(CancelSnapshot, replication.epoch_changed(2, 1.0))) == (not past_epochs)
    offered = replication.received(peer(2), ReplicaOffer(holding(peer(2), 1, epoch=1)))
    assert bool(of(FetchSnapshot, offered)) == past_epochs

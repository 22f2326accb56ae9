"""Records: two and more books that compare notes."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import record

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, PeerId, peer_id
from p2ptrain.protocol.group.records import MAX_MESSAGE_BYTES, Effect, RecordBook, RecordChanged, record_bytes
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.simulation.names import key
from p2ptrain.wire.codec import header_bytes
from p2ptrain.wire.messages import RecordDigest, Records, RecordVersion, SnapshotRef


def book(number: int, *, base: int = 0) -> RecordBook:
    return RecordBook(record(number), random.Random(number), 0.0, version_base=base)


def exchange(books: dict[PeerId, RecordBook], sender: PeerId, effects: list[Effect], now: float) -> int:
    """Deliver until all is quiet; the number of messages it took."""
    queue = [(sender, effect) for effect in effects if isinstance(effect, Send)]
    for source, send in queue:
        assert isinstance(send.message, (RecordDigest, Records))
        assert header_bytes(send.message) <= 64 * 1024
        answers = books[send.to].received(source, send.message, now)
        queue.extend((send.to, effect) for effect in answers if isinstance(effect, Send))
    return len(queue)


def test_one_round_levels_two_books_both_ways() -> None:
    ann, bob = book(1), book(2)
    books = {ann.own_id: ann, bob.own_id: bob}
    ann.received(bob.own_id, Records((record(3, version=5),)), 0.0)
    bob.received(ann.own_id, Records((record(4), record(3, version=9))), 0.0)
    ann.peers_alive([bob.own_id, ann.own_id], 0.0)
    assert exchange(books, ann.own_id, ann.tick(1.0), 1.0) == 4
    assert dict(ann.all()) == dict(bob.all())
    assert len(ann.all()) == 4
    assert exchange(books, ann.own_id, ann.tick(ann.next_deadline()), 3.0) == 1


def test_an_update_raises_the_version_and_goes_out_soon() -> None:
    ann = book(1, base=1000)
    assert ann.next_deadline() == NEVER
    ann.peers_alive([peer_id(key(2))], 0.0)
    ann.tick(0.0)
    before = ann.own
    (changed,) = ann.update(0.01, step=7, phase="training")
    assert changed == RecordChanged(ann.own_id, before, ann.own)
    assert (ann.own.version, ann.own.step) == (1001, 7)
    assert ann.next_deadline() == pytest.approx(0.25)
    assert ann.update(0.02, step=7) == []
    with pytest.raises(LocalError):
        ann.update(0.03, version=1)


def test_a_restarted_peer_goes_above_its_old_record() -> None:
    ann, bob = book(1), book(2)
    old = record(1, version=50, name="earlier life")
    bob.received(ann.own_id, Records((old,)), 0.0)
    (changed,) = ann.received(bob.own_id, Records((old,)), 0.0)
    assert isinstance(changed, RecordChanged)
    assert (ann.own.version, ann.own.name) == (51, "peer 1")
    ann.received(bob.own_id, RecordDigest((RecordVersion(ann.own_id, 90),), True), 0.0)
    assert ann.own.version == 91
    assert ann.received(bob.own_id, Records((ann.own,)), 0.0) == []
    ann.received(bob.own_id, Records((dataclasses.replace(ann.own, name="other"),)), 0.0)
    assert (ann.own.version, ann.own.name) == (92, "peer 1")


def test_nobody_speaks_for_another() -> None:
    ann = book(1)
    forged = record(3, key=key(4))
    with pytest.raises(RemoteError, match="record-key"):
        ann.received(peer_id(key(2)), Records((record(5), forged)), 0.0)
    assert len(ann.all()) == 1


@pytest.mark.parametrize(
    "message",
    [
        Records((record(2, version=2**63 - 1),)),
        Records((record(2, counts=tuple(range(4096)), wishes=tuple(range(4096))),)),
        Records(tuple(record(number) for number in range(2, 80))),
        RecordDigest((RecordVersion(peer_id(key(2)), 2**63 - 1),), True),
        RecordDigest(tuple(RecordVersion(peer_id(key(n)), 1) for n in range(1025)), False),
    ],
)
def test_absurd_messages_are_refused(message: Records | RecordDigest) -> None:
    ann = book(1)
    with pytest.raises(RemoteError):
        ann.received(peer_id(key(2)), message, 0.0)
    assert len(ann.all()) == 1


def test_the_forgotten_stay_forgotten_until_they_speak() -> None:
    ann = book(1)
    ann.received(peer_id(key(2)), Records((record(3, version=5),)), 0.0)
    ann.forget(peer_id(key(3)))
    ann.forget(ann.own_id)
    assert list(ann.all()) == [ann.own_id]
    assert ann.received(peer_id(key(2)), Records((record(3, version=5),)), 0.0) == []
    digest = RecordDigest((RecordVersion(peer_id(key(3)), 5),), True)
    assert [e.message for e in ann.received(peer_id(key(2)), digest, 0.0) if isinstance(e, Send)] == [
        Records((ann.own,))
    ]
    assert len(ann.received(peer_id(key(2)), Records((record(3, version=6),)), 0.0)) == 1


def test_three_thousand_records_cross_over_in_arcs() -> None:
    ann, bob = book(1), book(2)
    books = {ann.own_id: ann, bob.own_id: bob}
    everyone = [record(number) for number in range(10, 3010)]
    for start in range(0, 3000, 50):
        ann.received(bob.own_id, Records(tuple(everyone[start : start + 50])), 0.0)
    bob.received(ann.own_id, Records(tuple(everyone[:40])), 0.0)
    ann.peers_alive([bob.own_id], 0.0)
    bob.peers_alive([ann.own_id], 0.0)
    for _ in range(60):
        for one in (ann, bob):
            now = one.next_deadline()
            exchange(books, one.own_id, one.tick(now), now)
    assert dict(ann.all()) == dict(bob.all())
    assert len(bob.all()) == 3002


def test_a_book_does_not_grow_without_bound() -> None:
    ann = RecordBook(record(1), random.Random(1), 0.0)
    for number in range(2, 5002):
        ann.received(peer_id(key(2)), Records((record(number),)), 0.0)
    assert len(ann.all()) == ann.config.max_records


holdings = st.builds(
    SnapshotRef,
    part=st.integers(0, 4095), trainer=st.just(peer_id(key(1))), epoch=st.integers(0, 2**63 - 1),
    round=st.integers(0, 2**63 - 1), step=st.integers(0, 2**63 - 1), samples=st.integers(0, 2**63 - 1),
    blob=st.just(BlobId("f" * 64)), num_bytes=st.integers(0, 2**63 - 1), span=st.integers(1, 4096),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=256),
    st.text(max_size=256),
    st.lists(st.integers(0, 2**63 - 1), max_size=200),
    st.lists(st.text(min_size=9, max_size=128), max_size=16),
    st.lists(holdings, max_size=40),
)
def test_the_estimated_size_is_never_too_small(
    name: str, waiting_for: str, counts: list[int], addresses: list[str], held: list[SnapshotRef]
) -> None:
    big = 2**63 - 1
    full = record(
        1, name=name, waiting_for=waiting_for, counts=tuple(counts), addresses=tuple(addresses), version=big,
        holdings=tuple(held), memory_bytes=big, epoch=big, round=big, step=big, samples=big, bytes_sent=big,
        plan="f" * 64, job="f" * 16, phase="fitting", profile="f" * 64, vote="f" * 64,
    )  # fmt: skip
    assert record_bytes(full) >= header_bytes(Records((full,))) - 96
    assert MAX_MESSAGE_BYTES + 96 < 64 * 1024

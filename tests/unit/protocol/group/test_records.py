"""Records: two and more books that compare notes."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
import records
from hypothesis import given, settings
from hypothesis import strategies as st
from records import record

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, PeerId, peer_id
from p2ptrain.protocol.group.record_size import num_holdings_that_fit, record_bytes
from p2ptrain.protocol.group.records import (
    MAX_MESSAGE_BYTES,
    RECORD_MESSAGES,
    Effect,
    RecordBook,
    RecordChanged,
    RecordConfig,
)
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.protocol.signing import Statements
from p2ptrain.simulation.names import key
from p2ptrain.simulation.signing import signing_as
from p2ptrain.wire import codec
from p2ptrain.wire.codec import header_bytes
from p2ptrain.wire.messages import (
    NO_PART,
    Blame,
    Record,
    RecordChanges,
    RecordDigest,
    Records,
    RecordVersion,
    SnapshotRef,
)


def book(number: int, *, base: int = 0) -> RecordBook:
    return records.book(record(number), random.Random(number), version_base=base)


def exchange(books: dict[PeerId, RecordBook], sender: PeerId, effects: list[Effect], now: float) -> int:
    """Deliver until all is quiet; the number of messages it took."""
    queue = [(sender, effect) for effect in effects if isinstance(effect, Send)]
    for source, send in queue:
        assert isinstance(send.message, RECORD_MESSAGES)
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


@pytest.mark.parametrize("lost", [{"part": NO_PART}, {"profile": ""}], ids=str)
def test_who_has_lost_its_part_says_so_at_once(lost: dict[str, Any]) -> None:
    ann = book(1)
    ann.peers_alive([peer_id(key(2))], 0.0)
    ann.update(0.0, part=2, profile="p", phase="training")
    ann.tick(1.0)
    ann.update(1.01, round=1, phase="waiting")
    assert ann.next_deadline() > 1.2, "news goes out soon, and not oftener"
    ann.update(1.02, **lost)
    assert ann.next_deadline() <= 1.02
    (told,) = [e.message for e in ann.tick(1.02) if isinstance(e, Send) and isinstance(e.message, Records)]
    assert lost.items() <= dataclasses.asdict(told.records[0]).items()
    ann.update(1.03, phase="training")
    assert ann.next_deadline() > 1.2


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
    asked = ann.received(bob.own_id, RecordDigest((RecordVersion(ann.own_id, 90),), True), 0.0)
    assert Send(bob.own_id, RecordDigest((RecordVersion(ann.own_id, 51),), False)) in asked
    assert ann.own.version == 51
    assert ann.received(bob.own_id, Records((ann.own,)), 0.0) == []


def test_nobody_speaks_for_another() -> None:
    ann = book(1)
    forged = record(3, key=key(4))
    ann.received(peer_id(key(2)), Records((record(5), forged)), 0.0)
    assert ann.all().keys() == {ann.own_id, peer_id(key(5))}
    with pytest.raises(RemoteError, match="record-key"):
        ann.received(peer_id(key(3)), Records((forged,)), 0.0)


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


def test_who_looks_on_gets_of_each_what_is_new_of_itself() -> None:
    ann, watcher = book(1), peer_id(key(99))
    for number in range(2, 50):
        ann.received(peer_id(key(number)), Records((record(number),)), 0.0)
    own = RecordDigest((RecordVersion(ann.own_id, 0),), True, whole=False)
    assert ann.received(watcher, own, 0.0) == [Send(watcher, Records((ann.own,)))]
    known = ann.own.version
    ann.update(1.0, phase="training")
    own = RecordDigest((RecordVersion(ann.own_id, known),), True, whole=False)
    (told,) = ann.received(watcher, own, 1.0)
    assert isinstance(told, Send) and isinstance(told.message, RecordChanges)
    assert (
        ann.received(watcher, RecordDigest((RecordVersion(ann.own_id, ann.own.version),), True, whole=False), 1.0) == []
    )


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
    for one in everyone:
        ann.met(one.peer)
        bob.met(one.peer)
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
    ann = book(1)
    for number in range(2, 5002):
        ann.received(peer_id(key(number)), Records((record(number),)), 0.0)
    assert len(ann.all()) == ann.config.max_records
    assert peer_id(key(5001)) in ann.all(), "who is gone makes room for who is here"


holdings = st.builds(
    SnapshotRef,
    part=st.integers(0, 4095), trainer=st.just(peer_id(key(1))), epoch=st.integers(0, 2**63 - 1),
    round=st.integers(0, 2**63 - 1), step=st.integers(0, 2**63 - 1), samples=st.integers(0, 2**63 - 1),
    blob=st.just(BlobId("f" * 64)), num_bytes=st.integers(0, 2**63 - 1), span=st.integers(1, 4096),
    key=st.just("k" * 40), signature=st.just("s" * 80),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=256),
    st.text(max_size=256),
    st.lists(st.integers(0, 2**63 - 1), max_size=200),
    st.lists(st.text(min_size=9, max_size=128), max_size=16),
    st.lists(holdings, max_size=40),
    st.lists(st.text(max_size=64), max_size=16),
)
def test_the_estimated_size_is_never_too_small(
    name: str, waiting_for: str, counts: list[int], addresses: list[str], held: list[SnapshotRef], why: list[str]
) -> None:
    big = 2**63 - 1
    full = record(
        1, name=name, waiting_for=waiting_for, counts=tuple(counts), addresses=tuple(addresses), version=big,
        holdings=tuple(held), memory_bytes=big, epoch=big, round=big, step=big, samples=big, bytes_sent=big,
        plan="f" * 64, job="f" * 16, phase="fitting", profile="f" * 64, vote="f" * 64,
        blames=tuple(Blame(BOB, big, big, each) for each in why), signature=b"s" * 64,
    )  # fmt: skip
    assert record_bytes(full) >= header_bytes(Records((full,))) - 96
    assert MAX_MESSAGE_BYTES + 96 < 64 * 1024
    fitting = dataclasses.replace(full, holdings=tuple(held[:1] * num_holdings_that_fit(full)))
    assert record_bytes(fitting) <= MAX_MESSAGE_BYTES


# --- lies about others ------------------------------------------------------------------------------------------------

ANN, BOB, LIAR = (peer_id(key(number)) for number in (1, 2, 3))
NEAR_LIMITS = [2, 2**31, 2**62 - 1, 2**62]


def strict(number: int, **config: Any) -> tuple[RecordBook, Counter[str]]:
    """A book that believes what is signed, and what it refused."""
    refused: Counter[str] = Counter()
    config_ = RecordConfig(**config)
    rng = random.Random(number)
    return RecordBook(record(number), rng, 0.0, config_, statements=signer(number), refused=refused), refused


def signer(number: int, group: bytes = b"the group") -> Statements:
    return Statements(signing_as(key(number)), group)


def signed(number: int, **changes: Any) -> Record:
    return signer(number).signed(record(number, **changes))


@pytest.mark.parametrize("version", NEAR_LIMITS)
def test_nobody_raises_another_s_version(version: int) -> None:
    ann, refused = strict(1)
    bob = signed(2, version=1)
    ann.received(BOB, Records((bob,)), 0.0)
    forged = [
        dataclasses.replace(bob, version=version, name="forged"),
        signer(3).signed(record(2, version=version, name="forged")),
        signer(2, b"another group").signed(record(2, version=version, name="forged")),
        dataclasses.replace(signed(2, version=version), step=9),
        record(2, version=version),
    ]
    for lie in forged:
        assert ann.received(LIAR, Records((lie,)), 0.0) == []
    assert ann.get(BOB) == bob
    assert refused["record-unsigned"] == len(forged)


@pytest.mark.parametrize("version", NEAR_LIMITS)
@pytest.mark.parametrize("want_reply", [True, False])
def test_a_claim_that_others_hold_a_higher_version_of_the_own_record_changes_nothing(
    version: int, want_reply: bool
) -> None:
    ann, _ = strict(1)
    for _ in range(10):
        ann.received(LIAR, RecordDigest((RecordVersion(ANN, version),), want_reply), 0.0)
        ann.received(LIAR, Records((record(1, version=version, name="forged"),)), 0.0)
    assert (ann.own.version, ann.own.name) == (1, "peer 1")
    ann.received(LIAR, Records((signed(1, version=40, name="an earlier life"),)), 0.0)
    assert (ann.own.version, ann.own.name) == (41, "peer 1")


def test_the_own_version_never_passes_its_limit() -> None:
    ann, _ = strict(1)
    ann.received(BOB, Records((signed(1, version=2**62, name="an earlier life"),)), 0.0)
    assert ann.own.version == 1


def test_what_is_sent_of_the_own_record_is_signed_and_as_it_is() -> None:
    ann, bob = strict(1)[0], strict(2)[0]
    for number in range(3):
        ann.update(0.0, step=number, loss=number)  # a whole number where others will read a real one
        (sent,) = [
            effect.message
            for effect in ann.received(BOB, RecordDigest((), True), 0.0)
            if isinstance(effect, Send) and isinstance(effect.message, Records)
        ]
        _, read = codec.decode(codec.encode(sent), "control")
        assert isinstance(read, Records)
        bob.received(ANN, read, 0.0)
        known = bob.get(ANN)
        assert known is not None and (known.step, known.version) == (number, ann.own.version)


def test_who_passes_on_what_is_wrong_is_not_blamed_and_the_rest_of_it_counts() -> None:
    ann, refused = strict(1)
    wrong = [
        record(4, version=1),
        record(5, key=key(6)),
        signed(6, version=2**63 - 1),
        signed(7, counts=tuple(range(4096)), wishes=tuple(range(4096))),
    ]
    ann.received(LIAR, Records((*wrong, signed(8))), 0.0)
    assert ann.all().keys() == {ANN, peer_id(key(8))}
    assert sum(refused.values()) == 4
    for lie, number in zip(wrong, (4, 5, 6, 7), strict=True):
        with pytest.raises(RemoteError):
            ann.received(peer_id(key(number)), Records((lie,)), 0.0)


def test_peers_that_a_member_makes_up_fill_no_table_and_keep_nobody_out() -> None:
    ann, refused = strict(1, max_records=200)
    for start in range(100, 3100, 50):
        ann.received(LIAR, Records(tuple(signed(number) for number in range(start, start + 50))), 0.0)
        digest = RecordDigest(tuple(RecordVersion(peer_id(key(n)), 9) for n in range(start, start + 50)), True)
        asked = [e.message for e in ann.received(LIAR, digest, 0.0) if isinstance(e, Send)]
        assert all(len(each.versions) <= 64 for each in asked if isinstance(each, RecordDigest))
    assert len(ann.all()) == 1 + ann.config.hearsay.max_from_one
    assert refused["record-unmet"] >= 2900
    ann.received(BOB, Records((signed(2), signed(9))), 0.0)
    assert {BOB, peer_id(key(9))} <= ann.all().keys()


def test_who_was_only_heard_of_is_forgotten_unless_it_is_met_or_a_member() -> None:
    ann, _ = strict(1)
    met, member = peer_id(key(10)), peer_id(key(11))
    ann.received(LIAR, Records(tuple(signed(number) for number in range(10, 40))), 0.0)
    ann.met(met)
    ann.peers_alive([member, LIAR], 0.0)
    ann.tick(59.0)
    assert len(ann.all()) == 31
    ann.tick(61.0)
    assert ann.all().keys() == {ANN, met, member}
    ann.received(LIAR, Records(tuple(signed(number, version=2) for number in range(40, 80))), 62.0)
    assert len(ann.all()) == 43, "there is room again"


def test_a_book_has_room_for_so_many_bytes() -> None:
    ann, refused = strict(1, max_bytes=100_000)
    for number in range(10, 60):
        ann.received(peer_id(key(number)), Records((signed(number, counts=tuple(range(1000))),)), 0.0)
        ann.peers_alive([peer_id(key(n)) for n in range(10, number + 1)], 0.0)
    assert 8 <= len(ann.all()) <= 11
    assert refused["records-full"] >= 38
    assert peer_id(key(10)) in ann.all(), "who is here gives nobody way"

"""Profiles of others: fetched by hash, from whoever has them, bounded, and never believed unasked."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterable

import pytest
import records

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.blobs.profile_book import ProfileBook, ProfileConfig, ProfileLearnt
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import ProfileReply, ProfileRequest, Record

CONFIG = ProfileConfig()


def peer(number: int) -> PeerId:
    return PeerId(f"peer{number:012d}")


def data(number: int, size: int = 40) -> bytes:
    return b'{"of":%d}' % number + b" " * size


def name(of: bytes) -> str:
    return hashlib.sha256(of).hexdigest()


def record(number: int, profile: str) -> Record:
    return records.record(peer(number), profile=profile)


def asked(effects: Iterable[object]) -> list[tuple[PeerId, str]]:
    return [(e.to, e.message.profile) for e in effects if isinstance(e, Send) and isinstance(e.message, ProfileRequest)]


def test_what_a_record_names_is_asked_for_and_kept() -> None:
    book = ProfileBook()
    own = book.set_own(data(0))
    assert own == name(data(0)) and book.get(own) == data(0)
    members = [record(0, own), record(1, name(data(1))), record(2, ""), record(3, "odd")]
    assert asked(book.members_changed(members, 0.0)) == [(peer(1), name(data(1)))]
    assert book.members_changed(members, 0.5) == []
    assert book.get(name(data(1))) is None
    assert book.received(peer(1), ProfileReply(data(1)), 1.0) == [ProfileLearnt(name(data(1)))]
    assert book.get(name(data(1))) == data(1)
    assert book.received(peer(1), ProfileReply(data(1)), 1.1) == []  # the second answer
    assert book.next_deadline() == NEVER
    assert book.received(peer(7), ProfileRequest(name(data(1))), 2.0) == [Send(peer(7), ProfileReply(data(1)))]
    assert book.received(peer(7), ProfileRequest(own), 2.0) == [Send(peer(7), ProfileReply(data(0)))]
    assert book.received(peer(7), ProfileRequest("0" * 64), 2.0) == []


def test_holders_take_turns_and_patience_ends_for_a_while() -> None:
    book = ProfileBook()
    wanted = name(data(1))
    log = asked(book.members_changed([record(1, wanted), record(2, wanted)], 0.0))
    times = [0.0]
    while book.next_deadline() < 60.0:
        times.append(book.next_deadline())
        log += asked(book.tick(times[-1]))
    assert [to for to, _ in log[:3]] == [peer(1), peer(2), peer(1)]
    assert times[:4] == [0.0, 2.0, 6.0, 14.0]
    while len(log) < CONFIG.max_asks:
        log += asked(book.tick(book.next_deadline()))
    given_up = book.next_deadline()
    assert book.tick(given_up) == []
    assert book.next_deadline() == given_up + CONFIG.rest_s
    assert len(asked(book.tick(book.next_deadline()))) == 1


def test_replies_that_nobody_asked_for_are_refused() -> None:
    book = ProfileBook()
    book.members_changed([record(1, name(data(1)))], 0.0)
    for sender, said in ((peer(2), data(1)), (peer(1), data(2))):
        with pytest.raises(RemoteError, match="profile-unasked"):
            book.received(sender, ProfileReply(said), 0.1)
    assert book.get(name(data(1))) is None and book.get(name(data(2))) is None


def test_what_no_record_names_is_forgotten_and_a_late_answer_is_no_offence() -> None:
    book = ProfileBook()
    own = book.set_own(data(0))
    old, new = name(data(1)), name(data(2))
    book.members_changed([record(1, old)], 0.0)
    assert asked(book.members_changed([record(1, new)], 0.1)) == [(peer(1), new)]
    assert book.received(peer(1), ProfileReply(data(1)), 0.2) == []
    assert book.get(old) is None
    book.received(peer(1), ProfileReply(data(2)), 0.3)
    book.members_changed([], 0.4)
    assert book.get(new) is None and book.get(own) == data(0)
    assert book.next_deadline() == NEVER


def test_only_so_many_are_asked_for_and_kept_at_once() -> None:
    config = dataclasses.replace(CONFIG, max_asking=3, max_profiles=5)
    book = ProfileBook(config)
    members = [record(n, name(data(n))) for n in range(10)]
    log = asked(book.members_changed(members, 0.0))
    assert len(log) == 3
    while log:
        to, wanted = log.pop(0)
        effects = book.received(to, ProfileReply(data(int(to[4:]))), 0.1)
        assert effects[0] == ProfileLearnt(wanted)
        log += asked(effects)
    assert sum(book.get(name(data(n))) is not None for n in range(10)) == 5
    assert book.tick(1000.0) == [] and book.next_deadline() == NEVER
    assert len(asked(book.members_changed(members[5:], 1001.0))) == 3  # room again

    small = ProfileBook(dataclasses.replace(CONFIG, max_bytes=100))
    small.members_changed(members, 0.0)
    for number in range(3):
        small.received(peer(number), ProfileReply(data(number)), 0.1)
    assert [small.get(name(data(n))) is not None for n in range(3)] == [True, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_all_learn_all_over_a_lossy_network(seed: int) -> None:
    rng = random.Random(seed)
    books = [ProfileBook() for _ in range(6)]
    members = [record(n, book.set_own(data(n))) for n, book in enumerate(books)]
    queue: list[tuple[int, int, ProfileRequest | ProfileReply]] = []

    def carry(source: int, effects: Iterable[object]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and rng.random() < 0.6:
                assert isinstance(effect.message, (ProfileRequest, ProfileReply))
                queue.extend([(source, int(effect.to[4:]), effect.message)] * rng.choice([1, 1, 2]))

    for number, book in enumerate(books):
        carry(number, book.members_changed(members, 0.0))
    now = 0.0
    while any(book.get(each.profile) is None for book in books for each in members):
        while queue:
            source, to, message = queue.pop(rng.randrange(len(queue)))
            carry(to, books[to].received(peer(source), message, now))
        if min(book.next_deadline() for book in books) == NEVER:
            break
        now = min(book.next_deadline() for book in books)
        for number, book in enumerate(books):
            carry(number, book.tick(now))
    assert all(book.get(each.profile) == data(n) for book in books for n, each in enumerate(members))
    assert now < 600.0

"""Addresses of peers that there is something to say to."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Send
from p2ptrain.protocol.session.address_book import ANSWER_S, MAX_ADDRESSES, MAX_WANTED, AddressBook, Target
from p2ptrain.runtime.peer.reach import LARGE, MAX_UNSAID, UNSAID_S, Reach
from p2ptrain.wire.messages import PlanRequest


def test_who_is_wanted_is_dialled_beside_all_others_and_no_more_than_so_many() -> None:
    book = AddressBook(random.Random(1))
    for number in range(MAX_ADDRESSES):
        target = book.propose(f"tcp://192.0.2.1:{number + 1}", 0.0, source="peer", in_use=())
        assert target is not None
        target.open(b"k%d" % number)
    in_use = {f"tcp://192.0.2.1:{number + 1}" for number in range(MAX_ADDRESSES)}
    assert book.propose("tcp://192.0.2.2:1", 0.0, source="peer", in_use=in_use) is None  # all are in use

    def want(number: int, now: float) -> Target | None:
        return book.propose(f"tcp://192.0.2.3:{number + 1}", now, source="wanted", in_use=in_use)

    first = [want(number, 0.0) for number in range(MAX_WANTED)]
    assert want(MAX_WANTED, 0.1) is None, "all may yet answer"
    assert want(MAX_WANTED, ANSWER_S) is not None and len(book.unanswered()) == MAX_WANTED, "in another's place"
    for target in first:
        assert target is not None
        target.open(target.address.encode())
    for number in range(1, MAX_WANTED):
        assert want(MAX_WANTED + number, ANSWER_S) is not None, "those that answer take no place"
    for target in first:
        book.lost(target.key, (), ANSWER_S, in_use) if target else None
    assert len(book.unanswered()) == MAX_WANTED, "not even when many are lost at once"


def test_who_rests_is_dialled_as_soon_as_there_is_something_to_say_to_it() -> None:
    book = AddressBook(random.Random(1))
    given = book.propose("tcp://192.0.2.1:1", 0.0, source="given", in_use=())
    assert given is not None
    given.nonce = b"n" * 16
    given.open(b"key")
    assert book.propose(given.address, 1.0, source="wanted", in_use=()) is None, "it has a link"
    book.rested(b"key", 2.0)
    assert book.propose(given.address, 3.0, source="peer", in_use=()) is None and not book.due(3.0)
    assert book.propose(given.address, 3.0, source="wanted", in_use=()) is given and given.source == "given"
    assert book.due(3.0) == [given]
    given.nonce = b"o" * 16
    book.dialled(given, 3.0)
    assert book.propose(given.address, 3.1, source="wanted", in_use=()) is None, "it is being dialled"


def test_words_to_hundreds_wait_for_each_of_them_and_no_more_than_so_many_for_one() -> None:
    peers = frozenset(PeerId(f"{number:016}") for number in range(3 * LARGE))
    alive: Any = SimpleNamespace(alive=lambda: peers)
    sessions: Any = SimpleNamespace(propose=lambda *_, **__: [], key_of=lambda peer: None, when_idle=None)
    records: Any = {peer: SimpleNamespace(peer=peer, addresses=("tcp://192.0.2.1:1",)) for peer in peers}
    reach = Reach(PeerId("own"), sessions, SimpleNamespace(), alive, lambda: records, lambda: 1, 0.0)  # type: ignore[arg-type]
    words = [PlanRequest(f"{number:064x}") for number in range(MAX_UNSAID + 2)]
    for peer in peers:
        for word in words[:3]:
            reach.dial(Send(peer, word), 1.0)
    first, second, third, *others = sorted(peers)
    for word in words:
        reach.dial(Send(first, word), 2.0)
    assert reach.admitted(first, 3.0) == [Send(first, word) for word in words[2:]], "the newest"
    assert reach.admitted(first, 3.0) == []
    for peer in (second, *others):
        assert reach.admitted(peer, 0.9 + UNSAID_S) == [Send(peer, word) for word in words[:3]]
    assert reach.admitted(third, 1.0 + UNSAID_S) == [], "nobody waits for an answer any more"

"""Records travel as what changed of them, in groups that digests can't name in full."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from records import record

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.group.record_changes import RecordChanges as Changes
from p2ptrain.protocol.group.record_changes import changed
from p2ptrain.protocol.group.record_news import full_version, mark, pack_news, unpack_news
from p2ptrain.protocol.group.records import RecordBook, RecordConfig
from p2ptrain.protocol.machine import Send
from p2ptrain.protocol.signing import Statements
from p2ptrain.simulation.names import key
from p2ptrain.simulation.signing import signing_as
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Message, Record, RecordChange, RecordChanges, RecordDigest, Records, RecordVersion
from p2ptrain.wire.partial import FIELDS, pack_fields, unpack_fields

ANN, BOB = peer_id(key(1)), peer_id(key(2))
SIZE = 60


def signer(number: int) -> Statements:
    return Statements(signing_as(key(number)), b"the group")


def signed(number: int, **changes: object) -> Record:
    return signer(number).signed(record(number, **changes))


def book(number: int, config: RecordConfig | None = None) -> tuple[RecordBook, Counter[str]]:
    """One that knows a group of ``SIZE`` others."""
    refused: Counter[str] = Counter()
    rng, config = random.Random(number), config or RecordConfig()
    made = RecordBook(record(number), rng, 0.0, config, statements=signer(number), refused=refused)
    for other in range(10, 10 + SIZE):
        made.met(peer_id(key(other)))
        made.received(peer_id(key(other)), Records((signed(other),)), 0.0)
    made.met(BOB if number == 1 else ANN)
    return made, refused


def deliver(books: dict[PeerId, RecordBook], sender: PeerId, effects: list[object], now: float) -> list[Message]:
    """Until all is quiet, by way of the wire; what was sent."""
    queue = [(sender, effect) for effect in effects if isinstance(effect, Send) and effect.to in books]
    for source, send in queue:
        _, read = codec.decode(codec.encode(send.message), "control")
        assert isinstance(read, (RecordDigest, Records, RecordChanges))
        answers = books[send.to].received(source, read, now)
        queue += [(send.to, effect) for effect in answers if isinstance(effect, Send) and effect.to in books]
    return [send.message for _, send in queue]


def pair() -> tuple[RecordBook, RecordBook, dict[PeerId, RecordBook]]:
    """Two that know each other, and all else alike."""
    ann, bob = book(1)[0], book(2)[0]
    books = {ANN: ann, BOB: bob}
    ann.peers_alive([BOB], 0.0)
    bob.peers_alive([ANN], 0.0)
    for one in (ann, bob):
        deliver(books, one.own_id, [Send(BOB if one is ann else ANN, RecordDigest((), True))], 0.0)
    assert ann.all().keys() == bob.all().keys() and len(ann.all()) == SIZE + 2
    return ann, bob, books


def test_progress_of_another_travels_as_what_changed_and_is_signed() -> None:
    ann, bob, books = pair()
    later = signed(20, version=9, step=7, loss=0.5)
    ann.received(later.peer, Records((later,)), 1.0)
    ann.tick(1.0)
    sent = deliver(books, ANN, ann.tick(2.5), 2.5)
    (change,) = [each for message in sent if isinstance(message, RecordChanges) for each in message.changes]
    assert unpack_fields(change.fields).keys() == {"step", "loss"}
    assert bob.get(later.peer) == later and not any(isinstance(message, Records) for message in sent)


def test_news_goes_both_ways_in_one_exchange() -> None:
    ann, bob, books = pair()
    ann.received(peer_id(key(20)), Records((signed(20, version=9, step=7),)), 1.0)
    bob.received(peer_id(key(30)), Records((signed(30, version=9, step=8),)), 1.0)
    deliver(books, ANN, ann.tick(2.5), 2.5)
    for one in (ann, bob):
        assert [one.all()[peer_id(key(n))].step for n in (20, 30)] == [7, 8]


def test_a_change_that_does_not_fit_brings_the_whole_record() -> None:
    """Another word under the same version, as of one that went back in time: the signature shows it."""
    ann, bob, books = pair()
    twenty = peer_id(key(20))
    ann.received(twenty, Records((signed(20, version=5, name="one"),)), 1.0)
    bob.received(twenty, Records((signed(20, version=5, name="another"),)), 1.0)
    ann.received(twenty, Records((signed(20, version=9, name="one", step=7),)), 1.5)
    deliver(books, ANN, ann.tick(2.5), 2.5)
    known = bob.get(twenty)
    assert known is not None and (known.name, known.step) == ("one", 7)


def test_a_change_for_an_older_record_than_ours_is_no_lie() -> None:
    """A field changed and changed back, and who made the change never saw that; we saw the middle meanwhile."""
    ann, refused = book(1)
    first, middle, last = (signed(20, version=v, waiting_for=w) for v, w in ((5, ""), (6, "a part"), (7, "")))
    changes = Changes()
    changes.learnt(None, first)
    changes.learnt(first, last)
    change = changes.since(5, last)
    assert change is not None
    for known in (first, middle):
        ann.received(known.peer, Records((known,)), 1.0)
    asked = ann.received(BOB, RecordChanges((change,)), 1.0)
    assert asked == [Send(BOB, RecordDigest((RecordVersion(last.peer, 0),), False))]
    assert ann.get(last.peer) == middle and not refused
    ann.received(BOB, Records((last,)), 1.0)
    assert ann.get(last.peer) == last and not refused


def test_nobody_changes_another_s_record() -> None:
    ann, refused = book(1)
    before = dict(ann.all())
    twenty = peer_id(key(20))
    lies = [
        RecordChange(twenty, 1, 9, pack_fields(record(20, step=7), {"step"}), b"s" * 64),
        RecordChange(twenty, 8, 9, pack_fields(record(20, step=7), {"step"}), signed(20, version=9).signature),
        RecordChange(twenty, 1, 9, b"\x00", b""),
        RecordChange(ANN, 1, 9, pack_fields(record(1, name="forged"), {"name"}), b"s" * 64),
    ]
    for lie in lies:
        asked = ann.received(BOB, RecordChanges((lie,)), 0.0)
        assert asked == [Send(BOB, RecordDigest((RecordVersion(lie.peer, 0),), False))]
    assert dict(ann.all()) == before and sum(refused.values()) == len(lies)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        codec.msgpack.packb({}),
        codec.msgpack.packb([[FIELDS.index("peer"), BOB]]),
        codec.msgpack.packb([[FIELDS.index("key"), key(3)]]),
        codec.msgpack.packb([[FIELDS.index("signature"), b""]]),
        codec.msgpack.packb([[FIELDS.index("step"), -1]]),
        codec.msgpack.packb([[FIELDS.index("step"), 1], [FIELDS.index("step"), 2]]),
        codec.msgpack.packb([[len(FIELDS), 1]]),
        codec.msgpack.packb([[-1, 1]]),
        codec.msgpack.packb([["step", 1]]),
        codec.msgpack.packb([[FIELDS.index("step")]]),
    ],
)
def test_odd_fields_are_refused(packed: bytes) -> None:
    with pytest.raises(RemoteError):
        unpack_fields(packed)


def test_what_changed_is_all_that_is_needed_from_any_version_on() -> None:
    rng, changes = random.Random(1), Changes()
    history = [record(3, version=1)]
    changes.learnt(None, history[0])
    for version in range(2, 30):
        name = rng.choice(["step", "round", "loss", "name", "samples"])
        value = str(version) if name == "name" else version
        history.append(dataclasses.replace(history[-1], version=version, **{name: value}))
        changes.learnt(history[-2], history[-1])
    for old in history[-16:]:
        change = changes.since(old.version, history[-1])
        assert change is not None and changed(old, change) == history[-1]
    assert changes.since(0, history[-1]) is None, "who knows nothing needs the whole"
    assert changes.since(1, history[-1]) is None, "nor is a version remembered for ever"


def test_a_zero_that_changes_its_sign_is_a_change_as_it_is_signed_with_it() -> None:
    first, second = (signed(1, version=version, loss=loss) for version, loss in ((3, 0.0), (4, -0.0)))
    known = Changes()
    known.learnt(None, first)
    known.learnt(first, second)
    change = known.since(3, second)
    assert change is not None and signer(2).is_owners(changed(first, change))


def test_who_has_a_version_that_was_never_here_is_given_the_whole() -> None:
    """A field may have changed, and changed back."""
    changes = Changes()
    first, last = record(3, version=1, step=5), record(3, version=3, step=5, loss=1.0)
    changes.learnt(None, first)
    changes.learnt(first, last)
    assert changes.since(2, last) is None
    change = changes.since(1, last)
    assert change is not None and unpack_fields(change.fields) == {"loss": 1.0}


def test_progress_is_said_less_often_in_a_larger_group_and_all_else_at_once() -> None:
    said: dict[int, float] = {}
    for progress_rate in (120, 6):
        ann, _ = book(1, RecordConfig(progress_rate=progress_rate))
        ann.peers_alive([BOB], 0.0)
        version = ann.signed().version
        now = 0.0
        while ann.signed().version == version:
            now += 0.1
            ann.update(now, step=round(10 * now))
            ann.tick(now)
        assert ann.own.step >= ann.signed().step > 0
        said[progress_rate] = now
        ann.update(now, phase="training")
        assert ann.signed().phase == "training" and ann.signed().step == ann.own.step
        pushed = [e.message for e in ann.tick(now + 0.5) if isinstance(e, Send) and isinstance(e.message, Records)]
        assert pushed == [Records((ann.signed(),))]
    assert said[120] < 1.0 and 5.0 < said[6] < 13.0


def test_short_versions_and_marks() -> None:
    near = 1_700_000_000_000
    for version in (near, near + 5, near - 5, near + 2**31 - 1, near - 2**31 + 1):
        assert full_version(version % 2**32, near) == version
    entries = [(mark(ANN), 7), (mark(BOB), 2**32 - 1)]
    assert unpack_news(pack_news(entries)) == entries
    for odd in (b"1234567", bytes(8 * 513)):
        with pytest.raises(RemoteError):
            unpack_news(odd)

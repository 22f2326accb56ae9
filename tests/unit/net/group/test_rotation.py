"""Who follows which notice of a new code: those that the founder names, and nobody else, whatever is sent."""

from __future__ import annotations

import dataclasses
import random

import pytest

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.net.group import rotation
from p2ptrain.net.group.admission import lets_in, own_admission
from p2ptrain.net.group.founding import Founding, found
from p2ptrain.net.group.kept import KeptGroup
from p2ptrain.net.group.rotation import Followed, LeftOut, new_code, read_notice
from p2ptrain.net.keys import Group, Identity, new_group, new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.wire import codec
from p2ptrain.wire.messages import MAX_STAYING, NewCode, SealedCode

FOUNDER, STAYS, GOES, LATE = (new_identity() for _ in range(4))
FOUNDING = found(FOUNDER.public)
OLD = KeptGroup(FOUNDING.group(approves=False), FOUNDING)


def rotated(*stay: Identity, removed: tuple[Identity, ...] = (), approves: bool = False) -> tuple[KeptGroup, NewCode]:
    keys = {each.peer: each.public for each in stay}
    return new_code(OLD, FOUNDER, keys, {each.peer for each in removed}, approves=approves)


def test_those_that_stay_follow_and_the_others_learn_nothing() -> None:
    new, notice = rotated(STAYS, removed=(GOES,))
    for identity in (STAYS, FOUNDER):
        read = read_notice(notice, OLD.group, identity)
        assert read == Followed(new) and new.group != OLD.group
    assert read_notice(notice, OLD.group, GOES) == LeftOut(removed=True)
    assert read_notice(notice, OLD.group, LATE) == LeftOut(removed=False)
    assert new.founding is not None and new.founding.nonce not in codec.encode(notice)[0]
    assert new.group.code not in codec.encode(notice)[0]


def test_a_notice_survives_the_wire() -> None:
    new, notice = rotated(STAYS)
    assert read_notice(codec.decode(codec.encode(notice), "control")[1], OLD.group, STAYS) == Followed(new)  # type: ignore[arg-type]


def test_nobody_but_the_founder_is_followed() -> None:
    """The one that goes has the code, and everything else that a member has."""
    for liar in (GOES, STAYS):
        own = found(liar.public)
        _, by_own_key = new_code(KeptGroup(OLD.group, own), liar, {STAYS.peer: STAYS.public}, (), approves=False)
        claims_founder = dataclasses.replace(by_own_key, founder=FOUNDER.public, nonce=FOUNDING.nonce)
        _, true = rotated(STAYS)
        swapped = dataclasses.replace(true, codes=by_own_key.codes)
        for notice in (by_own_key, claims_founder, swapped):
            with pytest.raises(RemoteError):
                read_notice(notice, OLD.group, STAYS)
    with pytest.raises(LocalError):
        new_code(OLD, GOES, {}, (), approves=False)


def test_whatever_is_changed_of_a_notice_it_counts_no_more() -> None:
    _, notice = rotated(STAYS, GOES, removed=(LATE,))
    rng = random.Random(1)
    raw = codec.encode(notice)[0]
    for _ in range(300):
        place = rng.randrange(len(raw))
        changed = raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]
        try:
            _, message = codec.decode([changed], "control")
        except RemoteError:
            continue
        if message == notice or not isinstance(message, NewCode):
            continue
        with pytest.raises(RemoteError):
            read_notice(message, OLD.group, STAYS)


def test_a_notice_counts_for_the_code_that_it_was_made_for() -> None:
    """An old one, said again, moves nobody who has gone on; nor does one of another group of the same founder."""
    new, notice = rotated(STAYS)
    other = found(FOUNDER.public).group(approves=False)
    for group in (new.group, other, new_group(), Group(OLD.group.code, approves=True)):
        with pytest.raises(RemoteError):
            read_notice(notice, group, STAYS)


def test_a_founder_that_seals_rubbish_moves_nobody() -> None:
    _, notice = rotated(STAYS)
    for box in (b"x", bytes(81), bytes(256)):
        broken = dataclasses.replace(notice, codes=(SealedCode(STAYS.peer, box),))
        signature = signing_of(FOUNDER).sign(rotation.signed_words(OLD.group, broken))
        signed = dataclasses.replace(broken, signature=signature)
        with pytest.raises(RemoteError, match="box"):
            read_notice(signed, OLD.group, STAYS)


def test_a_full_notice_fits_a_message() -> None:
    keys = {each.peer: each.public for each in (new_identity() for _ in range(MAX_STAYING - 1))}
    _, notice = new_code(OLD, FOUNDER, keys, list(keys), approves=True)
    assert codec.decode(codec.encode(notice), "control")[1] == notice
    more = new_identity()
    with pytest.raises(LocalError):
        new_code(OLD, FOUNDER, keys | {more.peer: more.public}, (), approves=True)


def test_with_approval_those_that_stay_are_let_in_and_nobody_else() -> None:
    new, notice = rotated(STAYS, approves=True)
    read = read_notice(notice, OLD.group, STAYS)
    assert isinstance(read, Followed) and read.kept.group == new.group and new.group.approves
    shown = own_admission(read.kept, STAYS)
    assert lets_in(new.group, STAYS.public, shown) and not lets_in(new.group, GOES.public, shown)
    assert not lets_in(new.group, STAYS.public, None)
    assert own_admission(new, FOUNDER) is not None and lets_in(new.group, FOUNDER.public, own_admission(new, FOUNDER))
    assert Founding(FOUNDER.public, FOUNDING.nonce).made(OLD.group)

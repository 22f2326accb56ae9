"""Notices of new codes as one peer takes them: forged, replayed, out of order, torn, in floods, or damaged on disk."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.net.group.admission import admit
from p2ptrain.net.group.founding import found
from p2ptrain.net.group.kept import Former, KeptGroup, load_kept, save_kept
from p2ptrain.net.group.rotation import can_be_passed_on, new_code
from p2ptrain.net.keys import Group, Identity, load_or_make_identity, new_identity
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.protocol.session.effects import NoticeTold
from p2ptrain.runtime.new_code import Rotation, keep_rotation
from p2ptrain.runtime.node.group_codes import GroupCodes
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Admission, Admitted, NewCode

FOUNDER, OWN, REMOVED, OTHER = (new_identity() for _ in range(4))
FIRST = KeptGroup((FOUNDING := found(FOUNDER.public)).group(approves=False), FOUNDING)
STAY = {each.peer: each.public for each in (OWN, OTHER)}


def rotated(kept: KeptGroup, **how: Any) -> tuple[KeptGroup, NewCode]:
    return new_code(kept, FOUNDER, STAY, {REMOVED.peer}, approves=False, **how)


SECOND, TO_SECOND = rotated(FIRST)
THIRD, TO_THIRD = rotated(SECOND)


def frame(notice: NewCode) -> bytes:
    return bytes(codec.encode(notice)[0])


class FakePeer:
    """In a session with the other member, and with the liar."""

    job_id = ""

    def __init__(self) -> None:
        self.sent: list[Send] = []
        self.blamed: list[tuple[bytes, str]] = []
        self.sessions = self

    def peers(self) -> list[PeerId]:
        return [OTHER.peer, REMOVED.peer]

    def offended(self, key: bytes, error: RemoteError, now: float) -> list[object]:
        self.blamed.append((key, error.reason))
        return []

    def run(self, effects: list[Any], now: float) -> list[object]:
        self.sent += effects
        return []


class FakeNode:
    """Carries out at once what it is given."""

    def __init__(self, group: Group, identity: Identity = OWN) -> None:
        self.group, self.identity = group, identity
        self.notes: list[Note] = []
        self.num_written = self.num_finished = 0

    def feed(self, event: Callable[[float], object]) -> None:
        event(0.0)

    def on_disk(self, work: Callable[[], object], then: Callable[[object, BaseException | None], None]) -> None:
        self.num_written += 1
        then(work(), None)

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        action()

    def finish(self) -> None:
        self.num_finished += 1


class Device:
    """One start of a peer, in what its disk says that it is in."""

    def __init__(self, folder: Path, kept: KeptGroup | None = None, identity: Identity = OWN) -> None:
        if kept is not None:
            save_kept(folder, kept)
        on_disk = load_kept(folder)
        assert on_disk is not None
        self.folder, self.ended = folder, []  # type: tuple[Path, list[UserError]]
        self.node, self.peer = FakeNode(on_disk.group, identity), FakePeer()
        self.state = StateDir(folder)
        self.codes = GroupCodes(cast(Any, self.node), self.state, self.ended.append)

    def told(self, notice: NewCode | Admitted, sender: Identity = REMOVED) -> None:
        self.codes.told(NoticeTold(sender.public, notice), cast(Any, self.peer))

    def check_unmoved(self, num_blamed: int, sender: Identity = REMOVED) -> None:
        assert self.peer.blamed[:num_blamed] == self.peer.blamed
        assert [key for key, _ in self.peer.blamed] == [sender.public] * num_blamed
        assert self.codes.followed is None and not self.ended and not self.peer.sent and not self.node.num_written
        on_disk = load_kept(self.folder)
        assert on_disk is not None and on_disk.group == self.node.group


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, FIRST)


def forged(liar: Identity) -> list[NewCode]:
    """By a member with all that it has: the code, its key, and the founder's true notices."""
    own = found(liar.public)
    _, by_itself = new_code(KeptGroup(FIRST.group, own), liar, STAY, (), approves=False)
    as_founder = dataclasses.replace(by_itself, founder=FOUNDER.public, nonce=FOUNDING.nonce)
    left_out = dataclasses.replace(TO_SECOND, codes=tuple(each for each in TO_SECOND.codes if each.peer != OWN.peer))
    goes = dataclasses.replace(left_out, removed=(OWN.peer,))
    boxes = dataclasses.replace(TO_SECOND, codes=by_itself.codes)
    unsigned = dataclasses.replace(TO_SECOND, signature=b"")
    again = dataclasses.replace(TO_SECOND, signature=TO_THIRD.signature)
    return [by_itself, as_founder, left_out, goes, boxes, unsigned, again]


def test_what_a_member_forges_moves_nobody_and_counts_against_it(device: Device) -> None:
    notices = [notice for liar in (REMOVED, OTHER) for notice in forged(liar)]
    for notice in notices:
        device.told(notice)
    device.check_unmoved(len(notices))


def test_notices_of_other_groups_move_nobody(device: Device) -> None:
    """Of another founder's, of another group of the same founder, of the same code with another rule of admission."""
    same = found(FOUNDER.public)
    _, of_hers = new_code(KeptGroup(same.group(approves=False), same), FOUNDER, STAY, (), approves=False)
    theirs = found(OTHER.public)
    _, of_theirs = new_code(KeptGroup(theirs.group(approves=False), theirs), OTHER, STAY, (), approves=False)
    _, approving = new_code(KeptGroup(FOUNDING.group(approves=True), FOUNDING), FOUNDER, STAY, (), approves=True)
    for notice in (of_hers, of_theirs, approving):
        device.told(notice)
    device.check_unmoved(3)


def test_torn_notices_never_come_to_a_peer_or_move_nobody(device: Device) -> None:
    whole, rng, num = frame(TO_SECOND), random.Random(1), 0
    for _ in range(200):
        torn = whole[: rng.randrange(len(whole))] + rng.randbytes(rng.randrange(3))
        try:
            _, message = codec.decode([torn], "control")
        except RemoteError:
            continue
        assert isinstance(message, NewCode)
        num += 1
        device.told(message)
    device.check_unmoved(num)


def test_a_removed_member_that_says_old_notices_again_moves_nobody(tmp_path: Path) -> None:
    """Nor one that the group's founder made later for another code: each counts for one code, once."""
    device = Device(tmp_path, FIRST)
    device.told(TO_THIRD)  # too soon: of a code that this device has not yet
    device.check_unmoved(1)
    device.told(TO_SECOND, OTHER)
    assert device.codes.followed is not None and device.codes.followed.group == SECOND.group
    assert {send.to for send in device.peer.sent} == {OTHER.peer, REMOVED.peer} and device.node.num_finished == 1
    device.state.close()

    again = Device(tmp_path)
    assert again.node.group == SECOND.group
    for notice in (TO_SECOND, *forged(REMOVED)):
        again.told(notice)
    again.check_unmoved(1 + len(forged(REMOVED)))
    again.told(TO_THIRD, OTHER)
    on_disk = load_kept(tmp_path)
    assert on_disk is not None and on_disk.group == THIRD.group
    assert [former.group for former in on_disk.former] == [FIRST.group, SECOND.group]
    assert all(map(can_be_passed_on, on_disk.former))
    again.state.close()


def test_a_flood_of_true_notices_is_followed_once(device: Device) -> None:
    for _ in range(500):
        device.told(TO_SECOND)
        device.told(TO_THIRD)
    assert device.node.num_written == device.node.num_finished == 1 and len(device.peer.sent) == 2
    assert not device.peer.blamed


def test_who_was_removed_ends_by_the_founder_s_word_alone(tmp_path: Path) -> None:
    device = Device(tmp_path, FIRST, REMOVED)
    for notice in (dataclasses.replace(TO_SECOND, removed=(REMOVED.peer, OTHER.peer)), forged(OTHER)[2]):
        device.told(notice, OTHER)
    device.check_unmoved(2, OTHER)
    device.told(TO_SECOND, OTHER)
    (error,) = device.ended
    assert "removed" in str(error) and device.codes.followed is None
    device.state.close()


def test_words_that_let_in_count_from_the_founder_for_this_device_and_this_code(tmp_path: Path) -> None:
    founding = found(FOUNDER.public)
    group = founding.group(approves=True)
    device = Device(tmp_path, KeptGroup(group))
    true = admit(FOUNDER, group, OWN.public)
    lies = [
        Admission(REMOVED.public, founding.nonce, OWN.public, admit(REMOVED, group, OWN.public)),
        Admission(FOUNDER.public, founding.nonce, OWN.public, admit(REMOVED, group, OWN.public)),
        Admission(FOUNDER.public, founding.nonce, OTHER.public, admit(FOUNDER, group, OTHER.public)),
        Admission(FOUNDER.public, founding.nonce, OWN.public, admit(FOUNDER, FIRST.group, OWN.public)),
        Admission(FOUNDER.public, FOUNDING.nonce, OWN.public, true),
        Admission(FOUNDER.public, founding.nonce, OWN.public, b""),
        Admission(FOUNDER.public, founding.nonce, OWN.public, true, visit=b"v" * 64),
    ]
    for lie in lies:
        device.told(Admitted(lie))
    device.check_unmoved(len(lies))
    for _ in range(3):
        device.told(Admitted(Admission(FOUNDER.public, founding.nonce, OWN.public, true)))
    assert device.node.num_written == 1 and device.codes.followed is not None
    device.state.close()


@pytest.mark.parametrize("damage", ["torn", "forged", "another message"])
def test_a_damaged_notice_on_disk_is_passed_on_to_nobody(tmp_path: Path, damage: str) -> None:
    """Those who heard it would take this device for the liar."""
    kept = {
        "torn": frame(TO_SECOND)[:-7],
        "forged": frame(forged(OTHER)[4]),
        "another message": bytes(codec.encode(Admitted(Admission(FOUNDER.public, FOUNDING.nonce, OWN.public, b"")))[0]),
    }[damage]
    device = Device(tmp_path, FIRST)
    save_kept(tmp_path, dataclasses.replace(SECOND, former=(Former(FIRST.group, kept),)))
    device.codes._look_at_disk(cast(Any, device.peer))
    assert device.codes.followed is not None and device.codes.followed.group == SECOND.group
    assert not device.peer.sent and device.node.num_finished == 1
    device.state.close()
    again = Device(tmp_path)
    again.codes.courier.known(["127.0.0.1:7001"])
    assert not again.codes.courier.by_tag() and not again.codes.courier._visits
    again.state.close()


def test_a_group_has_one_new_code_though_two_are_asked_for_at_once(tmp_path: Path) -> None:
    """Some would follow the one and some the other."""
    identity = load_or_make_identity(tmp_path)
    founding = found(identity.public)
    kept = KeptGroup(founding.group(approves=False), founding)
    save_kept(tmp_path, kept)
    rotation = Rotation(kept, identity, {}, {}, frozenset(), approves=False)
    new, _ = keep_rotation(tmp_path, rotation)
    with pytest.raises(UserError, match="meanwhile"):
        keep_rotation(tmp_path, rotation)
    assert load_kept(tmp_path) == new

"""A new join code for those that stay: made by the founder, read by everybody else.

The rule: only a group's founder gives it a new code. Its notice names the members that stay, and seals the code for
each of them, so that whoever passes it on, or is left out, learns nothing. All others follow the founder's signature
and nothing else. A notice counts for the one code that it was made for, and the code that it leads to has the same
founder: it is made of the founder's key and of the nonce in the box.

Invariant: ``read_notice`` follows nobody but the founder of the very group that it is asked about, to a group of the
same founder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgpack
from nacl import bindings as sodium
from nacl.exceptions import CryptoError
from zmq.utils import z85

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.net.group.admission import admit
from p2ptrain.net.group.founding import NONCE_BYTES, Founding, found
from p2ptrain.net.group.kept import Former, KeptGroup
from p2ptrain.net.keys import Group, Identity
from p2ptrain.net.signing import signing_of, verify
from p2ptrain.protocol.signing import SIGNATURE_BYTES, group_mark
from p2ptrain.wire import codec
from p2ptrain.wire.messages import MAX_STAYING, NewCode, SealedCode
from p2ptrain.wire.schema import to_plain

_PLAIN, _APPROVES = 0, 1


@dataclass(frozen=True, slots=True)
class Followed:
    """This device stays: the group under its new code, without its history."""

    kept: KeptGroup


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The new code was not sent to this device; ``removed``: on purpose."""

    removed: bool


def new_code(
    kept: KeptGroup, founder: Identity, stay: Mapping[PeerId, bytes], removed: Collection[PeerId], *, approves: bool
) -> tuple[KeptGroup, NewCode]:
    """The group under a new code, and the notice of it for those that ``stay`` (public keys, by peer), the founder too.

    Raises ``LocalError`` if ``founder`` did not make the group's code, or more stay than a notice has room for.
    """
    if kept.founding is None or kept.founding.founder != founder.public:
        raise LocalError("only its founder gives a group a new code")
    everybody = {**stay, founder.peer: founder.public}
    if len(everybody) > MAX_STAYING:
        raise LocalError(f"{len(everybody)} members stay; a notice has room for {MAX_STAYING}")
    founding = found(founder.public)
    group = founding.group(approves=approves)

    def sealed(key: bytes) -> bytes:
        word = admit(founder, group, key) if approves else b""
        words = bytes([_APPROVES if approves else _PLAIN]) + founding.nonce + word
        return bytes(sodium.crypto_box_seal(words, z85.decode(key)))

    codes = tuple(SealedCode(peer, sealed(key)) for peer, key in sorted(everybody.items()))
    notice = NewCode(founder.public, kept.founding.nonce, codes, tuple(sorted(set(removed))), b"")
    signature = signing_of(founder).sign(signed_words(kept.group, notice))
    word = admit(founder, group, founder.public) if approves else b""
    return KeptGroup(group, founding, word), dataclasses.replace(notice, signature=signature)


def read_notice(notice: NewCode, group: Group, identity: Identity) -> Followed | LeftOut:
    """What ``notice`` means to ``identity`` in ``group``. Raises ``RemoteError`` if it is not the founder's."""
    check_notice(notice, group)
    box = next((each.box for each in notice.codes if each.peer == identity.peer), None)
    if box is None:
        return LeftOut(removed=identity.peer in notice.removed)
    words = _opened(box, identity)
    if len(words) not in (1 + NONCE_BYTES, 1 + NONCE_BYTES + SIGNATURE_BYTES) or words[0] not in (_PLAIN, _APPROVES):
        raise RemoteError("new-code", "no code is in the box for this device")
    following = Founding(notice.founder, words[1 : 1 + NONCE_BYTES])
    approves = words[0] == _APPROVES
    return Followed(KeptGroup(following.group(approves=approves), following, words[1 + NONCE_BYTES :]))


def check_notice(notice: NewCode, group: Group) -> None:
    """Raises ``RemoteError`` if it is not the word of ``group``'s founder."""
    if not Founding(notice.founder, notice.nonce).made(group):
        raise RemoteError("new-code", "it is not from the device that made the code of this group")
    if not verify(notice.founder, signed_words(group, notice), notice.signature):
        raise RemoteError("new-code", "the device that made the code of this group did not sign it")


def can_be_passed_on(former: Former) -> bool:
    """Whether others would follow what is kept of a former code, and not take who passes it on for a liar."""
    try:
        _, notice = codec.decode([former.notice], "control")
        if not isinstance(notice, NewCode):
            return False
        check_notice(notice, former.group)
    except RemoteError:
        return False
    return True


def _opened(box: bytes, identity: Identity) -> bytes:
    try:
        return bytes(sodium.crypto_box_seal_open(box, z85.decode(identity.public), z85.decode(identity.secret)))
    except (CryptoError, ValueError, TypeError):
        return b""


def signed_words(group: Group, notice: NewCode) -> bytes:
    """What the founder signs: all of the notice, and the group that it is for."""
    plain = to_plain(notice)
    del plain["signature"]
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return b"p2ptrain new-code" + group_mark(group.proof_key) + packed


def staying(members: Mapping[PeerId, bytes], removed: Collection[PeerId]) -> dict[PeerId, bytes]:
    """Those of ``members`` (public keys) that are who they say, and are not removed."""
    return {peer: key for peer, key in members.items() if peer not in removed and peer_id(key) == peer}

"""The founder's word that a device may be in a group that admits its devices one by one.

Invariant: ``lets_in`` is true of nobody that the founder of this very code did not admit, but for a visitor (a status,
a harvest) that an admitted device vouches for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.net.group.founding import Founding
from p2ptrain.net.group.kept import KeptGroup, load_kept
from p2ptrain.net.keys import Group, Identity, load_or_make_identity
from p2ptrain.net.signing import signing_of, verify
from p2ptrain.protocol.session.door import Door
from p2ptrain.protocol.signing import group_mark
from p2ptrain.wire.messages import Admission


def admit(founder: Identity, group: Group, key: bytes) -> bytes:
    """The founder's signature that the device of ``key`` may be in ``group``."""
    return signing_of(founder).sign(_words("admitted", group, key))


def own_admission(kept: KeptGroup, identity: Identity) -> Admission | None:
    """What this device shows to others, if it was admitted."""
    founding = kept.founding
    if founding is None or not kept.admission:
        return None
    return Admission(founding.founder, founding.nonce, identity.public, kept.admission)


def vouch(admission: Admission, device: Identity, group: Group, visitor: bytes) -> Admission:
    """What ``visitor``, a key of this device's for one visit, shows to others."""
    word = signing_of(device).sign(_words("visitor", group, visitor))
    return Admission(admission.founder, admission.nonce, admission.device, admission.word, word)


def lets_in(group: Group, key: bytes, admission: Admission | None) -> bool:
    """Whether who proved to have ``key`` may be in ``group``, by what it shows."""
    if not group.approves:
        return True
    if admission is None or not Founding(admission.founder, admission.nonce).made(group):
        return False
    if not verify(admission.founder, _words("admitted", group, admission.device), admission.word):
        return False
    return admission.device == key or verify(admission.device, _words("visitor", group, key), admission.visit)


def door_of(kept: KeptGroup, identity: Identity, name: str = "", visitor: bytes = b"") -> Door:
    """Of this device, or of its ``visitor`` (a key for one visit): whom it lets in, and what it shows to others."""
    group = kept.group
    if not group.approves:
        return Door(name=name)
    own = own_admission(kept, identity)
    if own is not None and visitor:
        own = vouch(own, identity, group, visitor)
    is_in = lets_in(group, visitor or identity.public, own)
    return Door(lambda key, shown: is_in and lets_in(group, key, shown), own if is_in else None, name, is_guarded=True)


def visitors_door(group: Group, state_dir: Path | None) -> Callable[[bytes], Door]:
    """By the visitor's key, of a visit by the device of ``state_dir``. Raises ``UserError`` if that one is not in."""
    if not group.approves:
        return lambda visitor: Door()
    kept = load_kept(state_dir) if state_dir is not None else None
    if state_dir is not None and kept is not None and kept.group == group:
        device = load_or_make_identity(state_dir)
        if door_of(kept, device).own is not None:
            return lambda visitor: door_of(kept, device, visitor=visitor)
    raise UserError(
        "this group lets devices in one by one, and this device is not in yet: start `p2ptrain peer` here, and on the "
        "device that made the group run `p2ptrain group approve`"
    )


def _words(kind: str, group: Group, key: bytes) -> bytes:
    return b"p2ptrain " + kind.encode().ljust(8) + group_mark(group.proof_key) + key

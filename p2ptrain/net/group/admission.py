"""The founder's word that a device may be in a group that admits its devices one by one.

Invariant: ``lets_in`` is true of nobody that the founder of this very code did not admit, but for a visitor (a status,
a harvest) that an admitted device vouches for.
"""

from __future__ import annotations

from p2ptrain.net.group.founding import Founding
from p2ptrain.net.group.kept import KeptGroup
from p2ptrain.net.keys import Group, Identity
from p2ptrain.net.signing import signing_of, verify
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


def _words(kind: str, group: Group, key: bytes) -> bytes:
    return b"p2ptrain " + kind.encode().ljust(8) + group_mark(group.proof_key) + key

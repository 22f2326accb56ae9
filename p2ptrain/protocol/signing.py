"""What owners sign of themselves, so that others may pass it on and nobody can say it in their place.

Invariant: what is signed names its kind and the group it is meant for, so that no signature counts for anything else.

How signatures are made and checked is given from outside (``Signing``). What is signed are a peer's record, its
word that it is here, or has left, as of an incarnation, and each snapshot that it made. Who hears that from anybody
needs the owner's key, which its name is a hash of, and nothing else. A snapshot is signed for its job and for no group:
copies outlive a join code.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgpack

from p2ptrain.errors import LocalError
from p2ptrain.ids import JobId, PeerId, peer_id
from p2ptrain.wire.messages import Record, SnapshotRef
from p2ptrain.wire.schema import from_plain, to_plain

SIGNATURE_BYTES = 64
_MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Signing:
    """``sign(words)`` with the own key; ``verify(key, words, signature)`` with anybody's public key (Z85)."""

    sign: Callable[[bytes], bytes]
    verify: Callable[[bytes, bytes, bytes], bool]


class Statements:
    """What one peer signs, and checks of others, in one group. ``proof_key``: the group's."""

    def __init__(self, signing: Signing, proof_key: bytes) -> None:
        self._signing = signing
        self._group = group_mark(proof_key)
        self._presences: OrderedDict[tuple[bytes, int, bool, bytes], bool] = OrderedDict()
        """What was found of those seen before: each is repeated a thousand times."""
        self._snapshots: OrderedDict[tuple[SnapshotRef, str, str, JobId], bool] = OrderedDict()
        """Those found to be signed by who they name; what is false comes with a blow to its sender, and is not kept."""

    def signed(self, record: Record) -> Record:
        """The own record, as it can be passed on."""
        plain = from_plain(Record, to_plain(dataclasses.replace(record, signature=b"")))  # as others will read it
        return dataclasses.replace(plain, signature=self._signing.sign(self._words("record", _packed(plain))))

    def is_owners(self, record: Record) -> bool:
        """Whether the owner of the record's key said all this."""
        words = self._words("record", _packed(record))
        return self._signing.verify(record.key, words, record.signature)

    def presence(self, incarnation: int, *, left: bool) -> bytes:
        """The own word that this peer is here, or has left, as of an incarnation."""
        return self._signing.sign(self._words(_presence(left), incarnation.to_bytes(8)))

    def was_said(self, key: bytes, incarnation: int, signature: bytes, *, left: bool) -> bool:
        """Whether the owner of ``key`` gave its word so."""
        asked = key, incarnation, left, signature
        known = self._presences.get(asked)
        if known is None:
            words = self._words(_presence(left), incarnation.to_bytes(8))
            known = self._presences[asked] = self._signing.verify(key, words, signature)
            if len(self._presences) > _MAX_REMEMBERED:
                self._presences.popitem(last=False)
        return known

    def made(self, ref: SnapshotRef, own: PeerId, key: bytes, job: JobId) -> SnapshotRef:
        """A snapshot that this peer made (``own``, whose key is ``key``), as everybody may tell of it."""
        if ref.trainer != own:
            raise LocalError(f"a snapshot that {ref.trainer} made is not ours to sign")
        signature = base64.b85encode(self._signing.sign(_snapshot_words(ref, job))).decode()
        return dataclasses.replace(ref, key=key.decode(), signature=signature)

    def is_trainers(self, ref: SnapshotRef, job: JobId) -> bool:
        """Whether the trainer that ``ref`` names said that it made this of the job."""
        asked = ref, ref.key, ref.signature, job  # the first is equal to itself with another signature
        if asked in self._snapshots:
            return True
        try:
            key, signature = ref.key.encode(), base64.b85decode(ref.signature)
        except ValueError:
            return False
        if peer_id(key) != ref.trainer or not self._signing.verify(key, _snapshot_words(ref, job), signature):
            return False
        self._snapshots[asked] = True
        if len(self._snapshots) > _MAX_REMEMBERED:
            self._snapshots.popitem(last=False)
        return True

    def false_snapshot(self, record: Record) -> SnapshotRef | None:
        """The first one that ``record`` tells of and that its trainer did not sign; nobody honest tells of such."""
        return next((ref for ref in record.holdings if not self.is_trainers(ref, record.job)), None)

    def _words(self, kind: Literal["record", "here", "left"], words: bytes) -> bytes:
        return b"p2ptrain " + kind.encode().ljust(8) + self._group + words


def group_mark(proof_key: bytes) -> bytes:
    """What stands for a group in what is signed for it."""
    return hashlib.blake2b(proof_key, digest_size=16, person=b"p2ptrain-sign").digest()


def _presence(left: bool) -> Literal["here", "left"]:
    return "left" if left else "here"


def _snapshot_words(ref: SnapshotRef, job: JobId) -> bytes:
    plain = to_plain(ref)
    del plain["key"], plain["signature"]
    packed: bytes = msgpack.packb([job, plain], use_bin_type=True)
    return b"p2ptrain snapshot" + packed


def _packed(record: Record) -> bytes:
    plain = to_plain(record)
    del plain["signature"]
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return packed

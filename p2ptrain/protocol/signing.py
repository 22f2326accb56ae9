"""What owners sign of themselves, so that others may pass it on and nobody can say it in their place.

Invariant: what is signed names its kind and the group it is meant for, so that no signature counts for anything else.

How signatures are made and checked is given from outside (``Signing``). What is signed are a peer's record, and its
word that it is here, or has left, as of an incarnation. Who hears that from anybody needs the owner's key, which its
name is a hash of, and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgpack

from p2ptrain.wire.messages import Record
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

    def _words(self, kind: Literal["record", "here", "left"], words: bytes) -> bytes:
        return b"p2ptrain " + kind.encode().ljust(8) + self._group + words


def group_mark(proof_key: bytes) -> bytes:
    """What stands for a group in what is signed for it."""
    return hashlib.blake2b(proof_key, digest_size=16, person=b"p2ptrain-sign").digest()


def _presence(left: bool) -> Literal["here", "left"]:
    return "left" if left else "here"


def _packed(record: Record) -> bytes:
    plain = to_plain(record)
    del plain["signature"]
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return packed

"""The device that made a join code, its founder, and how everybody knows it by the code alone.

Invariant: of a code that ``found`` made there is one founder for ever, and nobody can name another.

A code is a hash of its founder's public key and a nonce. Who holds the code and is shown both can check that; to find
another key and nonce with the same hash would take 2^128 attempts. So a code needs no second part beside it to say who
may change the group. A code of random bits has no founder: nobody can change the group that it makes.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.net.keys import Group

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Founding:
    """``founder``: its CURVE public key (Z85)."""

    founder: bytes
    nonce: bytes = field(repr=False)

    @property
    def peer(self) -> PeerId:
        return peer_id(self.founder)

    @property
    def code(self) -> bytes:
        return hashlib.blake2b(self.founder, key=self.nonce, digest_size=16, person=b"p2ptrain-found").digest()

    def group(self, *, approves: bool) -> Group:
        return Group(self.code, approves=approves)

    def made(self, group: Group) -> bool:
        """Whether the code of ``group`` is this one's."""
        return len(self.nonce) == NONCE_BYTES and not group.is_open and self.code == group.code


def found(founder: bytes) -> Founding:
    """A new code of this founder's."""
    return Founding(founder, secrets.token_bytes(NONCE_BYTES))

"""The two hashes of the handshake: who holds the code, and what a session is called.

Invariant: every part that is hashed has a fixed length, so no two different inputs run together the same.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

from p2ptrain.wire.codec import SESSION_BYTES

BOOT_BYTES = 8
"""The first bytes of every nonce of one process: what tells a restart from another meeting."""


def new_boot(started_s: int, rng: random.Random) -> bytes:
    """Of a process that started then, in seconds since 1970 (0 = not known): later ones sort later."""
    if not started_s:
        return rng.randbytes(BOOT_BYTES)
    return (started_s & 0xFFFFFFFF).to_bytes(4) + rng.randbytes(BOOT_BYTES - 4)


def proof_of(
    role: Literal["welcome", "proof"],
    proof_key: bytes,
    prover: bytes,
    checker: bytes,
    prover_nonce: bytes,
    checker_nonce: bytes,
) -> bytes:
    """What only a holder of the group's ``proof_key`` can say about this meeting, in this role, of these two keys."""
    words = prover + checker + prover_nonce + checker_nonce
    return hashlib.blake2b(words, key=proof_key, person=f"p2p-{role}".encode(), digest_size=32).digest()


def session_name(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> bytes:
    """Both ends (key, boot) make the same name, whoever dialled."""
    both = b"".join(sorted([one[0] + one[1], other[0] + other[1]]))
    return hashlib.blake2b(both, digest_size=SESSION_BYTES, person=b"p2ptrain-session").digest()

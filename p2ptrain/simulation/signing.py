"""What stands in for signatures where peers are numbers: no secret, but different for each key and each text."""

from __future__ import annotations

import hashlib

from p2ptrain.protocol.signing import SIGNATURE_BYTES, Signing


def signing_as(key: bytes) -> Signing:
    """Signs for the simulated peer of this key."""
    return Signing(lambda words: _mark(key, words), lambda signer, words, mark: mark == _mark(signer, words))


TRUSTING = Signing(lambda words: b"", lambda key, words, signature: True)
"""For machines that are looked at one by one: everything is taken for signed."""
SIZED = Signing(lambda words: bytes(SIGNATURE_BYTES), TRUSTING.verify)
"""The same, with as many bytes as a signature has."""


def _mark(key: bytes, words: bytes) -> bytes:
    return hashlib.blake2b(words, key=key, digest_size=64).digest()

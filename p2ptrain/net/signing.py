"""Signatures by a peer's CURVE key itself: who has its public key can check them, whoever passes them on.

Invariant: a signature that ``verify`` takes was made with the secret half of that very key, over these very bytes.

A CURVE key is a Curve25519 key for key exchange. XEdDSA (T. Perrin, "The XEdDSA and VXEdDSA Signature Schemes",
Signal, 2016) signs with it: the public key is carried over to the Edwards curve, with the sign bit 0, and the secret
one is negated where that needs it. What comes of it is an ordinary Ed25519 signature (RFC 8032). So a peer's name needs
no second key beside it, which would have to be bound to the first.
"""

from __future__ import annotations

import hashlib
import os
import struct
from functools import lru_cache

from nacl import bindings as sodium
from nacl.exceptions import BadSignatureError
from zmq.utils import z85

from p2ptrain.net.keys import Identity
from p2ptrain.protocol.signing import SIGNATURE_BYTES, Signing

_P = 2**255 - 19
_HASH_1 = (2**256 - 2).to_bytes(32, "little")
"""What XEdDSA sets before a hash that is no part of Ed25519, so that the two are never mixed up."""


def signing_of(identity: Identity) -> Signing:
    """What signs as ``identity``, and checks what anybody signed."""
    secret = _edwards_secret(identity)
    return Signing(lambda words: _sign(*secret, words), verify)


def verify(key: bytes, words: bytes, signature: bytes) -> bool:
    """Whether ``key`` (public, Z85) signed ``words``. Never raises, whatever the bytes."""
    public = _edwards_public(key)
    if public is None or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        sodium.crypto_sign_open(signature + words, public)
    except (BadSignatureError, ValueError):
        return False
    return True


def _edwards_secret(identity: Identity) -> tuple[bytes, bytes]:
    """The scalar that signs, and the public point that belongs to it."""
    raw = bytearray(z85.decode(identity.secret))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    scalar = sodium.crypto_core_ed25519_scalar_reduce(bytes(raw) + bytes(32))
    point = bytearray(sodium.crypto_scalarmult_ed25519_base_noclamp(scalar))
    if point[31] & 128:
        scalar = sodium.crypto_core_ed25519_scalar_negate(scalar)
        point[31] &= 127
    return scalar, bytes(point)


@lru_cache(maxsize=4096)
def _edwards_public(key: bytes) -> bytes | None:
    """y = (u - 1) / (u + 1) modulo 2^255 - 19, in 32 bytes; None where ``key`` is no key."""
    try:
        raw = z85.decode(key)
    except (ValueError, KeyError, struct.error):
        return None
    if len(raw) != 32:
        return None
    u = int.from_bytes(raw, "little") & (2**255 - 1)
    if (u + 1) % _P == 0:
        return None
    return ((u - 1) * pow(u + 1, -1, _P) % _P).to_bytes(32, "little")


def _sign(scalar: bytes, point: bytes, words: bytes) -> bytes:
    nonce = _scalar(_HASH_1, scalar, words, os.urandom(64))
    commitment = sodium.crypto_scalarmult_ed25519_base_noclamp(nonce)
    challenge = _scalar(commitment, point, words)
    product = sodium.crypto_core_ed25519_scalar_mul(challenge, scalar)
    return commitment + sodium.crypto_core_ed25519_scalar_add(nonce, product)


def _scalar(*parts: bytes) -> bytes:
    return sodium.crypto_core_ed25519_scalar_reduce(hashlib.sha512(b"".join(parts)).digest())

"""Signatures by CURVE keys: the arithmetic against a plain one, and whatever bytes come."""

from __future__ import annotations

import hashlib

import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from p2ptrain.net.keys import Identity, new_identity
from p2ptrain.net.signing import signing_of, verify

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
BASE_Y = 4 * pow(5, -1, P) % P
Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """On the twisted Edwards curve of RFC 8032, in plain numbers."""
    t = D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P)
    return x % P, y % P


def times(scalar: int, point: Point) -> Point:
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def unpacked(raw: bytes) -> Point:
    number = int.from_bytes(raw, "little")
    y, sign = number & (2**255 - 1), number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (x if x & 1 == sign else P - x), y


def holds(public: bytes, words: bytes, signature: bytes) -> bool:
    """s B = R + h A, with A the Edwards point of the Montgomery coordinate that the key is, sign bit 0."""
    u = int.from_bytes(z85.decode(public), "little")
    raw_a = ((u - 1) * pow(u + 1, -1, P) % P).to_bytes(32, "little")
    raw_r, s = signature[:32], int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(raw_r + raw_a + words).digest(), "little") % ORDER
    base = unpacked(BASE_Y.to_bytes(32, "little"))
    return times(s, base) == add(unpacked(raw_r), times(h, unpacked(raw_a)))


def test_signatures_hold_by_plain_arithmetic() -> None:
    for number in range(6):
        identity = new_identity()
        words = b"word" * number
        signature = signing_of(identity).sign(words)
        assert len(signature) == 64
        assert holds(identity.public, words, signature)
        assert verify(identity.public, words, signature)


def test_nobody_else_and_nothing_else() -> None:
    ann, bob = new_identity(), new_identity()
    signature = signing_of(ann).sign(b"I am here")
    assert verify(ann.public, b"I am here", signature)
    assert not verify(bob.public, b"I am here", signature)
    assert not verify(ann.public, b"I am gone", signature)
    for place in range(64):
        wrong = bytes(byte ^ (1 if i == place else 0) for i, byte in enumerate(signature))
        assert not verify(ann.public, b"I am here", wrong)


def test_no_two_signatures_share_a_nonce() -> None:
    sign = signing_of(new_identity()).sign
    assert len({sign(b"the same words")[:32] for _ in range(50)}) == 50


SECRET = z85.encode(bytes(range(32)))
KNOWN = Identity(zmq.curve_public(SECRET), SECRET)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.just(KNOWN.public), st.binary(max_size=40), st.binary(min_size=60, max_size=70))
def test_any_bytes_are_no_signature(key: bytes, words: bytes, signature: bytes) -> None:
    assert not verify(key, words, signature)


def test_keys_of_small_order_sign_nothing() -> None:
    """With such a key a signature of zeros would fit any words."""
    for u in (0, 1, P - 1, P, P + 1, 2**255 - 1):
        key = z85.encode((u % 2**256).to_bytes(32, "little"))
        for signature in (bytes(64), b"\x01" + bytes(63)):
            assert not verify(key, b"words", signature)

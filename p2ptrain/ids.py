"""Names that must not be mixed up, as distinct types; and how each is derived."""

from __future__ import annotations

import base64
import hashlib
from typing import NewType

PeerId = NewType("PeerId", str)
"""Short form of a peer's CURVE public key: 16 lower-case base32 characters (80 bits)."""

JobId = NewType("JobId", str)
"""Hash of a job's content: 16 hexadecimal characters."""

BlobId = NewType("BlobId", str)
"""sha256 of a blob's bytes: 64 hexadecimal characters. Content-addressed, so any holder will do."""

GroupTag = NewType("GroupTag", str)
"""What mDNS shows of a group: a hash of the join code that gives nothing else away."""


def peer_id(public_key: bytes) -> PeerId:
    """The peer id of a 40-byte Z85 CURVE public key."""
    digest = hashlib.blake2b(public_key, digest_size=10, person=b"p2ptrain-peer").digest()
    return PeerId(base64.b32encode(digest).decode().lower())


def blob_id(data: bytes | memoryview) -> BlobId:
    """The content address of ``data``."""
    return BlobId(hashlib.sha256(data).hexdigest())

"""Names that must not be mixed up, as distinct types; and how each is derived."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
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


def is_sha256(text: str) -> bool:
    """Whether it is written as one: so a checkpoint or a blob is named."""
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def lot(text: str, num_bytes: int = 16) -> int:
    """A number below 256 to the power of ``num_bytes``: as if drawn by chance, and the same one on every device."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest(), "big")


def blob_id(data: bytes | memoryview) -> BlobId:
    """The content address of ``data``."""
    return BlobId(hashlib.sha256(data).hexdigest())


def hash_file(path: Path) -> BlobId:
    """The content address of a file's bytes."""
    with path.open("rb") as file:
        return BlobId(hashlib.file_digest(file, "sha256").hexdigest())

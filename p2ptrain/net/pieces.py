"""Messages in frames of a size that others take, and whole again.

Invariant: no frame is larger than ``MAX_PIECE_BYTES``: libzmq keeps all of one, even of a handshake, before anybody has
shown who it is. A message is a header, and at most one frame behind it, which travels in pieces where it is larger.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from p2ptrain.wire.codec import MAX_DATA_BYTES, MAX_FRAMES, MAX_HEADER_BYTES
from p2ptrain.wire.schema import RawBytes

MAX_PIECE_BYTES = 1 << 20
VIEWED_FROM_BYTES = 64 << 10
MAX_PIECES = MAX_FRAMES - 1 + MAX_DATA_BYTES // MAX_PIECE_BYTES
MAX_MESSAGE_BYTES = MAX_HEADER_BYTES + MAX_DATA_BYTES


def in_pieces(frames: Sequence[RawBytes]) -> Sequence[RawBytes]:
    """As it is sent. Nothing is copied."""
    if all(len(frame) <= MAX_PIECE_BYTES for frame in frames):
        return frames
    header, *rest = frames
    data = [memoryview(frame) for frame in rest]
    starts = ((each, start) for each in data for start in range(0, len(each), MAX_PIECE_BYTES))
    return [header, *(each[start : start + MAX_PIECE_BYTES] for each, start in starts)]


def put_together(parts: Sequence[zmq.Frame]) -> list[RawBytes] | None:
    """What came: the header and what was behind it. None if it is more than a message can have.

    Of a large frame there is no copy: who keeps it keeps all of libzmq's message.
    """
    if len(parts) > MAX_PIECES or sum(map(len, parts)) > MAX_MESSAGE_BYTES:
        return None
    if len(parts) <= MAX_FRAMES:
        return [part.bytes if len(part) < VIEWED_FROM_BYTES else part.buffer for part in parts]
    return [parts[0].bytes, b"".join(part.buffer for part in parts[1:])]

"""What the journal is told of frames and peers that were not let in."""

from __future__ import annotations

from collections.abc import Iterable

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.codec import WireVersionError
from p2ptrain.wire.messages import WIRE_VERSION, Refused


def frame_refused(peer: PeerId, error: RemoteError) -> Note:
    if isinstance(error, WireVersionError):
        return Note("other-version", (("peer", peer), ("ours", WIRE_VERSION), ("theirs", error.version)))
    return Note("frame-refused", (("peer", peer), ("reason", error.reason), ("why", error.detail)))


def refused_us(peer: PeerId, refused: Refused) -> Note:
    versions = (("ours", WIRE_VERSION), ("theirs", refused.version))
    return Note("refused-us", (("peer", peer), ("reason", refused.reason), *versions))


def one_way(peer: PeerId, addresses: Iterable[str]) -> Note:
    """They reach us and we don't reach them: a firewall, or addresses that are not theirs from here."""
    return Note("one-way", (("peer", peer), ("addresses", " ".join(addresses))))


def banned(peer: PeerId, errors: int, last: RemoteError) -> Note:
    return Note("banned", (("peer", peer), ("errors", errors), ("last", str(last))))

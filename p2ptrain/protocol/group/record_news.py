"""Whose records changed last, and a short way to say which version of each is here: eight bytes.

Invariant: a mark may stand for two peers and a short version for two versions; whoever takes one for the other asks or
answers in vain, and learns the truth from a digest that names peers in full.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId

FRESH_S = 14.0
"""News that is older has reached everyone, but for a few."""
MOST_NEWS = 160
MOST_SAID = 512
_ENTRY = struct.Struct(">II")
_SHORT = 2**32


@lru_cache(maxsize=16384)
def mark(peer: PeerId) -> int:
    return zlib.crc32(peer.encode())


def pack_news(versions: Iterable[tuple[int, int]]) -> bytes:
    """Marks and versions; 0 = none is here."""
    return b"".join(_ENTRY.pack(mark, version % _SHORT) for mark, version in versions)


def unpack_news(packed: bytes) -> list[tuple[int, int]]:
    """Marks and short versions. Raises ``RemoteError``."""
    if len(packed) % _ENTRY.size or len(packed) > MOST_SAID * _ENTRY.size:
        raise RemoteError("records", f"{len(packed)} bytes of news")
    return list(_ENTRY.iter_unpack(packed))


def full_version(short: int, near: int) -> int:
    """The version that is shortened so, and nearest to ``near``."""
    ahead = (short - near) % _SHORT
    return near + ahead if ahead < _SHORT // 2 else max(0, near + ahead - _SHORT)


class RecordNews:
    def __init__(self) -> None:
        self._learnt: OrderedDict[PeerId, float] = OrderedDict()
        """When, the last one last."""

    def add(self, peer: PeerId, now: float) -> None:
        self._learnt[peer] = now
        self._learnt.move_to_end(peer)

    def forget(self, peer: PeerId) -> None:
        self._learnt.pop(peer, None)

    def latest(self, now: float) -> list[PeerId]:
        """Whose records are news, the latest first."""
        while self._learnt and now - next(iter(self._learnt.values())) > FRESH_S:
            self._learnt.popitem(last=False)
        return [peer for peer, _ in zip(reversed(self._learnt), range(MOST_NEWS), strict=False)]

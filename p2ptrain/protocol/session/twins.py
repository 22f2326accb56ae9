"""Two processes with one identity: a state directory that was copied, with a disk image say.

Invariant: of the two, both and everybody else take the same one for the older: the one whose boot sorts first. A boot
begins with the second of the start, so that this is the one that was started first, as far as clocks tell. Bounded,
whoever says what.

A process that was followed by another of the same key can't come back: a restart ends the one before. If it does come
back, there are two; the younger is turned away for a while, and not longer than the older is here.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2ptrain.errors import RemoteError

SURE_S = 3.0
"""Frames of a process that has just ended may still be on their way; after that it is no accident."""
TURNED_AWAY_S = 120.0
MAX_REMEMBERED = 512


@dataclass(frozen=True, slots=True)
class _Older:
    boot: bytes
    until: float


class Twins:
    def __init__(self, own_boot: bytes) -> None:
        self._own_boot = own_boot
        self._own_seen: OrderedDict[bytes, float] = OrderedDict()
        self._followed: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()
        """Processes, by key and boot, and when another one took their place."""
        self._older: OrderedDict[bytes, _Older] = OrderedDict()

    def is_ours_taken(self, boot: bytes, now: float) -> bool:
        """A process with our own key spoke. True: it is there for sure, and was first, so that this one has to end."""
        since = self._own_seen.setdefault(boot, now)
        if len(self._own_seen) > MAX_REMEMBERED:
            self._own_seen.popitem(last=False)
        return now - since >= SURE_S and boot < self._own_boot

    def followed(self, key: bytes, boot: bytes, now: float) -> None:
        """Another process of ``key`` took this one's place."""
        self._followed[key, boot] = now
        self._followed.move_to_end((key, boot))
        if len(self._followed) > MAX_REMEMBERED:
            self._followed.popitem(last=False)

    def check(self, key: bytes, boot: bytes, address: str, present: tuple[bytes, str], now: float) -> None:
        """A process of ``key`` says Hello while ``present`` (boot, address) is admitted. Raises ``RemoteError``."""
        since = self._followed.get((key, boot))
        if boot == present[0]:
            return
        if since is not None and now - since >= SURE_S:
            self._older[key] = _Older(min(boot, present[0]), now + TURNED_AWAY_S)
            self._older.move_to_end(key)
            if len(self._older) > MAX_REMEMBERED:
                self._older.popitem(last=False)
        older = self._older.get(key)
        if older is not None and now < older.until and boot != older.boot:
            raise RemoteError("twin", f"two devices use its identity, at {present[1]} and {address}")

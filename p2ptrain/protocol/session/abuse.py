"""What each key did wrong lately, and who is banned.

Invariant: bounded memory, whoever sends whatever: at most ``MAX_REMEMBERED`` keys, the least recently seen forgotten.

A key: unknown --error--> counted --``MAX_ERRORS`` within ``ERROR_WINDOW_S``--> banned --``BAN_S`` later--> unknown
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any

from p2ptrain.errors import RemoteError
from p2ptrain.protocol.machine import NEVER

ERROR_WINDOW_S = 60.0
MAX_ERRORS = 20
BAN_S = 300.0
MAX_HELLOS = 120
"""From one key within ``ERROR_WINDOW_S``: sixteen addresses of ours, dialled a few times each."""
NOTE_EVERY_S = 60.0
"""The same thing about the same peer is not noted more often."""
MAX_REMEMBERED = 512

JOB_UNREAD = "job-unread"
"""What a peer tells is a job, with something in it that this version of p2ptrain does not know."""
FORGIVEN = frozenset({"session", "replay", "version", "banned", "echo", "full", "self", "twin", JOB_UNREAD})
"""Counted, but no fault of the sender's: what a restart, a lost frame or an upgrade brings about."""


class AbuseTable:
    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        """Frames that were not let in, by reason."""
        self._errors: OrderedDict[bytes, deque[float]] = OrderedDict()
        self._hellos: OrderedDict[bytes, deque[float]] = OrderedDict()
        self._banned: OrderedDict[bytes, float] = OrderedDict()
        self._noted: OrderedDict[tuple[str, str], float] = OrderedDict()

    def is_banned(self, key: bytes, now: float) -> bool:
        return now < self.banned_until(key)

    def banned_until(self, key: bytes) -> float:
        return self._banned.get(key, -NEVER)

    def count(self, key: bytes, reason: str, now: float) -> bool:
        """Count a refused frame; True if it was one too many and ``key`` is banned from now on."""
        self.refused[reason] += 1
        if reason in FORGIVEN:
            return False
        times = _times(self._errors, key, MAX_ERRORS)
        times.append(now)
        if len(times) < MAX_ERRORS or now - times[0] >= ERROR_WINDOW_S:
            return False
        del self._errors[key]
        self._banned[key] = now + BAN_S
        _forget_oldest(self._banned)
        return True

    def check_hello(self, key: bytes, now: float) -> None:
        """Each Hello makes us dial and sign: raise ``RemoteError`` for one too many."""
        times = _times(self._hellos, key, MAX_HELLOS)
        if len(times) == MAX_HELLOS and now - times[0] < ERROR_WINDOW_S:
            raise RemoteError("flood", f"more than {MAX_HELLOS} hellos in {ERROR_WINDOW_S:g} s")
        times.append(now)

    def may_note(self, kind: str, about: str, now: float) -> bool:
        """Whether to write ``kind`` of ``about`` into the journal: not if it was there lately."""
        if now - self._noted.get((kind, about), -NEVER) < NOTE_EVERY_S:
            return False
        self._noted[kind, about] = now
        self._noted.move_to_end((kind, about))
        _forget_oldest(self._noted)
        return True


def _times(table: OrderedDict[bytes, deque[float]], key: bytes, length: int) -> deque[float]:
    found = table.setdefault(key, deque(maxlen=length))
    table.move_to_end(key)
    _forget_oldest(table)
    return found


def _forget_oldest(table: OrderedDict[Any, Any]) -> None:
    while len(table) > MAX_REMEMBERED:
        table.popitem(last=False)

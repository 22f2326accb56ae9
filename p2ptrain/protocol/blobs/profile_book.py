"""How fast the others are, block by block: what the ``profile`` of their records names, fetched and kept.

Invariant: a profile in the book has the hash that names it, and but for the own one some member's record names it; no
more than ``max_profiles`` and ``max_bytes`` are kept. What it says is not looked at here.

    a record names an unknown one: wanted --ask a holder--> asked --reply of that hash--> known: ProfileLearnt
    asked --time-out--> asked again, later each time --``max_asks`` in vain--> wanted again after ``rest_s``
    no record names it any more: forgotten
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import ProfileReply, ProfileRequest, Record

_MAX_REMEMBERED_REQUESTS = 4096


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    request_timeout_s: float = 2.0
    """Doubled each time, up to ``max_timeout_s``."""
    max_timeout_s: float = 30.0
    max_asks: int = 8
    rest_s: float = 60.0
    max_asking: int = 16
    """Profiles asked for at once."""
    max_profiles: int = 1024
    max_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class ProfileLearnt:
    """``ProfileBook.get(hash)`` has it now."""

    hash: str


@dataclass(slots=True)
class _Wanted:
    holders: list[PeerId]
    next_ask: float
    asked: list[PeerId] = field(default_factory=list)
    """Who was asked since it last rested."""


Effect = Send | ProfileLearnt


class ProfileBook:
    def __init__(self, config: ProfileConfig | None = None) -> None:
        self._config = config or ProfileConfig()
        self._own = ""
        self._known: dict[str, bytes] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._asked: OrderedDict[tuple[PeerId, str], None] = OrderedDict()
        """Also what is not wanted any more: an answer may still come."""

    def set_own(self, data: bytes) -> str:
        """The own profile; its name, for the own record."""
        self._own = hashlib.sha256(data).hexdigest()
        self._known[self._own] = data
        return self._own

    def get(self, name: str) -> bytes | None:
        return self._known.get(name)

    def next_deadline(self) -> float:
        room = self._has_room()
        return min((each.next_ask for each in self._wanted.values() if each.asked or room), default=NEVER)

    # --- events -----------------------------------------------------------------------------------------------------

    def members_changed(self, records: Iterable[Record], now: float) -> list[Effect]:
        """The records of all members, whenever any of them names another profile."""
        holders: dict[str, list[PeerId]] = {}
        for record in records:
            if len(record.profile) == 64:
                holders.setdefault(record.profile, []).append(record.peer)
        self._known = {name: data for name, data in self._known.items() if name in holders or name == self._own}
        former, self._wanted = self._wanted, {}
        for name, peers in holders.items():
            if name not in self._known:
                self._wanted[name] = former.get(name) or _Wanted(peers, now)
                self._wanted[name].holders = sorted(peers)
        return self.tick(now)

    def received(self, sender: PeerId, message: ProfileRequest | ProfileReply, now: float) -> list[Effect]:
        """Raises ``RemoteError`` for a profile that ``sender`` was not asked for."""
        if isinstance(message, ProfileRequest):
            known = self._known.get(message.profile)
            return [Send(sender, ProfileReply(known))] if known is not None else []
        name = hashlib.sha256(message.data).hexdigest()
        if (sender, name) not in self._asked:
            raise RemoteError("profile-unasked", name[:8])
        if name not in self._wanted or not self._fits(len(message.data)):
            return []  # a second answer, or nobody names it any more
        del self._wanted[name]
        self._known[name] = message.data
        return [ProfileLearnt(name), *self.tick(now)]

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for name, wanted in self._wanted.items():
            if now >= wanted.next_ask and (wanted.asked or self._has_room()):
                effects += self._ask(name, wanted, now)
        return effects

    def _ask(self, name: str, wanted: _Wanted, now: float) -> list[Effect]:
        if len(wanted.asked) >= self._config.max_asks:
            wanted.asked, wanted.next_ask = [], now + self._config.rest_s
            return []
        wait = self._config.request_timeout_s * 2.0 ** len(wanted.asked)
        wanted.next_ask = now + min(wait, self._config.max_timeout_s)
        holder = min(wanted.holders, key=wanted.asked.count)
        wanted.asked.append(holder)
        self._asked[holder, name] = None
        self._asked.move_to_end((holder, name))
        if len(self._asked) > _MAX_REMEMBERED_REQUESTS:
            self._asked.popitem(last=False)
        return [Send(holder, ProfileRequest(name))]

    def _has_room(self) -> bool:
        """To ask for one more."""
        num_asking = sum(bool(each.asked) for each in self._wanted.values())
        room = len(self._known) + num_asking < self._config.max_profiles
        return room and num_asking < self._config.max_asking and self._fits(1)

    def _fits(self, num_bytes: int) -> bool:
        return sum(map(len, self._known.values())) + num_bytes <= self._config.max_bytes

"""Peers that this one has only heard of: through whom, how many, and until when.

Invariant: of such peers at most ``max_from_one`` are known through any one member, and who was neither met nor seen to
be a member for ``remember_s`` is forgotten. So a member that makes peers up fills nobody's tables.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from p2ptrain.ids import PeerId

MAX_MET = 8192


@dataclass(frozen=True, slots=True)
class HearsayConfig:
    max_from_one: int = 64
    """A larger group is heard of through several of its members."""
    remember_s: float = 60.0


@dataclass(slots=True)
class _Heard:
    through: PeerId
    gone_since: float


class Hearsay:
    def __init__(self, config: HearsayConfig) -> None:
        self._config = config
        self._met: OrderedDict[PeerId, None] = OrderedDict()
        self._heard: dict[PeerId, _Heard] = {}
        self._num_through: Counter[PeerId] = Counter()

    def is_met(self, peer: PeerId) -> bool:
        return peer in self._met

    def has_room(self, source: PeerId) -> bool:
        """Whether one more may become known through ``source``."""
        return self._num_through[source] < self._config.max_from_one

    def met(self, peer: PeerId) -> None:
        """It was here itself."""
        self.forget(peer)
        self._met[peer] = None
        self._met.move_to_end(peer)
        if len(self._met) > MAX_MET:
            self._met.popitem(last=False)

    def heard(self, peer: PeerId, source: PeerId, now: float) -> None:
        """Its record came through ``source``."""
        if peer not in self._met and peer not in self._heard:
            self._heard[peer] = _Heard(source, now)
            self._num_through[source] += 1

    def overdue(self, members: Collection[PeerId], now: float) -> list[PeerId]:
        """Whom to forget."""
        if not self._heard:
            return []
        here = set(members)
        for peer in here & self._heard.keys():
            self._heard[peer].gone_since = now
        return [peer for peer, each in self._heard.items() if now - each.gone_since >= self._config.remember_s]

    def forget(self, peer: PeerId) -> None:
        """It is known no more, or not from hearsay."""
        known = self._heard.pop(peer, None)
        if known is not None:
            self._num_through[known.through] -= 1
            if not self._num_through[known.through]:
                del self._num_through[known.through]

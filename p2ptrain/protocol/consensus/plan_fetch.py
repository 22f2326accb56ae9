"""Getting the plan that is best of those known by name only: whom to ask for it, when again, and when to let it be.

Invariant: one plan at a time is asked for, of one holder after the other; what is remembered is bounded.

    wanted --ask a holder--> asked --(timeout)--> ask the next one --(``max_asks`` in vain)--> ignored for ``ignore_s``
    asked --a plan of that name--> known, or refused for good
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.ballot import PlanRef, best_first
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import PlanRequest

REMEMBERED = 256
"""Hashes remembered as refused, asked for, or of known epoch."""


@dataclass(frozen=True, slots=True)
class FetchConfig:
    request_timeout_s: float = 2.0
    """Doubled for every round of all holders, up to ``max_timeout_s``."""
    max_timeout_s: float = 5.0
    max_asks: int = 10
    ignore_s: float = 30.0


@dataclass(slots=True)
class Asking:
    """The plan that is being asked for, and who was asked so far."""

    ref: PlanRef
    next_ask: float
    asked: list[PeerId] = field(default_factory=list)


class PlanFetch:
    """``has``: whether a plan of that name is here."""

    def __init__(self, own_id: PeerId, config: FetchConfig, has: Callable[[str], bool]) -> None:
        self.asking: Asking | None = None
        self._own_id = own_id
        self._config = config
        self._has = has
        self._claims: dict[PlanRef, list[PeerId]] = {}
        """Who says to have which plan."""
        self._epochs: OrderedDict[str, int] = OrderedDict()
        """Of plans that were here; what others claim of them may be wrong."""
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._asked: OrderedDict[str, set[PeerId]] = OrderedDict()
        self._ignored: OrderedDict[str, float] = OrderedDict()

    def deadline(self) -> float:
        asking = self.asking.next_ask if self.asking else NEVER
        return min(asking, min(self._ignored.values(), default=NEVER))

    def claimed(self, claims: Iterable[tuple[PeerId, str, int]]) -> None:
        """All that others say now of which plans they have, and of which epochs: peer, name, epoch."""
        self._claims = {}
        for peer, name, epoch in claims:
            if len(name) == 64 and epoch > 0:
                self._claims.setdefault(PlanRef(self._epochs.get(name, epoch), name), []).append(peer)

    def known(self, ref: PlanRef) -> None:
        """This plan was seen, and is of this epoch."""
        remember(self._epochs, ref.hash, ref.epoch)
        self.claimed([(peer, claim.hash, claim.epoch) for claim, peers in self._claims.items() for peer in peers])

    def is_settled(self, name: str, sender: PeerId) -> bool:
        """Whether a plan of that name is no news, such as a second answer."""
        return name in self._refused or (name in self._epochs and sender not in self._asked.get(name, ()))

    def answered(self, name: str, sender: PeerId, now: float) -> bool:
        """A plan has come. Whether this peer was asked for it; else the next one is asked for what was."""
        if sender in self._asked.get(name, ()):
            del self._asked[name]
            return True
        if self.asking is not None and self.asking.asked[-1:] == [sender]:
            self.asking.next_ask = now
        return False

    def refuse(self, name: str) -> None:
        """What has come under that name can't be followed."""
        remember(self._refused, name, None)
        if self.asking is not None and self.asking.ref.hash == name:
            self.asking = None

    def pursue(self, current: PlanRef | None, now: float) -> list[Send | Note]:
        """Ask for the best plan that beats the ``current`` one and is not here."""
        for name in [name for name, until in self._ignored.items() if now >= until]:
            del self._ignored[name]
        better = (ref for ref in self._claims if ref.beats(current) and not self._has(ref.hash))
        sought = [ref for ref in better if ref.hash not in self._refused and ref.hash not in self._ignored]
        if not sought:
            self.asking = None
            return []
        best = best_first(sought)[0]
        if self.asking is None or self.asking.ref != best:
            self.asking = Asking(best, now)
        asking, config = self.asking, self._config
        if now < asking.next_ask:
            return []
        if len(asking.asked) >= config.max_asks:
            remember(self._ignored, best.hash, now + config.ignore_s)
            note = Note("plan-not-got", (("plan", best.hash), ("epoch", best.epoch), ("asked", len(asking.asked))))
            return [note, *self.pursue(current, now)]
        holders = self._claims[best]
        after = [peer for peer in holders if peer > self._own_id] + [peer for peer in holders if peer < self._own_id]
        holder = min(after, key=asking.asked.count)  # each in turn, and not all peers the same one
        rounds = asking.asked.count(holder)
        asking.asked.append(holder)
        asking.next_ask = now + min(config.request_timeout_s * 2**rounds, config.max_timeout_s)
        self._asked.setdefault(best.hash, set()).add(holder)
        remember(self._asked, best.hash, self._asked[best.hash])
        return [Send(holder, PlanRequest(best.hash))]


_K = TypeVar("_K")
_V = TypeVar("_V")


def remember(table: OrderedDict[_K, _V], key: _K, value: _V, limit: int = REMEMBERED) -> None:
    """As the newest entry; the oldest ones make room."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > limit:
        table.popitem(last=False)

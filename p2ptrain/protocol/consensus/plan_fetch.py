"""Getting the plans that are known by name only: whom to ask for them, when again, and when to let them be.

Invariant: a few plans at a time are asked for, each of one holder after the other; what is remembered is bounded. Who
names plans that it never delivers keeps nobody from getting those of others, and soon from nothing else (``asking``).

    wanted --ask a holder--> asked --(timeout)--> ask the next one --(``max_asks`` in vain)--> ignored for ``ignore_s``
    asked --a plan of that name--> known, or refused for good
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.ballot import UNREADABLE, PlanRef, best_first
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import PlanRequest

REMEMBERED = 256
"""Hashes remembered as refused, asked for, or of known epoch."""
MAX_HOLDERS = 1024


@dataclass(frozen=True, slots=True)
class FetchConfig:
    request_timeout_s: float = 2.0
    """Doubled for every round of all holders, up to ``max_timeout_s``."""
    max_timeout_s: float = 5.0
    max_asks: int = 10
    ignore_s: float = 30.0
    max_at_once: int = 8
    """Plans: one peer names two or three."""
    max_vain: int = 6
    """Who was asked so often in a row without an answer is waited for no more."""


@dataclass(slots=True)
class Asking:
    """The plan that is being asked for, and who was asked so far."""

    ref: PlanRef
    next_ask: float
    asked: list[PeerId] = field(default_factory=list)

    def __str__(self) -> str:
        asked = f"asked {self.asked[-1] if self.asked else 'nobody'} ({len(self.asked)})"
        return f"plan {self.ref.hash[:8]} of epoch {epoch_words(self.ref.epoch)}, {asked}"


class PlanFetch:
    """``has``: whether a plan of that name is here."""

    def __init__(self, own_id: PeerId, config: FetchConfig, has: Callable[[str], bool]) -> None:
        self._askings: dict[PlanRef, Asking] = {}
        """The best first."""
        self._vain: OrderedDict[PeerId, int] = OrderedDict()
        """How often in a row a peer was asked and did not answer."""
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

    @property
    def asking(self) -> Asking | None:
        """For the best plan that may well come."""
        return next((each for each in self._askings.values() if self._is_hopeful(each.ref)), None)

    def _is_hopeful(self, ref: PlanRef) -> bool:
        holders = self._claims.get(ref, ())
        return any(self._vain.get(peer, 0) < self._config.max_vain for peer in holders)

    def deadline(self) -> float:
        asking = min((each.next_ask for each in self._askings.values()), default=NEVER)
        return min(asking, min(self._ignored.values(), default=NEVER))

    def claimed(self, claims: Iterable[tuple[PeerId, str, int]]) -> None:
        """All that others say now of which plans they have, and of which epochs: peer, name, epoch."""
        self._claims = {}
        for peer, name, epoch in claims:
            if len(name) == 64 and name != UNREADABLE and epoch > 0:
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
            self._vain.pop(sender, None)
            return True
        for asking in self._askings.values():
            if asking.asked[-1:] == [sender]:
                asking.next_ask = now
        return False

    def refuse(self, name: str) -> None:
        """What has come under that name can't be followed."""
        remember(self._refused, name, None)
        self._askings = {ref: each for ref, each in self._askings.items() if ref.hash != name}

    def stop(self) -> None:
        """Another plan is in force: what is better than that is asked for anew."""
        self._askings = {}

    def pursue(self, current: PlanRef | None, now: float) -> list[Send | Note]:
        """Ask for the best plans that beat the ``current`` one and are not here."""
        for name in [name for name, until in self._ignored.items() if now >= until]:
            del self._ignored[name]
        better = (ref for ref in self._claims if ref.beats(current) and not self._has(ref.hash))
        sought = [ref for ref in better if ref.hash not in self._refused and ref.hash not in self._ignored]
        best = best_first(sought)[: self._config.max_at_once]
        self._askings = {ref: self._askings.get(ref) or Asking(ref, now) for ref in best}
        effects: list[Send | Note] = []
        for ref, asking in list(self._askings.items()):
            if now < asking.next_ask:
                continue
            if len(asking.asked) < self._config.max_asks:
                effects.append(self._ask(asking, now))
                continue
            del self._askings[ref]
            remember(self._ignored, ref.hash, now + self._config.ignore_s)
            asked = (("plan", ref.hash), ("epoch", ref.epoch), ("asked", len(asking.asked)))
            effects.append(Note("plan-not-got", asked))
        return effects

    def _ask(self, asking: Asking, now: float) -> Send:
        ref, config = asking.ref, self._config
        holders = self._claims[ref]
        after = [peer for peer in holders if peer > self._own_id] + [peer for peer in holders if peer < self._own_id]
        holder = min(after, key=asking.asked.count)  # each in turn, and not all peers the same one
        rounds = asking.asked.count(holder)
        asking.asked.append(holder)
        asking.next_ask = now + min(config.request_timeout_s * 2**rounds, config.max_timeout_s)
        remember(self._vain, holder, self._vain.get(holder, 0) + 1, MAX_HOLDERS)
        self._asked.setdefault(ref.hash, set()).add(holder)
        remember(self._asked, ref.hash, self._asked[ref.hash])
        return Send(holder, PlanRequest(ref.hash))


_K = TypeVar("_K")
_V = TypeVar("_V")


def remember(table: OrderedDict[_K, _V], key: _K, value: _V, limit: int = REMEMBERED) -> None:
    """As the newest entry; the oldest ones make room."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > limit:
        table.popitem(last=False)

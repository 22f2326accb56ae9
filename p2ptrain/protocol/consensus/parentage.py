"""What a plan follows from, and whether one of unknown parents may take the place of the plan in force.

Invariant: one peer alone never takes a group's plan away by naming a higher epoch. Where most of those who are here
follow the plan in force, or one before it, a plan takes its place if its parents lead back to one that was followed
here, or to a first plan; and one whose parents nobody has any more only after ``HELD_S``, and within ``MAX_JUMP``
epochs. So counting never gets near its end, and parts of a group that were apart for long come together all the same.

A plan's parents that are not here are asked for, as plans are: others keep the last few.

    a plan is heard of, fetched, verified: known parents -> a candidate; else its parent is asked for, and so on
    no way back to what is known: an orphan --most follow it, or no one plan for ``UNHELD_S``, or --``HELD_S``-->
    a candidate
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Generic

from p2ptrain.protocol.consensus.epochs import MAX_JUMP
from p2ptrain.protocol.consensus.plan_fetch import remember
from p2ptrain.protocol.consensus.rules import P
from p2ptrain.protocol.machine import NEVER

MAX_ANCESTORS = 32
UNHELD_S = 10.0
"""Long enough to meet those who are here, and to hear what they follow."""
HELD_S = 120.0


class Parentage(Generic[P]):
    """``followed``: by hash, plans that were followed here, and their bytes; ``candidate``: the same of what may be
    next. ``verify``: as in ``Rules``."""

    def __init__(
        self,
        followed: Mapping[str, tuple[P, bytes]],
        candidate: Callable[[str], tuple[P, bytes] | None],
        verify: Callable[[P, P | None], bool],
    ) -> None:
        self._followed = followed
        self._candidate = candidate
        self._verify = verify
        self._proven: OrderedDict[str, None] = OrderedDict()
        """Plans that follow from their parents."""
        self._ancestors: OrderedDict[str, P] = OrderedDict()
        self._since: OrderedDict[str, float] = OrderedDict()
        """Orphans, and when each was first seen."""
        self._unheld_since = NEVER
        self._num_following = 0

    def keep(self, name: str, plan: P) -> None:
        """It came because another may follow from it."""
        remember(self._ancestors, name, plan, MAX_ANCESTORS)

    def get(self, name: str) -> P | None:
        """The plan, even if it came only because another follows from it."""
        known = self._followed.get(name) or self._candidate(name)
        return known[0] if known else self._ancestors.get(name)

    def missing(self, plan: P) -> str:
        """The nearest ancestor of ``plan`` that is not here; "" where they lead back to what is known."""
        name = plan.parent
        for _ in range(MAX_ANCESTORS):
            if not name or name in self._followed:
                return ""
            ancestor = self.get(name)
            if ancestor is None:
                return name
            name = ancestor.parent
        return name

    def follows(self, name: str, plan: P) -> bool:
        """Whether it follows from its inputs, and from its parent where that is here."""
        if name in self._proven:
            return True
        parent = self.get(plan.parent)
        sound = self._verify(plan, parent)
        if sound and (parent is not None or not plan.parent):
            remember(self._proven, name, None, 2 * MAX_ANCESTORS)
        return sound

    def is_sound(self, name: str, plan: P) -> bool:
        """Whether each follows from the one before, back to what is known: parents may have come after their plans."""
        for _ in range(MAX_ANCESTORS):
            parent = self.get(plan.parent)
            if parent is None or name in self._followed:
                return True
            if not self.follows(name, plan):
                return False
            if plan.parent not in self._followed:
                self.keep(plan.parent, parent)
            name, plan = plan.parent, parent
        return True

    def path(self, plan: P) -> list[P]:
        """Plans that lead to ``plan``, each following from the one before: first the last one that was followed here,
        or else the oldest that is known; ``plan`` comes last."""
        found, name = [plan], plan.parent
        while len(found) < MAX_ANCESTORS and (parent := self.get(name)) is not None:
            found.insert(0, parent)
            if name in self._followed:
                break
            name = parent.parent
        return found

    def followed(self, names: Iterable[str], now: float) -> None:
        """Which plans the others follow that are here and have one ("" where a peer follows none)."""
        others = [name for name in names if name]
        self._num_following = len(others)
        with_us = sum(name in self._followed for name in others)
        if 2 * (with_us + 1) > len(others) + 1:
            self._unheld_since = NEVER
        elif self._unheld_since == NEVER:
            self._unheld_since = now

    def may_follow(self, name: str, plan: P, epoch: int, num_followers: int, now: float) -> bool:
        """Whether ``plan``, which some follow, may take the place of the one in force, of ``epoch`` (0 = none)."""
        if not self.missing(plan):
            self._since.pop(name, None)
            return True
        since = self._since.setdefault(name, now)
        if len(self._since) > MAX_ANCESTORS:
            self._since.popitem(last=False)
        has_most = num_followers > 1 and 2 * num_followers > self._num_following + (epoch > 0)
        return plan.epoch <= epoch + MAX_JUMP and (has_most or now >= self._due(since))

    def deadline(self) -> float:
        """When an orphan may be followed, as things are."""
        return min(map(self._due, self._since.values()), default=NEVER)

    def settled(self, names: Iterable[str]) -> None:
        """Only these are candidates still."""
        kept = set(names)
        for name in [name for name in self._since if name not in kept]:
            del self._since[name]

    def _due(self, since: float) -> float:
        return min(since + HELD_S, max(since, self._unheld_since) + UNHELD_S)

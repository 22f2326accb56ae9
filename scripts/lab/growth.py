"""Whether the nodes of a night grow: open files and memory of each, looked at after every hardship.

Invariant: like is held against like. Devices begin anew at the same places of every turn of hardships, so a turn is
held against a turn: by the fewest open files of it, as what a hardship leaves for a while is no growth, and by the most
memory. The first turn does not count, in which a node that never began anew comes to have what it works with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MORE_FILES, MORE_MEMORY = 1, 1.1
"""From the second turn to the last: so many open files more, and so many times the memory, are no growth."""
FEWEST_TURNS = 3
"""To tell anything."""


@dataclass(frozen=True, slots=True)
class Use:
    """Of a node."""

    files: int
    memory_mb: float


@dataclass(slots=True)
class Growth:
    """``num_hardships``: of a turn."""

    num_hardships: int
    _seen: dict[str, list[Use]] = field(default_factory=dict)

    def look(self, uses: Mapping[str, Use]) -> None:
        """After one more hardship, by device."""
        for name, use in uses.items():
            self._seen.setdefault(name, []).append(use)

    def turns(self, name: str) -> list[Use]:
        """Of each whole turn, the fewest open files and the most memory."""
        seen, each = self._seen.get(name, []), self.num_hardships
        turns = [seen[first : first + each] for first in range(0, len(seen) - each + 1, each)]
        return [Use(min(use.files for use in turn), max(use.memory_mb for use in turn)) for turn in turns]

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{name}: open files of each turn {' '.join(str(use.files) for use in self.turns(name))};"
            f" MB {' '.join(f'{use.memory_mb:.0f}' for use in self.turns(name))}"
            for name in self._seen
        ]

    def wrong(self) -> list[str]:
        """Who has grown."""
        found = []
        for name in self._seen:
            turns = self.turns(name)
            if len(turns) < FEWEST_TURNS:
                continue
            then, now = turns[1], turns[-1]
            if now.files > then.files + MORE_FILES:
                found.append(f"{name}: {now.files} open files in the last turn, {then.files} in the second")
            if now.memory_mb > MORE_MEMORY * then.memory_mb:
                found.append(f"{name}: {now.memory_mb:.0f} MB in the last turn, {then.memory_mb:.0f} in the second")
        return found

    def figures(self) -> dict[str, float]:
        """Of the nodes that had most, in the second turn and in the last one; none of a short night."""
        turns = [self.turns(name) for name in self._seen]
        if not turns or min(map(len, turns)) < FEWEST_TURNS:
            return {}
        return {
            f"{what}_{when}": max(getattr(each[at], what) for each in turns)
            for what in ("files", "memory_mb")
            for when, at in (("then", 1), ("now", -1))
        }

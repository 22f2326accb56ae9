"""After which round a group stops: the job's last one, or sooner where somebody asked for that, or patience is over.

Invariant: never later than the job says; what this peer knows of it, its record says.
"""

from __future__ import annotations

from p2ptrain.core.effects import Effects
from p2ptrain.core.group_view import GroupView


class EarlyEnd:
    """``rounds``: the job's."""

    def __init__(self, group: GroupView, rounds: int) -> None:
        self._group = group
        self._rounds = rounds
        self._after = 0

    @property
    def is_early(self) -> bool:
        """Whether the group is to stop sooner: somebody asked for that, or its model got no better."""
        return self._after > 0

    @property
    def last_round(self) -> int:
        """So many rounds are trained."""
        return self._after or self._rounds

    def ask(self, rounds: int, now: float) -> Effects:
        """The group is to stop after so many. Asked several times, the fewest rounds count."""
        self._after = min(rounds, self.last_round)
        return self._group.say(now, ends_after=self._after)

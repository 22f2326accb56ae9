"""What several threads find, handed on in the order in which it was asked for.

Invariant: nothing overtakes, and what turns out to be nothing holds up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Place:
    go: Callable[[], None] | None = None
    is_settled: bool = False


class InOrder:
    """A row of places, to be used in one thread."""

    def __init__(self) -> None:
        self._row: deque[_Place] = deque()

    def place(self) -> Callable[[Callable[[], None] | None], None]:
        """The last place. What comes back is called once: with what to do when it is its turn, or None."""
        place = _Place()
        self._row.append(place)

        def settle(go: Callable[[], None] | None) -> None:
            place.go, place.is_settled = go, True
            while self._row and self._row[0].is_settled:
                if (first := self._row.popleft().go) is not None:
                    first()

        return settle

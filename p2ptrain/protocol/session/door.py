"""Who is let in of those that hold the code: everybody, or whom the group's founder has admitted.

Invariant: a door that is shut opens to nobody who does not show what it asks for; who itself may not be in yet lets
nobody in either, so that it goes on asking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2ptrain.wire.messages import Admission


@dataclass(frozen=True, slots=True)
class Door:
    """``opens(key, what it shows)``; ``own`` and ``name`` are what this peer shows to others."""

    opens: Callable[[bytes, Admission | None], bool] = lambda key, admission: True
    own: Admission | None = None
    name: str = ""
    is_guarded: bool = False
    """Whether it opens to some only, which takes a while to find out."""


OPEN_DOOR = Door()
"""The code alone lets in."""

"""What a node and its trainer say to each other in this mode alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Count:
    """Count a part for ``goal`` rounds, from the copy, or from 0."""

    part: int
    goal: int
    copy: bytes = b""


COMMANDS = (Count,)

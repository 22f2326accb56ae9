"""What every state machine of the protocol has in common.

A machine is fed events with the time they happened, and answers with effects for somebody else to carry out. Time
(seconds, monotonic) and random generators come in as arguments, so a machine runs the same in a test's virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import Message

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """``sender`` is authenticated: the CURVE key behind it, never an id from a payload."""

    sender: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message`` to an admitted peer; silently nothing without a link (the network may lose it too)."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Note:
    """One line for the journal: what happened, in a word, with its particulars."""

    kind: str
    fields: tuple[tuple[str, str | int | float], ...] = ()


class Machine(Protocol):
    """The clock's side of a machine; each has its own methods for its events beside it."""

    def tick(self, now: float) -> Sequence[Any]:
        """Effects of what is due."""
        ...

    def next_deadline(self) -> float:
        """When ``tick`` wants to be called next (``NEVER`` = only after another event)."""
        ...

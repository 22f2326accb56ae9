"""The states of a peer's work: what its trainer holds or waits for. ``role`` draws how one follows another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Idle:
    """The trainer holds no units, and is to hold none."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The trainer is to drop the round under way, as another plan holds."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """The blocks of the state after ``round`` rounds are got together."""

    round: int


@dataclass(frozen=True, slots=True)
class Starting:
    """The trainer was given them, and has not begun the round after them yet."""

    round: int


@dataclass(frozen=True, slots=True)
class Training:
    """The trainer trains its units; ``round`` rounds are over."""

    round: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The own units are through, and the average of all is awaited: the state after ``round`` rounds."""

    round: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All rounds are over."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The trainer's units are gone: only another plan helps."""


State = Idle | Stopping | Gathering | Starting | Training | Ended | Finished | Lost

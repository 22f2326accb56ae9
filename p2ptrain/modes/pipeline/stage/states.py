"""The states of a peer's stage: what its trainer holds or waits for. ``role`` draws how one follows another."""

from __future__ import annotations

from dataclasses import dataclass

from p2ptrain.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Idle:
    """The trainer holds no stage, and is to hold none."""


@dataclass(slots=True)
class Stopping:
    """The trainer goes on to its next plan's step. ``by``: when it is told to halt where it is."""

    by: float


@dataclass(frozen=True, slots=True)
class Gathering:
    """The trainer waits for its next stage, after ``step`` batches (-1: with empty hands)."""

    step: int


@dataclass(frozen=True, slots=True)
class Starting:
    """The trainer was given a stage of the plan, and has not begun to train it yet."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Training:
    """The trainer trains its stage of the plan in force."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The trainer's stage is gone: only a plan that begins at a saved step helps."""


State = Idle | Stopping | Gathering | Starting | Training | Lost

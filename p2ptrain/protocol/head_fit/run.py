"""What a calibration asks of those around it, how long it waits, and what it remembers of one session."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import CalibrationCall, CalibrationGradient, Holding


@dataclass(frozen=True, slots=True)
class PrepareFeatures:
    """Fetch these snapshots, one at a time, and run them over the own samples."""

    session: str
    holdings: tuple[Holding, ...]


@dataclass(frozen=True, slots=True)
class ComputeContribution:
    """Ask the own trainer for its contribution to ``step``."""

    session: str
    step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class CombineContributions:
    """Ask the own trainer for the state after ``step``."""

    session: str
    step: int
    state: bytes
    contributions: tuple[tuple[int, bytes], ...]
    """(samples, sums) in peer-id order, so that any lead gets the same result."""


@dataclass(frozen=True, slots=True)
class CalibrationFinished:
    session: str
    holdings: tuple[Holding, ...]
    step: int
    state: bytes


Effect = Send | Note | PrepareFeatures | ComputeContribution | CombineContributions | CalibrationFinished


@dataclass(frozen=True, slots=True)
class CalibrationConfig:
    prepare_timeout_s: float = 600.0
    """A weak device may take minutes over its features; a dead one is told by membership long before."""
    min_step_timeout_s: float = 2.0
    max_step_timeout_s: float = 60.0
    """Step deadline = median + 6 x median deviation of the durations seen, within these; a quarter of the longest
    until four were seen. At half and at three quarters of it the state goes again to those that are missing."""
    lead_timeout_s: float = 90.0
    """A participant that hears nothing from a lead for so long turns to the next (a live lead is heard sooner)."""
    repeat_s: float = 3.0
    """Between calls to those that did not answer, and between questions to a lead that is not heard."""


def session_name(epoch: int, holdings: Iterable[Holding]) -> str:
    """Names a calibration by what it is over: the same snapshots give the same session on every peer."""
    ordered = sorted(holdings, key=lambda h: (h.part, h.trainer))
    text = f"{epoch}:" + ",".join(f"{h.part}={h.blob}" for h in ordered)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Run:
    """What one peer knows of one session."""

    session: str
    call: CalibrationCall
    lead: PeerId
    steps: int
    """Combinations that there will be."""
    started_at: float
    heard_at: float
    """From the lead, last."""
    samples: int = -1
    """Own samples with features; -1 = still preparing, 0 = without features: this peer only listens."""
    step: int = 0
    state: bytes = b""
    state_from: PeerId | None = None
    computing: bool = False
    """The own trainer has been asked for a contribution to this step."""
    contribution: CalibrationGradient | None = None
    """The own one to this step, once it is made."""
    ask_at: float = NEVER
    """When to ask a lead that is not heard."""
    resigned: set[PeerId] = field(default_factory=set)
    """Who can't lead."""
    finished: bool = False
    paused: bool = False
    # the lead's side
    begun: bool = False
    """Contributions to the first step have been asked for, or a later step is under way."""
    call_at: float = NEVER
    answered: set[PeerId] = field(default_factory=set)
    ready: dict[PeerId, int] = field(default_factory=dict)
    """Samples of each; of those who were there under an earlier lead, 1 until they say more."""
    received: dict[PeerId, tuple[int, bytes]] = field(default_factory=dict)
    missed: dict[PeerId, int] = field(default_factory=dict)
    combining: int = 0
    """For how many step deadlines the own trainer has been making the next state."""
    step_started_at: float = 0.0
    repeat_at: float = NEVER

"""What a head fit asks of those around it, how long it waits, and what it remembers of one session.

Invariant: whatever a run says, of its state or of an own contribution, is of the step that it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.patience import Patience
from p2ptrain.wire.messages import HeadFitCall, HeadFitGradient, HeadFitState, SnapshotRef


@dataclass(frozen=True, slots=True)
class PrepareFeatures:
    """Fetch these snapshots, one at a time, and run them over the own samples."""

    session: str
    holdings: tuple[SnapshotRef, ...]


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
    peers: tuple[PeerId, ...] = ()
    """Whose they are."""


@dataclass(frozen=True, slots=True)
class HeadFitFinished:
    session: str
    holdings: tuple[SnapshotRef, ...]
    step: int
    state: bytes


Effect = Send | Note | PrepareFeatures | ComputeContribution | CombineContributions | HeadFitFinished


@dataclass(frozen=True, slots=True)
class HeadFitConfig:
    prepare_timeout_s: float = 600.0
    """A weak device may take minutes over its features; a dead one is told by membership long before."""
    min_step_timeout_s: float = 2.0
    max_step_timeout_s: float = 60.0
    """A step's deadline lies within these. At half and at three quarters of it the state goes again to those that are
    missing."""
    lead_timeout_s: float = 90.0
    """A participant that hears nothing from a lead for so long turns to the next (a live lead is heard sooner)."""
    repeat_s: float = 3.0
    """Between calls to those that did not answer, and between questions to a lead that is not heard."""


def session_name(epoch: int, holdings: Iterable[SnapshotRef]) -> str:
    """Names a head fit by what it is over: the same snapshots give the same session on every peer."""
    ordered = sorted(holdings, key=lambda h: (h.part, h.trainer))
    text = f"{epoch}:" + ",".join(f"{h.part}={h.blob}" for h in ordered)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Run:
    """What one peer knows of one session."""

    session: str
    call: HeadFitCall
    lead: PeerId
    steps: int
    """Combinations that there will be."""
    patience: Patience
    """With a step that this peer leads, learnt from those it led."""
    started_at: float
    heard_at: float
    """When the lead was heard last."""
    samples: int = -1
    """Own samples with features; -1 = still preparing, 0 = without features: this peer only listens."""
    step: int = 0
    state: bytes = b""
    state_from: PeerId | None = None
    computing: bool = False
    """The own trainer has been asked for a contribution to this step."""
    contribution: HeadFitGradient | None = None
    """The own one to this step, once it is made."""
    ask_at: float = NEVER
    """When to ask a lead that is not heard."""
    resigned: set[PeerId] = field(default_factory=set)
    """Peers that can't lead."""
    finished: bool = False
    paused: bool = False

    def state_to(self, peer: PeerId) -> list[Effect]:
        return [Send(peer, HeadFitState(self.session, self.step, self.state))]

    def compute(self) -> list[Effect]:
        """Contribute to the state that is here, with own samples and unless it is being done."""
        if self.samples <= 0 or self.computing:
            return []
        self.computing = True
        return [ComputeContribution(self.session, self.step, self.state)]

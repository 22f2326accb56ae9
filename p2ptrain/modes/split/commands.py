"""What a node and its trainer process say to each other about units: see ``core.commands``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.core.stages.commands import STAGE_COMMANDS

# --- node to trainer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FollowUnits:
    """Train the own halves of this plan's units, from the state after ``round`` rounds on.

    ``pieces`` ``GivePiece`` commands follow; none: from the initial weights.
    """

    plan: str
    own: str
    round: int
    pieces: int


@dataclass(frozen=True, slots=True)
class BeginRound:
    """Go on with the state after ``round`` rounds, of which ``pieces`` ``GivePiece`` commands follow."""

    epoch: int
    round: int
    pieces: int


@dataclass(frozen=True, slots=True)
class StopUnits:
    """Drop the round under way, then say ``UnitsHalted``: the plan of ``epoch`` is next."""

    epoch: int


@dataclass(frozen=True, slots=True)
class BeginAverage:
    """Average the updates of a round, which follow: ``updates`` ``GiveUpdate`` commands, in the order of the peers."""

    epoch: int
    round: int
    updates: int


@dataclass(frozen=True, slots=True)
class GiveUpdate:
    """A peer's update, for the ``BeginAverage`` before it."""

    peer: str
    update: bytes


# --- trainer to node --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdateMade:
    """The own round is over: ``round`` rounds are done here. ``update``: as ``SnapshotTaken.snapshot``.

    ``samples``: that the own units have trained on in this round; ``part``, ``span``: its run of blocks.
    """

    STORED: ClassVar[str] = "update"
    epoch: int
    part: int
    span: int
    round: int
    step: int
    samples: int
    loss: float
    update: bytes | str


@dataclass(frozen=True, slots=True)
class PieceMade:
    """A run of blocks of the state after ``round`` rounds, which all units' samples are in: ``samples`` of them."""

    STORED: ClassVar[str] = "piece"
    epoch: int
    part: int
    span: int
    round: int
    samples: int
    piece: bytes | str


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """There is no average of this round: ``peer``'s update, or ("") all of them together, did not fit."""

    epoch: int
    round: int
    peer: str
    detail: str


@dataclass(frozen=True, slots=True)
class UpdateDrawnIn:
    """``peer``'s update is so far from the others' that only a part of its way from them, ``counted``, is in the
    average of this round."""

    epoch: int
    round: int
    peer: str
    counted: float


@dataclass(frozen=True, slots=True)
class UnitRefused:
    """The tail of ``owner``'s unit can't be trained on: what comes of its front leads nowhere. Round as in
    ``BeginRound``."""

    epoch: int
    owner: str
    round: int
    detail: str


@dataclass(frozen=True, slots=True)
class UnitsHalted:
    """After ``StopUnits``: nothing is under way. ``batches`` of the own units' round were lost with that."""

    epoch: int
    batches: int


COMMANDS = (
    FollowUnits,
    BeginRound,
    StopUnits,
    BeginAverage,
    GiveUpdate,
    UpdateMade,
    PieceMade,
    UpdateDrawnIn,
    UpdateRefused,
    UnitRefused,
    UnitsHalted,
    *STAGE_COMMANDS,
)
"""What node and trainer say in this mode alone, both ways."""

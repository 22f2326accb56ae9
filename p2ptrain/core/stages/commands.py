"""What a node and its trainer process say to each other about a stage, whatever the mode: see ``core.commands``."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGES_AHEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class LookAgain:
    """a trainer that stands by says ``Looked``, by some blocks that it times for that."""


@dataclass(frozen=True, slots=True)
class GivePiece:
    """A snapshot of some blocks, for the ``FollowStage`` before it."""

    piece: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """A stage message of another peer's stage: see ``learning.pipeline.training.StageMessage``. ``epoch``: of its
    plan."""

    epoch: int
    sender: str
    work: str
    step: int
    unit: int
    row: int
    message: bytes


@dataclass(frozen=True, slots=True)
class StageMessagesSent:
    """So many bytes of the stage messages of ``epoch`` have left for other peers; the rest waits at the node for its
    turn.

    The trainer hands over no more while ``MESSAGES_AHEAD_BYTES`` wait. It hears of every eighth of that.
    """

    epoch: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Profiled:
    """the model's blocks (canonical JSON) and how long each takes here; said before ``Ready``."""

    model: str
    profile: str


@dataclass(frozen=True, slots=True)
class SendStageMessage:
    epoch: int
    to: str
    work: str
    step: int
    unit: int
    row: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """The next ``count`` stage messages of ``sender`` are in the trainer's hands. ``error`` names why one was
    refused."""

    epoch: int
    sender: str
    count: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class StageUsed:
    """How the stage's time went since the last word: ``slowdown`` = seconds of its work / seconds of its profile."""

    step: int
    busy_share: float
    slowdown: float


@dataclass(frozen=True, slots=True)
class Looked:
    """After ``LookAgain``: as ``StageUsed.slowdown``."""

    slowdown: float


STAGE_COMMANDS = (
    LookAgain,
    GivePiece,
    Deliver,
    StageMessagesSent,
    Profiled,
    SendStageMessage,
    Taken,
    StageUsed,
    Looked,
)
"""All of them, both ways."""

"""What a node and its trainer process say to each other about a stage of a pipeline: see ``core.commands``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.core.stages.commands import STAGE_COMMANDS


@dataclass(frozen=True, slots=True)
class StopAt:
    """train on until ``step`` batches are done (not at all with ``now``), then say ``Halted``.

    Before that, hand over these runs of blocks (first, stop), which the plan of ``epoch`` gives to others.
    """

    epoch: int
    step: int
    pieces: tuple[tuple[int, int], ...]
    now: bool


@dataclass(frozen=True, slots=True)
class FollowStage:
    """Train the own stage of this plan. ``pieces`` ``GivePiece`` commands follow; ``keep``: own blocks stay."""

    plan: str
    own: str
    pieces: int
    keep: bool


@dataclass(frozen=True, slots=True)
class SaveEvery:
    """From now on a snapshot after every so many batches, where the job leaves that open; 0 = after a round only."""

    steps: int


@dataclass(frozen=True, slots=True)
class CollectBlocks:
    """Drop the own stage, and cut all blocks, as they are after ``step`` batches, into ``runs`` (first, stop), with a
    ``PieceTaken`` for each. ``pieces`` ``GivePiece`` commands follow, which together have all blocks."""

    step: int
    pieces: int
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class PieceTaken:
    """After ``StopAt`` or ``CollectBlocks``: one of the runs of blocks that others get.

    ``piece``: as ``SnapshotTaken.snapshot``.
    """

    part: int
    span: int
    round: int
    step: int
    samples: int
    piece: bytes | str
    STORED: ClassVar[str] = "piece"


@dataclass(frozen=True, slots=True)
class Halted:
    """After ``StopAt``: nothing is under way, the parameters are those after ``step`` batches; -1: there are none."""

    epoch: int
    step: int


COMMANDS = (
    StopAt,
    FollowStage,
    CollectBlocks,
    SaveEvery,
    PieceTaken,
    Halted,
    *STAGE_COMMANDS,
)
"""What node and trainer say in this mode alone, both ways."""

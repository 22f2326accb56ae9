"""Everything that a peer's machines ask of its node, and of each other: plain data, in one place.

Invariant: an effect says what is to be done, never how; ``runtime`` carries it out. What protocol machines ask for on
their own (``Send``, ``ReadChunk``, ...) stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.wire import messages as m

Effects = list[Any]
Handler = Callable[[Any, float], Effects]
"""Of one kind of effect, and the time."""
MessageHandler = Callable[[PeerId, Any, float], Effects]
"""Of one kind of message: from whom, the message, and the time."""


# --- the job and the trainer ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobReceived:
    """The group's job: open its store, start its trainer, then call ``job_opened``."""

    job: Job


@dataclass(frozen=True, slots=True)
class StartTrainer:
    """Everything that the trainer needs is here; ``init`` is the checkpoint that the job starts from, in the store."""

    init: BlobId | None


@dataclass(frozen=True, slots=True)
class ToTrainer:
    """Give the trainer this command; ``blob``'s bytes go into its field ``into``."""

    command: object
    blob: BlobId | None = None
    into: str = ""


@dataclass(frozen=True, slots=True)
class RestartTrainer:
    """The trainer died: start another and configure it; its ``Ready`` brings it back to work."""


@dataclass(frozen=True, slots=True)
class TrainerLost:
    """It can't be brought back. ``user_error``: the person at this device can mend it."""

    detail: str
    user_error: bool


@dataclass(frozen=True, slots=True)
class JobDone:
    """Nothing is left to train: from now on this peer only serves what it has, unless a new plan has work for it."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """A member has asked the group to stop: do not linger when the job is done. ``at_once``: nothing is left to do."""

    at_once: bool


# --- blobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginBlob:
    """Get ready to receive a blob; an ephemeral one stays in memory."""

    blob: BlobId
    num_bytes: int
    ephemeral: bool


@dataclass(frozen=True, slots=True)
class VerifyBlob:
    """All bytes of an incoming blob are there: check its hash and answer with ``blob_checked``."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class AbandonBlob:
    """What came of an incoming blob is worth nothing."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class ForgetBlob:
    """Nobody needs a blob any more that is in memory only. What lies on disk stays."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class BlobArrived:
    """A blob is whole, checked and readable."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class BlobLost:
    """Nobody could deliver it."""

    blob: BlobId
    reason: str


@dataclass(frozen=True, slots=True)
class ReleaseBlob:
    """A blob that was only for handing over is not needed any more."""

    blob: BlobId


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeepPlan:
    """The plan that holds from now on."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class KeepSnapshot:
    """Enter this own snapshot, whose blob is in the store, into the manifest; then ``snapshot_kept``."""

    holding: m.SnapshotRef
    drop: tuple[BlobId, ...] = ()
    """Own snapshots that it takes the place of."""


@dataclass(frozen=True, slots=True)
class KeepReplica:
    """Enter this snapshot of another peer into the manifest (false: take it out); then ``replica_kept``."""

    holding: m.SnapshotRef
    keep: bool = True


@dataclass(frozen=True, slots=True)
class KeepResult:
    """Save what the group made when all were trained, a blob of its own; then ``result_kept``."""

    holding: m.SnapshotRef
    data: bytes


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Read such a result, which is in the store; then ``result_kept``."""

    holding: m.SnapshotRef


# --- within a peer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reconsider:
    """Something changed that the next plan hangs on."""


@dataclass(frozen=True, slots=True)
class EndingOver:
    """What the group does when all are trained is done."""


@dataclass(frozen=True, slots=True)
class CountRefused:
    """Messages of admitted peers were of no use: they are counted by reason."""

    reason: str
    count: int = 1

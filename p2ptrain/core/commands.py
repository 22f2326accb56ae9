"""What a node and its trainer process say to each other over their socket pair.

Invariant: one message at a time: two lengths, a msgpack head ``[class name, fields, name of the raw field]``, and the
raw field's bytes (tensors in the safetensors format), which no encoder copies. Both ends are the same program on the
same device, so this is not a wire format and has no version; it is msgpack all the same, because nothing here
unpickles.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import msgpack

from p2ptrain.errors import LocalError

LENGTHS = struct.Struct("<QQ")
RAW_TYPES = (bytes, memoryview, mmap)
MAX_MESSAGE_BYTES = 1 << 34
PARCELS_AHEAD_BYTES = 64 << 20

# --- node to trainer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configure:
    """First words: the job, and which samples are this peer's."""

    job: str
    data: str
    name: str
    shard: str = ""
    dirichlet: float = 0.0
    classes: tuple[str, ...] = ()
    num_threads: int = 1
    device: str = "cpu"
    allow_user_code: bool = False
    init: str = ""
    """Path of the checkpoint that the job starts from."""
    cache: str = ""
    """Path of the file that remembers measured times of blocks ("" = none)."""
    spool: str = ""
    """Path of the folder that takes files which are handed over ("" = none: bytes are)."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Train this part of this plan from ``snapshot`` (empty: from the job's initial weights).

    With ``own`` the snapshot is this trainer's own: everything in it counts, the push-sum masses too. Otherwise it is
    another peer's copy of the part, and this trainer starts from its parameters with a mass of nothing.
    """

    plan: str
    part: int
    snapshot: bytes = b""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Retain:
    """A new plan that leaves this trainer's part as it is: go on."""

    plan: str


@dataclass(frozen=True, slots=True)
class StopAt:
    """Depth slices: train on until ``step`` batches are done (not at all with ``now``), then say ``Halted``.

    Before that, hand over these runs of blocks (first, stop), which the plan of ``epoch`` gives to others.
    """

    epoch: int
    step: int
    pieces: tuple[tuple[int, int], ...]
    now: bool


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Depth slices: a trainer that stands by says ``Looked``, by some blocks that it times for that."""


@dataclass(frozen=True, slots=True)
class FollowStage:
    """Train the own stage of this plan. ``pieces`` ``GivePiece`` commands follow; ``keep``: own blocks stay."""

    plan: str
    own: str
    pieces: int
    keep: bool


@dataclass(frozen=True, slots=True)
class GivePiece:
    """A snapshot of some blocks, for the ``FollowStage`` before it."""

    piece: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """A parcel of another peer's stage: see ``learning.pipeline.training.Parcel``. ``epoch``: of its plan."""

    epoch: int
    sender: str
    work: str
    step: int
    unit: int
    row: int
    parcel: bytes


@dataclass(frozen=True, slots=True)
class ParcelsSent:
    """So many bytes of the parcels of ``epoch`` have left for other peers; the rest waits at the node for its turn.

    The trainer hands over no more while ``PARCELS_AHEAD_BYTES`` wait. It hears of every eighth of that.
    """

    epoch: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class MakePayload:
    exchange: int
    shards: tuple[str, ...]
    partner: str


@dataclass(frozen=True, slots=True)
class Merge:
    exchange: int
    sender: str
    masses: tuple[tuple[str, float], ...]
    payload: bytes
    reply: bool


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Nobody got this payload: its masses are the trainer's own again."""

    masses: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ExtractFeatures:
    """Run a frozen part over the own samples: the mean, by ``weight``, of the copies that come one after the other.

    ``last_copy``: of this part; ``last``: all parts of the session are here. ``plan``: with the first of them.
    """

    session: str
    part: int
    trainer: str
    snapshot: bytes
    weight: float
    last_copy: bool
    last: bool
    plan: str = ""


@dataclass(frozen=True, slots=True)
class Contribute:
    session: str
    step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Combine:
    session: str
    step: int
    state: bytes
    contributions: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Hand over what you hold now (before leaving)."""


@dataclass(frozen=True, slots=True)
class Stop:
    pass


# --- trainer to node ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The data are loaded: training samples of each class of the job."""

    counts: tuple[int, ...]
    max_groups: int = 0
    """Into so many class sub-models the job's model can be divided; 0 = not looked."""


@dataclass(frozen=True, slots=True)
class Following:
    """Training of ``part`` begins at ``round`` of ``rounds``."""

    part: int
    round: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Progress:
    """``loss``: not a number where it is not known, as in every stage but the last."""

    round: int
    step: int
    samples: int
    loss: float
    samples_per_s: float


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """At the end of a round, when training is finished, or when asked for. ``part``: a slice's first block.

    ``snapshot``: the bytes, or the path of a file in the spool, which is the node's from now on.
    """

    part: int
    round: int
    step: int
    samples: int
    loss: float
    round_finished: bool
    training_finished: bool
    snapshot: bytes | str
    span: int = 1
    """Blocks of a slice."""
    accuracy: float = -1.0
    """On the own validation samples, among the classes that are trained here; -1 = there are none."""


@dataclass(frozen=True, slots=True)
class Profiled:
    """Depth slices: the model's blocks (canonical JSON) and how long each takes here; said before ``Ready``."""

    model: str
    profile: str


@dataclass(frozen=True, slots=True)
class SendParcel:
    epoch: int
    to: str
    work: str
    step: int
    unit: int
    row: int
    parcel: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """The next ``count`` parcels of ``sender`` are in the trainer's hands. ``error`` names why one was refused."""

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


@dataclass(frozen=True, slots=True)
class PieceTaken:
    """After ``StopAt``: one of the runs of blocks that others get. ``piece``: as ``SnapshotTaken.snapshot``."""

    part: int
    span: int
    round: int
    step: int
    samples: int
    piece: bytes | str


@dataclass(frozen=True, slots=True)
class Halted:
    """After ``StopAt``: nothing is under way, the parameters are those after ``step`` batches; -1: there are none."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class PayloadMade:
    exchange: int
    masses: tuple[tuple[str, float], ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Merged:
    """``error`` names why the payload was refused ("" = merged)."""

    exchange: int
    sender: str
    error: str


@dataclass(frozen=True, slots=True)
class FeaturesExtracted:
    session: str
    samples: int


@dataclass(frozen=True, slots=True)
class Contributed:
    session: str
    step: int
    samples: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Combined:
    session: str
    step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class SnapshotRefused:
    """A snapshot or state from another peer did not fit this job's model."""

    detail: str


@dataclass(frozen=True, slots=True)
class TrainerFailed:
    """The trainer can't go on. ``user_error``: the person at this device can mend it."""

    detail: str
    user_error: bool


_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        *(Configure, Follow, Retain, MakePayload, Merge, Reclaim),
        *(StopAt, FollowStage, GivePiece, Deliver, ParcelsSent, LookAgain),
        *(Profiled, SendParcel, Taken, StageUsed, Looked, PieceTaken, Halted),
        *(ExtractFeatures, Contribute, Combine, TakeSnapshot, Stop),
        *(Ready, Following, Progress, SnapshotTaken, PayloadMade, Merged, FeaturesExtracted, Contributed, Combined),
        *(SnapshotRefused, TrainerFailed),
    )
}


def encode(message: object) -> tuple[bytes, bytes | memoryview]:
    """A message as its head (with the lengths of both before it) and its tensors, which are not copied."""
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}  # type: ignore[arg-type]
    raw = next((name for name, value in fields.items() if isinstance(value, RAW_TYPES) and len(value) > 0), "")
    tensors = memoryview(fields.pop(raw)) if raw else b""
    head: bytes = msgpack.packb([type(message).__name__, fields, raw])
    return LENGTHS.pack(len(head), len(tensors)) + head, tensors


def decode(head: bytes, tensors: bytes) -> object:
    """The message behind the lengths. Lists come back as tuples, as they were sent."""
    limit = len(head)
    name, fields, raw = msgpack.unpackb(
        head, use_list=False, max_bin_len=limit, max_str_len=limit, max_array_len=1 << 20, max_map_len=64
    )
    if name not in _CLASSES:
        raise LocalError(f"node and trainer disagree: {name!r}")
    return _CLASSES[name](**fields, **({raw: tensors} if raw else {}))

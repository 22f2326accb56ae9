"""What a node and its trainer process say to each other over their socket pair.

What one mode says alone stands in its folder.

Invariant: one message at a time: two lengths, a msgpack head ``[class name, fields, name of the raw field]``, and the
raw field's bytes (tensors in the safetensors format), which no encoder copies. Many bytes don't go through the socket
at all: the file that they lie in is handed over (``wire.shared_bytes``). Both ends are the same program on the
same device, so this is not a wire format and has no version; it is msgpack all the same, because nothing here
unpickles. What of an event goes to the store is the field that its class calls ``STORED``; with ``IS_PASSING`` it stays
in memory.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, ClassVar

import msgpack

from p2ptrain.errors import LocalError
from p2ptrain.wire.shared_bytes import SharedBytes

LENGTHS = struct.Struct("<QQ?")
"""Of the head, of the raw field's bytes, and whether these are handed over as an open file."""
RAW_TYPES = (bytes, bytearray, memoryview, mmap, SharedBytes)
MAX_MESSAGE_BYTES = 1 << 34

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
    strict: bool = False
    """Whether a file that can't be read ends training; else it is left out."""
    spool: str = ""
    """Path of the folder that takes files which are handed over ("" = none: bytes are)."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Hand over what you hold now (before leaving)."""


@dataclass(frozen=True, slots=True)
class LookAtModel:
    """One copy of those that make the whole model, as it was after a round; with the last one, look at it."""

    state: str
    """Names it, as in ``LookFigure``."""
    holding: str
    """The copy's ``SnapshotRef``, as JSON."""
    snapshot: bytes
    plan: str = ""
    """With the first one."""
    num_bytes: int = 0
    """Of all copies; with the first one."""
    is_last: bool = False
    num_copies: int = 0
    """That there are, with this one."""


@dataclass(frozen=True, slots=True)
class Stop:
    pass


# --- trainer to node ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Beat:
    """It moves: what it does, in words; "" = it waits for commands. Only the watch over the trainer needs this."""

    doing: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The data are loaded: training samples of each class of the job."""

    counts: tuple[int, ...]
    max_groups: int = 0
    """Into so many class sub-models the job's model can be divided; 0 = not looked."""
    notes: tuple[str, ...] = ()
    """What the person at this device should know of the samples: how many were left out, whether they look odd."""
    remarks: tuple[str, ...] = ()
    """What this device can't do of what the job wants."""
    num_val: int = 0
    """Own validation samples."""

    @property
    def told(self) -> list[tuple[str, str]]:
        """What a person should hear, each with its kind of a line in the journal."""
        return [*(("samples", note) for note in self.notes), *(("remark", remark) for remark in self.remarks)]


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
    accuracy: float = -1.0
    """Of a whole model that is trained here, after its last round, on the own validation samples; -1 = not known."""


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """At the end of a round, when training is finished, or when asked for. ``part``: a stage's first block.

    ``snapshot``: the bytes, or the path of a file in the spool, which is the node's from now on.
    """

    STORED: ClassVar[str] = "snapshot"
    part: int
    round: int
    step: int
    samples: int
    loss: float
    round_finished: bool
    training_finished: bool
    snapshot: bytes | str
    span: int = 1
    """How many blocks of a chain it holds; 1 for a part that is no stage."""
    accuracy: float = -1.0
    """On the own validation samples, among the classes that are trained here; -1 = there are none."""
    num_skipped: int = 0
    """Batches of the round that taught nothing, as their loss was not a finite number."""
    work_flops: float = 0.0
    """Of this device for the job so far, all in all; 0 = not known."""
    central_flops: float = 0.0
    """Of central training for the whole job, at least; 0 = not known."""
    seconds: float = 0.0
    """For so long training stood still for it; 0 = not measured."""


@dataclass(frozen=True, slots=True)
class ModelLooked:
    """What came of ``LookAtModel``, on own validation samples. ``why``: it was not looked at."""

    state: str
    samples: int = 0
    correct: int = 0
    loss: float = 0.0
    """Sum over the samples, nats."""
    seconds: float = 0.0
    """For so long nothing was trained."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotRefused:
    """A snapshot or state from another peer did not fit this job's model."""

    detail: str


@dataclass(frozen=True, slots=True)
class TrainerFailed:
    """The trainer can't go on. ``user_error``: the person at this device can mend it."""

    detail: str
    user_error: bool


COMMON: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Configure,
        TakeSnapshot,
        LookAtModel,
        ModelLooked,
        Stop,
        Beat,
        Ready,
        Following,
        Progress,
        SnapshotTaken,
        SnapshotRefused,
        TrainerFailed,
    )
}
"""What every mode says, by name."""


def encode(message: object) -> tuple[bytes, bytes | memoryview | SharedBytes]:
    """A message as its head (with the lengths of both before it) and its tensors, which are not copied."""
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}  # type: ignore[arg-type]
    raw = next((name for name, value in fields.items() if isinstance(value, RAW_TYPES) and len(value) > 0), "")
    tensors = fields.pop(raw) if raw else b""
    if raw and not isinstance(tensors, SharedBytes):
        tensors = memoryview(tensors)
    head: bytes = msgpack.packb([type(message).__name__, fields, raw], unicode_errors="surrogateescape")
    return LENGTHS.pack(len(head), len(tensors), isinstance(tensors, SharedBytes)) + head, tensors


def decode(head: bytes, tensors: bytes | mmap | SharedBytes, known: Mapping[str, Any]) -> object:
    """The message behind the lengths, of those that are ``known``. Lists come back as tuples, as they were sent."""
    limit = len(head)
    name, fields, raw = msgpack.unpackb(
        head,
        use_list=False,
        unicode_errors="surrogateescape",  # paths may be in any encoding
        max_bin_len=limit,
        max_str_len=limit,
        max_array_len=1 << 20,
        max_map_len=64,
    )
    if name not in known:
        raise LocalError(f"node and trainer disagree: {name!r}")
    return known[name](**fields, **({raw: tensors} if raw else {}))

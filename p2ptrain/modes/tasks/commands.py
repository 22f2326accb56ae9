"""What a node and its trainer process say to each other about class sub-models: see ``core.commands``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.wire.shared_bytes import SharedBytes

# --- node to trainer, then trainer to node ----------------------------------------------------------------------


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
class FinishRound:
    """The round under way is the last one; between two rounds the one before was. There is one at least."""


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
    peers: tuple[str, ...] = ()
    """Whose they are."""


@dataclass(frozen=True, slots=True)
class PayloadMade:
    STORED: ClassVar[str] = "payload"
    IS_PASSING: ClassVar[bool] = True
    exchange: int
    masses: tuple[tuple[str, float], ...]
    payload: bytes | SharedBytes


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
    work_flops: float = 0.0
    """Of this device for the job so far, all in all; said with the last step."""


@dataclass(frozen=True, slots=True)
class Combined:
    session: str
    step: int
    state: bytes
    caught: tuple[str, ...] = ()
    """Peers whose sums are those of no samples, and count no more."""


COMMANDS = (
    Follow,
    Retain,
    FinishRound,
    MakePayload,
    Merge,
    Reclaim,
    ExtractFeatures,
    Contribute,
    Combine,
    PayloadMade,
    Merged,
    FeaturesExtracted,
    Contributed,
    Combined,
)
"""What node and trainer say in this mode alone, both ways."""

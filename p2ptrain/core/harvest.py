"""What a harvest is: copies of every part, and the global model that comes of them.

Invariant: what is assembled is either complete or says what is missing, and how far its parts are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from p2ptrain.config import Job
from p2ptrain.core.looks.figures import GroupLook
from p2ptrain.core.plan import Plan
from p2ptrain.errors import LocalError, UserError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.wire.messages import Record, SnapshotRef
from p2ptrain.words import told_apart

if TYPE_CHECKING:
    from torch import Tensor, nn

Fetch = Callable[[SnapshotRef, str], Awaitable[bytes | None]]
"""A holding's bytes, if anybody can deliver them; the text says what it is, to people."""


class MisfitError(UserError):
    """Copies that were had are not of the job's model: whoever made them, there may be others."""

    def __init__(self, message: str, holdings: Sequence[SnapshotRef]) -> None:
        super().__init__(message)
        self.holdings = tuple(holdings)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a part, or of what the group made when all were trained."""

    holding: SnapshotRef
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Look:
    """How good one peer found the finished model on its own validation samples."""

    name: str
    samples: int
    accuracy: float
    peer: str = ""


@dataclass(frozen=True, slots=True)
class BestState:
    """Of those that the group has looked at while it trained."""

    look: GroupLook
    last: GroupLook
    """The last look, for comparison."""
    finished: Look | None = None
    """How good the finished model is, if the group is done and knows it."""


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything that a harvest needs, before torch is imported."""

    job: Job
    plan: Plan
    parts: Mapping[int, list[Snapshot]]
    """Copies by part, or by a run's first block, as the mode has it."""
    result: Snapshot | None
    """What the group made when all were trained."""
    records: Mapping[PeerId, Record]
    trained: frozenset[int] = frozenset()
    """Parts that somebody who is alive trains."""
    without: frozenset[PeerId] = frozenset()
    """Whose contributions are to be left out."""
    best: BestState | None = None
    """It is the best state, not the last one."""
    told: tuple[SnapshotRef, ...] = ()
    """All that anybody says to have saved."""
    plans: Mapping[int, Plan] = field(default_factory=dict)
    """Those that are known, by epoch."""

    def name_of(self, peer: PeerId) -> str:
        return told_apart({each: record.name for each, record in self.records.items()}).get(peer, peer)


@dataclass(frozen=True, slots=True)
class PartReport:
    """Of one part: who trained it, and how far."""

    part: int
    classes: tuple[str, ...]
    share: float
    trainers: tuple[str, ...]
    round: int
    rounds: int
    step: int
    samples: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """What one device computed for the job, beside central training of the whole of it, in FLOPs."""

    name: str
    flops: float
    central_flops: float
    """At least so much: devices do not say which of their samples are the same."""


def works_of(records: Iterable[Record], job: JobId) -> tuple[DeviceWork, ...]:
    """Of peers that know what they computed, one that only waited too."""
    members = [record for record in records if record.job == job]
    names = told_apart({record.peer: record.name for record in members})
    known = {record.peer: record for record in members if record.work_flops}
    central = max((record.central_flops for record in known.values()), default=0.0)
    return tuple(DeviceWork(names[p], r.work_flops, central) for p, r in sorted(known.items()) if central)


def looks_of(records: Iterable[Record], job: JobId) -> tuple[Look, ...]:
    """What peers that are done with the job say of its model."""
    members = [record for record in records if record.job == job]
    names = told_apart({record.peer: record.name for record in members})
    done = [record for record in members if record.phase == "done" and record.model_samples and record.accuracy >= 0]
    looks = (Look(names[record.peer], record.model_samples, record.accuracy, record.peer) for record in done)
    return tuple(sorted(looks, key=lambda look: look.peer))


def stopped_after(records: Iterable[Record], job: JobId) -> int:
    """The round after which the group has ended, sooner than the job says; 0: it has not, or still trains."""
    known = [record for record in records if record.job == job and record.phase != "failed"]
    if any(record.phase == "training" for record in known):
        return 0
    return max((record.ends_after for record in known if record.phase == "done"), default=0)


@dataclass(frozen=True, slots=True)
class OtherModel:
    """One that devices which were apart from the others have trained as far as the one that was taken."""

    trainers: tuple[str, ...]
    step: int
    epoch: int


@dataclass(frozen=True)
class Harvest:
    """The assembled global model and how it came about. A mode may have more to tell."""

    job: Job
    plan: Plan
    state: dict[str, Tensor] = field(repr=False)
    parts: dict[int, dict[str, Tensor]] = field(repr=False)
    """The parts' own states, each the mean of its copies, where they are models of their own."""
    report: tuple[PartReport, ...]
    missing: tuple[int, ...] = ()
    names: Mapping[PeerId, str] = field(default_factory=dict)
    """What peers call themselves."""
    stopped: tuple[int, ...] = ()
    """Parts that have rounds left and that nobody here trains, while the group has come to its end without."""
    source: str = ""
    """Where it was found, in words."""
    looks: tuple[Look, ...] = ()
    """Of peers that have looked at the finished model, each by itself."""
    works: tuple[DeviceWork, ...] = ()
    """What each device computed, as far as that is known."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Whose contributions are not in it, by name, and why not."""
    best: BestState | None = None
    """It is the best state that the group has looked at, and not the last one."""
    stopped_after: int = 0
    """The group has ended after that round, before its last one; 0: it has not."""
    best_look: GroupLook | None = None
    """Of the state that was best when the group looked at it while it trained, be this one that or not."""
    others: tuple[OtherModel, ...] = ()
    """Models that are as far, and are not this one."""

    @property
    def is_judged(self) -> bool:
        """Whether the group has looked at the model, all together, on everybody's validation samples."""
        return False

    @property
    def is_half_way(self) -> bool:
        """Training goes on."""
        return self.best is None and any(
            part.round < part.rounds and part.part not in self.stopped for part in self.report
        )

    @property
    def head_fitted(self) -> bool:
        """The last layer is one that the group fitted."""
        return False

    def part_models(self, *, allow_user_code: bool = False) -> dict[int, tuple[nn.Module, tuple[int, ...]]]:
        """The parts that are models of their own, as they were trained, and the class of each output: -1 is the rest,
        and none at all are all classes."""
        return {}


@dataclass(frozen=True)
class KeptHarvest(Harvest):
    """One that was assembled earlier, when the group was done; parts' own states are not kept."""

    told: str = ""
    """What people were told of it then."""
    plain: Mapping[str, Any] = field(default_factory=dict)
    """And programs."""

    @property
    def is_half_way(self) -> bool:
        return bool(self.plain.get("half_way", False))

    @property
    def head_fitted(self) -> bool:
        return bool(self.plain.get("head_fitted", False))


class Harvester(Protocol):
    """A mode's way of making one model of what was trained."""

    async def fetch(
        self, plan: Plan, holdings: Sequence[SnapshotRef], fetch: Fetch
    ) -> tuple[Snapshot | None, dict[int, list[Snapshot]]]:
        """The freshest copies that can be had: of what the group made in the end, and of the parts."""
        ...

    def missing(self, plan: Plan, parts: Mapping[int, list[Snapshot]]) -> list[int]:
        """Parts without a copy."""
        ...

    def lament(self, job: Job, plan: Plan, missing: Sequence[int]) -> str:
        """Why there is no model, and what to do."""
        ...

    def contributors(self, collected: Collected) -> frozenset[PeerId]:
        """Whose contributions can be told apart, so that ``Collected.without`` may name them. Raises ``UserError``
        saying why none can."""
        ...

    def judged(self, result: Snapshot) -> tuple[int, float] | None:
        """Validation samples, and the share that the finished model gets right, by what the group made in the end."""
        ...

    def assemble(self, collected: Collected, *, allow_user_code: bool) -> Harvest:
        """Put the parts together. Raises ``MisfitError`` for copies that don't fit."""
        ...


def chosen(harvester: Harvester, plan: Plan, holdings: Sequence[SnapshotRef]) -> list[SnapshotRef] | None:
    """The copies that a harvest of these would take; None where they are no whole model."""

    async def at_once(holding: SnapshotRef, what: str) -> bytes:
        return b""

    routine = harvester.fetch(plan, holdings, at_once)
    try:
        routine.send(None)  # it waits for nothing but its copies
    except StopIteration as done:
        parts: dict[int, list[Snapshot]] = done.value[1]
    else:
        raise LocalError("a harvest waits for something else than its copies")
    if not parts or harvester.missing(plan, parts):
        return None
    return [snapshot.holding for copies in parts.values() for snapshot in copies]

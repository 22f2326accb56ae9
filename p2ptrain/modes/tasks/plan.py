"""What a plan of class sub-models says: which classes and channels make a part, and how parts become one model.

Invariant: the parts of a body that holds together partition the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from p2ptrain.core.plan import ClassIndices, Part, PartIndex, Plan, plan_from_json, require
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import PeerName
from p2ptrain.wire.schema import Bound

MAX_FORMER = 256
TargetRule = Literal["all", "rest", "own"]
CombineRule = Literal["own", "sum"]


@dataclass(frozen=True, slots=True)
class ClassPart(Part):
    """A share of every decoupled block's channels, for some classes."""

    classes: ClassIndices
    shards: Annotated[tuple[str, ...], Bound(1, 2)]
    """What gossip averages apart: parts that hold the same shard average it together."""


@dataclass(frozen=True, slots=True)
class Former:
    """A peer that is gone, and the part it trained last: it gets it back when it returns."""

    peer: PeerName
    part: PartIndex


@dataclass(frozen=True, slots=True)
class TasksBody:
    """Parts that partition the classes; of replicas it is one, all of the model."""

    parts: Annotated[tuple[ClassPart, ...], Bound(1, 4096)]
    trunk: Annotated[int, Bound(0, 1000)]
    disjoint: bool
    """The data decided the parts: no two parts' trainers have samples of the same class."""
    targets: TargetRule
    combine: CombineRule
    fit_head: bool
    """Whether the group fits the last layer when all are trained."""
    former: Annotated[tuple[Former, ...], Bound(0, MAX_FORMER)]

    @property
    def num_classes(self) -> int:
        """Of the job."""
        return sum(len(part.classes) for part in self.parts)

    def cut(self) -> Any:
        return [self.trunk, self.targets, [[list(part.classes), part.share] for part in self.parts]]

    def check(self, plan: Plan) -> None:
        require(plan.num_classes in (0, self.num_classes), f"counts of {plan.num_classes} classes")
        for peer in plan.peers:
            require(all(wish < self.num_classes for wish in peer.wishes), f"{peer.peer}: wishes for unknown classes")
        classes = sorted(index for part in self.parts for index in part.classes)
        require(classes == list(range(len(classes))), "the parts don't partition the classes")
        for part in self.parts:
            require(bool(part.classes), f"part {part.index}: no classes")
            require(list(part.classes) == sorted(part.classes), f"part {part.index}: classes out of order")
            require(part.share > 0, f"part {part.index}: no share")
            shards = shards_of(plan.mode, self.trunk, part.index)
            require(part.shards == shards, f"part {part.index}: wrong shards")
        former = [entry.peer for entry in self.former]
        gone = len(set(former)) == len(former) and not set(former) & plan.trainers().keys()
        require(gone, "a former peer is named twice")
        require(all(entry.part < len(self.parts) for entry in self.former), "a former peer's part does not exist")
        require(self.combine == "own" or self.targets == "all", 'combine "sum" needs targets "all"')
        if plan.mode == "replicas":
            whole = len(self.parts) == 1 and self.parts[0].share == 1
            require(whole, "a replica is one part with all of the model")

    def part_of(self, peer: PeerId) -> ClassPart | None:
        """The part that ``peer`` trains, if any."""
        return next((part for part in self.parts if peer in part.trainers), None)


BODIES = {"tasks": TasksBody, "replicas": TasksBody}
"""What a plan of each of these modes is read as."""


def read_plan(data: bytes | str) -> Plan:
    """A plan of class sub-models. Raises ``RemoteError``."""
    return plan_from_json(data, BODIES)


def body_of(plan: Plan) -> TasksBody:
    """The body of a plan of this mode."""
    if not isinstance(plan.body, TasksBody):
        raise LocalError("a plan of another mode")
    return plan.body


def parts_of(plan: Plan) -> Sequence[ClassPart]:
    """The parts of a plan of this mode, by index."""
    return body_of(plan).parts


def shards_of(mode: str, trunk: int, index: int) -> tuple[str, ...]:
    """The shards of a part: all of a replica; a sub-model's share of the trunk and its own group."""
    if mode == "replicas":
        return ("all",)
    return ("trunk", f"group-{index}") if trunk > 0 else (f"group-{index}",)

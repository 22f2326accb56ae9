"""The plan: which peer trains which part of the global model, in one epoch, with the inputs it was made from.

A header that all modes have, and a body of its mode: the parts, and what that mode needs to know of them.

Invariant: a ``Plan`` that ``plan_from_json`` returns holds together (every trainer is a peer of the plan and trains one
part, and what the body's own check asks), and its canonical JSON is the very text it came from. So ``plan.hash`` names
it, and a peer that has the inputs can compute the same plan again, or see that it fits them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from p2ptrain.config import MAX_CLASSES, Job
from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.planning.devices.profiles import LEAST_FLOPS_PER_S
from p2ptrain.protocol.consensus.epochs import MAX_STEP
from p2ptrain.wire.messages import PeerName, Record
from p2ptrain.wire.schema import Bound, from_plain, to_plain

MAX_PLAN_BYTES = 1 << 20
MAX_EPOCH = 2**52
SHARE_TOLERANCE = 1e-6
SHARE_UNITS = 1_000_000
"""Shares are whole multiples of 1 / SHARE_UNITS, so that they are short in JSON and equal parts get equal shares."""

ClassIndex = Annotated[int, Bound(0, MAX_CLASSES - 1)]
ClassIndices = Annotated[tuple[ClassIndex, ...], Bound(0, MAX_CLASSES)]
PartIndex = Annotated[int, Bound(0, MAX_CLASSES - 1)]
Share = Annotated[float, Bound(0, 1)]


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """What a plan knows of a peer: the peer's own record at the time of planning."""

    peer: PeerName
    flops_per_s: Annotated[float, Bound(0, 1e18)]
    """Sustained training speed; 0 = not known."""
    memory_bytes: int
    """What training may use; 0 = not known."""
    counts: Annotated[tuple[int, ...], Bound(0, MAX_CLASSES)]
    """Training samples of each class; empty = none."""
    wishes: ClassIndices
    """Classes that the peer wants to train."""
    max_groups: Annotated[int, Bound(0, MAX_CLASSES)] = 0
    """Into so many class sub-models its trainer can divide the job's model; 0 = not known."""

    @property
    def num_samples(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Part:
    """What one peer trains, or several together (nobody: it waits). ``share``: of the global model, as its mode counts
    it: channels, or training FLOPs."""

    index: PartIndex
    share: Share
    trainers: Annotated[tuple[PeerName, ...], Bound(0, 1024)]


class Body(Protocol):
    """What a plan says in its mode alone: a frozen dataclass of plain data, which the wire's schema can check."""

    @property
    def parts(self) -> Sequence[Part]:
        """By index."""
        ...

    def cut(self) -> Any:
        """Names, as plain JSON, how the model is divided: snapshots of equal cuts fit each other."""
        ...

    def check(self, plan: Plan) -> None:
        """Check what types alone don't say. Raises ``RemoteError``."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """What every plan says. ``peers`` are the inputs it was computed from, ``parent`` the plan before it."""

    epoch: Annotated[int, Bound(1, MAX_EPOCH)]
    job: Annotated[JobId, Bound(16, 16)]
    mode: Annotated[str, Bound(1, 32)]
    proposer: PeerName
    peers: Annotated[tuple[PeerSnapshot, ...], Bound(1, 1024)]
    parent: Annotated[str, Bound(0, 64)]
    """Hash of the plan before; "" for a first plan."""


HEADER_FIELDS = tuple(field.name for field in dataclasses.fields(Header))


@dataclass(frozen=True, slots=True)
class Plan(Header):
    """A header, and the body of its mode."""

    body: Body

    @property
    def parts(self) -> Sequence[Part]:
        return self.body.parts

    @property
    def num_classes(self) -> int:
        """Of the job, as far as its peers' samples tell; 0 = not at all."""
        return max(len(peer.counts) for peer in self.peers)

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def partition(self) -> str:
        """Names how the model is divided, whoever trains what: snapshots of equal partitions fit each other."""
        return hashlib.sha256(json.dumps([self.mode, self.body.cut()]).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces. Equal plans have equal text."""
        plain = {name: to_plain(getattr(self, name)) for name in HEADER_FIELDS} | {"body": to_plain(self.body)}
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def part_of(self, peer: PeerId) -> Part | None:
        """The part that ``peer`` trains, if any."""
        return next((part for part in self.parts if peer in part.trainers), None)

    def trainers(self) -> dict[PeerId, int]:
        """Every trainer's part, by index."""
        return {peer: part.index for part in self.parts for peer in part.trainers}


def plan_from_json(data: bytes | str, bodies: Mapping[str, type[Any]]) -> Plan:
    """Parse and check what came from the network. ``bodies``: of the modes that are understood, by name.

    Raises ``RemoteError``.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise RemoteError("plan", f"larger than {MAX_PLAN_BYTES} bytes")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteError("plan", f"not JSON ({type(error).__name__})") from None
    if not isinstance(plain, dict):
        raise RemoteError("plan", "no table")
    body = plain.pop("body", None)
    header: Header = from_plain(Header, plain)
    if header.mode not in bodies:
        raise RemoteError("plan", f"of mode {header.mode!r}")
    values = {name: getattr(header, name) for name in HEADER_FIELDS}
    plan = Plan(**values, body=from_plain(bodies[header.mode], body))
    check_plan(plan)
    if plan.to_json() != text:
        raise RemoteError("plan", "not in canonical form")
    return plan


def check_plan(plan: Plan) -> None:
    """Check what types alone don't say. Raises ``RemoteError``."""
    _check_peers(plan)
    known = {peer.peer for peer in plan.peers}
    trainers = [peer for part in plan.parts for peer in part.trainers]
    require([part.index for part in plan.parts] == list(range(len(plan.parts))), "parts out of order")
    require(math.fsum(part.share for part in plan.parts) <= 1 + SHARE_TOLERANCE, "the shares exceed the model")
    for part in plan.parts:
        require(list(part.trainers) == sorted(part.trainers), f"part {part.index}: trainers out of order")
    require(len(set(trainers)) == len(trainers), "a peer trains twice")
    require(known.issuperset(trainers), "a trainer is not among the plan's peers")
    require(plan.proposer in known, "the proposer is not among the plan's peers")
    require(is_hex(plan.job, 16), "the job is not a hash")
    require(plan.parent == "" if plan.epoch == 1 else is_hex(plan.parent, 64), "the parent is not a plan's hash")
    plan.body.check(plan)


def successor(job: Job, peers: tuple[PeerSnapshot, ...], body: Body, proposer: PeerId, parent: Plan | None) -> Plan:
    """The plan after ``parent``; the first one after none."""
    return Plan(
        epoch=parent.epoch + 1 if parent else 1,
        job=job.id,
        mode=job.mode,
        proposer=proposer,
        peers=peers,
        parent=parent.hash if parent else "",
        body=body,
    )


def is_successor(plan: Plan, parent: Plan) -> bool:
    """Not of the next epoch, perhaps: there may have been others in between. But not of an absurd one."""
    return parent.epoch < plan.epoch <= parent.epoch + MAX_STEP and parent.hash == plan.parent


def _check_peers(plan: Plan) -> None:
    num_classes = plan.num_classes
    names = [peer.peer for peer in plan.peers]
    require(names == sorted(set(names)), "peers out of order")
    for peer in plan.peers:
        require(len(peer.counts) in (0, num_classes), f"{peer.peer}: counts of {len(peer.counts)} classes")
        require(list(peer.wishes) == sorted(set(peer.wishes)), f"{peer.peer}: wishes out of order")


def require(holds: bool, otherwise: str) -> None:
    """Raise a ``RemoteError`` that says what does not hold."""
    if not holds:
        raise RemoteError("plan", otherwise)


def is_hex(text: str, length: int) -> bool:
    """Whether it can be a hash of so many digits."""
    return len(text) == length and set(text) <= set("0123456789abcdef")


def snapshot(record: Record) -> PeerSnapshot:
    """A peer's record, as planning sees it."""
    return PeerSnapshot(
        record.peer, record.flops_per_s, record.memory_bytes, record.counts, record.wishes, record.max_groups
    )


def cleaned(peer: PeerSnapshot, num_classes: int) -> PeerSnapshot:
    """The snapshot without what can't be used: no number for speed, counts of other classes, unknown wishes."""
    speed = peer.flops_per_s if math.isfinite(peer.flops_per_s) and peer.flops_per_s > 0 else 0.0
    fits = len(peer.counts) == num_classes and all(count >= 0 for count in peer.counts) and any(peer.counts)
    return dataclasses.replace(
        peer,
        flops_per_s=min(float(speed), 1e18),
        memory_bytes=max(0, peer.memory_bytes),
        counts=peer.counts if fits else (),
        wishes=tuple(sorted({wish for wish in peer.wishes if 0 <= wish < num_classes})),
    )


def speeds(peers: Sequence[PeerSnapshot]) -> dict[PeerId, float]:
    """FLOP/s by peer; one that is not known is taken for the slowest."""
    known = {peer.peer: peer.flops_per_s for peer in peers if peer.flops_per_s >= LEAST_FLOPS_PER_S}
    slowest = min(known.values(), default=LEAST_FLOPS_PER_S)
    return {peer.peer: known.get(peer.peer, slowest) for peer in peers}


def clean(job: Job, peers: Sequence[PeerSnapshot]) -> tuple[PeerSnapshot, ...]:
    """Snapshots in canonical order and form."""
    unique = {peer.peer: cleaned(peer, len(job.data.classes)) for peer in peers}
    if len(unique) != len(peers):
        raise LocalError("a peer is named twice")
    return tuple(unique[name] for name in sorted(unique))


def unlearnt_classes(plan: Plan, job: Job, trained: Collection[str]) -> list[str]:
    """What a person should know of classes that the model will not learn. ``trained``: peers whose samples it is
    trained on."""
    if job.data.kind == "text":
        return []  # its classes are bytes, of which no text has all
    names, lines = job.data.classes, list[str]()
    known = {c for peer in plan.peers for c, num in enumerate(peer.counts) if num}
    learnt = {c for peer in plan.peers if peer.peer in trained for c, num in enumerate(peer.counts) if num}
    nobody = [name for c, name in enumerate(names) if c not in known]
    others = [name for c, name in enumerate(names) if c in known - learnt]
    if nobody:
        lines.append(
            f"NOBODY HAS SAMPLES OF {', '.join(nobody)}: the model will not know {'it' if len(nobody) == 1 else 'them'}"
            "; bring a peer that has some, or make the job without"
        )
    if others:
        lines.append(
            f"NOBODY WHOSE SAMPLES ARE TRAINED ON HAS SOME OF {', '.join(others)}: the model will not know "
            f"{'it' if len(others) == 1 else 'them'} until another plan takes in who has"
        )
    return lines

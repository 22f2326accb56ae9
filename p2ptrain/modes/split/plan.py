"""What a plan of split training says: its units, who averages, from which round on it holds, and what it was made by.

The parts are the peers that work: an owner with its front or its whole model, a helper with the tails of others.

Invariant: the state that the plan goes on from is named by its blobs, so whoever follows the plan begins with the very
same numbers; who stands by, and by whose figures it was planned, is in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from p2ptrain.core.plan import SHARE_UNITS, Part, Plan, Share, is_hex, plan_from_json, require
from p2ptrain.core.stages.figures import DeviceFigures, check_figures
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.config import NAME
from p2ptrain.planning.devices.blocks import MAX_BLOCKS, ModelProfile
from p2ptrain.planning.split.units import SplitPlan, Unit, check_split_plan
from p2ptrain.wire.messages import Blob, PeerName
from p2ptrain.wire.schema import Bound

MAX_STRETCH = 100.0
MAX_ROUNDS = 1_000_000
SHUT_OUT_ROUNDS, MAX_TIMES = 4, 8
Run = tuple[int, int]
"""Blocks, first and stop."""


@dataclass(frozen=True, slots=True)
class StartPiece:
    """A run of blocks of the state that a plan goes on from: [first, stop)."""

    first: Annotated[int, Bound(0, MAX_BLOCKS)]
    stop: Annotated[int, Bound(1, MAX_BLOCKS)]
    blob: Blob
    num_bytes: Annotated[int, Bound(1, 2**48)]


@dataclass(frozen=True, slots=True)
class ShutOut:
    """A peer whose work was of no use: it has none in the rounds before ``until_round``."""

    peer: PeerName
    times: Annotated[int, Bound(1, 1000)]
    """That it was of no use."""
    until_round: Annotated[int, Bound(0, MAX_ROUNDS)]
    by: PeerName
    """Who said so last."""
    why: Annotated[str, Bound(0, 512)]

    @property
    def words(self) -> str:
        """For people."""
        often = f" ({self.times} times by now)" if self.times > 1 else ""
        return (
            f"shut out until round {self.until_round} is over, as {self.by} could not use its work{often}: {self.why}"
        )


@dataclass(frozen=True, slots=True)
class SeenPace:
    """A helper that was slower than it says: in the rounds before ``until_round`` it is planned with as it was seen."""

    peer: PeerName
    sample_s: Annotated[float, Bound(0, 1e9)]
    """Of the whole model, as those saw it that it helped."""
    times: Annotated[int, Bound(1, 1000)]
    """That this happened."""
    until_round: Annotated[int, Bound(0, MAX_ROUNDS)]

    @property
    def words(self) -> str:
        """For people."""
        often = f" ({self.times} times by now)" if self.times > 1 else ""
        return (
            f"planned with as those saw it that it helped, until round {self.until_round} is over: it was slower than "
            f"it says{often}"
        )


@dataclass(frozen=True)
class SplitBody:
    """A round is a pass over the samples in every unit, and an average of all units."""

    chain: Annotated[str, Bound(64, 64)]
    """Names the blocks that it was made for: the hash of their ``ModelProfile``."""
    split: SplitPlan
    averager: PeerName
    """Who averages the units at the end of every round."""
    shares: Annotated[tuple[Share, ...], Bound(1, 1024)]
    """Of all units' training FLOPs, what each peer that works has, by peer."""
    figures: Annotated[tuple[DeviceFigures, ...], Bound(1, 1024)]
    """By peer. A peer of the plan without them could not be planned with: its figures make no sense."""
    from_round: Annotated[int, Bound(0, MAX_ROUNDS)]
    """Rounds that are over when it takes over."""
    start: Annotated[tuple[StartPiece, ...], Bound(0, 256)]
    """The state after these rounds, all blocks in order; none for the initial weights."""
    stretch: Annotated[float, Bound(1.0, MAX_STRETCH)] = 1.0
    """How many times as long as predicted rounds took, the last time that a peer had help."""
    shut_out: Annotated[tuple[ShutOut, ...], Bound(0, 256)] = ()
    """By peer; also those whose time is over, as their next one is longer."""
    seen: Annotated[tuple[SeenPace, ...], Bound(0, 256)] = ()
    """Likewise."""

    def is_shut_out(self, peer: str) -> ShutOut | None:
        """Whether, and why, a peer has no work for now."""
        return next((e for e in self.shut_out if e.peer == peer and e.until_round > self.from_round), None)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """A part for each peer that works."""
        return tuple(
            Part(index, share, (PeerId(peer),))
            for index, (share, peer) in enumerate(zip(self.shares, workers(self.split), strict=False))
        )

    def cut(self) -> Any:
        return [[unit.owner, unit.helper, unit.cut] for unit in self.split.units]

    def check(self, plan: Plan) -> None:
        split = self.split
        check_split_plan(split)
        working = workers(split)
        require(len(self.shares) == len(working), "not a share for each peer that works")
        names = [peer.peer for peer in plan.peers]
        require(split.standby == tuple(n for n in names if n not in working), "who stands by is not who is left")
        by_name = {peer.peer: peer for peer in plan.peers}
        require(all(unit.owner in by_name for unit in split.units), "an owner is not among the plan's peers")
        require(all(by_name[PeerId(u.owner)].num_samples for u in split.units), "an owner without samples")
        require(self.averager in working, "who averages does not work")
        check_figures(plan, self.chain, self.figures, split.num_blocks)
        shut_out = [each.peer for each in self.shut_out]
        require(shut_out == sorted(set(shut_out)), "who is shut out, out of order")
        require(not any(self.is_shut_out(each.peer) for each in self.figures), "figures of a peer that is shut out")
        seen = [each.peer for each in self.seen]
        require(seen == sorted(set(seen)), "who was slower than it says, out of order")
        self._check_start()
        require(plan.epoch > 1 or self.from_round == 0, "a first plan that does not begin at the first round")

    def _check_start(self) -> None:
        require(bool(self.start) == (self.from_round > 0), "no state to go on from, or one of no round")
        at = 0
        for piece in self.start:
            require(piece.first == at < piece.stop, f"its start has blocks {piece.first} to {piece.stop} after {at}")
            require(is_hex(piece.blob, 64), "its start names no blob")
            at = piece.stop
        require(at in (0, self.split.num_blocks), "its start is not the whole model")


BODIES = {NAME: SplitBody}


def read_plan(data: bytes | str) -> Plan:
    """A plan of split training. Raises ``RemoteError``."""
    return plan_from_json(data, BODIES)


def body_of(plan: Plan) -> SplitBody:
    """The body of a plan of this mode."""
    if not isinstance(plan.body, SplitBody):
        raise LocalError("a plan of another mode")
    return plan.body


def until_round(from_round: int, times: int) -> int:
    """Until when it counts that a peer's work, or its word, was of no use: for 4 rounds, the next time for 16, and so
    on, as each time costs a round."""
    rounds: int = SHUT_OUT_ROUNDS ** min(times, MAX_TIMES)
    return min(from_round + rounds, MAX_ROUNDS)


# --- what follows from the units --------------------------------------------------------------------------------------


def workers(split: SplitPlan) -> tuple[str, ...]:
    """Owners and helpers, sorted."""
    return tuple(sorted({*split.helpers, *(unit.owner for unit in split.units)}))


def runs_of(split: SplitPlan, peer: str) -> list[tuple[Unit, Run]]:
    """The units that a peer has a part of, or all of one, and the blocks that it trains of each: of its own two runs
    where it keeps its labels."""
    found = []
    for unit in split.units:
        found += [(unit, (first, stop)) for who, first, stop in split.runs_of(unit) if who == peer]
    return found


def needs_of(split: SplitPlan, peer: str) -> tuple[Run, ...]:
    """All blocks that a peer trains of any unit: one run or, where it keeps its labels, two. None for one that does not
    work."""
    found: list[Run] = []
    for first, stop in sorted(run for _, run in runs_of(split, peer)):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((first, stop))
    return tuple(found)


def rates_of(split: SplitPlan, peer: str) -> dict[PeerId, float]:
    """What a peer may send to others, bytes/s: their shares of the link."""
    rates = {}
    for unit, _ in runs_of(split, peer):
        if unit.helper is not None:
            to, rate = (unit.helper, unit.up_bytes_per_s) if unit.owner == peer else (unit.owner, unit.down_bytes_per_s)
            rates[PeerId(to)] = rate
    return rates


def bounds_of(split: SplitPlan) -> tuple[int, ...]:
    """Where a round's state is cut: wherever a peer begins or ends."""
    return tuple(sorted({0, split.tail_stop, split.num_blocks, *(unit.cut for unit in split.units)}))


def shares_of(model: ModelProfile, split: SplitPlan) -> tuple[float, ...]:
    """Of each peer that works, of all units' training FLOPs, in whole units, rounded down."""
    whole = model.training_flops * len(split.units)
    flops = [sum(model.training_flops_of(*run) for _, run in runs_of(split, peer)) for peer in workers(split)]
    return tuple(each * SHARE_UNITS // whole / SHARE_UNITS for each in flops)


def samples_of(plan: Plan) -> dict[str, int]:
    """How many each owner has."""
    by_peer = {peer.peer: peer.num_samples for peer in plan.peers}
    return {unit.owner: by_peer[PeerId(unit.owner)] for unit in body_of(plan).split.units}

"""The split plan: for every unit its helper, its cut, its share of the link, and how its batch is cut up.

A unit is one copy of the whole model in training on one peer's samples: blocks [0, cut) at the owner of the samples,
blocks [cut, num_blocks) at its helper. Without a helper the owner trains alone, and the cut is ``num_blocks``. Where
labels stay with their owner, so do the blocks from ``kept_from`` on: its helper has [cut, kept_from).

Invariant: a ``SplitPlan`` that ``check_split_plan`` lets through holds together: one unit an owner, in the order of
their names; nobody is helped who helps; nobody stands by who works; who is helped has a share of the link both ways.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

from p2ptrain.config import Coding
from p2ptrain.errors import RemoteError
from p2ptrain.planning.devices.blocks import MAX_BLOCKS
from p2ptrain.wire.schema import Bound, to_plain

MAX_UNITS = 1024
MAX_BATCH = 1 << 20
MAX_MICRO_BATCHES = 4096

Medium = Literal["switched", "shared"]
"""switched: each device has a link of its own; shared: one medium carries all that the room sends."""
Tails = Literal["replica", "shared"]
"""replica: a helper keeps a copy of its tail for each unit; shared: one, for all of them."""
Labels = Literal["send", "stay"]
"""send: a unit's labels go to its helper, with the activations; stay: its owner trains the last block and the loss."""
Name = Annotated[str, Bound(1, 256)]
Rate = Annotated[float, Bound(0, 1e15)]
Seconds = Annotated[float, Bound(0, 1e9)]


@dataclass(frozen=True, slots=True)
class Unit:
    """One owner's copy of the model. Seconds are predictions."""

    owner: Name
    helper: Name | None
    """None: the owner trains alone."""
    cut: Annotated[int, Bound(1, MAX_BLOCKS)]
    """Blocks at the owner."""
    up_bytes_per_s: Rate
    """What the owner may send to its helper; 0 alone."""
    down_bytes_per_s: Rate
    """What the helper may send back; 0 alone."""
    micro_batches: Annotated[int, Bound(1, MAX_MICRO_BATCHES)]
    """Parts that a batch is cut into."""
    in_flight: Annotated[int, Bound(1, MAX_MICRO_BATCHES)]
    """Of them, those whose gradients the owner may be waiting for at once."""
    activations: Coding
    gradients: Coding
    batch_s: Seconds
    round_s: Seconds
    """All batches of a round, without the exchange at its end."""
    helper_s: Seconds
    """What its tail takes of its helper's time in a round; 0 alone."""

    @property
    def is_alone(self) -> bool:
        return self.helper is None


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Who trains what until the next plan."""

    model: Name
    num_blocks: Annotated[int, Bound(1, MAX_BLOCKS)]
    batch_size: Annotated[int, Bound(1, MAX_BATCH)]
    """Of every unit that has as many samples; ``tails = "shared"``: of all of them together."""
    tails: Tails
    medium: Medium
    units: Annotated[tuple[Unit, ...], Bound(1, MAX_UNITS)]
    """By owner."""
    standby: Annotated[tuple[Name, ...], Bound(0, MAX_UNITS)]
    """Peers without samples that help nobody, sorted."""
    round_s: Seconds
    """Predicted: until the last unit has ended and the copies of each block are averaged."""
    exchange_s: Seconds
    """Of ``round_s``, the averaging."""
    kept_from: Annotated[int, Bound(0, MAX_BLOCKS)] = 0
    """The first of the last blocks, which owners keep with their labels; 0: they keep none."""

    @property
    def tail_stop(self) -> int:
        """One behind the last block of every tail."""
        return self.kept_from or self.num_blocks

    def runs_of(self, unit: Unit) -> tuple[tuple[str, int, int], ...]:
        """Who trains which blocks [first, stop) of a unit, in the order of the blocks."""
        if unit.helper is None:
            return ((unit.owner, 0, self.num_blocks),)
        runs = ((unit.owner, 0, unit.cut), (unit.helper, unit.cut, self.tail_stop))
        return (*runs, (unit.owner, self.kept_from, self.num_blocks)) if self.kept_from else runs

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def helpers(self) -> tuple[str, ...]:
        """Who trains tails of others, sorted."""
        return tuple(sorted({unit.helper for unit in self.units if unit.helper is not None}))

    def unit_of(self, owner: str) -> Unit | None:
        return next((unit for unit in self.units if unit.owner == owner), None)

    def units_of(self, helper: str) -> tuple[Unit, ...]:
        """Those whose tails it trains."""
        return tuple(unit for unit in self.units if unit.helper == helper)

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces. Equal plans have equal text."""
        return json.dumps(to_plain(self), sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_split_plan(plan: SplitPlan) -> None:
    """Check what types alone don't say. Raises ``RemoteError``."""
    owners = [unit.owner for unit in plan.units]
    _require(owners == sorted(set(owners)), "units out of order, or two of one owner")
    helpers = set(plan.helpers)
    _require(plan.kept_from < plan.num_blocks, "owners keep blocks that the model has not")
    _require(not plan.kept_from or plan.tails == "replica", "one tail for all, of which owners keep the last blocks")
    for unit in plan.units:
        _require(unit.in_flight <= unit.micro_batches, f"{unit.owner}: more micro-batches in flight than a batch has")
        if unit.helper is None:
            _require(unit.cut == plan.num_blocks, f"{unit.owner}: trains alone, but not all blocks")
            _require(unit.up_bytes_per_s == unit.down_bytes_per_s == 0, f"{unit.owner}: a share of a link, but alone")
            continue
        _require(unit.cut < plan.tail_stop, f"{unit.owner}: a helper without a block")
        _require(unit.up_bytes_per_s > 0 and unit.down_bytes_per_s > 0, f"{unit.owner}: no share of the link")
        _require(unit.helper != unit.owner and unit.owner not in helpers, f"{unit.owner}: helped, and helps")
    _require(list(plan.standby) == sorted(set(plan.standby)), "peers that stand by are out of order")
    _require(not set(plan.standby) & (helpers | set(owners)), "a peer works and stands by")
    _require(plan.exchange_s <= plan.round_s, "an exchange that is longer than its round")


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise RemoteError("split plan", detail)

"""States that are whole, by the pieces that they are saved in.

Invariant: pure; all pieces of a state are made by one averager, under one plan.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import SnapshotRef

State = tuple[int, int, PeerId]
"""Round, epoch, averager."""


def state_of(ref: SnapshotRef) -> State:
    """Of which it is a piece."""
    return ref.round, ref.epoch, ref.trainer


def whole_states(num_blocks: int, refs: Iterable[SnapshotRef]) -> dict[State, list[SnapshotRef]]:
    """The states of which all blocks are among these pieces, the newest first, each with pieces side by side."""
    found: dict[State, dict[tuple[int, int], SnapshotRef]] = {}
    for ref in refs:
        found.setdefault(state_of(ref), {})[ref.part, ref.span] = ref
    whole = {}
    for state in sorted(found, reverse=True):
        pieces = sorted(found[state].values(), key=lambda ref: ref.part)
        bounds = [0, *(ref.part + ref.span for ref in pieces)]
        if bounds[-1] == num_blocks and [ref.part for ref in pieces] == bounds[:-1]:
            whole[state] = pieces
    return whole

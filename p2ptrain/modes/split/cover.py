"""Who trains and who keeps which blocks in split training, and who sends to whom.

Invariant: pure; a round counts as saved where all blocks of its state are, as only then can anybody go on from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from p2ptrain.config import Job
from p2ptrain.core.coverage import Cell, Coverage, Flow, blocks, copies_of, held_parts
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.plan import body_of, bounds_of, runs_of, workers
from p2ptrain.modes.split.rounds.pieces import whole_states
from p2ptrain.wire.messages import Record, SnapshotRef
from p2ptrain.words import clean

MAX_LINES = 16


def coverage(plan: Plan, job: Job, here: Sequence[Record]) -> Coverage:
    """Of each run of blocks between two cuts."""
    split, held = body_of(plan).split, held_parts(here)
    training = {record.peer for record in here if record.phase != "failed"}
    cells = []
    for first, stop in itertools.pairwise(bounds_of(split)):
        who = tuple(
            PeerId(peer)
            for peer in workers(split)
            if any(a <= first and stop <= b for _, (a, b) in runs_of(split, peer))
        )
        cells.append(Cell(blocks(first, stop), first, stop, who))
    done = _newest_whole(split.num_blocks, held)
    lost, working = {}, training.intersection(workers(split))
    for peer in held:
        left = _newest_whole(split.num_blocks, {other: refs for other, refs in held.items() if other != peer})
        again = f"round {done}" if done == left + 1 else f"rounds {left + 1}-{done}"
        if left < done:
            lost[peer] = f"{again} trained again"
        elif peer in working and done < job.training.rounds:
            lost[peer] = "the round under way is trained again"
        else:
            lost[peer] = ""
    return Coverage(
        counts="round",
        done=done,
        total=job.training.rounds,
        cells=tuple(cells),
        trainers=tuple(tuple(peer for peer in cell.trainers if peer in training) for cell in cells),
        copies=tuple(copies_of(cell, held, "round") for cell in cells),
        lost_without=lost,
    )


def lines(plan: Plan, job: Job, here: Sequence[Record]) -> list[str]:
    """For people: a line for each run of blocks, and what would be lost with each peer that trains or has copies."""
    found, names = coverage(plan, job, here), {record.peer: clean(record.name, 24) for record in here}
    said = [f"rounds of which all blocks are saved: {found.done} of {found.total}"]
    shown = list(zip(found.cells, found.trainers, found.copies, strict=True))
    for cell, trainers, copies in shown[:MAX_LINES]:
        who = ", ".join(names[peer] for peer in trainers) or "nobody"
        kept = ", ".join(f"{names[peer]} (round {at})" for peer, at in sorted(copies.items()))
        said.append(f"{cell.name}: {who}; copies: {kept or 'none yet'}")
    if len(shown) > MAX_LINES:
        said.append(f"and {len(shown) - MAX_LINES} more runs of blocks")
    without: dict[str, list[str]] = {}
    for peer, lost in sorted(found.lost_without.items()):
        without.setdefault(lost or "nothing lost", []).append(names[peer])
    return [*said, *(f"without {' or '.join(peers)}: {lost}" for lost, peers in without.items())]


def _newest_whole(num_blocks: int, held: Mapping[PeerId, Sequence[SnapshotRef]]) -> int:
    """The last round of which all blocks are saved; 0 = none."""
    pieces = [ref for refs in held.values() for ref in refs if ref.round > 0]
    found = whole_states(num_blocks, pieces)
    return max((ref.round for refs in found.values() for ref in refs), default=0)


def flows(plan: Plan) -> list[Flow]:
    """Owners send activations to their helpers; all send what they trained to who averages."""
    body = body_of(plan)
    helped = [
        Flow(PeerId(unit.owner), PeerId(unit.helper), "activations")
        for unit in body.split.units
        if unit.helper is not None
    ]
    pairs = {(flow.sender, flow.receiver) for flow in helped}
    to = PeerId(body.averager)
    others = [PeerId(peer) for peer in workers(body.split) if peer != to]
    return [*helped, *(Flow(peer, to, "copies") for peer in others if (peer, to) not in pairs)]

"""For every block who trains it, who has copies of it and how old they are, and what would be lost with each peer.

Invariant: pure; by what the records of those who are here say, and nothing of who is gone counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import no_words
from p2ptrain.core.coverage import Cell, Coverage, Flow, blocks, copies_of, held_parts
from p2ptrain.core.harvest import stopped_after
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.planning.pipeline.coverage import Run, models_at, newest_whole
from p2ptrain.wire.messages import Record
from p2ptrain.words import clean


@dataclass(frozen=True, slots=True)
class Safety:
    """``done``: batches that the group has done by its plan; ``saved``: of them, as many as are saved whole."""

    done: int
    saved: int
    trainers: Mapping[Run, tuple[PeerId, ...]]
    """Of each stage's blocks (first, stop), those who are here."""
    copies: Mapping[Run, Mapping[PeerId, int]]
    """Who else has all of a stage's blocks saved, and after how many batches."""
    every: int
    """Batches from one snapshot to the next; 0 = not all have said yet what they ask for."""
    saved_without: Mapping[PeerId, int]
    """As ``saved``, if that peer were gone."""

    def lost_with(self, peer: PeerId) -> tuple[int, int] | None:
        """The batches that would have to be done again, first and last, without a peer that trains; None = none."""
        trains = any(peer in peers for peers in self.trainers.values())
        saved = self.saved_without[peer]
        return (saved + 1, self.done) if trains and saved < self.done else None


def safety(plan: Plan, here: Sequence[Record]) -> Safety:
    """``here``: the records of those who are."""
    pipeline, name = body_of(plan).pipeline, plan.hash
    held = held_parts(here)
    trainers, copies = {}, {}
    for stage, cell in zip(pipeline.stages, _cells(plan), strict=True):
        run = stage.start, stage.stop
        trainers[run] = tuple(peer for peer in cell.trainers if peer in held)
        others = {peer: holdings for peer, holdings in held.items() if peer not in stage.peers}
        copies[run] = copies_of(cell, others, "batch")
    everything = [h for holdings in held.values() for h in holdings]
    without = {p: [h for peer, holdings in held.items() if peer != p for h in holdings] for p in held}
    steps = [record.step for record in here if record.plan == name and record.peer in plan.trainers()]
    return Safety(
        done=max([body_of(plan).from_step, *steps]),
        saved=newest_whole(pipeline.num_blocks, everything)[0],
        trainers=trainers,
        copies=copies,
        every=_every(plan, here),
        saved_without={peer: newest_whole(pipeline.num_blocks, left)[0] for peer, left in without.items()},
    )


def _cells(plan: Plan) -> tuple[Cell, ...]:
    """The blocks of each stage."""
    return tuple(
        Cell(blocks(stage.start, stage.stop), stage.start, stage.stop, tuple(map(PeerId, stage.peers)))
        for stage in body_of(plan).pipeline.stages
    )


def _every(plan: Plan, here: Sequence[Record]) -> int:
    """Where all have said what they ask for; there is a snapshot after every round, too."""
    asked = [record.saves_every for record in here if record.peer in plan.trainers()]
    return min(max(asked), body_of(plan).steps_per_round) if asked and all(asked) else 0


def lines(plan: Plan, job: Job, here: Sequence[Record]) -> list[str]:
    """For people: a line for each stage, with what would be lost with each of its peers."""
    found, names = safety(plan, here), {record.peer: clean(record.name, 24) for record in here}
    every = f", every {found.every} batches" if found.every > 1 else ", every batch" if found.every else ""
    said = [f"batches done: {found.done}; all blocks saved after {found.saved}{every}"]
    for (start, stop), trainers in found.trainers.items():
        who = ", ".join(names[peer] for peer in trainers) or "nobody"
        copies = ", ".join(f"{names[peer]} (batch {step})" for peer, step in sorted(found.copies[start, stop].items()))
        lost = [f"without {names[peer]}: {_lost(found.lost_with(peer))}" for peer in trainers]
        said.append("; ".join([f"blocks {start}-{stop - 1}: {who}", f"copies: {copies or 'none yet'}", *lost]))
    last = (stopped_after(here, job.id) or job.training.rounds) * body_of(plan).steps_per_round
    models = models_at(body_of(plan).pipeline.num_blocks, last, [h for held in held_parts(here).values() for h in held])
    ended = [", ".join(sorted(names.get(PeerId(peer), peer) for peer in trainers)) for trainers in models.values()]
    if len(ended) > 1:
        others = ", nor ".join(f"that of {who}" for who in ended[1:])
        said.append(f"models trained to the end apart: {len(ended)}; harvested is that of {ended[0]}, not {others}")
    return said


def _lost(batches: tuple[int, int] | None) -> str:
    if batches is None:
        return "nothing lost"
    first, last = batches
    return f"batch {first} done again" if first == last else f"batches {first}-{last} done again"


def plain(plan: Plan, here: Sequence[Record]) -> Mapping[str, Any]:
    """The same for programs."""
    found = safety(plan, here)
    return {
        "done": found.done,
        "saved": found.saved,
        "saves_every": found.every,
        "blocks": [
            {"first": start, "last": stop - 1, "trainers": list(trainers), "copies": dict(found.copies[start, stop])}
            for (start, stop), trainers in found.trainers.items()
        ],
        "lost_without": {peer: list(found.lost_with(peer) or ()) for peer in found.saved_without},
    }


def coverage(plan: Plan, job: Job, here: Sequence[Record]) -> Coverage:
    """The same for pictures."""
    found, body = safety(plan, here), body_of(plan)
    held = held_parts(here)
    cells = _cells(plan)
    return Coverage(
        counts="batch",
        done=found.done,
        total=job.training.rounds * body.steps_per_round,
        cells=cells,
        trainers=tuple(found.trainers[cell.first, cell.stop] for cell in cells),
        copies=tuple(copies_of(cell, held, "batch") for cell in cells),
        lost_without={p: _lost(lost) if (lost := found.lost_with(p)) else "" for p in found.saved_without},
    )


def flows(plan: Plan) -> list[Flow]:
    """Activations go from stage to stage, and their gradients back; peers of one stage average these."""
    stages = body_of(plan).pipeline.stages
    pairs = [
        Flow(PeerId(peer), PeerId(to), "activations")
        for stage, after in itertools.pairwise(stages)
        for peer in stage.peers
        for to in after.peers
    ]
    return [*pairs, *no_words.flows(plan)]

"""Which saved runs of blocks make up a stage, or a whole model, at one step.

A saved run is a ``SnapshotRef``: blocks [part, part + span) after ``step`` batches. Runs are (first, stop). A group
that goes back to a saved step trains the batches after it again, in a later epoch, and they may turn out otherwise: so
a state is named by its step and by the epoch in which it was reached.

Invariant: what ``cover`` returns is of one step and epoch, and covers every block asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.wire.messages import SnapshotRef

Run = tuple[int, int]
State = tuple[int, int]
"""A state that can be gone back to: step and epoch."""
NO_STATE: State = (0, 0)
"""The initial weights, which everyone has."""


def missing(need: Run, have: Run | None) -> list[Run]:
    """What of ``need`` is not in ``have``."""
    if have is None:
        return [need]
    before, after = (need[0], min(need[1], have[0])), (max(need[0], have[1]), need[1])
    return [run for run in dict.fromkeys((before, after)) if run[0] < run[1]]


def cover(
    runs: Iterable[Run], state: State, holdings: Sequence[SnapshotRef], preference: Callable[[SnapshotRef], object]
) -> list[SnapshotRef] | None:
    """The fewest saved runs of ``state`` that cover ``runs``; None where they don't. Larger preference wins a tie."""
    fitting = [holding for holding in holdings if (holding.step, holding.epoch) == state]
    chosen: dict[SnapshotRef, None] = {}
    for first, stop in runs:
        at = first
        while at < stop:
            reaching = [h for h in fitting if h.part <= at < h.part + h.span]
            if not reaching:
                return None
            best = max(reaching, key=lambda h: (min(stop, h.part + h.span), preference(h), h.blob))
            chosen[best] = None
            at = best.part + best.span
    return list(chosen)


def told_by(by_peer: Mapping[str, Sequence[SnapshotRef]]) -> list[SnapshotRef]:
    """All that anybody has, each once. Not each blob once: a liar may tell of an honest one as of something else."""
    return list(dict.fromkeys(holding for held in by_peer.values() for holding in held))


def lacking_of(state: State, by_peer: Mapping[str, Sequence[SnapshotRef]]) -> Callable[[str, Run], float]:
    """Bytes that a peer would have to fetch to begin a run of blocks with ``state``; infinite where nobody has it."""
    holdings = told_by(by_peer)
    own = {peer: {h.blob for h in held} for peer, held in by_peer.items()}

    def lacking(peer: str, run: Run) -> float:
        if state == NO_STATE:
            return 0.0
        here = own.get(peer, set())
        chosen = cover([run], state, holdings, lambda h: (h.blob in here, -h.span))
        return math.inf if chosen is None else float(sum(h.num_bytes for h in chosen if h.blob not in here))

    return lacking


def newest_whole(num_blocks: int, holdings: Sequence[SnapshotRef]) -> State:
    """The newest state of which all blocks are saved; the initial weights, if there is none."""
    return next(_whole(num_blocks, holdings), NO_STATE)


def models_at(num_blocks: int, step: int, holdings: Iterable[SnapshotRef]) -> dict[State, frozenset[str]]:
    """The states after ``step`` batches that are saved whole, and who trained each. Of several, as parts of a group
    were apart, the one that counts comes first: that of more devices, else of the later epoch."""
    there = [holding for holding in holdings if holding.step == step and holding.kind == "part"]
    found = {state: frozenset(h.trainer for h in there if h.epoch == state[1]) for state in _whole(num_blocks, there)}
    return dict(sorted(found.items(), key=lambda each: (len(each[1]), each[0]), reverse=True))


def states_to_keep(num_blocks: int, by_peer: Mapping[str, Sequence[SnapshotRef]]) -> list[State]:
    """What the group can go back to, by what each of its members has, the newest first: the newest state that is saved
    whole, and, for whichever one or two of them are lost next, the newest that is whole without those.
    """
    losses: set[frozenset[str]] = {frozenset(), *map(frozenset, combinations(by_peer, 1))}
    losses.update(map(frozenset, combinations(by_peer, 2)))
    kept = []
    for state in _whole(num_blocks, told_by(by_peer)):
        holders: list[set[str]] = [set() for _ in range(num_blocks)]
        for peer, held in by_peer.items():
            for holding in held:
                if (holding.step, holding.epoch) == state:
                    for block in range(holding.part, min(holding.part + holding.span, num_blocks)):
                        holders[block].add(peer)
        fatal = {frozenset(peers) for peers in holders if len(peers) <= 2}
        survived = {loss for loss in losses if not any(peers <= loss for peers in fatal)}
        if survived:
            kept.append(state)
            losses -= survived
        if not losses:
            break
    return kept


def _whole(num_blocks: int, holdings: Sequence[SnapshotRef]) -> Iterator[State]:
    """The newest first."""
    states = sorted({(holding.step, holding.epoch) for holding in holdings if holding.step > 0}, reverse=True)
    return (state for state in states if cover([(0, num_blocks)], state, holdings, lambda holding: 0) is not None)


def pieces_for_others(old: PipelinePlan, new: PipelinePlan, own: str) -> list[Run]:
    """The runs that ``own`` hands over when ``new`` follows ``old``: of its stage, what others lack.

    Of each old stage the first peer that the new plan knows does it. No run crosses a cut of the new plan, so that
    nobody fetches more than it lacks.
    """
    index = old.stage_of(own)
    if index is None:
        return []
    stage = old.stages[index]
    known = {*new.left_out, *(peer for each in new.stages for peer in each.peers)}
    if own != next((peer for peer in stage.peers if peer in known), ""):
        return []
    runs: set[Run] = set()
    for target in new.stages:
        for peer in target.peers:
            held = old.stage_of(peer)
            have = (old.stages[held].start, old.stages[held].stop) if held is not None else None
            for first, stop in missing((target.start, target.stop), have):
                first, stop = max(first, stage.start), min(stop, stage.stop)
                if first < stop:
                    runs.add((first, stop))
    return sorted(runs)

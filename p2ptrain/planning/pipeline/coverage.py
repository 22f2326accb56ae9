"""Which saved runs of blocks make up a stage, or a whole model, at one step.

A saved run is a ``SnapshotRef``: blocks [part, part + span) after ``step`` batches. Runs are (first, stop). A group
that goes back to a saved step trains the batches after it again, in a later epoch, and they may turn out otherwise: so
a state is named by its step and by the epoch in which it was reached.

Invariant: what ``cover`` returns is of one step and epoch, and covers every block asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
    runs: Iterable[Run], step: int, holdings: Sequence[SnapshotRef], preference: Callable[[SnapshotRef], object]
) -> list[SnapshotRef] | None:
    """The fewest saved runs of ``step`` that cover ``runs``, of the newest epoch that has them; None where none does.

    Larger preference wins a tie.
    """
    runs = list(runs)
    for epoch in sorted({holding.epoch for holding in holdings if holding.step == step}, reverse=True):
        of_epoch = [holding for holding in holdings if (holding.step, holding.epoch) == (step, epoch)]
        if (chosen := _cover(runs, of_epoch, preference)) is not None:
            return chosen
    return None if runs else []


def _cover(
    runs: Sequence[Run], fitting: Sequence[SnapshotRef], preference: Callable[[SnapshotRef], object]
) -> list[SnapshotRef] | None:
    chosen: dict[str, SnapshotRef] = {}
    for first, stop in runs:
        at = first
        while at < stop:
            reaching = [h for h in fitting if h.part <= at < h.part + h.span]
            if not reaching:
                return None
            best = max(reaching, key=lambda h: (min(stop, h.part + h.span), preference(h), h.blob))
            chosen[best.blob] = best
            at = best.part + best.span
    return list(chosen.values())


def newest_covered(num_blocks: int, holdings: Sequence[SnapshotRef]) -> int:
    """The newest step of which all blocks are saved; 0, the initial weights, if there is none."""
    return next(_covered(num_blocks, holdings), NO_STATE)[0]


def whole_epoch(num_blocks: int, step: int, holdings: Sequence[SnapshotRef]) -> int | None:
    """The newest epoch in which ``step`` was saved whole."""
    return next((epoch for at, epoch in _covered(num_blocks, holdings) if at == step), None)


def states_to_keep(num_blocks: int, by_peer: Mapping[str, Sequence[SnapshotRef]]) -> list[State]:
    """What the group can go back to, by what each of its members has, the newest first: the newest state that is saved
    whole, and, for whichever of them is lost next, the newest that is whole without it.
    """
    kept = set()
    for lost in (None, *by_peer):
        left = [holding for peer, holdings in by_peer.items() if peer != lost for holding in holdings]
        kept.add(next(_covered(num_blocks, left), NO_STATE))
    return sorted(kept - {NO_STATE}, reverse=True)


def _covered(num_blocks: int, holdings: Sequence[SnapshotRef]) -> Iterator[State]:
    """The newest first."""
    states = sorted({(holding.step, holding.epoch) for holding in holdings if holding.step > 0}, reverse=True)
    return (state for state in states if _is_whole(num_blocks, state, holdings))


def _is_whole(num_blocks: int, state: State, holdings: Sequence[SnapshotRef]) -> bool:
    fitting = [holding for holding in holdings if (holding.step, holding.epoch) == state]
    return _cover([(0, num_blocks)], fitting, lambda holding: 0) is not None


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

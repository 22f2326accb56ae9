"""Which saved runs of blocks make up a stage, or a whole model, at one step.

A saved run is a ``Holding``: blocks [part, part + span) after ``step`` batches. Runs are (first, stop).

Invariant: what ``cover`` returns is of one step and covers every block asked for; nothing here knows who is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2ptrain.planning.pipeline_plan import PipelinePlan
from p2ptrain.protocol.messages import Holding

Run = tuple[int, int]


def missing(need: Run, have: Run | None) -> list[Run]:
    """What of ``need`` is not in ``have``."""
    if have is None:
        return [need]
    before, after = (need[0], min(need[1], have[0])), (max(need[0], have[1]), need[1])
    return [run for run in dict.fromkeys((before, after)) if run[0] < run[1]]


def cover(
    runs: Iterable[Run], step: int, holdings: Sequence[Holding], preference: Callable[[Holding], object]
) -> list[Holding] | None:
    """The fewest saved runs of ``step`` that cover ``runs``; None where they don't. Larger preference wins a tie."""
    fitting = [holding for holding in holdings if holding.step == step]
    chosen: dict[str, Holding] = {}
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


def newest_covered(num_blocks: int, holdings: Sequence[Holding]) -> int:
    """The newest step of which all blocks are saved; 0, the initial weights, if there is none."""
    for step in sorted({holding.step for holding in holdings}, reverse=True):
        if step > 0 and cover([(0, num_blocks)], step, holdings, lambda holding: 0) is not None:
            return step
    return 0


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

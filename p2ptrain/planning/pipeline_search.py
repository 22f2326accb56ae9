"""Finds the pipeline plan with the shortest batch: stages, groups, order, warm-up, and whom to leave out.

Tails (``pipeline_tails``) are extended cut by cut from the last to the first: every group that is still to be had
takes every run of blocks that ends there. A tail is dropped when not even lossless sharing of what is left among the
peers that are left could beat the best plan played through so far. Complete plans are played through in the order of
their bounds, each with the warm-up depths that memory allows, until a bound exceeds the best time.

Small rooms are searched to the end: no plan with warm-ups of at most ``deepest_warm_up`` is then faster
(``Planned.is_proved``). Where more tails begin at a cut than are kept, it is only the best found. The work is limited
by counts, not by a clock, so that the same room gives the same plan on every machine.

Invariant: the plan fits into every peer's memory, and no peer that could train alone is faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2ptrain.errors import LocalError, UserError
from p2ptrain.planning.pipeline_cost import CostModel, PlanCost, cost_of, fits, steps_of
from p2ptrain.planning.pipeline_groups import Ground
from p2ptrain.planning.pipeline_plan import PipelinePlan, Stage
from p2ptrain.planning.pipeline_schedule import Steps, classic_warm_up, round_bound_s, round_s
from p2ptrain.planning.pipeline_tails import (
    BOUND_S,
    DEPTH,
    DONE_S,
    GROUP,
    NUM_STAGES,
    PARENT,
    ROUNDING,
    Extender,
    Tails,
    Waiting,
    no_stage,
    select,
)

MAX_STAGES = 10
ALL_TAILS = 3000
"""Kept at a cut where every group is tried."""
BEAM = 48
"""Kept at a cut where groups are a selection."""
NARROW_BEAM = 8
"""Of the first sweep, which only finds a good limit for the next."""
MAX_PLAYED = 4000
"""Plays of a schedule in one sweep; then complete plans are compared by their bounds alone."""
PLAYED_OF_MANY = 12
"""Of the complete plans that begin with the same cut, where groups are a selection."""
ALL_DEPTHS = 300
"""Choices of a plan's warm-up depths that are all played; where there are more, a few, and neighbours of the best."""

Depths = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """The best plan found, and how far one can trust that it is the best."""

    plan: PipelinePlan
    cost: PlanCost
    is_proved: bool
    """No plan of this task is faster, played through with warm-ups of at most ``deepest_warm_up``."""
    num_tails: int
    """Partial plans that were extended, and ..."""
    num_played: int
    """... schedules played through: the work done."""


def plan_pipeline(model: CostModel) -> Planned:
    """Raises ``UserError`` where no plan fits into memory."""
    search = _Search(model)
    search.sweep(NARROW_BEAM)
    search.widen()
    search.sweep(search.width, is_last=True)
    search.refine()
    return search.result()


class _Search:
    def __init__(self, model: CostModel) -> None:
        most_stages = min(len(model.task.peers), model.num_units)
        self._model = model
        self._max_stages = min(MAX_STAGES, most_stages)
        self._ground = Ground(model, self._max_stages)
        self._covers_all = self._ground.covers_all and self._max_stages == most_stages
        self.width = ALL_TAILS if self._covers_all else BEAM
        self._is_proved = self._is_thorough = False
        self._num_tails = self._num_played = 0
        self._best_s = np.inf
        self._best: PipelinePlan | None = None
        self._tried: set[PipelinePlan] = set()

    def sweep(self, width: int, is_last: bool = False) -> None:
        """From the last cut to the first, keeping at most ``width`` tails at each; only the last one can prove."""
        last = self._model.num_units
        waiting = Waiting(last, width)
        kept: list[Tails] = []
        numbers: list[int] = []
        budget = self._num_played + MAX_PLAYED
        self._is_proved = self._is_thorough = self._covers_all and is_last
        self._tried.clear()
        extender = Extender(self._ground, self._max_stages)
        number = 0
        for stop in range(last, 0, -1):
            tails = no_stage(self._ground) if stop == last else self._kept(waiting.take(stop), width)
            kept.append(tails)
            numbers.append(number)
            for start, more in extender.extensions(tails, stop, number, self._best_s, waiting.limits):
                if start:
                    waiting.add(start, more)
                else:
                    self._complete(more, kept, numbers, budget)
            number += len(tails)
        self._num_tails += number
        self._climb()

    def widen(self) -> None:
        """After a first plan: choose among all groups of the ground."""
        self._ground.use(self._ground.counts, self._best_s * ROUNDING)

    def refine(self) -> None:
        """Where groups are a selection: search once more among those near the best plan's."""
        if self._best is not None and not self._ground.covers_all:
            self._ground.use(self._ground.near(self._best), self._best_s * ROUNDING)
            self.sweep(BEAM)

    def result(self) -> Planned:
        if self._best is None:
            raise UserError(self._why_not())
        cost = cost_of(self._model, self._best)
        return Planned(self._best, cost, self._is_proved, self._num_tails, self._num_played)

    def _kept(self, tails: Tails | None, width: int) -> Tails:
        if tails is None:
            return no_stage(self._ground).pick(np.zeros(0, dtype=np.intp))
        tails = tails.pick(tails.floats[BOUND_S] < self._best_s * ROUNDING)
        if len(tails) <= width:
            return tails
        self._is_proved = False
        return select(self._ground, tails, width)

    def _complete(self, tails: Tails, kept: Sequence[Tails], numbers: Sequence[int], budget: int) -> None:
        """Play complete plans, most promising first."""
        order = np.lexsort((tails.ints[GROUP], tails.ints[NUM_STAGES], tails.floats[DONE_S]))
        for i in (order if self._is_thorough else order[:PLAYED_OF_MANY]).tolist():
            if tails.floats[DONE_S, i] >= self._best_s * ROUNDING:
                return
            if self._num_played >= budget:
                self._is_proved = False
                return
            self._try(self._plan(tails, i, kept, numbers))

    def _plan(self, tails: Tails, i: int, kept: Sequence[Tails], numbers: Sequence[int]) -> PipelinePlan:
        """Follow the parents from the first stage to the last, giving out the peers of each kind by name."""
        ground, model = self._ground, self._model
        given = [0] * len(ground.kinds)
        stages: list[Stage] = []
        start, at = 0, len(kept) - 1
        while True:
            parent = int(tails.ints[PARENT, i])
            while numbers[at] > parent:
                at -= 1
            stop = model.num_units - at
            peers: list[int] = []
            for kind, count in enumerate(ground.groups[int(tails.ints[GROUP, i])].counts):
                peers += ground.kinds[kind][given[kind] : given[kind] + count]
                given[kind] += count
            stages.append(stage_of(model, peers, start, stop, ground.depths[int(tails.ints[DEPTH, i])]))
            if at == 0:
                return plan_of(model, stages)
            tails, i, start = kept[at], parent - numbers[at], stop

    def _try(self, plan: PipelinePlan) -> None:
        """Play a plan with the warm-up depths that its memory allows; keep it if it is the best."""
        if plan in self._tried:
            return
        self._tried.add(plan)
        steps = steps_of(self._model, plan)
        caps = tuple(stage.warm_up for stage in plan.stages)
        for depths in likely_depths(caps):
            self._play(plan, steps, depths)
        if self._is_thorough and num_depths(caps) <= ALL_DEPTHS:
            for depths in all_depths(caps):
                self._play(plan, steps, depths)
        elif round_bound_s(steps, caps) * ROUNDING < self._best_s:  # other depths might yet be faster
            self._is_proved = False

    def _climb(self) -> None:
        """Change the best plan's depths, one stage's at a time, while it helps: slow links ask for deeper ones yet."""
        before = np.inf
        while self._best is not None and self._best_s < before:
            before, plan = self._best_s, self._best
            steps = steps_of(self._model, plan)
            for p, change in itertools.product(range(len(plan.stages)), (1, -1)):
                depths = tuple(stage.warm_up + change * (q == p) for q, stage in enumerate(plan.stages))
                stage = replace(plan.stages[p], warm_up=max(1, depths[p]))
                rises = any(a < b for a, b in itertools.pairwise((self._model.task.most_ahead, *depths)))
                if depths[p] >= 1 and not rises and fits(self._model, stage):
                    self._play(plan, steps, depths)

    def _play(self, plan: PipelinePlan, steps: Steps, depths: Depths) -> float:
        if round_bound_s(steps, depths) > self._best_s * ROUNDING:
            return np.inf
        self._num_played += 1
        took = round_s(steps, depths)
        if took * ROUNDING < self._best_s:
            stages = tuple(replace(stage, warm_up=k) for stage, k in zip(plan.stages, depths, strict=True))
            self._best_s, self._best = took, replace(plan, stages=stages)
        return took

    def _why_not(self) -> str:
        model, task = self._model, self._model.task
        needs = [
            (model.fixed_bytes(unit, unit + 1) + model.sample_bytes(unit, unit + 1, 1), unit)
            for unit in range(model.num_units)
        ]
        need, unit = max(needs)
        largest = max(task.peers, key=lambda peer: peer.memory_bytes)
        name = task.model.blocks[model.cuts[unit]].name
        return (
            f"model {task.model.name}: no plan fits into the memory of these {len(task.peers)} peers (block {name} "
            f"alone needs {need / 1e6:.0f} MB for one sample, {largest.name} has {largest.memory_bytes / 1e6:.0f} MB); "
            f"take smaller micro-batches (now {task.micro_batch} samples), a narrower model, or more peers"
        )


def likely_depths(caps: Depths) -> list[Depths]:
    """The deepest, and with each stage one or two less deep than the one before: different ones, deepest first."""
    found = []
    for less in (0, 1, 2):
        depths = [caps[0]]
        for cap in caps[1:]:
            depths.append(max(1, min(cap, depths[-1] - less)))
        found.append(tuple(depths))
    classic = classic_warm_up(len(caps), max(caps))
    found.append(tuple(itertools.accumulate(map(min, caps, classic), min)))
    return list(dict.fromkeys(found))


def num_depths(caps: Depths) -> int:
    """How many choices ``all_depths`` has."""
    counts = [1] * caps[-1]
    for cap in reversed(caps[:-1]):
        below = list(itertools.accumulate(counts))
        counts = [below[min(depth, len(below)) - 1] for depth in range(1, cap + 1)]
    return sum(counts)


def all_depths(caps: Depths) -> Iterator[Depths]:
    """Every choice within ``caps`` that does not rise from stage to stage."""

    def rest(p: int, most: int) -> Iterator[Depths]:
        if p == len(caps):
            yield ()
            return
        for depth in range(min(most, caps[p]), 0, -1):
            for tail in rest(p + 1, depth):
                yield (depth, *tail)

    return rest(0, max(caps))


def stage_of(model: CostModel, peers: Sequence[int], start: int, stop: int, warm_up: int) -> Stage:
    """A stage of units [start, stop) with the best split of samples for this warm-up. It must fit."""
    order = sorted(peers, key=lambda peer: model.task.peers[peer].name)
    shares = model.split(order, start, stop, warm_up)
    if shares is None:
        raise LocalError("a stage that does not fit came out of the search")
    names = tuple(model.task.peers[peer].name for peer in order)
    return Stage(model.cuts[start], model.cuts[stop], names, shares, warm_up)


def plan_of(model: CostModel, stages: Sequence[Stage]) -> PipelinePlan:
    task = model.task
    used = {name for stage in stages for name in stage.peers}
    left_out = tuple(sorted(peer.name for peer in task.peers if peer.name not in used))
    return PipelinePlan(
        task.model.name, len(task.model.blocks), task.micro_batch, task.num_micro_batches, tuple(stages), left_out
    )

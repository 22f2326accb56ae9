"""Finds the pipeline plan with the shortest batch: stages, groups, order, warm-up, and whom to leave out.

Tails (``partial_plans``) are extended cut by cut from the last to the first: every group that is still to be had
takes every run of blocks that ends there. A tail is dropped when not even lossless sharing of what is left among the
peers that are left could beat the best plan played through so far. Of the complete plans the most promising are played
through at once; in the end all others, in the order of their bounds, each with the warm-up depths that memory allows,
until a bound exceeds the best time.

Small rooms are searched to the end: no plan with warm-ups of at most ``deepest_warm_up`` is then faster
(``Planned.is_proved``). Where more tails begin at a cut than are kept, it is only the best found. The work is limited
by counts, not by a clock, so that the same room gives the same plan on every machine.

Invariant: the plan fits into every peer's memory, and no peer that could train alone is faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2ptrain.errors import LocalError, UserError
from p2ptrain.planning.pipeline.cost import CostModel, PlanCost, cost_of, fits, steps_of
from p2ptrain.planning.pipeline.schedule import Steps, round_bound_s, round_s
from p2ptrain.planning.pipeline.shares import Which
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.planning.pipeline.warm_ups import Depths, all_depths, likely_depths, num_depths
from p2ptrain.planning.search.groups import CandidateGroups
from p2ptrain.planning.search.partial_plans import (
    BOUND_S,
    DEPTH,
    DONE_S,
    GROUP,
    NUM_STAGES,
    PARENT,
    ROUNDING,
    Frontier,
    PartialPlans,
    PlanExtender,
    joined,
    no_stage,
    select,
)
from p2ptrain.words import scaled

MAX_STAGES = 10
ALL_TAILS = 3000
"""Kept at a cut where every group is tried."""
BEAM = 80
"""Kept at a cut where groups are a selection."""
NARROW_BEAM = 8
"""Of the first sweep, which only finds a good limit for the next."""
PLAYED_AT_ONCE = 12
"""Of the complete plans whose first stage ends at the same cut."""
MAX_PLAYED = 4000
"""Plays of a schedule to prove that a plan is the best."""
ALL_DEPTHS = 300
"""Choices of a plan's warm-up depths that are all played; where there are more, a few, and neighbours of the best."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The best plan found, and how far one can trust that it is the best."""

    plan: PipelinePlan
    cost: PlanCost
    is_proved: bool
    """No plan of the peers that were not left out is faster, played through with warm-ups of at most
    ``deepest_warm_up``."""


class Search:
    """Looks for the best plan of a task, and then for the best without one peer after the other."""

    def __init__(self, model: CostModel, limit_s: float = math.inf) -> None:
        """Of interest are batches that take less than ``limit_s``, before the best plan's warm-ups are made deeper."""
        most_stages = min(len(model.task.peers), model.num_units)
        self._model = model
        self._max_stages = min(MAX_STAGES, most_stages)
        self._ground = CandidateGroups(model, self._max_stages)
        self._covers_all = self._ground.covers_all and self._max_stages == most_stages
        self._width = ALL_TAILS if self._covers_all else BEAM
        self._is_proved = False
        self.num_tails = self.num_played = 0
        """Partial plans that were extended, and schedules that were played through: the work done so far."""
        self._start(limit_s)

    def best(self) -> Planned | None:
        """None where no plan is below the limit; without one raises ``UserError`` where none fits into memory."""
        has_limit = math.isfinite(self._best_s)
        self._sweep_all()
        self._sweep_near(self._best)
        if self._best is None and not has_limit:
            raise UserError(_why_not(self._model))
        return self._planned()

    def without(self, peer: str, limit_s: float) -> Planned | None:
        """The best without that peer and those left out before it; where groups are a selection, of those near the
        plan found last. None where none is below the limit."""
        before = self._best
        self._start(limit_s)
        self._ground.leave_out(peer)
        if not any(self._ground.kinds):
            return None
        if not self._ground.is_selection:
            self._sweep_all()
        self._sweep_near(self._best or before)
        return self._planned()

    def _start(self, limit_s: float) -> None:
        self._best_s: float = limit_s * self._model.task.batches
        self._best: PipelinePlan | None = None

    def _planned(self) -> Planned | None:
        if self._best is None:
            return None
        return Planned(self._best, cost_of(self._model, self._best), self._is_proved)

    def _sweep_all(self) -> None:
        """First with few groups and few tails, which sets a limit."""
        self._ground.use(self._ground.some_counts(), self._best_s * ROUNDING)
        self._sweep(NARROW_BEAM)
        self._ground.use(self._ground.counts, self._best_s * ROUNDING)
        self._sweep(self._width, proves=self._covers_all)

    def _sweep_near(self, plan: PipelinePlan | None) -> None:
        """Once more, where not all that is worth having was tried: among groups near a plan's."""
        if plan is not None and not self._ground.covers_all:
            self._ground.use(self._ground.near(plan), self._best_s * ROUNDING)
            self._sweep(BEAM)

    def _sweep(self, width: int, proves: bool = False) -> None:
        """From the last cut to the first, keeping at most ``width`` tails at each."""
        last = self._model.num_units
        frontier = Frontier(last, width)
        kept: list[PartialPlans] = []
        numbers: list[int] = []
        complete: list[tuple[PartialPlans, int]] = []
        self._is_proved = proves
        extender = PlanExtender(self._ground, self._max_stages)
        number = 0
        for stop in range(last, 0, -1):
            tails = no_stage(self._ground) if stop == last else self._kept(frontier.take(stop), width)
            kept.append(tails)
            numbers.append(number)
            for start, more in extender.extensions(tails, stop, number, self._best_s, frontier.limits):
                if start:
                    frontier.add(start, more)
                else:
                    promising = self._complete(more, kept, numbers)
                    complete += [(promising, len(kept))] if proves else []
            number += len(tails)
        self.num_tails += number
        self._climb()
        if complete:
            self._prove(complete, kept, numbers)
            self._climb()

    def _kept(self, tails: PartialPlans | None, width: int) -> PartialPlans:
        if tails is None:
            return no_stage(self._ground).pick(np.zeros(0, dtype=np.intp))
        tails = tails.pick(tails.floats[BOUND_S] < self._best_s * ROUNDING)
        if len(tails) <= width:
            return tails
        self._is_proved = False
        return select(self._ground, tails, width)

    def _complete(self, tails: PartialPlans, kept: Sequence[PartialPlans], numbers: Sequence[int]) -> PartialPlans:
        """Play the most promising complete plans; all that may be faster than the best, most promising first."""
        tails = tails.pick(tails.floats[DONE_S] < self._best_s * ROUNDING)
        tails = tails.pick(_by_promise(tails))
        for i in range(min(len(tails), PLAYED_AT_ONCE)):
            if tails.floats[DONE_S, i] >= self._best_s * ROUNDING:
                break
            plan = self._plan(tails, i, kept, numbers)
            steps = steps_of(self._model, plan)
            for depths in likely_depths(tuple(stage.warm_up for stage in plan.stages)):
                self._play(plan, steps, depths)
        in_time = int(np.searchsorted(tails.floats[DONE_S], self._best_s * ROUNDING))
        self._is_proved = self._is_proved and in_time <= MAX_PLAYED
        return tails.pick(slice(min(in_time, MAX_PLAYED)))

    def _prove(
        self, complete: Sequence[tuple[PartialPlans, int]], kept: Sequence[PartialPlans], numbers: Sequence[int]
    ) -> None:
        """Play all complete plans that may yet be the best, with all depths that memory allows.

        ``complete``: with how many are ``kept`` of those that they extend."""
        every = joined([tails for tails, _ in complete])
        nums_kept = np.concatenate([np.full(len(tails), num) for tails, num in complete])
        budget = self.num_played + MAX_PLAYED
        tried: set[PipelinePlan] = set()
        for i in _by_promise(every).tolist():
            if every.floats[DONE_S, i] >= self._best_s * ROUNDING:
                return
            if self.num_played >= budget:
                self._is_proved = False
                return
            plan = self._plan(every, i, kept[: nums_kept[i]], numbers)
            if plan not in tried:
                tried.add(plan)
                self._play_all_depths(plan)

    def _plan(self, tails: PartialPlans, i: int, kept: Sequence[PartialPlans], numbers: Sequence[int]) -> PipelinePlan:
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

    def _play_all_depths(self, plan: PipelinePlan) -> None:
        """As far as memory allows them, and they are not too many."""
        steps = steps_of(self._model, plan)
        caps = tuple(stage.warm_up for stage in plan.stages)
        if num_depths(caps) <= ALL_DEPTHS:
            for depths in all_depths(caps):
                self._play(plan, steps, depths)
        elif round_bound_s(steps, caps) * ROUNDING < self._best_s:  # others might yet be faster
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
        self.num_played += 1
        took = round_s(steps, depths)
        if took * ROUNDING < self._best_s:
            stages = tuple(replace(stage, warm_up=k) for stage, k in zip(plan.stages, depths, strict=True))
            self._best_s, self._best = took, replace(plan, stages=stages)
        return took


def _by_promise(tails: PartialPlans) -> Which:
    """The order by their bounds; of like ones those with fewer stages first."""
    return np.lexsort((tails.ints[GROUP], tails.ints[NUM_STAGES], tails.floats[DONE_S]))


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


def _why_not(model: CostModel) -> str:
    task = model.task
    needs = [
        (model.fixed_bytes(unit, unit + 1) + model.sample_bytes(unit, unit + 1, 1), unit)
        for unit in range(model.num_units)
    ]
    need, unit = max(needs)
    largest = max(task.peers, key=lambda peer: peer.memory_bytes)
    name = task.model.blocks[model.cuts[unit]].name
    return (
        f"model {task.model.name}: no plan fits into the memory of these {len(task.peers)} peers (block {name} "
        f"alone needs {scaled(need, 'B')} for one sample, {largest.name} has {scaled(largest.memory_bytes, 'B')}); "
        f"take smaller micro-batches (now {task.micro_batch} samples), a narrower model, or more peers"
    )

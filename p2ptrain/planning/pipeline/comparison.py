"""What a fleet's devices gain by a plan: the pipeline beside the best single peer, an equal split, and data parallel.

Each is of the number of micro-batches that is best for it, and priced as the plan is, so that the figures beside each
other mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2ptrain.planning.pipeline.baselines import best_single_peer, data_parallel, equal_split
from p2ptrain.planning.pipeline.choice import WORTH, pipelines_of
from p2ptrain.planning.pipeline.cost import CostModel, PlanCost
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.pipeline.task import PipelineTask

SINGLE = "best single peer"
BASELINES: dict[str, Callable[[CostModel], PipelinePlan | None]] = {
    SINGLE: best_single_peer,
    "equal split": equal_split,
    "data parallel": data_parallel,
}


@dataclass(frozen=True, slots=True)
class Priced:
    """A way to train, and what it costs."""

    plan: PipelinePlan
    cost: PlanCost


@dataclass(frozen=True, slots=True)
class Comparison:
    """The fastest way to train in a fleet, beside what else could be done."""

    task: PipelineTask
    """The task in the planned number of micro-batches."""
    planned: Priced
    baselines: dict[str, Priced | None]
    """By name; None where it can't be done at all."""

    @property
    def preferred_peer(self) -> str | None:
        """Whom a group of these would have train alone, as the plan promises too little; None: it takes the plan."""
        single = self.baselines[SINGLE]
        if single is None or self.planned.plan.is_alone:
            return None
        return None if single.cost.batch_s >= WORTH * self.planned.cost.batch_s else single.plan.stages[0].peers[0]


def compare(fleet: Fleet) -> Comparison:
    """Plan, and price the baselines. Raises ``UserError`` where there is no plan."""
    plan = min(pipelines_of(fleet, "planned"), key=fleet.batch_s)
    baselines = {name: _soonest(fleet, baseline) for name, baseline in BASELINES.items()}
    return Comparison(fleet.costs(plan.num_micro_batches).task, Priced(plan, fleet.cost(plan)), baselines)


def _soonest(fleet: Fleet, baseline: Callable[[CostModel], PipelinePlan | None]) -> Priced | None:
    """Of any number of micro-batches; of those that fit, if any does."""
    plans = [plan for plan in (baseline(fleet.costs(num)) for num in fleet.choices) if plan is not None]
    if not plans:
        return None
    plan = min(plans, key=lambda plan: (not fleet.fits(plan), fleet.batch_s(plan)))
    return Priced(plan, fleet.cost(plan))

"""What a room's devices gain by split training: the plan beside what else could be done, each played through.

Invariant: pure; every strategy is priced as the plan is, so that the figures beside each other mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2ptrain.planning.split.bound import lower_bound_s
from p2ptrain.planning.split.cost import PlanCost, cost_of
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.search import Counts, Search
from p2ptrain.planning.split.strategies import strategies
from p2ptrain.planning.split.task import SplitTask
from p2ptrain.planning.split.units import SplitPlan


@dataclass(frozen=True, slots=True)
class Priced:
    """A way to train, and what it costs."""

    plan: SplitPlan
    cost: PlanCost


@dataclass(frozen=True, slots=True)
class Comparison:
    """The fastest way to train in a room, beside what else could be done."""

    room: Room
    planned: Priced
    strategies: dict[str, Priced | None]
    """By name; None where it does not fit into memory."""
    bound_s: float
    """No plan's closed seconds of a round are fewer."""
    counts: Counts
    """Work of the search for the plan."""


def compare(task: SplitTask) -> Comparison:
    """Plan, and price the strategies. Raises ``UserError`` where there is no plan."""
    room = Room(task)
    search = Search(room)
    plan = planned(search)
    counts = Counts(search.counts.decisions, search.counts.nodes, search.counts.frontiers)
    others = {name: strategy(search, plan) for name, strategy in strategies().items()}
    priced = {name: None if each is None else Priced(each, cost_of(room, each)) for name, each in others.items()}
    return Comparison(room, Priced(plan, cost_of(room, plan)), priced, lower_bound_s(search), counts)

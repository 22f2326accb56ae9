"""What a room's devices gain by split training: the plan beside what else could be done, each played through. And what
no split plan can better, by the closed figures: how far from the best a plan is at most.

For a time of a round it is asked whether it can be enough if much is allowed that is not: every unit may be divided
among helpers and among options, and nobody's exchange waits for anybody. Each owner must end in it alone, or with the
whole link and all the free time of some helper. And whatever prices are put on helpers' time and links, all that there
is must be worth as much as what the units ask for at least (the dual of the linear program). Prices rise where more is
asked for than there is, by multiplicative weights, for ``PRICINGS`` times.

Invariant: pure; every strategy is priced as the plan is, so that the figures beside each other mean the same. The bound
never exceeds the best plan's closed seconds; in a large room, the best of the pairs that the search thought of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from p2ptrain.planning.pipeline.cost import Floats
from p2ptrain.planning.split.cost import PlanCost, cost_of
from p2ptrain.planning.split.frontier import Limits, frontier_of
from p2ptrain.planning.split.group import MAX_ROUND_S
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.search import Counts, Search
from p2ptrain.planning.split.steps import Ints
from p2ptrain.planning.split.strategies import strategies
from p2ptrain.planning.split.task import SplitTask
from p2ptrain.planning.split.units import SplitPlan

PRICINGS = 200
RISE = 0.3
PRECISION = 1e-3


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
    num_choices: int
    """Helpers that each owner was thought of with; 0 = all."""


def compare(task: SplitTask) -> Comparison:
    """Plan, and price the strategies. Raises ``UserError`` where there is no plan."""
    room = Room(task)
    search = Search(room)
    plan = planned(search)
    num = search.pairing.num_choices if search.pairing.is_sampled else 0
    counts = Counts(search.counts.decisions, search.counts.nodes, search.counts.frontiers)
    others = {name: strategy(search, plan) for name, strategy in strategies().items()}
    priced = {name: None if each is None else Priced(each, cost_of(room, each)) for name, each in others.items()}
    return Comparison(room, Priced(plan, cost_of(room, plan)), priced, lower_bound_s(search), counts, num)


def lower_bound_s(search: Search) -> float:
    """Seconds of a round; infinite where there is no plan."""
    low_s, high_s = 0.0, 1.0
    while not _may_end(search, high_s):
        low_s, high_s = high_s, 2 * high_s
        if high_s > MAX_ROUND_S:
            return math.inf
    while high_s - low_s > PRECISION * high_s:
        middle = (low_s + high_s) / 2
        low_s, high_s = (low_s, middle) if _may_end(search, middle) else (middle, high_s)
    return low_s


def _may_end(search: Search, round_s: float) -> bool:
    room = search.room
    names = [name for name, helper in search.helpers.items() if helper.own_s < round_s]
    asked: list[tuple[Floats, Floats, Ints]] = []
    """Of each owner that needs help, for each way: the part of a helper's time, of its link, and which helper's."""
    for owner in room.owners:
        alone = room.alone(owner)
        if alone is not None:
            exchange_s = 0.0 if owner in names else alone.exchange_s  # if it helps all others, only fronts travel
            if alone.round_s + exchange_s <= round_s:
                continue
        ways = [_ways(search, owner, name, at, round_s) for at, name in enumerate(names)]
        if not any(len(time) for time, _, _ in ways):
            return False
        time, link = (np.concatenate([way[i] for way in ways]) for i in (0, 1))
        asked.append((time, link, np.concatenate([which for _, _, which in ways])))
    return not asked or _is_worth(asked, len(names), is_shared=room.task.medium == "shared")


def _ways(search: Search, owner: str, name: str, at: int, round_s: float) -> tuple[Floats, Floats, Ints]:
    """Without those that ask for more of both than another."""
    if (owner, name) not in search.options:
        return np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
    options, free_s = search.options[owner, name], round_s - search.helpers[name].own_s
    rows = np.flatnonzero((options.owner_exchange_s < round_s) & (options.helper_s <= free_s))
    shares = options.shares(round_s - options.owner_exchange_s[rows], rows)
    best = frontier_of(options.helper_s[rows], shares, np.zeros(len(rows)), Limits(free_s, 0.0))
    return best.helper_s / free_s, best.share, np.full(len(best), at)


def _is_worth(asked: list[tuple[Floats, Floats, Ints]], num: int, *, is_shared: bool) -> bool:
    """Whether no prices were found at which the units ask for more than there is."""
    prices = np.ones(2 * num)
    for _ in range(PRICINGS):
        if is_shared:
            prices[num:] = prices[num:].mean()
        worth = prices[:num].sum() + (prices[num] if is_shared else prices[num:].sum())
        least, used = 0.0, np.zeros(2 * num)
        for time, link, which in asked:
            costs = prices[which] * time + prices[num + which] * link
            cheapest = int(costs.argmin())
            least += float(costs[cheapest])
            used[which[cheapest]] += time[cheapest]
            used[num + which[cheapest]] += link[cheapest]
        if least > worth * (1 + 1e-9):
            return False
        if is_shared:
            used[num:] = used[num:].sum()
        prices *= np.exp(RISE * (used - 1).clip(-1, 1))
        prices = np.maximum(prices / prices.max(), 1e-9)
    return True

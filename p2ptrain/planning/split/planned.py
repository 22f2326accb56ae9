"""The split plan that a group takes: the search's way, corrected by what playing it through shows.

The search knows nothing of what units wait for each other in a helper's queue. So the way that it found is played
through; by as much as a unit took longer than its own figures say, its rounds are taken to be longer, and
options and shares are chosen again, for the same helpers; a few times over, and also with finer micro-batches only, as
these keep others waiting for less. Of all that, and of what simpler methods come by (``strategies``), the one counts
that is played fastest.

Invariant: a pure function of the room. By its own figures the plan is never slower than if all train alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from p2ptrain.errors import UserError
from p2ptrain.planning.split.cost import plan_of, played_of, with_seconds
from p2ptrain.planning.split.group import Choice, soonest_of_all
from p2ptrain.planning.split.options import Options
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.search import Found, Search
from p2ptrain.planning.split.steps import batch_s
from p2ptrain.planning.split.strategies import all_alone, baselines
from p2ptrain.planning.split.units import SplitPlan

CORRECTIONS = 4
SMOOTHED = 0.5
"""Of a wait that was seen, so much counts the next time."""
ALIKE = 1.001
"""Micro-batches in flight are as few as make a unit's batch longer by no more than that, and one more, if that makes
no round longer."""


def planned(search: Search) -> SplitPlan:
    """Raises ``UserError`` where no plan fits into the memory of these peers."""
    room = search.room
    alone = all_alone(room)
    found = search.best()
    if found is None and alone is None:
        raise _no_plan(search)
    plans = [] if alone is None else [alone]
    if found is not None and any(found.assigned.values()):
        plans += _corrected(search, found)
        plans += baselines(search)
    best = min(plans, key=lambda plan: plan.round_s)  # the first of equals: alone
    return _trimmed(room, best)


def _corrected(search: Search, found: Found) -> list[SplitPlan]:
    room = search.room
    helpers = {owner: choice.options.helper for owner, choice in found.assigned.items() if choice is not None}
    limit_s = found.exchange_s * (1 + 1e-9)
    plans = [plan_of(room, found.assigned)]
    for grain in sorted({num for owner in helpers for num in _grains(search, owner)}):
        waits = dict.fromkeys(helpers, 0.0)
        for _ in range(CORRECTIONS):
            options = {}
            for owner, helper in helpers.items():
                each = search.options[owner, helper]
                finest = int(each.micro_batches.max())
                fits = (each.owner_exchange_s <= limit_s) & (each.micro_batches >= min(grain, finest))
                options[owner] = _later(each.only(fits), waits[owner])
            assigned = _chosen(search, options, found.train_s)
            if assigned is None:
                break
            plan = plan_of(room, assigned)
            if plan.to_json() == plans[-1].to_json():
                break
            plans.append(plan)
            seen = _waits_s(room, plan)
            waits = {owner: SMOOTHED * (wait + seen[owner]) for owner, wait in waits.items()}
    return plans


def _grains(search: Search, owner: str) -> tuple[int, ...]:
    """The least micro-batches that a batch is cut into: any, the most; in a small room half of the most, too."""
    most = search.room.micro_batch_choices(owner)[0]
    return (1, max(1, most // 2), most) if search.is_exact else (1, most)


def _later(options: Options, wait_s: float) -> Options:
    """With rounds that take so much longer."""
    return replace(options, fixed_s=options.fixed_s + wait_s)


def _waits_s(room: Room, plan: SplitPlan) -> dict[str, float]:
    """By how much each round was played longer than if the unit had its helper to itself."""
    return {
        unit.owner: max(
            0.0,
            unit.round_s - each.batches * room.steps_a_round * batch_s(each.steps, each.micro_batches, each.in_flight),
        )
        for unit, each in zip(plan.units, played_of(room, plan), strict=True)
    }


def _chosen(search: Search, options: Mapping[str, Options], high_s: float) -> dict[str, Choice | None] | None:
    groups = {
        search.helpers[name]: [options[owner] for owner in sorted(options) if options[owner].helper == name]
        for name in sorted({each.helper for each in options.values()})
    }
    took = soonest_of_all(groups, high_s, is_shared=search.room.task.medium == "shared")
    if took is None:
        return None
    chosen: dict[str, Choice | None] = dict.fromkeys(search.room.owners)
    chosen.update({choice.options.owner: choice for choice in took[1]})
    return chosen


def _trimmed(room: Room, plan: SplitPlan) -> SplitPlan:
    """With no more micro-batches in flight than help: each one takes memory on both sides."""
    units = []
    for unit, each in zip(plan.units, played_of(room, plan), strict=True):
        took = batch_s(each.steps, unit.micro_batches, unit.in_flight)
        enough = (
            num for num in range(1, unit.in_flight) if batch_s(each.steps, unit.micro_batches, num) <= ALIKE * took
        )
        units.append(replace(unit, in_flight=min(unit.in_flight, next(enough, unit.in_flight) + 1)))
    trimmed = with_seconds(room, replace(plan, units=tuple(units)))
    return trimmed if trimmed.round_s <= plan.round_s and trimmed.units != plan.units else plan


def _no_plan(search: Search) -> UserError:
    room = search.room
    for owner in room.owners:
        if room.alone(owner) is None and not any(key[0] == owner for key in search.options):
            helpers = [name for name in room.helpers if name != owner]
            others = f"none of {len(helpers)} other peers can" if helpers else "there is nobody to help it"
            return UserError(
                f"model {room.task.model.name}: {owner} has not the memory to train it alone, and {others} train the "
                "rest for any legal cut; take a smaller batch_size, a narrower model, or a helper with more memory"
            )
    return UserError(
        f"model {room.task.model.name}: those who can't train it alone do not fit into the memory of the "
        f"{len(search.helpers)} helpers together; take a smaller batch_size, a narrower model, or another helper"
    )

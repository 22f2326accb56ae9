"""What a split plan costs: seconds of a batch and of a round, each helper's load, memory of both sides, the exchange.

A round lasts until its last unit has trained, and then until the copies of each block are averaged. Training has two
figures. The *closed* one is what the search minimises: the longest of all units as if each had its helper to itself,
and of all helpers' loads, their own units and all the tails. It never exceeds the *played* one
(``rounds.simulation``), where units also wait for each other in the helpers' queues. What people are shown, and what
plans are compared by in the end, is the played one.

What the end of a round takes, ``rounds.end`` says. It has two figures likewise.

Invariant: pure; two peers with the same plan and the same figures compute the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from p2ptrain.errors import LocalError
from p2ptrain.planning.split.group import Choice
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.end import Placed, end_s
from p2ptrain.planning.split.rounds.simulation import Played, Round, play
from p2ptrain.planning.split.steps import batch_s, steps_alone, steps_of
from p2ptrain.planning.split.units import SplitPlan, Unit

DIGITS = 6
Assigned = Mapping[str, Choice | None]
"""By owner: what it and its helper do; None = alone."""


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan costs."""

    train_s: float
    """Of the round, played through."""
    closed_s: float
    """The same by the closed figures; never more."""
    exchange_s: float
    load_s: dict[str, float]
    """By helper: its own unit and all tails that it trains."""
    memory_bytes: dict[str, float]
    """By peer that works."""
    fits: bool

    @property
    def round_s(self) -> float:
        return self.train_s + self.exchange_s


def played_of(room: Room, plan: SplitPlan) -> list[Played]:
    """Its units as they are played through: a round, with shared tails one step of it (``Room.steps_a_round``), as all
    units wait for each other after every step. Raises ``LocalError`` for a plan of another room."""
    return [_played(room, plan, unit) for unit in plan.units]


def _played(room: Room, plan: SplitPlan, unit: Unit) -> Played:
    if unit.owner not in room.owners or plan.num_blocks != room.cuts[-1] or unit.cut not in room.cuts:
        raise LocalError("a split plan that is not of this model and these peers")
    owner = room.peers[unit.owner]
    samples = room.task.micro_batch_of(owner, unit.micro_batches)
    if not samples:
        raise LocalError(f"{unit.owner} has fewer samples than micro-batches")
    if unit.helper is None:
        steps = steps_alone(room, unit.owner, samples)
    elif unit.helper in room.peers:
        cut, codings = room.cuts.index(unit.cut), (unit.activations, unit.gradients)
        rates = (unit.up_bytes_per_s, unit.down_bytes_per_s)
        steps = steps_of(room, unit.owner, unit.helper, cut, samples, codings, rates)
    else:
        raise LocalError("a split plan that is not of this model and these peers")
    batches = 1 if plan.tails == "shared" else room.task.batches_of(owner, unit.micro_batches)
    return Played(unit.owner, unit.helper, steps, batches, unit.micro_batches, unit.in_flight)


def cost_of(room: Room, plan: SplitPlan, played: Round | None = None) -> PlanCost:
    """Time and memory of a plan, whether or not it fits."""
    units, many = played_of(room, plan), room.steps_a_round
    played = played or play(units)
    loads = dict.fromkeys(plan.helpers, 0.0)
    for unit, each in zip(plan.units, units, strict=True):
        at = unit.helper or unit.owner
        if at in loads:
            steps = each.steps
            one = steps.tail_s if unit.helper else steps.forward_s + steps.backward_s
            update_s = steps.tail_update_s if unit.helper else steps.update_s
            loads[at] += many * each.batches * (each.micro_batches * one + update_s)
    own = [many * each.batches * batch_s(each.steps, each.micro_batches, each.in_flight) for each in units]
    closed = max([*loads.values(), *own])
    memory = memory_of(room, plan)
    fits = all(num <= room.peers[name].device.memory_bytes for name, num in memory.items())
    ends = {owner: many * seconds for owner, seconds in played.ends_s.items()}
    ending_s = end_s(room, placed_by(room, plan), ends)
    return PlanCost(max(many * played.round_s, closed), closed, ending_s, loads, memory, fits)


def memory_of(room: Room, plan: SplitPlan) -> dict[str, float]:
    """Bytes that each peer with work needs, beside its processes."""
    tables, last = room.tables, room.tail_stop
    needs: dict[str, float] = {}
    first_cut: dict[str, int] = {}
    for unit in plan.units:
        rows = math.ceil(room.task.micro_batch_of(room.peers[unit.owner], unit.micro_batches))
        cut = room.cuts.index(unit.cut)
        own = tables.fixed_bytes(0, cut) + rows * tables.sample_bytes(0, cut, 1)
        if unit.helper is not None:
            stored = 1
            if plan.kept_from:
                own += tables.fixed_bytes(last, tables.num_units) + rows * tables.sample_bytes(
                    last, tables.num_units, 1
                )
                stored = unit.in_flight
            kept = float(tables.cut_bytes[0] + tables.stored_bytes[cut])
            own += rows * kept * (unit.in_flight - 1)
            work = rows * float(stored * (tables.stored_bytes[last] - tables.stored_bytes[cut]))
            work += rows * float(tables.flow_bytes[cut, last])
            queue = unit.in_flight * rows * float(tables.cut_bytes[cut])
            tail = 0.0 if plan.tails == "shared" else tables.fixed_bytes(cut, last)
            needs[unit.helper] = needs.get(unit.helper, 0.0) + work + queue + tail
            first_cut[unit.helper] = min(cut, first_cut.get(unit.helper, last))
        needs[unit.owner] = needs.get(unit.owner, 0.0) + own
    if plan.tails == "shared":
        for helper, cut in first_cut.items():
            needs[helper] += tables.fixed_bytes(cut, last)
    return needs


def placed_by(room: Room, plan: SplitPlan) -> list[Placed]:
    """For ``rounds.end``."""
    return [(unit.owner, unit.helper, room.cuts.index(unit.cut)) for unit in plan.units]


def plan_of(room: Room, assigned: Assigned) -> SplitPlan:
    """The plan in which every owner does that, with its seconds played through. Raises ``LocalError`` where somebody
    is to train alone that can't."""
    task = room.task
    helping = {choice.options.helper for choice in assigned.values() if choice is not None}
    units = [_unit(room, owner, choice, owner in helping) for owner, choice in sorted(assigned.items())]
    idle = set(room.peers) - helping - set(assigned)
    plan = SplitPlan(
        task.model.name,
        room.cuts[-1],
        task.batch_size,
        task.tails,
        task.medium,
        tuple(units),
        tuple(sorted(idle)),
        0.0,
        0.0,
        room.cuts[room.tail_stop] if task.labels == "stay" else 0,
    )
    return with_seconds(room, plan)


def with_seconds(room: Room, plan: SplitPlan) -> SplitPlan:
    """The same plan with what it takes."""
    played, many = played_of(room, plan), room.steps_a_round
    lasted = play(played)
    cost = cost_of(room, plan, lasted)
    units = []
    for unit, each in zip(plan.units, played, strict=True):
        end_s = many * lasted.ends_s[unit.owner]
        helper_s = many * each.batches * (each.micro_batches * each.steps.tail_s + each.steps.tail_update_s)
        seconds = [rounded(value) for value in (end_s / each.batches / many, end_s, helper_s)]
        units.append(replace(unit, batch_s=seconds[0], round_s=seconds[1], helper_s=seconds[2]))
    exchange_s = rounded(cost.exchange_s)
    return replace(plan, units=tuple(units), round_s=rounded(cost.train_s + exchange_s), exchange_s=exchange_s)


def rounded(value: float) -> float:
    """To ``DIGITS`` digits: a plan's text does not depend on how a machine adds up."""
    return float(f"{value:.{DIGITS}g}")


def _unit(room: Room, owner: str, choice: Choice | None, helps: bool) -> Unit:
    if choice is None:
        alone = room.alone_as_helper(owner) if helps else room.alone(owner)
        if alone is None:
            raise LocalError(f"{owner} is to train alone, but has not the memory")
        num = alone.micro_batches
        return Unit(owner, None, room.cuts[-1], 0.0, 0.0, num, 1, "none", "none", 0.0, 0.0, 0.0)
    options, i = choice.options, choice.index
    up, down = map(rounded, room.granted(owner, options.helper, choice.share))
    coding = options.codings[int(options.coding[i])]
    cut, num, ahead = room.cuts[int(options.cuts[i])], int(options.micro_batches[i]), int(options.in_flight[i])
    return Unit(owner, options.helper, cut, up, down, num, ahead, coding, coding, 0.0, 0.0, 0.0)

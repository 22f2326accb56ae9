"""A split plan for people and programs: who trains what for whom, what it gains, and its timeline in characters.

Invariant: reads a ``Comparison`` and nothing else; every number in the text is in the JSON too.
"""

from __future__ import annotations

import json
from typing import Any

from p2ptrain.planning.split.comparison import Comparison, Priced
from p2ptrain.planning.split.cost import played_of
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.simulation import Span, play
from p2ptrain.planning.split.units import SplitPlan, Unit
from p2ptrain.ui.timeline_text import TIMELINE_WIDTH, UPDATE, Stretch, pass_sign, seconds, timeline_text
from p2ptrain.words import clean, listed, scaled, table

TITLES = ("unit", "owner", "front", "helper", "share up", "down", "parts", "in flight", "sent as", "a batch", "a round")
RIGHT = (4, 5, 6, 7, 9, 10)
LEGEND = "digits: forward, by micro-batch; letters: backward (a = 0); = updates; a helper's: the unit's number; · waits"
_LEAVES = "labels and activations of the samples go to the helpers"
SHOWN_BATCHES = 2
"""Of the slowest unit, in the timeline."""
MANY = "#"
"""A unit's number beyond 9 and then Z."""


def render(comparison: Comparison, width: int = TIMELINE_WIDTH) -> str:
    """Text for a terminal of at least ``width`` columns."""
    room, plan, cost = comparison.room, comparison.planned.plan, comparison.planned.cost
    task = room.task
    whose = "of each unit" if plan.tails == "replica" else "of all units together"
    lines = [
        f"{clean(plan.model, 60)}: {plan.num_blocks} blocks, {scaled(task.model.training_flops, 'FLOP')} a sample, "
        f"{scaled(task.model.parameter_bytes, 'B')} of parameters; a batch {whose} is {plan.batch_size} samples",
        "",
        *_unit_lines(room, plan),
        "",
    ]
    if plan.helpers:
        lines += [*_helper_lines(comparison), ""]
    else:
        lines += ["nobody is strong enough, or near enough, to help: all train alone", ""]
    if plan.standby:
        lines += [f"stand by: {listed(plan.standby, 20)}", ""]
    rows = [("predicted", "a round", "training", "exchange", ""), ("this plan", *_seconds(comparison.planned), "")]
    rows += [(name, *_strategy_cells(each, plan.round_s)) for name, each in comparison.strategies.items()]
    lines += [*table(rows, right=(1, 2, 3)), ""]
    lines += [_bound_line(comparison), ""]
    if plan.helpers:
        what = "activations and gradients go to the helpers, labels stay" if plan.kept_from else _LEAVES
        lines += [what, ""]
    lines += timeline_lines(room, plan, width)
    if not cost.fits:
        lines += ["", "this does not fit into the memory of these peers"]
    return "\n".join(lines)


def _unit_lines(room: Room, plan: SplitPlan) -> list[str]:
    rows = [TITLES]
    for number, unit in enumerate(plan.units):
        kept = f" {plan.kept_from}-{plan.num_blocks - 1}" if plan.kept_from else ""
        front = f"0-{unit.cut - 1}{kept}" if unit.helper else "all blocks, alone"
        coding = unit.activations if unit.activations == unit.gradients else f"{unit.activations}/{unit.gradients}"
        up, down = link_shares(room, unit)
        rows.append(
            (
                _number(number),
                clean(unit.owner, 24),
                front,
                clean(unit.helper or "-", 24),
                f"{100 * up:.0f} %" if unit.helper else "-",
                f"{100 * down:.0f} %" if unit.helper else "-",
                str(unit.micro_batches),
                str(unit.in_flight),
                coding if unit.helper else "-",
                seconds(unit.batch_s),
                seconds(unit.round_s),
            )
        )
    return table(rows, right=RIGHT)


def _helper_lines(comparison: Comparison) -> list[str]:
    room, plan, cost = comparison.room, comparison.planned.plan, comparison.planned.cost
    rows = [("helper", "tails", "own samples", "load", "busy", "memory", "of")]
    for name in plan.helpers:
        load, peer = cost.load_s[name], room.peers[name]
        rows.append(
            (
                clean(name, 24),
                str(len(plan.units_of(name))),
                "yes" if peer.samples else "-",
                seconds(load),
                f"{100 * load / cost.train_s:.0f} %",
                scaled(cost.memory_bytes[name], "B"),
                scaled(peer.device.memory_bytes, "B"),
            )
        )
    return table(rows, right=(1, 3, 4, 5, 6))


def link_shares(room: Room, unit: Unit) -> tuple[float, float]:
    """Of its helper's link, or of the medium, up and down."""
    if unit.helper is None:
        return 0.0, 0.0
    if room.task.medium == "shared":
        whole = room.task.medium_bytes_per_s
        return unit.up_bytes_per_s / whole, unit.down_bytes_per_s / whole
    helper = room.peers[unit.helper]
    return unit.up_bytes_per_s / helper.down, unit.down_bytes_per_s / helper.up


def _seconds(priced: Priced) -> tuple[str, str, str]:
    return seconds(priced.plan.round_s), seconds(priced.cost.train_s), seconds(priced.cost.exchange_s)


def _strategy_cells(priced: Priced | None, planned_s: float) -> tuple[str, str, str, str]:
    if priced is None:
        return "-", "-", "-", "can't be done with these peers and their memory"
    note = f"{priced.plan.round_s / planned_s:.2f} x as long"
    return (*_seconds(priced), note if priced.cost.fits else f"{note}, and does not fit into memory")


def _bound_line(comparison: Comparison) -> str:
    over = comparison.planned.plan.round_s / comparison.bound_s if comparison.bound_s > 0 else 1.0
    those = f" in which each owner has one of {num} helpers drawn for it" if (num := comparison.num_choices) else ""
    return (
        f"no plan's round{those} takes less than {seconds(comparison.bound_s)} by these figures; this one's "
        f"{over:.2f} x that"
    )


def spans_of(room: Room, plan: SplitPlan) -> tuple[float, list[Span]]:
    """The first ``SHOWN_BATCHES`` batches of the slowest unit: how long they take, and what is done meanwhile."""
    played = play(played_of(room, plan), with_spans=True)
    until_s = min(played.round_s, SHOWN_BATCHES * max(unit.batch_s for unit in plan.units))
    return until_s, [span for span in played.spans if span.start_s < until_s]


def timeline_lines(room: Room, plan: SplitPlan, width: int = TIMELINE_WIDTH) -> list[str]:
    """A line a peer. A character is what it does most in its stretch of time."""
    until_s, spans = spans_of(room, plan)
    numbers = {unit.owner: _number(index) for index, unit in enumerate(plan.units)}
    rows: list[tuple[str, list[Stretch]]] = []
    for peer in [*numbers, *(name for name in plan.helpers if name not in numbers)]:
        own = (span for span in spans if span.peer == peer)
        rows.append((clean(peer, 20), [(s.start_s, s.end_s, _sign(s, numbers)) for s in own]))
    return [*timeline_text(rows, until_s, width), LEGEND]


def _number(index: int) -> str:
    """1 to 9, then letters."""
    if index < 9:
        return str(index + 1)
    return chr(ord("A") + index - 9) if index < 35 else MANY


def _sign(span: Span, numbers: dict[str, str]) -> str:
    if span.work == "tail":
        return numbers[span.owner]
    if span.work == "update":
        return UPDATE
    return pass_sign(span.work, span.micro_batch)


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """What ``plan --json`` prints."""
    room, plan = comparison.room, comparison.planned.plan
    task = room.task
    until_s, spans = spans_of(room, plan)
    return {
        "model": {
            "name": task.model.name,
            "blocks": [block.name for block in task.model.blocks],
            "training_flops": task.model.training_flops,
            "parameter_bytes": task.model.parameter_bytes,
        },
        "hash": plan.hash,
        "latency_s": task.latency_s,
        "peers": [
            {
                "name": name,
                "samples": peer.samples,
                "may_help": peer.may_help,
                "flops_per_s": peer.device.flops_per_s,
                "memory_bytes": peer.device.memory_bytes,
                "up_bytes_per_s": peer.up,
                "down_bytes_per_s": peer.down,
                "times": "measured" if peer.device.times else "profile",
            }
            for name, peer in room.peers.items()
        ],
        **_priced(room, comparison.planned),
        "bound_s": comparison.bound_s,
        "helpers_drawn": comparison.num_choices,
        "strategies": {
            name: None if each is None else _priced(room, each) for name, each in comparison.strategies.items()
        },
        "work": {"decisions": comparison.counts.decisions, "frontiers": comparison.counts.frontiers},
        "shown_s": until_s,
        "spans": [[span.peer, span.owner, span.work, span.micro_batch, span.start_s, span.end_s] for span in spans],
    }


def _priced(room: Room, priced: Priced) -> dict[str, Any]:
    plan, cost = priced.plan, priced.cost
    return {
        "plan": json.loads(plan.to_json()),
        "link_shares": {unit.owner: list(link_shares(room, unit)) for unit in plan.units},
        "round_s": plan.round_s,
        "train_s": cost.train_s,
        "closed_s": cost.closed_s,
        "exchange_s": cost.exchange_s,
        "load_s": cost.load_s,
        "memory_bytes": cost.memory_bytes,
        "fits": cost.fits,
    }

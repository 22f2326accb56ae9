"""Of a large group: which devices a plan is looked for among, and how much of their figures it carries.

A pipeline has a handful of stages, so of hundreds of devices most stand by whatever is planned. It is looked for among
``MOST_DEVICES``: first those that it is to keep, then some of the fastest with samples (one has to be the first stage),
some of those with most memory (the model has to fit), and else the fastest. What a plan carries of a device's times is
cut where the figures of all would be more than a plan may hold: links but the slowest first, then batch sizes between
the smallest and the largest, then all but the largest.

Invariant: pure; the figures in any order give the same devices and the same figures. What was cut once is not cut more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from p2ptrain.core.plan import MAX_PLAN_BYTES, PeerSnapshot, Plan
from p2ptrain.core.stages.figures import UNKNOWN_MEMORY_BYTES, DeviceFigures
from p2ptrain.planning.devices.blocks import ModelProfile

MOST_DEVICES = 64
WITH_SAMPLES, WITH_MEMORY = 16, 16
"""Of these at least."""
MOST_BYTES = MAX_PLAN_BYTES * 3 // 4
"""Of all figures in a plan; the rest is for samples, parts and names."""
NUMBER_BYTES, LINK_BYTES, DEVICE_BYTES = 10, 72, 240
"""Of a plan's text: a time, a link, and what else is said of a device, about."""
SLOWEST_LINKS = 8


def considered(
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    figures: Sequence[DeviceFigures],
    kept: Collection[str] = (),
) -> tuple[DeviceFigures, ...]:
    """Those to look for a plan among, by peer. ``kept``: in any case, as far as they are that many."""
    if len(figures) <= MOST_DEVICES:
        return tuple(figures)
    known = {snapshot.peer: snapshot for snapshot in snapshots}
    by_pace = sorted(figures, key=lambda each: (pace_s(model, known[each.peer], each), each.peer))
    largest = sorted(by_pace, key=lambda each: -(known[each.peer].memory_bytes or UNKNOWN_MEMORY_BYTES))
    wanted = [
        *(each for each in by_pace if each.peer in kept),
        *[each for each in by_pace if known[each.peer].counts][:WITH_SAMPLES],
        *largest[:WITH_MEMORY],
        *by_pace,
    ]
    chosen = list(dict.fromkeys(each.peer for each in wanted))[:MOST_DEVICES]
    return tuple(each for each in figures if each.peer in set(chosen))


def words_of_considered(plan: Plan, figures: Sequence[DeviceFigures]) -> list[str]:
    """For people, where a plan was looked for among some of its devices only."""
    if not is_among_some(plan, figures):
        return []
    return [
        f"of {len(plan.peers)} devices the plan was looked for among {len(figures)}: the fastest, and those with most "
        "memory; the others stand by"
    ]


def is_among_some(plan: Plan, figures: Sequence[DeviceFigures]) -> bool:
    return len(plan.peers) > len(figures) >= MOST_DEVICES


def pace_s(model: ModelProfile, snapshot: PeerSnapshot, figures: DeviceFigures) -> float:
    """What a sample of the whole model takes, at the most at once that was measured."""
    if not figures.batch_sizes:
        return figures.slowdown * model.training_flops / max(snapshot.flops_per_s, 1.0)
    both = sum(figures.forward_s[-1]) + sum(figures.backward_s[-1])
    return figures.slowdown * both / figures.batch_sizes[-1]


def fitting(figures: Sequence[DeviceFigures]) -> tuple[DeviceFigures, ...]:
    """With less of each where all would not fit into a plan."""
    found = tuple(figures)
    steps: tuple[Callable[[DeviceFigures], DeviceFigures], ...] = (_few_links, _two_sizes, _one_size)
    for step in steps:
        if sum(map(_num_bytes, found)) <= MOST_BYTES:
            break
        found = tuple(map(step, found))
    return found


def _num_bytes(each: DeviceFigures) -> int:
    numbers = sum(len(row) for rows in (each.forward_s, each.backward_s) for row in rows)
    return DEVICE_BYTES + NUMBER_BYTES * numbers + LINK_BYTES * len(each.links)


def _few_links(each: DeviceFigures) -> DeviceFigures:
    slowest = sorted(each.links, key=lambda link: (link.bytes_per_s, link.peer))[:SLOWEST_LINKS]
    return replace(each, links=tuple(sorted(slowest, key=lambda link: link.peer)))


def _two_sizes(each: DeviceFigures) -> DeviceFigures:
    return _sizes(each, sorted({0, len(each.batch_sizes) - 1})) if each.batch_sizes else each


def _one_size(each: DeviceFigures) -> DeviceFigures:
    return _sizes(each, [len(each.batch_sizes) - 1]) if each.batch_sizes else each


def _sizes(each: DeviceFigures, kept: Sequence[int]) -> DeviceFigures:
    return replace(
        each,
        batch_sizes=tuple(each.batch_sizes[i] for i in kept),
        forward_s=tuple(each.forward_s[i] for i in kept),
        backward_s=tuple(each.backward_s[i] for i in kept),
    )

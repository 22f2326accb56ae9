"""The pipeline that a group goes on with soonest when it has lost peers: what stays stays where it is.

A stage that has peers left keeps its blocks. One that has none goes to a neighbour, or its blocks are divided between
the two, or it goes to a peer that stood by. From there cuts shift by single pieces of the model. Of all that is looked
at, the one counts as best with which the next ``HORIZON`` batches are done soonest, fetching what its peers lack
included: by then a plan that is searched for as usual takes over, without going back, if it is worth it. (Asteroid, Ye,
Zeng, Sun, et al., MobiCom 2024, "lightweight" recovery; here bytes count, too, and replicas may lie with anybody.)

Invariant: pure. It looks at so few pipelines that it takes milliseconds where a search takes a tenth of a second and
more; each fits into its peers' memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from p2ptrain.planning.pipeline.coverage import Run
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.schedule import deepest_warm_up
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.search.search import plan_of, stage_of

HORIZON = 4
"""Batches. Few, as a group goes on within a second or two: what then gains more is moved by the next plan, for which
nothing is gone back to."""
MOST_TRIED, MOST_SHIFTS = 200, 16
MOST_SPARES = 4
"""So many peers that stand by are tried in the place of a lost stage."""

Lacking = Callable[[str, Run], float]
"""Bytes that a peer has to fetch for a run of blocks."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A stage to be: units [start, stop), and its peers by their place in the task; none: they are lost."""

    start: int
    stop: int
    peers: tuple[int, ...]


def light(fleet: Fleet, before: PipelinePlan, lacking: Lacking) -> PipelinePlan | None:
    """The one to go on with, of those peers of the fleet; None where there is none like ``before`` that fits."""
    costs = fleet.costs(before.num_micro_batches)
    at = {peer.name: index for index, peer in enumerate(costs.task.peers)}
    places = [
        _Place(
            costs.cuts.index(stage.start),
            costs.cuts.index(stage.stop),
            tuple(at[peer] for peer in stage.peers if peer in at),
        )
        for stage in before.stages
    ]
    busy = {index for place in places for index in place.peers}
    spares = [index for index in range(len(costs.task.peers)) if index not in busy]

    def judged(candidate: Sequence[_Place]) -> tuple[float, PipelinePlan] | None:
        found = _pipeline(fleet, before.num_micro_batches, candidate)
        if found is None:
            return None
        return HORIZON * fleet.batch_s(found) + fetch_s(fleet, found, lacking), found

    best: tuple[float, PipelinePlan, list[_Place]] | None = None
    for candidate in islice(_filled(places, spares[:MOST_SPARES]), MOST_TRIED):
        found = judged(candidate)
        if found is not None and (best is None or found[0] < best[0]):
            best = (*found, candidate)
    for _ in range(MOST_SHIFTS if best is not None else 0):
        assert best is not None
        shifted = [(found, other) for other in _shifts(best[2]) if (found := judged(other)) is not None]
        better = min(shifted, key=lambda each: each[0][0], default=None)
        if better is None or better[0][0] >= best[0]:
            break
        best = (*better[0], better[1])
    return best[1] if best is not None else None


def fetch_s(fleet: Fleet, pipeline: PipelinePlan, lacking: Lacking) -> float:
    """Seconds until the last of a pipeline's peers has its blocks, each at the rate of its own link."""
    rates = {peer.name: min(peer.link_bytes_per_s, fleet.task.rate_bytes_per_s) for peer in fleet.task.peers}
    return max(
        lacking(peer, (stage.start, stage.stop)) / rates[peer] for stage in pipeline.stages for peer in stage.peers
    )


def _pipeline(fleet: Fleet, num_micro_batches: int, places: Sequence[_Place]) -> PipelinePlan | None:
    """None where it does not fit, or its first stage has no samples."""
    costs = fleet.costs(num_micro_batches)
    depths = deepest_warm_up(len(places), costs.task.most_ahead)
    if not all(costs.task.peers[index].has_data for index in places[0].peers):
        return None
    stages = []
    for place, depth in zip(places, depths, strict=True):
        if costs.split(sorted(place.peers), place.start, place.stop, depth) is None:
            return None
        stages.append(stage_of(costs, place.peers, place.start, place.stop, depth))
    return plan_of(costs, stages)


def _filled(places: list[_Place], spares: Sequence[int]) -> Iterator[list[_Place]]:
    """All ways to staff the first of the lost stages, and those after it."""
    lost = next((index for index, place in enumerate(places) if not place.peers), None)
    if lost is None:
        yield places
        return
    place, before, after = places[lost], places[:lost], places[lost + 1 :]
    for spare in spares:
        left = [other for other in spares if other != spare]
        yield from _filled([*before, _Place(place.start, place.stop, (spare,)), *after], left)
    for cut in sorted({place.start, (place.start + place.stop) // 2, place.stop}):
        if (cut > place.start and not before) or (cut < place.stop and not after):
            continue  # there is no neighbour on that side
        sides = [*before[:-1], _Place(before[-1].start, cut, before[-1].peers)] if before else []
        rest = [_Place(cut, after[0].stop, after[0].peers), *after[1:]] if after else []
        yield from _filled([*sides, *rest], spares)


def _shifts(places: list[_Place]) -> Iterator[list[_Place]]:
    """One cut by one piece."""
    for index, (one, other) in enumerate(pairwise(places)):
        for cut in (one.stop - 1, one.stop + 1):
            if one.start < cut < other.stop:
                moved = [_Place(one.start, cut, one.peers), _Place(cut, other.stop, other.peers)]
                yield [*places[:index], *moved, *places[index + 2 :]]

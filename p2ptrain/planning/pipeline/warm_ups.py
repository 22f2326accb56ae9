"""Which warm-up depths of a plan's stages are played through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from p2ptrain.planning.pipeline.schedule import classic_warm_up

Depths = tuple[int, ...]
"""The depth of each stage; it doesn't rise from stage to stage."""


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

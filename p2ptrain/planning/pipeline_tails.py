"""Partial pipelines that grow from the last stage towards the first, thousands at once.

All that the stages before it need to know of a tail is how many stages it has (which sets their warm-up depth), which
peers it takes, its link's rate, and the three bounds of ``pipeline_schedule.Tail``. One tail dominates another of the
same peers and as many stages if it is no worse in any of these.

Invariant: BOUND_S is never above the time, played through, of any plan that ends with the tail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2ptrain.planning.pipeline_cost import Floats
from p2ptrain.planning.pipeline_groups import Ground, Ints

ROUNDING = 1 + 1e-9
"""Bounds may exceed a limit by this much before they count as above it."""
DOMINANCE_TRIED = 8
"""Of so many times the tails that are kept, it is seen whether one dominates another."""

Which = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tails:
    """Tails in two tables with a column each; the rows have names below."""

    floats: Floats
    ints: Ints

    def __len__(self) -> int:
        return int(self.floats.shape[1])

    def pick(self, which: Which | Mask | slice) -> Tails:
        return Tails(self.floats[:, which], self.ints[:, which])


BACK_S, DONE_S, PATH_S, LINK_RATE, SPEED_LEFT, BOUND_S = range(6)
"""Rows of ``floats``: the three of ``Tail``; the first group's link; FLOP/s of the peers not taken; and a bound on any
plan that ends with the tail."""
TAKEN, NUM_STAGES, GROUP, DEPTH, PARENT, START = range(6)
"""Rows of ``ints``. Group and depth (a place in ``Ground.depths``) are the first stage's, which begins at the cut
START; PARENT is the tail behind it, by its number in the sweep."""


def no_stage(ground: Ground) -> Tails:
    """The one tail without a stage."""
    floats = np.array([[0.0], [0.0], [0.0], [np.inf], [ground.total_speed], [0.0]])
    return Tails(floats, np.array([[ground.nothing_taken], [0], [0], [0], [0], [ground.model.num_units]]))


def joined(chunks: Sequence[Tails]) -> Tails:
    return Tails(
        np.concatenate([chunk.floats for chunk in chunks], axis=1),
        np.concatenate([chunk.ints for chunk in chunks], axis=1),
    )


class Extender:
    """Puts one more stage before tails, in every way that may still lead to a plan faster than a limit."""

    def __init__(self, ground: Ground, max_stages: int) -> None:
        self._ground = ground
        self._max_stages = max_stages
        self._codes = np.array([group.code for group in ground.groups])
        self._rates = np.array([group.link_rate for group in ground.groups])
        self._speeds = np.array([group.flops_per_s for group in ground.groups])
        self._has_data = np.array([group.has_data for group in ground.groups])
        task = ground.model.task
        work = ground.model.work_flops * task.micro_batch * task.num_micro_batches
        self._work = work if np.isfinite(ground.total_speed) else np.zeros_like(work)
        """Of all micro-batches, up to each cut; over the speed left it is what they take at least."""

    def extensions(self, tails: Tails, stop: int, first_number: int, limit_s: float) -> Iterator[tuple[int, Tails]]:
        """By the cut where they begin. ``stop``: where ``tails`` begin; their numbers count from ``first_number``."""
        ground, limit_s = self._ground, limit_s * ROUNDING
        going = np.flatnonzero(tails.ints[NUM_STAGES] < self._max_stages)
        deepest = np.array([ground.depth_index(2 * n + 1) for n in tails.ints[NUM_STAGES, going].tolist()])
        both = ground.forward_s[:, :, :stop, stop] + ground.backward_s[:, :, :stop, stop]  # [depth, group, start]
        useful = ground.model.task.num_micro_batches * both < limit_s
        for at in range(int(deepest.max(initial=-1)) + 1):
            yield from self._reaching(tails, going[deepest == at], useful[at], stop, at, first_number, limit_s)
            if at + 1 < len(ground.depths):  # a lesser depth only where it buys time
                cheaper = useful[at] & (both[at] < both[at + 1])
                if cheaper.any():
                    yield from self._reaching(tails, going[deepest > at], cheaper, stop, at, first_number, limit_s)

    def _reaching(
        self, tails: Tails, rows: Which, stages: Mask, stop: int, at: int, first_number: int, limit_s: float
    ) -> Iterator[tuple[int, Tails]]:
        """``rows`` of the tails, extended by those of ``stages`` [group, start] whose peers are to be had."""
        group, start = np.nonzero(stages)
        if not len(rows) or not len(group):
            return
        taken, speed_left = tails.ints[TAKEN, rows][:, None], tails.floats[SPEED_LEFT, rows][:, None]
        free = ((taken + self._codes) & self._ground.guard) == 0  # [row, group]
        wanted = free[:, group]
        if np.isfinite(limit_s):
            room = limit_s * np.maximum(speed_left - self._speeds, 0.0)  # [row, group]
            wanted &= self._work[start] <= room[:, group]
        row, pair = np.nonzero(wanted)
        if not len(row):
            return
        made = self._extended(tails, rows[row], group[pair], start[pair], stop, at)
        made.ints[PARENT] += first_number
        begins = made.ints[START]
        made = made.pick((made.floats[BOUND_S] < limit_s) & ((begins > 0) | self._has_data[made.ints[GROUP]]))
        made = made.pick(np.argsort(made.ints[START], kind="stable"))
        ends = np.searchsorted(made.ints[START], np.arange(stop + 1)).tolist()
        for cut, (first, end) in enumerate(itertools.pairwise(ends)):
            if first < end:
                yield cut, made.pick(slice(first, end))

    def _extended(self, tails: Tails, row: Which, group: Which, start: Which, stop: int, at: int) -> Tails:
        """``pipeline_schedule.extended``, with a bound on what the rest of the work adds."""
        ground, model, task = self._ground, self._ground.model, self._ground.model.task
        num, depth = task.num_micro_batches, ground.depths[at]
        back_before, done_before, path, rate_before, speed_before = tails.floats[:BOUND_S, row]
        forward, backward = ground.forward_s[at, group, start, stop], ground.backward_s[at, group, start, stop]
        both, rate = forward + backward, self._rates[group]
        is_last = stop == model.num_units
        there = home = trip = np.zeros(len(row))
        if not is_last:
            sent = float(model.cut_bytes[stop]) * task.micro_batch / np.minimum(rate, rate_before)
            there, home = sent * task.forward_wire, sent * task.backward_wire
            trip = there + home + 2 * task.latency_s + path
        first_gap = np.maximum(0.0, trip - (depth - 1) * forward)
        last_gap = np.maximum(0.0, trip - (depth - 1) * backward)
        gaps = first_gap + last_gap if num > depth else np.maximum(first_gap, last_gap)
        windows = (num - 1) // depth
        rest = num - windows * depth
        one_trip = trip + both + (rest - 1) * np.maximum(forward, backward)
        back = np.maximum(num * both + gaps, windows * (both + trip) + np.maximum(rest * both, one_trip))
        done = np.zeros(len(row))
        if not is_last:
            back = np.maximum(back, both + trip + np.maximum(back_before - path, (num - 1) * np.maximum(there, home)))
            done = forward + there + task.latency_s + done_before
        done = np.maximum(back + ground.all_reduce_s[group, start, stop], done)
        speed_left = np.maximum(speed_before - self._speeds[group], 0.0)
        before = np.where(start == 0, 0.0, self._work[start] / np.maximum(speed_left, 1e-30))
        bound = np.maximum(np.maximum(done, before), back + before / num)
        taken = tails.ints[TAKEN, row] + self._codes[group]
        num_stages = tails.ints[NUM_STAGES, row] + 1
        return Tails(
            np.stack([back, done, trip + both, rate, speed_left, bound]),
            np.stack([taken, num_stages, group, np.full(len(row), at), row, start]),
        )


def select(tails: Tails, num_kept: int) -> Tails:
    """Of those with the lowest bounds, the ones that no other dominates."""
    floats, ints = tails.floats, tails.ints
    num_tried = min(len(tails), DOMINANCE_TRIED * num_kept)
    lowest = np.sort(np.argpartition(floats[BOUND_S], num_tried - 1)[:num_tried])
    keys = (ints[GROUP], floats[PATH_S], floats[DONE_S], floats[BOUND_S])
    order = lowest[np.lexsort([key[lowest] for key in keys])]
    fronts: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    kept: list[int] = []
    rows = zip(
        order.tolist(),
        *(ints[name, order].tolist() for name in (TAKEN, NUM_STAGES)),
        *(floats[name, order].tolist() for name in (BACK_S, DONE_S, PATH_S)),
        (-floats[LINK_RATE, order]).tolist(),
        strict=True,
    )
    for i, taken, num_stages, *worth in rows:
        front = fronts.setdefault((taken, num_stages), [])
        if any(all(one <= other for one, other in zip(better, worth, strict=True)) for better in front):
            continue
        front.append(tuple(worth))
        kept.append(i)
        if len(kept) == num_kept:
            break
    return tails.pick(np.array(kept, dtype=np.intp))

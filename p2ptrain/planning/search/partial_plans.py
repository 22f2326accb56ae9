"""Partial pipelines that grow from the last stage towards the first, thousands at once.

All that the stages before it need to know of a tail is how many stages it has (which sets their warm-up depth), which
peers it takes, its first group's links to others, and the three bounds of ``pipeline_schedule.Tail``. One tail
dominates another of the same peers and as many stages if it is no worse in any of these.

Invariant: BOUND_S is never above the time, played through, of any plan that ends with the tail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from p2ptrain.planning.pipeline.cost import Floats
from p2ptrain.planning.pipeline.shares import Ints, Mask, Which
from p2ptrain.planning.search.group_times import run_at
from p2ptrain.planning.search.groups import CandidateGroups

ROUNDING = 1 + 1e-9
"""Bounds may exceed a limit by this much before they count as above it."""
DOMINANCE_TRIED = 2
"""Of so many times the tails that are kept, it is seen whether one dominates another."""


@dataclass(frozen=True, slots=True)
class PartialPlans:
    """PartialPlans in two tables with a column each; the rows have names below."""

    floats: Floats
    ints: Ints

    def __len__(self) -> int:
        return int(self.floats.shape[1])

    def pick(self, which: Which | Mask | slice) -> PartialPlans:
        return PartialPlans(self.floats[:, which], self.ints[:, which])


BACK_S, DONE_S, PATH_S, SPEED_LEFT, BOUND_S = range(5)
"""Rows of ``floats``: the three of ``Tail``; FLOP/s of the peers not taken; and a bound on any plan that ends with the
tail."""
TAKEN, NUM_STAGES, GROUP, DEPTH, PARENT, START = range(6)
"""Rows of ``ints``. Group and depth (a place in ``CandidateGroups.depths``) are the first stage's, which begins at the
cut START; PARENT is the tail behind it, by its number in the sweep."""


def no_stage(ground: CandidateGroups) -> PartialPlans:
    """The one tail without a stage."""
    floats = np.array([[0.0], [0.0], [0.0], [ground.total_speed], [0.0]])
    return PartialPlans(floats, np.array([[ground.nothing_taken], [0], [0], [0], [0], [ground.model.num_units]]))


def joined(chunks: Sequence[PartialPlans]) -> PartialPlans:
    return PartialPlans(
        np.concatenate([chunk.floats for chunk in chunks], axis=1),
        np.concatenate([chunk.ints for chunk in chunks], axis=1),
    )


class Frontier:
    """Partial plans by the cut where they begin, until their turn comes; of each cut's, those left to ``select``."""

    def __init__(self, num_cuts: int, num_kept: int) -> None:
        self._num_tried = DOMINANCE_TRIED * num_kept
        self._chunks: list[list[PartialPlans]] = [[] for _ in range(num_cuts)]
        self._counts = [0] * num_cuts
        self.limits: Floats = np.full(num_cuts, np.inf)
        """Of each cut: tails with a bound above it would not be tried."""

    def add(self, cut: int, tails: PartialPlans) -> None:
        self._chunks[cut].append(tails)
        self._counts[cut] += len(tails)
        if self._counts[cut] >= 2 * self._num_tried:
            every = joined(self._chunks[cut])
            bounds = every.floats[BOUND_S]
            lowest = np.sort(np.argpartition(bounds, self._num_tried - 1)[: self._num_tried])
            self.limits[cut] = bounds[lowest].max()
            self._chunks[cut] = [every.pick(lowest)]
            self._counts[cut] = self._num_tried

    def take(self, cut: int) -> PartialPlans | None:
        chunks, self._chunks[cut] = self._chunks[cut], []
        return joined(chunks) if chunks else None


class PlanExtender:
    """Puts one more stage before tails, in every way that may still lead to a plan faster than a limit."""

    def __init__(self, ground: CandidateGroups, max_stages: int) -> None:
        self._ground = ground
        self._max_stages = max_stages
        self._codes = np.array([group.code for group in ground.groups])
        self._speeds = np.array([group.flops_per_s for group in ground.groups])
        self._has_data = np.array([group.has_data for group in ground.groups])
        self._depths = np.array(ground.depths)
        self._deepest = np.array([ground.depth_index(2 * n + 1) for n in range(max_stages)])
        """Place of the deepest warm-up before so many stages."""
        task = ground.model.task
        work = ground.model.work_flops * task.micro_batch * task.num_in_a_row
        self._work = work if np.isfinite(ground.total_speed) else np.zeros_like(work)
        """Of all micro-batches, up to each cut; over the speed left it is what they take at least."""

    def extensions(
        self, tails: PartialPlans, stop: int, first_number: int, limit_s: float, limits: Floats
    ) -> Iterator[tuple[int, PartialPlans]]:
        """By the cut where they begin. ``stop``: where ``tails`` begin; their numbers count from ``first_number``.

        Of interest are bounds below ``limit_s``, and not above ``limits`` [cut].
        """
        ground, limit_s = self._ground, limit_s * ROUNDING
        going = np.flatnonzero(tails.ints[NUM_STAGES] < self._max_stages)
        if not len(going):
            return
        deepest = self._deepest[tails.ints[NUM_STAGES, going]]
        limits = np.minimum(limits[:stop] * ROUNDING, limit_s)
        stages = self._stages(stop, limit_s)
        runs = slice(run_at(stop), run_at(stop) + stop)
        both = ground.forward_s[:, :, runs] + ground.backward_s[:, :, runs]  # [depth, group, start]
        useful = (ground.model.task.num_in_a_row * both < limits) & stages
        pays = useful[:-1] & (both[:-1] < both[1:])  # a lesser depth only where it buys time
        found = []
        for at in np.unique(deepest).tolist():
            reached = np.concatenate([pays[:at], useful[at : at + 1]])
            found.append(self._reaching(tails, going[deepest == at], stop, reached, both, limits))
        row, group, start, depth = (np.concatenate(parts) for parts in zip(*found, strict=True))
        made = self._extended(tails, row, group, start, stop, depth, limits)
        made.ints[PARENT] += first_number
        ends = np.searchsorted(made.ints[START], np.arange(stop + 1)).tolist()
        for cut, (first, end) in enumerate(itertools.pairwise(ends)):
            if first < end:
                yield cut, made.pick(slice(first, end))

    def _stages(self, stop: int, limit_s: float) -> Mask:
        """[group, start]: whether the group may begin there, and the peers outside it can do the rest in time."""
        stages = np.ones((len(self._codes), stop), dtype=np.bool_)
        stages[~self._has_data, 0] = False
        if np.isfinite(limit_s):
            rest = self._work[-1] - (self._work[stop] - self._work[:stop])
            room = limit_s * np.maximum(self._ground.total_speed - self._speeds, 0.0)
            stages &= rest <= room[:, None] * ROUNDING + self._work[-1] * (ROUNDING - 1)
        return stages

    def _reaching(
        self, tails: PartialPlans, rows: Which, stop: int, stages: Mask, both: Floats, limits: Floats
    ) -> tuple[Which, Which, Which, Which]:
        """Rows of the tails with the group, start and depth of ``stages`` [depth, group, start] whose peers are to be
        had, and that may be in time. ``both`` [depth, group, start]: seconds of both passes."""
        ground, num = self._ground, self._ground.model.task.num_in_a_row
        behind_s, speed_left = self._behind_s(tails, rows, stop), tails.floats[SPEED_LEFT, rows]
        free = ((tails.ints[TAKEN, rows][:, None] + self._codes) & ground.guard) == 0  # [row, group]
        at, group, start = np.nonzero(stages & free.any(axis=0)[:, None])

        left = np.maximum(speed_left[:, None] - self._speeds, 1e-30)  # [row, group]
        own, update, limit = both[at, group, start], ground.update_s[group, run_at(stop) + start], limits[start]

        def in_time(which: Which | slice, behind: Floats, left: Floats) -> Which:
            back = np.maximum(num * own[which], own[which] + behind)
            before = self._work[start[which]] / left
            return np.flatnonzero(np.maximum(back + np.maximum(update[which], before / num), before) <= limit[which])

        some = in_time(slice(None), behind_s.min(axis=0)[group], left.max(axis=0)[group])  # whichever tail is behind it
        at, group, start, own, update, limit = at[some], group[some], start[some], own[some], update[some], limit[some]
        row, pair = np.nonzero(free[:, group])
        wanted = in_time(pair, behind_s[row, group[pair]], left[row, group[pair]])
        row, pair = row[wanted], pair[wanted]
        return rows[row], group[pair], start[pair], at[pair]

    def _behind_s(self, tails: PartialPlans, rows: Which, stop: int) -> Floats:
        """From the group's first forward pass to its last backward one, but for these two, [row, group]: what links and
        tail take of it at least."""
        ground, model, task = self._ground, self._ground.model, self._ground.model.task
        if stop == model.num_units:
            return np.zeros((len(rows), len(self._codes)))
        sent = float(model.cut_bytes[stop]) * task.micro_batch / ground.link_rates[:, tails.ints[GROUP, rows]].T
        slowest = max(task.forward_wire, task.backward_wire) * (task.num_in_a_row - 1) * sent
        behind: Floats = np.maximum(tails.floats[BACK_S, rows][:, None], tails.floats[PATH_S, rows][:, None] + slowest)
        behind += sent * (task.forward_wire + task.backward_wire) + 2 * task.latency_s
        return behind

    def _extended(
        self, tails: PartialPlans, row: Which, group: Which, start: Which, stop: int, at: Which, limits: Floats
    ) -> PartialPlans:
        """``pipeline_schedule.extended``, with a bound on what the rest of the work adds: those below the limit, by
        the cut where they begin."""
        ground, model, task = self._ground, self._ground.model, self._ground.model.task
        num, depth = task.num_in_a_row, self._depths[at]
        back_before, done_before, path, speed_before = tails.floats[:BOUND_S, row]
        run = run_at(stop) + start
        forward, backward = ground.forward_s[at, group, run], ground.backward_s[at, group, run]
        both = forward + backward
        is_last = stop == model.num_units
        there = home = trip = np.zeros(len(row))
        if not is_last:
            sent = float(model.cut_bytes[stop]) * task.micro_batch / ground.link_rates[group, tails.ints[GROUP, row]]
            there, home = sent * task.forward_wire, sent * task.backward_wire
            trip = there + home + 2 * task.latency_s + path
        first_gap = np.maximum(0.0, trip - (depth - 1) * forward)
        update = ground.update_s[group, run]
        within = np.where(depth > task.num_micro_batches, update, 0.0)
        last_gap = np.maximum(0.0, trip - (depth - 1) * backward - within)
        gaps = np.where(num > depth, first_gap + last_gap, np.maximum(first_gap, last_gap))
        windows = (num - 1) // depth
        rest = num - windows * depth
        one_trip = trip + both + (rest - 1) * np.maximum(forward, backward)
        own = num * both + (task.batches - 1) * update + gaps
        back = np.maximum(own, windows * (both + trip) + np.maximum(rest * both, one_trip))
        done = np.zeros(len(row))
        if not is_last:
            back = np.maximum(back, both + trip + np.maximum(back_before - path, (num - 1) * np.maximum(there, home)))
            done = forward + there + task.latency_s + done_before
        done = np.maximum(back + update, done)
        speed_left = np.maximum(speed_before - self._speeds[group], 0.0)
        before = np.where(start == 0, 0.0, self._work[start] / np.maximum(speed_left, 1e-30))
        bound = np.maximum(np.maximum(done, before), back + before / num)
        kept = np.flatnonzero(bound <= limits[start])
        kept = kept[np.argsort(start[kept].astype(np.int16), kind="stable")]
        row, group = row[kept], group[kept]
        taken = tails.ints[TAKEN, row] + self._codes[group]
        num_stages = tails.ints[NUM_STAGES, row] + 1
        floats = [back, done, trip + both, speed_left, bound]
        return PartialPlans(
            np.stack([each[kept] for each in floats]),
            np.stack([taken, num_stages, group, at[kept], row, start[kept]]),
        )


def select(ground: CandidateGroups, tails: PartialPlans, num_kept: int) -> PartialPlans:
    """Of those with the lowest bounds, the ones that no other dominates."""
    floats, ints = tails.floats, tails.ints
    num_tried = min(len(tails), DOMINANCE_TRIED * num_kept)
    lowest = np.sort(np.argpartition(floats[BOUND_S], num_tried - 1)[:num_tried])
    keys = (ints[GROUP], floats[PATH_S], floats[DONE_S], floats[BOUND_S])
    order = lowest[np.lexsort([key[lowest] for key in keys])]
    fronts: dict[tuple[int, int], list[tuple[float, float, float, int]]] = {}
    kept: list[int] = []
    rows = zip(
        order.tolist(),
        *(ints[name, order].tolist() for name in (TAKEN, NUM_STAGES, GROUP)),
        *(floats[name, order].tolist() for name in (BACK_S, DONE_S, PATH_S)),
        strict=True,
    )
    for i, taken, num_stages, group, back, done, path in rows:
        front = fronts.setdefault((taken, num_stages), [])
        for other_back, other_done, other_path, other in front:
            if other_back <= back and other_done <= done and other_path <= path and ground.links_as_well[other][group]:
                break
        else:
            front.append((back, done, path, group))
            kept.append(i)
            if len(kept) == num_kept:
                break
    return tails.pick(np.array(kept, dtype=np.intp))

"""What each owner and helper could do together: an option for each cut, number of micro-batches and coding.

On the share of the helper's link that a unit is granted, a number from 0 to 1, the seconds of each of its paths
(``steps``) depend as ``a + c / share``. So the least share for a time is known in closed form: ``max over paths of
c / (time - a)``. What the helper does for other units is not in there; it is counted in the helper's load.

A helper computes one micro-batch at a time, and keeps the activations of those that wait.

Invariant: pure. Options that one of the two has not the memory for are left out, as if the helper had no other unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from p2ptrain.config import Coding
from p2ptrain.planning.pipeline.cost import Floats
from p2ptrain.planning.pipeline.shares import Mask
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.steps import Ints, StepArrays, paths, step_arrays


@dataclass(frozen=True, slots=True)
class Options:
    """An entry of each array for every option."""

    owner: str
    helper: str
    codings: tuple[Coding, ...]
    cuts: Ints
    """Places in ``Room.cuts``."""
    micro_batches: Ints
    in_flight: Ints
    coding: Ints
    """Places in ``codings``: of activations and of gradients."""
    fixed_s: Floats
    """[path, option]: seconds of a round that no share of the link changes, ..."""
    shared_s: Floats
    """... and those of a share of 1, which grow as it falls."""
    helper_s: Floats
    """Of the helper's time, a round."""
    tail_bytes: Floats
    """Of the helper's memory: parameters, and what goes with them ..."""
    work_bytes: Floats
    """... activations, those that wait among them."""
    owner_exchange_s: Floats
    """At the round's end, of the front."""
    helper_exchange_s: Floats
    """Likewise of the tail, if others hold its blocks too."""

    def __len__(self) -> int:
        return len(self.cuts)

    def only(self, which: npt.NDArray[Any]) -> Options:
        """Some of them."""
        return Options(
            self.owner,
            self.helper,
            self.codings,
            *(getattr(self, field.name)[..., which] for field in fields(self)[3:]),
        )

    def shares(self, round_s: float | Floats, which: npt.NDArray[Any]) -> Floats:
        """The least share of the link with which each of these ends in time (one for all, or one for each of these);
        infinite where none will do."""
        left = round_s - self.fixed_s[:, which]
        needed: Floats = np.full(left.shape, np.inf)
        np.divide(self.shared_s[:, which], left, out=needed, where=left > 0)
        found: Floats = needed.max(axis=0)
        return found

    def round_s(self, share: float) -> Floats:
        """Of each option with that share."""
        seconds: Floats = (self.fixed_s + self.shared_s / share).max(axis=0)
        return seconds


class Pairs:
    """The options of every owner and helper of a room, found once."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._found: dict[tuple[str, str], Options] = {}
        tables, last = room.tables, room.tail_stop
        self._is_kept = last < tables.num_units
        kept = (last, tables.num_units)
        self._kept_held = tables.fixed_bytes(*kept) if self._is_kept else 0.0
        """Of the owner's memory for the blocks that it keeps behind its helper's, ..."""
        self._kept_work = tables.sample_bytes(*kept, 1) if self._is_kept else 0.0
        """... and for each sample of a micro-batch."""
        self._kept_block_bytes = float(room.block_bytes[-1] - room.block_bytes[last])
        self._cuts = np.arange(1, last)
        at = self._cuts
        self._front_bytes = tables.cut_bytes[0] + tables.stored_bytes[at]
        """Of the owner's memory, for each sample in flight, ..."""
        self._front_flow = tables.flow_bytes[0, at]
        """... and once, ..."""
        self._tail_stored = tables.stored_bytes[last] - tables.stored_bytes[at]
        """... and of the helper's for each sample whose forward pass is done ..."""
        self._tail_flow = tables.flow_bytes[at, last]
        """... and that it computes on."""
        self._held_bytes = tables.held_bytes[last] - tables.held_bytes[at]
        self._whole = room.block_bytes[last]

    def of(self, owner: str, helper: str) -> Options:
        if (owner, helper) not in self._found:
            parts = [self._of(owner, helper, num) for num in self.room.micro_batch_choices(owner)]
            first = parts[0]
            self._found[owner, helper] = Options(
                owner,
                helper,
                first.codings,
                *(np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(Options)[3:]),
            )
        return self._found[owner, helper]

    def may_hold(self, owner: str, helper: str) -> bool:
        """Whether there is an option that both have the memory for; quicker than to make them all."""
        return any(bool(self._held(owner, helper, num)[0].any()) for num in self.room.micro_batch_choices(owner))

    def _held(self, owner: str, helper: str, num: int) -> tuple[Mask, Ints, Floats]:
        """Of every cut: whether both have the memory for it, micro-batches in flight, and what the helper's activations
        take."""
        room, tables, at = self.room, self.room.tables, self._cuts
        its = room.peers[owner]
        rows = math.ceil(room.task.micro_batch_of(its, num))
        free = its.device.memory_bytes - tables.held_bytes[at] - rows * self._front_flow
        free = free - self._kept_held - rows * self._kept_work
        in_flight = np.floor(free / np.maximum(rows * self._front_bytes, 1e-9)).clip(0, num).astype(np.int64)
        stored = in_flight if self._is_kept else 1  # for backward passes that wait for the owner's
        work = rows * (self._tail_stored * stored + self._tail_flow + in_flight * tables.cut_bytes[at])
        able: Mask = (in_flight > 0) & (self._held_bytes + work <= room.peers[helper].device.memory_bytes)
        return able, in_flight, work

    def _of(self, owner: str, helper: str, num: int) -> Options:
        room, task, at = self.room, self.room.task, self._cuts
        its, many = room.peers[owner], len(task.codings)
        batches, samples = task.batches_of(its, num), task.micro_batch_of(its, num)
        able, in_flight, work = self._held(owner, helper, num)
        at, in_flight, work, held = at[able], in_flight[able], work[able], self._held_bytes[able]
        steps = step_arrays(room, owner, helper, at, samples, [(coding, coding) for coding in task.codings])
        fixed, shared = self._paths(owner, helper, steps, num, np.tile(in_flight, many))
        own = room.block_bytes[at] + self._kept_block_bytes if len(room.owners) > 1 else np.zeros(len(at))
        return Options(
            owner,
            helper,
            task.codings,
            np.tile(at, many),
            np.full(many * len(at), num),
            np.tile(in_flight, many),
            np.repeat(np.arange(many), len(at)),
            batches * fixed,
            batches * shared,
            batches * (num * steps.tail_s + steps.tail_update_s),
            np.tile(held, many),
            np.tile(work, many),
            np.tile(room.exchanges_s(owner, own), many),
            np.tile(room.exchanges_s(helper, self._whole - room.block_bytes[at]), many),
        )

    def _paths(self, owner: str, helper: str, steps: StepArrays, num: int, in_flight: Ints) -> tuple[Floats, Floats]:
        """[path, option]: seconds of a batch that are fixed, those of a share of 1.

        Each way the link is as slow as the share makes it, or as slow as it is anyway: the longest of all
        combinations counts, so that each of them is a path of its own.
        """
        room = self.room
        there, back = room.whole_rates(helper)
        up = (steps.up_bytes / room.rate(owner, helper), steps.up_bytes / there)
        down = (steps.down_bytes / room.rate(helper, owner), steps.down_bytes / back)
        busy, *others = paths(steps, room.task.latency_s * (1 + self._is_kept), num, in_flight)
        fixed, shared = [busy.fixed_s + steps.update_s], [np.zeros_like(busy.fixed_s)]
        for path in others:
            base, ups, downs = path.fixed_s + steps.update_s, path.ups, path.downs
            fixed += [base + ups * up[0] + downs * down[0], base + downs * down[0], base + ups * up[0], base]
            shared += [np.zeros_like(base), ups * up[1], downs * down[1], ups * up[1] + downs * down[1]]
        return np.stack(fixed), np.stack(shared)

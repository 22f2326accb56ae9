"""One round played through: every micro-batch of every unit, and the order in which helpers take them.

An owner makes forward passes as long as it may have more micro-batches in flight, then a backward and a forward pass by
turns: the order of a pipeline's stage whose warm-up is as deep (``pipeline.schedule``). A batch begins when the one
before has ended with its optimizer step. Each unit has a link of its own both ways, at the rates that it is granted; a
micro-batch is received ``latency_s`` after its last byte was sent. A tail's optimizer step waits for the norm of the
whole gradient, which its owner knows after its last backward pass.

A helper does one thing at a time to its end. Of the work that has arrived it takes that whose owner needs longest
afterwards, for gradients on the link and for its backward pass (Jackson's rule, as Schrage applies it to work that
arrives over time). Its own unit, after which nobody waits, comes last, a micro-batch at a time.

Invariant: pure; equal units give equal times, to the bit. Where the round would have more than ``MAX_PLAYED``
micro-batches, all units play the same part of their batches, one at least, and times are as many times as long.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from p2ptrain.planning.split.steps import Steps

MAX_PLAYED = 4000
Work = Literal["forward", "backward", "tail", "update"]


@dataclass(frozen=True, slots=True)
class Played:
    """A unit as it is played: what its steps take, how many there are."""

    owner: str
    helper: str | None
    steps: Steps
    """Alone: ``forward_s`` and ``backward_s`` are of the whole model."""
    batches: int
    micro_batches: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Span:
    """What one device did from when to when, for whose unit."""

    peer: str
    owner: str
    work: Work
    micro_batch: int
    """By its number in the round."""
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round, played through, without the exchange at its end."""

    round_s: float
    ends_s: dict[str, float]
    """By owner."""
    busy_s: dict[str, float]
    """By helper."""
    spans: tuple[Span, ...]
    """Only where they were asked for; their times are never stretched."""


def play(units: Sequence[Played], *, with_spans: bool = False) -> Round:
    """From its begin until the last unit has ended."""
    total = sum(unit.batches * unit.micro_batches for unit in units)
    part = min(1.0, MAX_PLAYED / total) if total else 1.0
    runs = [_Run(unit, max(1, round(unit.batches * part))) for unit in units]
    room = _Playing(runs, with_spans)
    room.run()
    stretch = {run.unit.owner: run.unit.batches / run.batches for run in runs}
    ends = {run.unit.owner: run.end_s * stretch[run.unit.owner] for run in runs}
    tails = [run.tail_end_s * stretch[run.unit.owner] for run in runs]
    busy = dict.fromkeys(room.devices, 0.0)
    for run in runs:
        if run.helper_s:
            busy[run.unit.helper or run.unit.owner] += run.helper_s * stretch[run.unit.owner]
    return Round(max([*ends.values(), *tails], default=0.0), ends, busy, tuple(room.spans))


@dataclass(slots=True)
class _Run:
    """A unit under way."""

    unit: Played
    batches: int
    """That are played."""
    batch: int = 0
    forwards: int = 0
    """Of this batch, begun ..."""
    backwards: int = 0
    gradients: int = 0
    """... and arrived."""
    is_busy: bool = False
    up_free_s: float = 0.0
    down_free_s: float = 0.0
    first: int = 0
    """Micro-batches of the batches before."""
    end_s: float = 0.0
    tails: int = 0
    """Of this batch, begun."""
    helper_s: float = 0.0
    tail_end_s: float = 0.0
    """When the tail's last optimizer step was over."""


@dataclass(slots=True)
class _Device:
    """A helper: work that has arrived, by how long its owner needs afterwards."""

    queue: list[tuple[float, int, int, bool]] = field(default_factory=list)
    """Whether it is the optimizer's step comes last."""
    is_busy: bool = False


class _Playing:
    def __init__(self, runs: Sequence[_Run], with_spans: bool) -> None:
        self.runs = runs
        self.devices = {run.unit.helper: _Device() for run in runs if run.unit.helper is not None}
        self.spans: list[Span] = []
        self._with_spans = with_spans
        self._events: list[tuple[float, int, str, int]] = []
        self._number = 0

    def run(self) -> None:
        for i, run in enumerate(self.runs):
            if run.unit.helper is None and run.unit.owner in self.devices:
                self._arrive(run.unit.owner, i, 0.0)  # a helper's own unit: one piece of work at a time in its queue
            else:
                self._owner(i, 0.0)
        while self._events:
            now, _, what, i = heapq.heappop(self._events)
            if what == "owner":
                self.runs[i].is_busy = False
                self._owner(i, now)
            elif what == "gradient":
                self.runs[i].gradients += 1
                self._owner(i, now)
            elif what in ("activation", "norm"):
                self._arrive(self.runs[i].unit.helper or "", i, now, is_update=what == "norm")
            else:
                self._tail_done(i, now)

    def _at(self, when: float, what: str, i: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what, i))

    def _owner(self, i: int, now: float) -> None:
        """What the owner does next, if it does nothing yet."""
        run = self.runs[i]
        unit, steps = run.unit, run.unit.steps
        if run.is_busy or run.batch >= run.batches:
            return
        num = unit.micro_batches
        if unit.helper is None:
            took = num * (steps.forward_s + steps.backward_s) + steps.update_s
            self._show(unit.owner, run, "forward", now, now + took - steps.update_s)
            self._next_batch(i, now, num, took)
        elif run.forwards < num and run.forwards - run.backwards < unit.in_flight:
            end = now + steps.forward_s
            self._show(unit.owner, run, "forward", now, end, run.forwards)
            run.forwards += 1
            run.is_busy = True
            run.up_free_s = max(run.up_free_s, end) + steps.up_s
            self._at(run.up_free_s + steps.latency_s, "activation", i)
            self._at(end, "owner", i)
        elif run.backwards < run.gradients:
            self._show(unit.owner, run, "backward", now, now + steps.backward_s, run.backwards)
            run.backwards += 1
            if run.backwards == num:
                self._at(now + steps.backward_s + steps.latency_s, "norm", i)
                self._next_batch(i, now, num, steps.backward_s + steps.update_s)
            else:
                run.is_busy = True
                self._at(now + steps.backward_s, "owner", i)

    def _next_batch(self, i: int, now: float, num: int, took: float) -> None:
        run = self.runs[i]
        if run.unit.steps.update_s > 0:
            self._show(run.unit.owner, run, "update", now + took - run.unit.steps.update_s, now + took, num - 1)
        run.batch, run.first = run.batch + 1, run.first + num
        run.forwards = run.backwards = run.gradients = 0
        run.is_busy = True
        run.end_s = now + took
        self._at(now + took, "owner", i)

    def _arrive(self, helper: str, i: int, now: float, *, is_update: bool = False) -> None:
        unit = self.runs[i].unit
        afterwards = unit.steps.afterwards_s if unit.helper is not None else 0.0
        device = self.devices[helper]
        self._number += 1
        heapq.heappush(device.queue, (-afterwards, self._number, i, is_update))
        self._tail(helper, now)

    def _tail(self, helper: str, now: float) -> None:
        device = self.devices[helper]
        if device.is_busy or not device.queue:
            return
        _, _, i, is_update = heapq.heappop(device.queue)
        run = self.runs[i]
        steps, num = run.unit.steps, run.unit.micro_batches
        is_own = run.unit.helper is None
        if is_update:
            self._occupy(device, i, now, steps.tail_update_s)
            run.tail_end_s = now + steps.tail_update_s
            return
        took = steps.forward_s + steps.backward_s if is_own else steps.tail_s
        self._show(helper, run, "tail", now, now + took, run.tails)
        run.tails += 1
        if not is_own:
            run.down_free_s = max(run.down_free_s, now + took) + steps.down_s
            self._at(run.down_free_s + steps.latency_s, "gradient", i)
        if run.tails == num:
            run.tails = 0
            if is_own:
                took += steps.update_s
                run.batch, run.first, run.end_s = run.batch + 1, run.first + num, now + took
        self._occupy(device, i, now, took)

    def _occupy(self, device: _Device, i: int, now: float, took: float) -> None:
        device.is_busy = True
        self.runs[i].helper_s += took
        self._at(now + took, "tail", i)

    def _tail_done(self, i: int, now: float) -> None:
        run = self.runs[i]
        helper = run.unit.helper or run.unit.owner
        self.devices[helper].is_busy = False
        if run.unit.helper is None and run.batch < run.batches:
            self._arrive(helper, i, now)
        self._tail(helper, now)

    def _show(self, peer: str, run: _Run, work: Work, start: float, end: float, number: int = 0) -> None:
        if self._with_spans:
            self.spans.append(Span(peer, run.unit.owner, work, run.first + number, start, end))

"""1F1B: what each stage does in which order, how long that then takes, and two formulas for that time.

A pipeline is a chain of steps, stages and links by turns (``Steps``). A stage makes ``warm_up`` forward passes, then
one backward and one forward by turns, then the backward passes that are left. After a batch's last backward pass it
averages its gradients among its peers and makes an optimizer step. A link carries activations one way and gradients
the other way at the same time (full duplex), each in order.

A *round* is what happens between two flushes: one batch where the schedule is synchronous, ``Steps.batches`` of them
where it is asynchronous, without a pause between them.

- ``play`` plays a round through. The orders are fixed, so that its time can only grow with any step's.
- ``round_bound_s`` never exceeds it: the longest of the waits that one stage or one link alone forces. On chains like
  those that planning meets it falls short by 0.1-0.3 % on average; by 3 % with links three times as slow as stages.
- ``dominant_step_s`` is the latency model of Asteroid (MobiCom 2024): fill up to the slowest step, then nothing but
  that step, then the all-reduce that ends last. It knows no warm-up depth, and but one update; links are full duplex
  here, where the paper adds both ways.

Invariant: pure; equal steps give equal times, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from p2ptrain.errors import LocalError

Work = Literal["forward", "backward", "update"]


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of each step, for one micro-batch. Links have one entry less than stages."""

    num_micro_batches: int
    """How many a batch is cut into."""
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    update_s: tuple[float, ...]
    """Once a batch: the all-reduce among the stage's peers, and the optimizer's step."""
    link_forward_s: tuple[float, ...]
    link_backward_s: tuple[float, ...]
    latency_s: float = 0.0
    """From the last byte sent to the last received; the link is free meanwhile."""
    batches: int = 1
    """How many go in a row, from flush to flush."""

    @property
    def num_stages(self) -> int:
        return len(self.forward_s)

    @property
    def num_in_a_row(self) -> int:
        """Micro-batches of a round."""
        return self.num_micro_batches * self.batches


@dataclass(frozen=True, slots=True)
class Span:
    """What one stage did from when to when."""

    stage: int
    work: Work
    micro_batch: int
    """By its number in the round; of an update the last that it is made of."""
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One round, played through."""

    round_s: float
    spans: tuple[Span, ...]
    """What each stage does, by stage and then in time."""

    def busy_share(self, stage: int) -> float:
        """How much of the round the stage computes."""
        spans = (span for span in self.spans if span.stage == stage and span.work != "update")
        return sum(span.end_s - span.start_s for span in spans) / self.round_s if self.round_s else 0.0


def most_ahead(num_micro_batches: int, *, flush: bool) -> int:
    """The deepest warm-up: a batch; without a flush one micro-batch more, so that no more than two are under way."""
    return num_micro_batches if flush else num_micro_batches + 1


def deepest_warm_up(num_stages: int, most: int) -> tuple[int, ...]:
    """2(P-p)-1 for stage p of P: also hides links of up to a stage's time. Planning goes no deeper."""
    return tuple(min(most, 2 * (num_stages - p) - 1) for p in range(num_stages))


def classic_warm_up(num_stages: int, most: int) -> tuple[int, ...]:
    """P-p for stage p of P: just full where links cost nothing."""
    return tuple(min(most, num_stages - p) for p in range(num_stages))


def stage_order(warm_up: int, num_micro_batches: int) -> Iterator[tuple[Work, int]]:
    """What a stage does, in order: (forward or backward, micro-batch)."""
    ahead = min(warm_up, num_micro_batches)
    for micro_batch in range(ahead):
        yield "forward", micro_batch
    for micro_batch in range(num_micro_batches):
        yield "backward", micro_batch
        if ahead + micro_batch < num_micro_batches:
            yield "forward", ahead + micro_batch


def play(steps: Steps, warm_up: tuple[int, ...]) -> Timeline:
    """The round's timeline. ``warm_up`` may not rise from stage to stage, else two stages wait for each other."""
    spans: list[Span] = []
    ends = _play(steps, warm_up, spans)
    spans.sort(key=lambda span: (span.stage, span.start_s, span.end_s))
    return Timeline(max(ends), tuple(spans))


def round_s(steps: Steps, warm_up: tuple[int, ...]) -> float:
    """``play`` without the timeline, for planning."""
    return max(_play(steps, warm_up, None))


def _play(steps: Steps, warm_up: tuple[int, ...], spans: list[Span] | None) -> list[float]:
    """When each stage ends its last update. Each stage runs on until what it needs next has not arrived."""
    num_stages, num_in_a_row, latency = steps.num_stages, steps.num_in_a_row, steps.latency_s
    orders = [_whole_order(depth, num_in_a_row) for depth in warm_up]
    at, end = [0] * num_stages, 2 * num_in_a_row
    free, sent, returned = [0.0] * num_stages, [0.0] * num_stages, [0.0] * num_stages
    arrived: list[list[float]] = [[0.0] * num_in_a_row, *([] for _ in range(num_stages - 1))]
    came_back: list[list[float]] = [[] for _ in range(num_stages)]
    awake = [0]
    while awake:
        p = awake.pop()
        now, i, order = free[p], at[p], orders[p]
        forward_s, backward_s, is_last = steps.forward_s[p], steps.backward_s[p], p + 1 == num_stages
        while i < end:
            work, micro_batch = order[i]
            inbox = arrived[p] if work == "forward" else came_back[p]
            if len(inbox) <= micro_batch:
                break
            start = max(now, inbox[micro_batch])
            if work == "forward":
                now = start + forward_s
                if is_last:
                    came_back[p].append(now)
                else:
                    sent[p] = max(now, sent[p]) + steps.link_forward_s[p]
                    arrived[p + 1].append(sent[p] + latency)
            else:
                now = start + backward_s
                if p > 0:
                    returned[p] = max(now, returned[p]) + steps.link_backward_s[p - 1]
                    came_back[p - 1].append(returned[p] + latency)
            if spans is not None:
                spans.append(Span(p, work, micro_batch, start, now))
            if work == "backward" and not (micro_batch + 1) % steps.num_micro_batches:
                if spans is not None and steps.update_s[p] > 0:
                    spans.append(Span(p, "update", micro_batch, now, now + steps.update_s[p]))
                now += steps.update_s[p]
            i += 1
        if i > at[p]:
            awake += [near for near in (p - 1, p + 1) if 0 <= near < num_stages]
        free[p], at[p] = now, i
    if any(i < end for i in at):
        raise LocalError(f"stages wait for each other: warm-up {warm_up} rises along the pipeline")
    return free


@lru_cache(maxsize=32)
def _whole_order(warm_up: int, num_micro_batches: int) -> tuple[tuple[Work, int], ...]:
    return tuple(stage_order(warm_up, num_micro_batches))


def round_bound_s(steps: Steps, warm_up: tuple[int, ...]) -> float:
    """No schedule with these or smaller depths is faster. Built up from the last stage, which planning makes use of."""
    tail = Tail(0.0, 0.0, 0.0)
    last = steps.num_stages - 1
    for p in range(last, -1, -1):
        links = (steps.link_forward_s[p], steps.link_backward_s[p], steps.latency_s) if p < last else None
        tail = extended(
            tail,
            steps.forward_s[p],
            steps.backward_s[p],
            steps.update_s[p],
            links,
            warm_up[p],
            steps.num_micro_batches,
            steps.batches,
        )
    return tail.done_s


@dataclass(frozen=True, slots=True)
class Tail:
    """The last stages of a pipeline, in three lower bounds: all that those before them need to know."""

    back_s: float
    """From the first micro-batch's arrival until the last one's gradient leaves."""
    done_s: float
    """The same until every update is over."""
    path_s: float
    """One micro-batch there and back, alone."""


def extended(
    tail: Tail,
    forward_s: float,
    backward_s: float,
    update_s: float,
    links: tuple[float, float, float] | None,
    warm_up: int,
    num_micro_batches: int,
    batches: int,
) -> Tail:
    """The tail with one more stage before it; ``links``: seconds forward, back and latency, None for a last stage.

    The stage's own waits, with round trip r behind it, depth K and M micro-batches in all: before its first backward
    pass it has K-1 other forward ones to do, and before its last backward one K-1 other backward ones (the same gap if
    M <= K); and forward pass m+K comes after backward pass m, so that K micro-batches take no less than one trip.
    Updates come between these two gaps, but for the last one, and the one before where K is more than a batch.
    """
    there, back, latency = links or (0.0, 0.0, 0.0)
    both = forward_s + backward_s
    trip = there + back + 2 * latency + tail.path_s if links else 0.0
    num = num_micro_batches * batches
    depth = min(warm_up, num)
    first_gap = max(0.0, trip - (depth - 1) * forward_s)
    last_gap = max(0.0, trip - (depth - 1) * backward_s - (update_s if num_micro_batches < depth else 0.0))
    gaps = first_gap + last_gap if num > depth else max(first_gap, last_gap)
    windows = (num - 1) // depth
    rest = num - windows * depth
    back_s = max(
        num * both + (batches - 1) * update_s + gaps,
        windows * (both + trip) + max(rest * both, trip + both + (rest - 1) * max(forward_s, backward_s)),
    )
    done_s = 0.0
    if links:
        back_s = max(
            back_s,
            both + trip - tail.path_s + tail.back_s,
            both + trip + (num - 1) * max(there, back),
        )
        done_s = forward_s + there + latency + tail.done_s
    return Tail(back_s, max(back_s + update_s, done_s), trip + both)


def dominant_step_s(steps: Steps) -> float:
    """Asteroid's model of the round: the worst step's fill and steady part, and the update that ends last."""
    num, fill, slowest, overhang = steps.num_in_a_row, 0.0, 0.0, 0.0
    for p in range(steps.num_stages):
        both = steps.forward_s[p] + steps.backward_s[p]
        slowest = max(slowest, fill + num * both)
        fill += both
        if p + 1 < steps.num_stages:
            there, back = steps.link_forward_s[p], steps.link_backward_s[p]
            slowest = max(slowest, fill + num * max(there, back))
            fill += there + back + 2 * steps.latency_s
    for p in range(steps.num_stages - 1, -1, -1):
        link_back = steps.link_backward_s[p] if p + 1 < steps.num_stages else 0.0
        overhang = max(steps.update_s[p], overhang - steps.backward_s[p] - link_back)
    return slowest + overhang

"""How a device's time goes while it trains its units, against what the plan counts with.

Invariant: only whole looks are told, and what a device takes to get warm is not in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import StageUsed
from p2ptrain.core.stages.slowdown import FIRST_LOOK, PASS_S, SECOND_LOOK, WARM_UP, differs, slowdown_of
from p2ptrain.modes.split.plan import body_of, runs_of, samples_of
from p2ptrain.planning.devices.blocks import BlockTimes
from p2ptrain.planning.split.rounds.simulation import Played
from p2ptrain.planning.split.units import SplitPlan, Unit

if TYPE_CHECKING:
    from p2ptrain.learning.pipeline.training import StageUse

LONG_S = 10.0
"""From one look to the next at most: who is overloaded in a long round says so before that is over."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """Seconds of a micro-batch on this device."""

    forward_s: float
    backward_s: float
    passing_s: tuple[float, float]
    """Beside these, for stage messages: forward, backward."""


class UnitsUse:
    """Of one plan. ``times``: of this device's blocks, as measured; ``played``: each unit as the plan has it."""

    def __init__(self, plan: Plan, own: str, times: BlockTimes | None, played: Mapping[str, Played]) -> None:
        self._planned: dict[str, _Planned] = {}
        self._at = 0.0
        self._steps = 0
        self._look_after = WARM_UP
        self._is_warm = False
        self._slowdown = 1.0
        split = body_of(plan).split
        slowdown = next((figures.slowdown for figures in body_of(plan).figures if figures.peer == own), 1.0)
        for unit in dict.fromkeys(unit for unit, _ in runs_of(split, own)):
            if times is None or unit.owner not in played:
                continue
            rows = _rows(split, unit, samples_of(plan))
            mine = slice(0, unit.cut) if unit.owner == own else slice(unit.cut, split.tail_stop)
            forward = sum(times.forward(rows)[mine])
            backward = sum(times.backward(rows)[mine])
            if unit.owner == own and unit.helper and split.kept_from:  # counted as part of a backward pass
                backward += sum(sum(passes(rows)[split.kept_from :]) for passes in (times.forward, times.backward))
            steps = played[unit.owner].steps
            there, back = steps.forward_s - slowdown * forward, steps.backward_s - slowdown * backward
            if unit.owner != own:
                there, back = 0.0, steps.tail_s - slowdown * (forward + backward)
            self._planned[unit.owner] = _Planned(forward, backward, (max(0.0, there), max(0.0, back)))

    def begun(self, idle_s: float, now: float) -> None:
        """A round is begun, after so many seconds in which there was nothing to do."""
        self._at = self._at + idle_s if self._steps else now

    def is_due(self, steps: int, now: float) -> bool:
        """After so many batches under this plan, all units' together; where they take long, in the midst of one."""
        return steps - self._steps >= self._look_after or (self._is_warm and now - self._at >= LONG_S)

    def look(self, steps: int, now: float, uses: Mapping[str, StageUse]) -> StageUsed | None:
        """What was computed since the last look. None where that is nothing to go by."""
        wall_s, was_warm = max(now - self._at, 1e-6), self._is_warm
        self._at, self._steps, self._look_after, self._is_warm = now, steps, FIRST_LOOK, True
        expected = seconds = passing = overhead = 0.0
        for owner, use in uses.items():
            seconds += use.forward_s + use.backward_s
            if (planned := self._planned.get(owner)) is not None:
                expected += use.num_forward * planned.forward_s + use.num_backward * planned.backward_s
                passing += use.num_forward * planned.passing_s[0] + use.num_backward * planned.passing_s[1]
                overhead += PASS_S * (use.num_forward + use.num_backward)
        if not was_warm or expected <= 0:
            return None
        busy = min(1.0, seconds / wall_s)
        slowdown = slowdown_of(seconds + overhead, expected + overhead, passing, busy)
        self._look_after = SECOND_LOOK if differs(slowdown, self._slowdown) else FIRST_LOOK
        self._slowdown = slowdown
        return StageUsed(steps, busy, slowdown)


def _rows(split: SplitPlan, unit: Unit, samples: Mapping[str, int]) -> int:
    """Of a micro-batch; with shared tails on average."""
    if split.tails == "shared":
        share = samples[unit.owner] / sum(samples.values())
        return max(1, round(split.batch_size * share / unit.micro_batches))
    num = min(unit.micro_batches, samples[unit.owner])
    return min(split.batch_size, samples[unit.owner]) // num

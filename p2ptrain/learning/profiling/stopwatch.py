"""How long a work takes on this device that others use, too: runs of it, timed by CPU time, and what they say.

Theory. A process that gets its share of a core in turns is held up now and then, which no single short run shows; and
a machine that others use is slow now and then. So of each work's runs the median counts, which is steady, and all
works alike are stretched by how much longer their runs took altogether: by the clock, and by the mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

NUM_RUNS, LEAST_RUNS = 5, 2
"""Of each work, after one to warm up; fewer where time is short, but at least so many steady ones. Of an even number
the lower median counts."""
FEW_FAULTS = 64
OUTLIER = 2.0
"""A run that took so many times as long as the median counts as just that."""

Clock = Callable[[], float]


class Run(NamedTuple):
    """Seconds of work, and the page faults that it took."""

    seconds: float
    faults: int


def _steady(runs: Sequence[Run]) -> list[float]:
    """Those after the first, which warms up, in which the heap did not grow: in training it soon has its size.

    Where large blocks go back to the kernel at once, as they do on small devices, all runs have many faults.
    """
    least = min((run.faults for run in runs[1:]), default=0)
    return [run.seconds for run in runs[1:] if run.faults <= 2 * least + FEW_FAULTS]


def _num_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource is not None else 0


class Stopwatch:
    """Times runs by their work, and knows by how much the clock went faster."""

    def __init__(self, device: torch.device, clock: Clock, work_clock: Clock) -> None:
        self.device = device
        self.clock = clock
        self._work_clock = work_clock
        self._clocked = self._worked = self._typical = self._counted = 0.0

    def time(self, work: Callable[[], Any]) -> tuple[Run, Any]:
        """How it went, and what came of it."""
        faults, start, work_start = _num_faults(), self.clock(), self._work_clock()
        result = work()
        _wait_for(self.device)
        worked = self._work_clock() - work_start
        self._clocked += self.clock() - start
        self._worked += worked
        return Run(worked, _num_faults() - faults), result

    def typical(self, runs: Sequence[Run]) -> float:
        """The lower median of a work's steady runs."""
        steady = _steady(runs)
        median = statistics.median_low(steady)
        self._typical += len(steady) * median
        self._counted += sum(min(seconds, OUTLIER * median) for seconds in steady)
        return median

    def seconds(self, work: Callable[[], Any], end: float) -> float:
        """Of a work that is run a few times, until ``end`` by the clock; not stretched."""
        runs: list[Run] = []
        while self.wants(runs, end):
            runs.append(self.time(work)[0])
        return self.typical(runs)

    def wants(self, runs: Sequence[Run], end: float) -> bool:
        """Whether to time the work once more: always, as long as there is time until ``end`` or too few are steady."""
        return len(runs) <= NUM_RUNS and (len(_steady(runs)) < LEAST_RUNS or self.clock() < end)

    @property
    def delay(self) -> float:
        """How many times as long as its CPU time all of the work took by the clock."""
        return self._clocked / self._worked if self._worked > 0 else 1.0

    @property
    def stretch(self) -> float:
        """How many times as long as its typical runs say all of the work took by the clock."""
        if self._worked <= 0 or self._typical <= 0:
            return 1.0
        return self.delay * self._counted / self._typical


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

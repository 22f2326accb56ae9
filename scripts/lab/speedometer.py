"""How fast this machine's cores are from one moment to the next, whatever runs on them.

The cores of a rented machine are somebody else's, too: the same passes of one model took up to 1.4 times as long
within a quarter of an hour. So what was measured in one minute says little of the next, unless something measured the
machine in both. That is a small computation here, timed by its CPU time every second or two, on one core after the
other, outside of all devices: it takes about a fiftieth of each. Others' use of caches and memory slows work on much
memory more than work on little (1.4 and 1.15 times were seen at once), so it is some of both: convolutions, forward and
backward, that hardly have weights, and that hardly have anything else.

    python -m lab.speedometer FILE CPU...      (started by ``Speedometer``; writes a line for each measurement)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.host import environment
from p2ptrain.runtime.parent import own_child

EVERY_S = 1.5
SHAPES = ((32, 64, 16), (16, 512, 4))
"""Of the convolutions: samples, channels, pixels a side."""
ENOUGH = 3
"""Readings of a core; fewer are none."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``seconds``: of CPU time that the computation took on the core, at ``time.monotonic()`` ``at``."""

    at: float
    cpu: int
    seconds: float


class Speedometer:
    """Measures from ``with`` on until the end of its block. Needs Linux."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="p2ptrain-speed-")
        self._file = Path(self._folder.name) / "readings"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Speedometer:
        cpus = map(str, sorted(os.sched_getaffinity(0)))
        command = [sys.executable, "-m", "lab.speedometer", str(self._file), *cpus]
        self._process = subprocess.Popen(command, env=environment() | {**own_child(), "OMP_NUM_THREADS": "1"})
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def readings(self) -> list[Reading]:
        """So far."""
        return readings_of(self._file.read_text(encoding="ascii")) if self._file.exists() else []


def readings_of(text: str) -> list[Reading]:
    """Lines of a speedometer's file; the last one counts once it is whole."""
    lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [Reading(float(at), int(cpu), float(seconds)) for at, cpu, seconds in lines]


def speed_of(readings: Sequence[Reading], start: float, end: float) -> dict[int, float]:
    """Computations per second of each core between two moments (``time.monotonic()``); cores with too few are left
    out."""
    found: dict[int, list[float]] = {}
    for reading in readings:
        if start <= reading.at <= end:
            found.setdefault(reading.cpu, []).append(reading.seconds)
    return {cpu: 1 / statistics.mean(seconds) for cpu, seconds in sorted(found.items()) if len(seconds) >= ENOUGH}


def change(before: Mapping[int, float], after: Mapping[int, float]) -> float | None:
    """How many times as fast the cores got, on average; None where nobody knows."""
    known = before.keys() & after.keys()
    return statistics.mean(after[cpu] / before[cpu] for cpu in sorted(known)) if known else None


def main(file: Path, cpus: Sequence[int]) -> None:
    import torch
    from torch import nn

    from p2ptrain.runtime.trainer.process import die_with_node

    die_with_node()
    os.nice(-15)  # be on time; a trainer's passes are hardly longer for it
    torch.set_num_threads(1)
    work = []
    for samples, channels, side in SHAPES:
        convolution = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.full((samples, channels, side, side), 0.01).to(memory_format=torch.channels_last)
        work.append((convolution, x.requires_grad_()))
    for convolution, x in work:
        convolution(x).sum().backward()
    number = 0
    with file.open("w", encoding="ascii") as out:
        while True:
            cpu = cpus[number % len(cpus)]
            os.sched_setaffinity(0, {cpu})
            start = time.process_time()
            for convolution, x in work:
                convolution(x).sum().backward()
            seconds = time.process_time() - start
            out.write(f"{time.monotonic()!r} {cpu} {seconds!r}\n")
            out.flush()
            number += 1
            time.sleep(EVERY_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(cpu) for cpu in sys.argv[2:]])

"""How fast each device really is at the job's model, beside how fast its share of a core should make it.

A share in short turns does less than the share's work, as each turn begins with cold caches; and several threads do
less than as many times one. What is measured to be missing is added to the quota, and measured again.

Invariant: nominal speed is the share of what one thread, without a limit, did in a second of CPU time just before and
just after, in the same process: so a machine that gets slower for everybody fails nobody, and neither does one on which
something else runs, unless it takes the devices' own time. Devices' speeds are in the ratio of their shares, with
however many threads each trains.

    python -m lab.calibration < JOB.json      (started by ``calibrate``: trains steps on demand)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.quota import DeviceGroup
from lab.spec import Device
from p2ptrain.config import Job
from p2ptrain.errors import P2PTrainError, UserError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 0.05
ATTEMPTS = 12
LARGEST_CORRECTION = 2.0
NUM_POOLED, ABOUT = 3, 0.1
"""So many measurements, with quotas so near to each other, count together."""
TURN_S = 1.5
"""Of a whole core; a device gets longer turns the smaller its share, for a fair number of its periods and steps."""
NUM_TURNS = 3
BATCH_SIZE = 8
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Training samples per second."""

    device: str
    share: float
    nominal: float
    measured: float
    correction: float = 1.0
    """Of the quota, with which that was measured."""
    num_threads: int = 1

    @property
    def deviation(self) -> float:
        return self.measured / self.nominal - 1.0

    @property
    def fine(self) -> bool:
        return abs(self.deviation) <= TOLERANCE


class OffSpeedError(UserError):
    """A device is not as fast as its share says."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Samples trained in so many seconds of wall and of CPU time."""

    samples: int
    wall_s: float
    cpu_s: float


class Worker:
    """A process that trains the job's model for so many seconds when asked, in whatever cgroup it has been put."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def train(self, seconds: float, num_threads: int = 1) -> Turn:
        """For so many seconds of wall time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds} {num_threads}\n")
        self._process.stdin.flush()
        return Turn(*json.loads(self.read()))

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise P2PTrainError(f"the calibration's worker ended with status {self._process.wait()}")
        return line


@contextmanager
def worker(job: Job, environment: Mapping[str, str]) -> Iterator[Worker]:
    """A worker that is ready, gone afterwards."""
    command = [sys.executable, "-m", "lab.calibration"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
            ready = Worker(process)
            ready.read()
            yield ready
        finally:
            process.kill()


def calibrate(
    job: Job,
    devices: Sequence[Device],
    groups: Mapping[str, DeviceGroup],
    num_cores: float,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> list[Speed]:
    """Measure every device, one after the other. Raises ``OffSpeedError`` if one is more than 5 % off."""
    speeds = []
    with worker(job, environment) as trainer, _outside(trainer.pid) as home:
        trainer.train(TURN_S)  # warm caches, allocator, the oneDNN kernels
        for device in devices:
            group, tried = groups[device.name], list[Speed]()
            for _ in range(ATTEMPTS):
                speed = measure_device(trainer, device, device.num_threads(num_cores), group, home)
                tried.append(speed)
                speed = pooled(tried)
                if speed.fine:
                    break
                group.correct(next_correction(tried))
            say(
                f"{device.name}: {speed.measured:.1f} samples/s of nominal {speed.nominal:.1f} ({speed.deviation:+.1%})"
                f", quota x {speed.correction:.2f}"
            )
            speeds.append(speed)
    bad = [speed for speed in speeds if not speed.fine]
    if bad:
        raise OffSpeedError(
            f"{', '.join(s.device for s in bad)}: more than {TOLERANCE:.0%} off the nominal speed in {ATTEMPTS} tries; "
            "end what else runs on this machine, or give smaller shares, and run again"
        )
    return speeds


def pooled(tried: Sequence[Speed]) -> Speed:
    """The last measurement; or, once there are a few with about its quota, their median.

    A single one may be a tenth off on a machine that others share, either way.
    """
    last = tried[-1]
    ratios = [
        speed.measured / speed.nominal * last.correction / speed.correction
        for speed in tried
        if abs(speed.correction / last.correction - 1) <= ABOUT
    ]
    if len(ratios) < NUM_POOLED:
        return last
    return dataclasses.replace(last, measured=statistics.median(ratios) * last.nominal)


def next_correction(tried: Sequence[Speed]) -> float:
    """Of the quota, after these measurements, the last of which was off.

    Each of them says what would have been right; their median counts. Speed need not grow as the quota does, and a
    machine that other work is on wavers by a tenth: who follows the last measurement alone runs to and fro.
    """
    right = [speed.correction * speed.nominal / speed.measured for speed in tried]
    return min(max(statistics.median(right), 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)


def measure_device(
    trainer: Worker, device: Device, num_threads: int, group: DeviceGroup, home: Callable[[], None]
) -> Speed:
    """Turns in which the device got less CPU time than its quota allows are taken again, a few times."""
    cores: list[float] = []
    ratios: list[float] = []
    for left in reversed(range(2 * NUM_TURNS)):
        before = trainer.train(TURN_S / 2)
        group.add(trainer.pid)
        limited = trainer.train(TURN_S / min(1.0, device.share) ** 0.5, num_threads)
        home()
        after = trainer.train(TURN_S / 2)
        robbed = limited.cpu_s < (1 - TOLERANCE) * group.quota * limited.wall_s
        if robbed and left >= NUM_TURNS - len(ratios):
            continue
        cores.append((before.samples + after.samples) / (before.cpu_s + after.cpu_s))
        ratios.append(limited.samples / limited.wall_s / cores[-1])
        if len(ratios) == NUM_TURNS:
            break
    core = statistics.median(cores)
    measured = statistics.median(ratios) * core
    return Speed(device.name, device.share, device.share * core, measured, group.correction, num_threads)


@contextmanager
def _outside(pid: int) -> Iterator[Callable[[], None]]:
    """A call that brings a process back to the cgroups and the cores that it is on now."""
    from lab.quota import find_controllers

    controllers = find_controllers()
    folders, cpus = {controllers.cpu, controllers.memory}, os.sched_getaffinity(pid)

    def back() -> None:
        for folder in folders:
            (folder / "cgroup.procs").write_text(str(pid))
        os.sched_setaffinity(pid, cpus)

    yield back
    with contextlib.suppress(OSError):
        back()


def made_up_batch(job: Job, num: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """x [num, ...], y [num], or [num, T] for text, which has a label at every position: what its data would give."""
    import torch

    classes, shape = len(job.data.classes), job.data.input_shape
    if job.data.kind != "text":
        return torch.randn(num, *shape), torch.arange(num) % classes
    x = (torch.arange(num * shape[-1]) % classes).reshape(num, *shape)
    return x, x.flatten(1)


def main() -> None:
    """Train for as many seconds and with as many threads as each line of standard input says."""
    import torch

    from p2ptrain.learning.models import global_model
    from p2ptrain.learning.training import LocalTrainer
    from p2ptrain.modes.jobs import job_from_json

    job = job_from_json(sys.stdin.readline(), "job")
    model = global_model(job, allow_user_code=False)
    trainer = LocalTrainer(model, job.training, num_classes=len(job.data.classes), total_steps=10**6, seed=0)
    x, y = made_up_batch(job)
    trainer.step(x, y)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, num_threads = line.split()
        torch.set_num_threads(int(num_threads))
        start, cpu_before, steps = time.perf_counter(), time.process_time(), 0
        while (wall_s := time.perf_counter() - start) < float(seconds):
            trainer.step(x, y)
            steps += 1
        print(json.dumps([steps * BATCH_SIZE, wall_s, time.process_time() - cpu_before]), flush=True)


if __name__ == "__main__":
    main()

"""Measures this device: how fast it trains, how much memory and disk it gives, how many cores it may use.

Invariant: bounded in time (``probe`` about five seconds, ``quick_probe`` half a second, beside the import of torch and
one warming step each), and honest about limits: CPU affinity, cgroup quotas and cgroup memory count, not what the
machine has.

torch is imported inside, so the node must not call this: the trainer does, or ``p2ptrain probe``. The speed is that of
whole training steps (forward, backward, update) of a small CNN in float32: not a peak, but what planning wants to know.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from p2ptrain.planning.devices.profiles import DeviceProfile, Figure, Kind

STEP_FLOPS_PER_SAMPLE = 2 * (2 * 884_736 + 3 * 2 * 4_718_592 + 3 * 1_280)
"""Two per multiply-add; forward, gradient of the weights, and but for the first layer that of the input."""
CPU_BATCH = 16
ACCELERATOR_BATCH = 256
DISK_BLOCK_BYTES = 4 << 20
DISK_LIMIT_BYTES = 128 << 20
USUAL_LINK_BYTES_PER_S = 12.5e6
ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was measured. 0 = not measured."""

    flops_per_s: float
    """With all threads that this process may use, or on the accelerator."""
    flops_per_s_one_core: float
    memory_bytes: int
    disk_bytes_per_s: float
    cores: float
    accelerator: str
    link_bytes_per_s: float
    """What the fastest network interface says of itself."""
    versions: str
    seconds: float


def probe(folder: Path | None = None) -> ProbeResult:
    """Measure everything, in about five seconds. Disk speed is that of ``folder``."""
    began = time.perf_counter()
    cores = available_cores()
    one = training_flops_per_s(1, 0.8)
    every = one if cores < 2 else max(one, training_flops_per_s(math.floor(cores), 1.2))  # threads may only hurt
    accelerator, device = find_accelerator()
    if device:
        every = training_flops_per_s(1, 1.5, device)
    return ProbeResult(
        flops_per_s=every,
        flops_per_s_one_core=one,
        memory_bytes=available_memory(device),
        disk_bytes_per_s=disk_write_speed(folder or Path.cwd(), 0.5),
        cores=cores,
        accelerator=accelerator,
        link_bytes_per_s=link_speed(),
        versions=versions(),
        seconds=time.perf_counter() - began,
    )


def quick_probe() -> ProbeResult:
    """Speed with all threads or on the accelerator, memory and cores, in about half a second."""
    began = time.perf_counter()
    cores = available_cores()
    accelerator, device = find_accelerator()
    return ProbeResult(
        flops_per_s=training_flops_per_s(max(1, math.floor(cores)), 0.4, device or "cpu"),
        flops_per_s_one_core=0.0,
        memory_bytes=available_memory(device),
        disk_bytes_per_s=0.0,
        cores=cores,
        accelerator=accelerator,
        link_bytes_per_s=0.0,
        versions=versions(),
        seconds=time.perf_counter() - began,
    )


def profile_of(result: ProbeResult, name: str, kind: Kind) -> DeviceProfile:
    """The profile that a probe's result makes, with versions as the source of every number."""

    def measured(value: float, what: str) -> Figure:
        return Figure(value, "measured", f"p2ptrain probe: {what}; {result.versions}")

    link = Figure(USUAL_LINK_BYTES_PER_S, "estimated", "no interface says its speed: taken for 100 Mbit/s")
    if result.link_bytes_per_s:
        nominal = "nominal rate of the fastest interface that is up; what arrives is less"
        link = Figure(result.link_bytes_per_s, "estimated", nominal)
    one, disk = result.flops_per_s_one_core, result.disk_bytes_per_s
    return DeviceProfile(
        name=name,
        kind=kind,
        accelerator=result.accelerator,
        flops_per_s=measured(round(result.flops_per_s), "training steps of a small CNN, float32"),
        memory_bytes=measured(result.memory_bytes, "free at the time, cgroup limits counted"),
        link_bytes_per_s=link,
        cores=measured(result.cores, "affinity and cgroup quota counted"),
        flops_per_s_one_core=measured(round(one), "the same with one thread") if one else None,
        disk_bytes_per_s=measured(round(disk), "written and synced") if disk else None,
    )


def versions() -> str:
    """What the numbers were measured with."""
    import torch

    try:
        own = metadata.version("p2ptrain")
    except metadata.PackageNotFoundError:
        own = "source"
    return f"p2ptrain {own}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}"


# --- speed ----------------------------------------------------------------------------------------------------------


def training_flops_per_s(num_threads: int, seconds: float, device: str = "cpu") -> float:
    """FLOP/s of the median training step of a small CNN within ``seconds``."""
    import torch
    from torch import nn

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        batch = CPU_BATCH if device == "cpu" else ACCELERATOR_BATCH
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(
                nn.Conv2d(3, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(64, 128, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(128, 10),
            ).to(device)
            x = torch.randn(batch, 3, 32, 32).to(device)
            y = torch.arange(batch).remainder(10).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            _wait_for(torch, device)

        step()  # warms up
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return STEP_FLOPS_PER_SAMPLE * batch / statistics.median(times)
    finally:
        torch.set_num_threads(before)


def find_accelerator() -> tuple[str, str]:
    """Name and torch device of what trains faster than the CPU; both "" without one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0), "cuda"
    if torch.backends.mps.is_available():
        return "Apple GPU", "mps"
    return "", ""


def _wait_for(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


# --- what this process may use --------------------------------------------------------------------------------------


def available_cores(root: Path = ROOT) -> float:
    """Cores that this process may use: affinity, and the tightest cgroup quota (which may be a fraction)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [float(affinity)]
    for folder in _cgroups(root, "cpu"):
        text = _read(folder / "cpu.max")
        if text:  # v2: "quota period"
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return max(0.01, min(quotas))


def available_memory(device: str = "", root: Path = ROOT) -> int:
    """Bytes that training may use now: the accelerator's own, or the tightest of free memory and cgroup limits."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    free = [int(psutil.virtual_memory().available)]
    for folder in _cgroups(root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit.isdecimal() and used.isdecimal():
            cache = _stat(_read(folder / "memory.stat"), ("inactive_file", "total_inactive_file"))
            free.append(int(limit) - max(0, int(used) - cache))
    return max(0, min(free))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and those above it, v2's and the v1 controller's, as far as they are visible."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            tops = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            tops = [mount / controller, mount / controllers]
        else:
            continue
        steps = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:  # inside a container the path may be the host's: then only the top is there
            for length in range(len(steps), -1, -1):
                folder = top.joinpath(*steps[:length])
                if folder.is_dir():
                    yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _stat(text: str, keys: tuple[str, ...]) -> int:
    values = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return max((int(values[key]) for key in keys if values.get(key, "").isdecimal()), default=0)


# --- disk and network -----------------------------------------------------------------------------------------------


def disk_write_speed(folder: Path, seconds: float) -> float:
    """Bytes/s written and synced into ``folder``; 0 where it can't be written to."""
    block = os.urandom(DISK_BLOCK_BYTES)
    written = 0
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            while written < DISK_LIMIT_BYTES and time.perf_counter() - began < seconds:
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
                written += len(block)
            return written / max(1e-9, time.perf_counter() - began)
    except OSError:
        return 0.0


def link_speed() -> float:
    """Bytes/s that the fastest interface that is up says it has; 0 where none says so (Wi-Fi mostly doesn't)."""
    try:
        stats = psutil.net_if_stats()
    except OSError:
        return 0.0
    rates = [s.speed for name, s in stats.items() if s.isup and name != "lo" and 0 < s.speed < 1_000_000]
    return max(rates, default=0) * 1e6 / 8


def default_kind() -> Kind:
    """A guess for a profile's ``kind``."""
    if sys.platform == "linux" and platform.machine() in ("aarch64", "armv7l"):
        return "board"
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return "laptop" if battery is not None else "desktop"

"""CPU shares and memory limits by cgroup, version 1 or 2, whichever the machine has mounted.

Invariant: only groups that a lab made are ever removed: their names say which process made them, and those of labs that
are no more are swept when the next one starts. A group's processes are in every controller that limits them. Up to
its share a device comes before whatever else runs on the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from p2ptrain.errors import UserError

NAME = "p2ptrain-lab"
TURN_US = 10_000
"""What a device computes at a stretch. Shorter turns start with cold caches ever more often (with turns of 2 ms a tenth
of a core did 0.7 of its work); longer ones mean longer waits between them."""
SHORTEST_PERIOD_US, LONGEST_PERIOD_US = 20_000, 500_000
PRIORITY = {1: ("cpu.shares", "65536"), 2: ("cpu.weight", "10000")}
"""By version; what is not said to weigh anything weighs 1024 or 100."""
GONE_S = 5.0


@dataclass(frozen=True, slots=True)
class Controllers:
    """Where groups are made. On version 2 both folders are the same."""

    version: int
    cpu: Path
    memory: Path


def find_controllers(mounts: str | None = None, own: str | None = None, root: Path = Path("/")) -> Controllers:
    """Read off ``/proc/mounts`` and ``/proc/self/cgroup``. Raises ``UserError`` if there is no CPU controller."""
    mounts = Path("/proc/mounts").read_text() if mounts is None else mounts
    own = Path("/proc/self/cgroup").read_text() if own is None else own
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    v1: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split()
        place = root / folder.lstrip("/")
        if kind == "cgroup":
            for name in {"cpu", "memory"} & set(options.split(",")):
                v1[name] = place / paths.get(name, "/").lstrip("/")
        elif kind == "cgroup2":
            known = _read(place / "cgroup.controllers").split()
            if "cpu" in known and "memory" in known:
                return Controllers(2, place, place)  # below the root: a group with processes may have no children
    if "cpu" not in v1 or "memory" not in v1:
        raise UserError("no cgroup controllers for CPU and memory are mounted; the lab needs them (version 1 or 2)")
    return Controllers(1, v1["cpu"], v1["memory"])


class DeviceGroup:
    """One device's cgroup."""

    def __init__(
        self,
        controllers: Controllers,
        device: str,
        share: float,
        memory_mb: float = 0.0,
        cpus: tuple[int, ...] = (),
    ) -> None:
        """``share`` of a core; ``memory_mb`` 0 = no limit; ``cpus`` it stays on, () = any. Raises ``UserError``."""
        self.cpus = cpus
        self._controllers = controllers
        self._share, self.correction = share, 1.0
        name = f"{NAME}-{os.getpid()}-{device}"
        self.folders = tuple(dict.fromkeys((controllers.cpu / name, controllers.memory / name)))
        try:
            if controllers.version == 2:
                (controllers.cpu / "cgroup.subtree_control").write_text("+cpu +memory")
            for folder in self.folders:
                folder.mkdir()
            self.set_share(share)
            file, weight = PRIORITY[controllers.version]
            (self.folders[0] / file).write_text(weight)
            if memory_mb:
                limit = str(round(memory_mb * 1e6))
                if controllers.version == 1:
                    (controllers.memory / name / "memory.limit_in_bytes").write_text(limit)
                else:
                    (self.folders[0] / "memory.max").write_text(limit)
                    with contextlib.suppress(OSError):  # no swap here
                        (self.folders[0] / "memory.swap.max").write_text("0")
        except OSError as error:
            self.remove()
            raise UserError(f"{error.filename}: {error.strerror}; the lab makes cgroups and needs root") from None

    def correct(self, factor: float) -> None:
        """From now on ``factor`` times the CPU time that the share says: what short turns cost is given back."""
        self.correction = factor
        self.set_share(self._share)

    @property
    def quota(self) -> float:
        """CPU seconds a second."""
        return self._share * self.correction

    def set_share(self, share: float) -> None:
        """From now on so much of a core."""
        self._share = share
        period = round(min(max(TURN_US / share, SHORTEST_PERIOD_US), LONGEST_PERIOD_US))
        quota = round(self.quota * period)
        if self._controllers.version == 2:
            (self.folders[0] / "cpu.max").write_text(f"{quota} {period}")
            return
        (self.folders[0] / "cpu.cfs_quota_us").write_text("-1")  # so that no order of the two is refused
        (self.folders[0] / "cpu.cfs_period_us").write_text(str(period))
        (self.folders[0] / "cpu.cfs_quota_us").write_text(str(quota))

    @property
    def entrances(self) -> list[Path]:
        """Files into which a process writes 0 to become a member."""
        return [folder / "cgroup.procs" for folder in self.folders]

    def add(self, pid: int) -> None:
        """A process of one thread."""
        for entrance in self.entrances:
            entrance.write_text(str(pid))
        if self.cpus:
            os.sched_setaffinity(pid, self.cpus)

    def pids(self) -> list[int]:
        return [int(pid) for pid in _read(self.folders[0] / "cgroup.procs").split()]

    def peak_memory_bytes(self) -> int:
        """The most that the device used; 0 if the kernel does not tell."""
        name = "memory.peak" if self._controllers.version == 2 else "memory.max_usage_in_bytes"
        return int(_read(self.folders[-1] / name) or 0)

    def kept_bytes(self) -> int:
        """Memory in use now that is no copy of a file, which the kernel would drop first; 0 if it does not tell."""
        stat = dict(line.split() for line in _read(self.folders[-1] / "memory.stat").splitlines())
        return int(stat.get("anon", 0) if self._controllers.version == 2 else stat.get("total_rss", 0))

    def cpu_s(self) -> float:
        """CPU seconds used so far."""
        if self._controllers.version == 2:
            stat = dict(line.split() for line in _read(self.folders[0] / "cpu.stat").splitlines())
            return int(stat.get("usage_usec", 0)) / 1e6
        ticks = sum(_ticks(pid) for pid in self.pids())
        return ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        """To every process of the device."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def remove(self) -> None:
        """Kill what is left in it and remove it."""
        deadline = time.monotonic() + GONE_S
        for folder in self.folders:
            while folder.is_dir():
                for pid in _read(folder / "cgroup.procs").split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.02)


def sweep(controllers: Controllers) -> list[str]:
    """Remove what labs that were killed have left behind; the names."""
    swept = []
    for parent in {controllers.cpu, controllers.memory}:
        for folder in parent.glob(f"{NAME}-*"):
            pid = folder.name.removeprefix(f"{NAME}-").partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                with contextlib.suppress(OSError):  # processes in it: not ours to end
                    folder.rmdir()
                    swept.append(folder.name)
    return swept


def _ticks(pid: int) -> int:
    """Of user and system time of a process and its ended children."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""What all benchmarks share: settings, figures, the machine's description, the table, the JSON file.

Invariant: a result file holds every raw figure that its medians come from, and enough about the machine, the versions
and the command line to run it again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks import plots
from p2ptrain.errors import P2PTrainError

SCRIPTS = Path(__file__).resolve().parents[1]
REPOSITORY = SCRIPTS.parent
RESULT_VERSION = 1
PACKAGES = ("p2ptrain", "torch", "pyzmq", "msgpack", "numpy", "safetensors", "zeroconf", "psutil")
CUT_OFF = "cut off"
"""What a result file says that was written before the benchmark's end."""
SEED = 2026
"""Of everything random that a benchmark makes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """``repeat``: how often baseline and measured thing are run in turn. ``tiny``: only show that it works.

    ``more``: add to the repetitions that there are, of which ``measure`` counts ``done``. ``resume``: go on with what
    an earlier run measured, ``before``. ``only``: of a benchmark whose cases can be chosen, these.
    """

    repeat: int = 3
    tiny: bool = False
    more: bool = False
    done: int = 0
    resume: bool = False
    only: tuple[str, ...] = ()
    before: tuple[Sample, ...] = ()

    @property
    def repetitions(self) -> range:
        """Their numbers, which seeds may follow from."""
        return range(self.done, self.done + self.repeat)

    def wants(self, case: str, repetition: int) -> bool:
        """Whether this is still to be measured."""
        is_known = any((sample.case, sample.repetition) == (case, repetition) for sample in self.before)
        return not is_known and (not self.only or case in self.only)


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition of one case: figures with their unit in the name. ``is_baseline`` cases are compared with."""

    case: str
    repetition: int
    figures: dict[str, float]
    is_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A figure as a column of the table."""

    figure: str
    title: str
    digits: int = 1


class Benchmark(Protocol):
    """A module under benchmarks/, or one of the named cases in its ``NAMED``: "module-case".

    A module has ``LISTED``: a line for ``scripts/bench.py list`` by name, of itself and of its named cases; and
    ``FIGURES``, the section of what counts (``rows.py``). It may have ``notes(cases)``, lines below the table;
    ``plot(figure, result)``; ``PLOT_HEIGHT_IN``. If its cases can be chosen, and a run that was cut off be gone on
    with, it names them in ``CHOICES`` and asks ``Settings.wants``; what it compares between cases it adds in
    ``compared(samples)``.
    """

    BASELINE: str
    """What is compared with, in words."""
    COLUMNS: tuple[Column, ...]

    def run(self, settings: Settings) -> Iterator[Sample]: ...


def measure(name: str, benchmark: Any, settings: Settings, folder: Path) -> dict[str, Any]:
    """Run a benchmark, print its table, write its file; what the file holds is returned.

    What was measured so far is in ``NAME.partial.json`` while it runs, and stays there if it is cut off.

    Raises ``P2PTrainError`` if there is nothing to add to, or it was measured elsewhere.
    """
    started, load_before = time.time(), os.getloadavg()[0]
    before = _before(name, settings, folder) if settings.more or settings.resume else None
    samples = [Sample(**sample) for sample in before["samples"]] if before else []
    if before and settings.more:
        settings = dataclasses.replace(settings, done=before["repeat"])
    settings = dataclasses.replace(settings, before=tuple(samples))
    repeat = settings.repeat + settings.done
    took_before = before["took_s"] if before else 0.0

    def result_so_far(incomplete: str) -> dict[str, Any]:
        found = benchmark.compared(samples) if hasattr(benchmark, "compared") else samples
        return {
            "version": RESULT_VERSION,
            "benchmark": name,
            "baseline": benchmark.BASELINE,
            "tiny": settings.tiny,
            "repeat": max(repeat, before["repeat"]) if before else repeat,
            "seed": SEED,
            "incomplete": incomplete,
            "command_line": before["command_line"][:1] + _in_one_go(name, settings) if before else sys.argv,
            "started_at": before["started_at"] if before else started,
            "took_s": took_before + time.time() - started,
            "load_average_before": load_before,
            "load_average_after": os.getloadavg()[0],
            "machine": describe_machine(),
            "versions": describe_versions(),
            "cases": (cases := summarise(found)),
            "notes": benchmark.notes(cases) if hasattr(benchmark, "notes") and incomplete != CUT_OFF else [],
            "samples": [
                {"case": s.case, "repetition": s.repetition, "is_baseline": s.is_baseline, "figures": s.figures}
                for s in found
            ],
        }

    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"{name}.json", folder / f"{name}.partial.json"
    incomplete = ""
    try:
        for sample in benchmark.run(settings):
            samples.append(sample)
            figures = "  ".join(f"{key}={value:.4g}" for key, value in sample.figures.items())
            print(f"  {name} {sample.repetition}: {sample.case}: {figures}", file=sys.stderr, flush=True)
            _write(partial, result_so_far(CUT_OFF))
    except (TimeoutError, subprocess.TimeoutExpired) as error:  # what was measured until then is worth keeping
        incomplete = f"{type(error).__name__}: {error}"
    result = result_so_far(incomplete)
    _write(path, result)
    partial.unlink(missing_ok=True)
    print_table(name, result, benchmark.COLUMNS)
    for note in result["notes"]:
        print(note)
    if incomplete:
        print(f"INCOMPLETE: {incomplete}; is the machine busy with other things?")
    picture = plots.draw(name, benchmark, result, folder)
    print(f"{path} ({result['took_s']:.0f} s), {picture or plots.HOW_TO}\n")
    return result


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _before(name: str, settings: Settings, folder: Path) -> dict[str, Any] | None:
    """The result that is added to; to resume, that of a run that was cut off, if there is one; None: there is none."""
    option = "--more" if settings.more else "--resume"
    path, partial = folder / f"{name}.json", folder / f"{name}.partial.json"
    if settings.resume and partial.is_file():
        path = partial
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        if settings.resume:
            return None
        raise P2PTrainError(f"{path}: nothing to add to; measure without --more") from None
    here = {"tiny": settings.tiny, "machine": describe_machine(), "versions": describe_versions()}
    for key, value in (here if settings.resume else here | {"incomplete": ""}).items():
        if before[key] != value:
            raise P2PTrainError(f"{path}: {key} was {before[key]!r} and is {value!r}; measure anew, without {option}")
    return before


def _in_one_go(name: str, settings: Settings) -> list[str]:
    """What to type for all repetitions at once."""
    return [name, "--repeat", str(settings.done + settings.repeat), *(["--tiny"] if settings.tiny else [])]


def redraw(name: str, benchmark: Any, folder: Path) -> Path | None:
    """The picture of an earlier result."""
    return plots.draw(name, benchmark, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), folder)


def summarise(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """By case, in the order of first appearance: median, lowest and highest of each figure."""
    cases: dict[str, list[Sample]] = {}
    for sample in samples:
        cases.setdefault(sample.case, []).append(sample)
    summary = []
    for case, own in cases.items():
        names = dict.fromkeys(name for sample in own for name in sample.figures)
        figures = {}
        for name in names:
            values = [sample.figures[name] for sample in own if name in sample.figures]
            figures[name] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        summary.append(
            {"case": case, "is_baseline": own[0].is_baseline, "num_repetitions": len(own), "figures": figures}
        )
    return summary


def print_table(name: str, result: dict[str, Any], columns: Sequence[Column]) -> None:
    """Medians, with the spread (lowest to highest) behind each."""
    machine = result["machine"]
    print(f"\n{name}: {machine['cpu']}, {machine['cores']} cores, load {result['load_average_before']:.1f} before")
    print(f"baseline (*): {result['baseline']}")
    rows = [["case", *(column.title for column in columns)]]
    for case in result["cases"]:
        row = [("* " if case["is_baseline"] else "  ") + case["case"]]
        for column in columns:
            figure = case["figures"].get(column.figure)
            if figure is None:
                row.append("-")
            else:
                middle, low, high = (f"{figure[key]:.{column.digits}f}" for key in ("median", "low", "high"))
                row.append(middle if low == high else f"{middle} ({low}..{high})")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def describe_machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=True),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "architecture": platform.machine(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    import zmq

    found = {"python": platform.python_version(), "libzmq": zmq.zmq_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def cpu_s(process: psutil.Process | None = None) -> float:
    """CPU seconds of a process (this one), all its threads."""
    times = (process or psutil.Process()).cpu_times()
    return float(times.user + times.system)


def memory_mb(process: psutil.Process) -> dict[str, float]:
    """Resident, proportional and unique memory now; where the system tells no PSS, without it."""
    full = process.memory_full_info()
    figures = {"rss_mb": full.rss / 1e6, "uss_mb": full.uss / 1e6}
    if hasattr(full, "pss"):
        figures["pss_mb"] = full.pss / 1e6
    return figures


def peak_rss_mb(process: psutil.Process, default: float) -> float:
    """The highest resident memory so far, where the kernel tells it."""
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return default


def child_environment() -> dict[str, str]:
    """For processes that import ``benchmarks`` and this repository's ``p2ptrain``; one thread, as a peer's default."""
    paths = [str(SCRIPTS), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Fills in ``s`` (wall) and ``cpu_s`` (this process) at the end."""
    figures: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield figures
    figures["s"], figures["cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu

"""Checks a peer's data and measures its speed before it starts, in a process of its own.

Invariant: the process that becomes the node imports neither torch nor a decoder: those stay behind in this one, which
ends with it. What is wrong with the data is said before torch is imported, within a second or two; torch takes some
more (measured: 2.5 s on a desktop), which is why a speed measured on a calm device is kept for a day.

    python -m p2ptrain.runtime.preflight        (a request as JSON on standard input, answers as JSON lines)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.imports import uncollected
from p2ptrain.runtime.parent import die_with_parent, own_child
from p2ptrain.version import __version__
from p2ptrain.words import as_text

if TYPE_CHECKING:
    from p2ptrain.planning.devices.profiles import DeviceProfile
    from p2ptrain.runtime.node.peer_options import PeerOptions

SPEED_FILE = "speed.json"
KEPT_S = 86_400.0
MEASURE_S = 0.4
LOOKED_AT = 32
"""So many samples, evenly spread, are decoded before the peer starts."""
TIMEOUT_S = 300.0
DEVICES = ("cpu", "cuda")
"""Any other means: a GPU if there is one."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the person at this device gave. ``device`` "" = measure nothing."""

    data: str
    job: str = ""
    """Canonical JSON; "" = the job comes from the group."""
    shard: str = ""
    dirichlet: float = 0.0
    classes: tuple[str, ...] = ()
    threads: int = 1
    device: str = ""
    """cpu, cuda or auto."""
    strict: bool = False
    """Whether a file that can't be read is an error."""


@dataclass(frozen=True, slots=True)
class Findings:
    """``samples``: training samples of each class, by the data set's own names. 0 and "" = not measured."""

    samples: dict[str, int]
    validation: int = 0
    """Samples for validation, in all. Without a job, only those of the data set's own validation split."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the data set is read."""
    flops_per_s: float = 0.0
    memory_bytes: int = 0
    device: str = "cpu"
    accelerator: str = ""


def prepare(
    options: PeerOptions, state_dir: Path, profile: DeviceProfile | None = None
) -> tuple[PeerOptions, Findings]:
    """The options with nothing left open: the data checked, and what this device can do measured, or as a profile says.

    Raises ``UserError`` for data or a device that can't be used.
    """
    options = dataclasses.replace(
        options, name=options.name or device_name(), num_threads=options.num_threads or all_cores()
    )
    device = options.device
    if profile is not None and device not in DEVICES:
        device = "cuda" if profile.accelerator else "cpu"
    is_known = profile is not None or options.flops_per_s is not None
    request = Request(
        data=options.data,
        job=options.job.to_json() if options.job is not None else "",
        shard=options.shard,
        dirichlet=options.dirichlet,
        classes=options.classes,
        threads=options.num_threads,
        strict=options.strict,
        device="" if is_known and device == "cpu" else device,
    )
    found = preflight(request, state_dir)
    if profile is not None:
        own: dict[str, Any] = {
            "flops_per_s": profile.flops_per_s.value,
            "memory_bytes": int(profile.memory_bytes.value),
            "link_bytes_per_s": profile.link_bytes_per_s.value,
        }
    elif options.flops_per_s is not None:
        own = {}
    else:
        own = {"flops_per_s": found.flops_per_s, "memory_bytes": options.memory_bytes or found.memory_bytes}
    return dataclasses.replace(options, device=found.device, **own), found


def is_prepared(options: PeerOptions) -> bool:
    """Whether ``prepare`` has nothing left to do."""
    is_measured = options.flops_per_s is not None and options.device in DEVICES
    return is_measured and bool(options.name and options.num_threads)


def device_name() -> str:
    """What this device calls itself."""
    return as_text(platform.node().split(".")[0][:64] or sys.platform)


def all_cores() -> int:
    """That this process may use."""
    from p2ptrain.learning.profiling.device import available_cores

    return max(1, math.floor(available_cores()))


def preflight(request: Request, state_dir: Path) -> Findings:
    """Raises ``UserError`` for data or a device that can't be used."""
    kept = _kept_speed(state_dir, request) if request.device else None
    if kept is not None:
        request = dataclasses.replace(request, device="")
    answers = _ask(request)
    findings = Findings(**answers | {"notes": tuple(answers.get("notes", ()))})
    if kept is not None:
        return dataclasses.replace(findings, **kept)
    if request.device and findings.flops_per_s and _is_calm():
        _keep_speed(state_dir, request, findings)
    return findings


def _ask(request: Request) -> dict[str, Any]:
    command = [sys.executable, "-m", "p2ptrain.runtime.preflight"]
    text = json.dumps(dataclasses.asdict(request))
    environment = os.environ | {"OMP_NUM_THREADS": str(request.threads), **own_child()}
    try:
        done = subprocess.run(
            command,
            input=text,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            env=environment,
            # Ctrl-C is this process's to handle, which ends that one without a word. Only its main thread is told.
            process_group=0 if threading.current_thread() is threading.main_thread() else None,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"reading {request.data} and measuring this device took longer than {TIMEOUT_S:g} s; give a smaller data "
            "set, or what the device can do with --profile"
        ) from None
    answers: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        answers |= json.loads(line)
    if "error" in answers:
        raise UserError(answers["error"])
    if done.returncode or "samples" not in answers:
        raise P2PTrainError(f"the check of the data ended with status {done.returncode}; its last words are above")
    return answers


# --- the speed that was measured last ---------------------------------------------------------------------------------


def _key(request: Request) -> str:
    return f"p2ptrain {__version__}, Python {sys.version.split()[0]}, {request.device}, {request.threads} threads"


def _kept_speed(state_dir: Path, request: Request) -> dict[str, Any] | None:
    """What was measured within the last day; memory is looked up anew."""
    from p2ptrain.learning.profiling.device import available_memory

    try:
        kept = json.loads((state_dir / SPEED_FILE).read_text(encoding="utf-8"))
        fresh = kept["key"] == _key(request) and 0 <= time.time() - kept["time"] < KEPT_S
        speed = {
            "flops_per_s": float(kept["flops_per_s"]),
            "device": str(kept["device"]),
            "accelerator": str(kept["accelerator"]),
            "memory_bytes": int(kept["memory_bytes"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if speed["device"] == "cpu":
        speed["memory_bytes"] = available_memory()
    return speed if fresh else None


def _is_calm() -> bool:
    """Whether the device had little else to do: only then is what was measured worth keeping."""
    from p2ptrain.learning.profiling.device import available_cores

    return not hasattr(os, "getloadavg") or os.getloadavg()[0] <= 0.75 * available_cores()


def _keep_speed(state_dir: Path, request: Request, findings: Findings) -> None:
    kept = {"key": _key(request), "time": time.time(), **dataclasses.asdict(findings)}
    del kept["samples"], kept["validation"], kept["notes"]
    try:
        (state_dir / SPEED_FILE).write_text(json.dumps(kept), encoding="utf-8")
    except OSError:
        return  # it will be measured again


# --- the process ------------------------------------------------------------------------------------------------------


def check_data(request: Request) -> dict[str, Any]:
    """Open the data set, cut the share, decode some of it: what ``Findings`` says of the data. Raises ``DataError``."""
    import numpy as np

    from p2ptrain.config import DataConfig
    from p2ptrain.learning.data import Split, check_learnable, class_map, load, open_source, select
    from p2ptrain.modes.jobs import job_from_json

    if not request.data:
        return {"samples": {}}
    source = open_source(request.data)
    job = job_from_json(request.job, where="job") if request.job else None
    # How much to hold out is the job's to say.
    contract = job.data if job else DataConfig(source.classes, source.natural_shape, source.kind, val=0.0)
    source = source.fitted(contract)
    splits: tuple[Split, ...] = ("train", "val")
    chosen = {
        split: select(
            source,
            contract,
            split,
            shard=request.shard or None,
            dirichlet=request.dirichlet or None,
            classes=request.classes or None,
            seed=job.seed if job else 0,
        )
        for split in splits
    }
    labels = [source.labels(split)[indices] for split, indices in chosen.items()]
    if job:
        some = chosen["train"][:: max(1, len(chosen["train"]) // LOOKED_AT)]
        load(source, contract, "train", some, strict=request.strict)
        check_learnable(labels[0], contract, request.data)
        class_map(source, contract, np.unique(np.concatenate(labels)))
    counts = np.bincount(labels[0], minlength=len(source.classes))
    samples = {name: int(n) for name, n in zip(source.classes, counts, strict=True) if n}
    findings = {"samples": samples, "validation": len(chosen.get("val", ()))}
    return findings | ({"notes": list(source.notes())} if source.notes() else {})


def checked_data(job: Job, data: str, *, full: bool, strict: bool) -> dict[str, Any]:
    """What ``job check`` says of a data set: samples of each class, and ``notes``. Raises ``DataError``."""
    import numpy as np

    from p2ptrain.errors import DataError
    from p2ptrain.learning.data import check_learnable, class_map, load, open_source
    from p2ptrain.learning.data.source import SPLITS

    source = open_source(data).fitted(job.data)
    labels = source.labels("train")
    some = np.arange(0, len(labels), max(1, len(labels) // LOOKED_AT))
    found = load(source, job.data, "train", some, strict=strict)
    check_learnable(labels, job.data, data)
    class_map(source, job.data, np.unique(np.concatenate([labels, source.labels("val")])))
    broken = [what for split in SPLITS for what in source.check_files(split, job.data if full else None)]
    notes = [*source.notes(), *(note for note in found.notes if not any(what in note for what in broken))]
    if broken:
        if strict:
            raise DataError(broken[0])
        how = "" if full else ", by headers alone (--full reads all of each file)"
        files = "1 file" if len(broken) == 1 else f"{len(broken)} files"
        notes.append(f"{files} can't be read{how}; left out in training: {broken[0]}")
    return {"samples": source.counts("train"), "validation": source.counts("val"), "notes": notes}


def measure(request: Request) -> dict[str, Any]:
    """Speed and memory of the device asked for. Raises ``UserError`` if it isn't there."""
    from p2ptrain.learning.profiling.device import available_memory, find_accelerator, training_flops_per_s

    accelerator, device = find_accelerator() if request.device != "cpu" else ("", "")
    if request.device == "cuda" and device != "cuda":
        raise UserError("--device cuda: torch finds no CUDA GPU here; install its driver, or take --device cpu")
    device = device or "cpu"
    return {
        "flops_per_s": training_flops_per_s(request.threads, MEASURE_S, device),
        "memory_bytes": available_memory(device),
        "device": device,
        "accelerator": accelerator,
    }


def main() -> None:
    die_with_parent()
    raw = json.load(sys.stdin)
    request = Request(**raw | {"classes": tuple(raw["classes"])})
    try:
        with uncollected():  # most of it is imports, and then the process ends
            print(json.dumps(check_data(request)), flush=True)
            if request.device:
                print(json.dumps(measure(request)), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()

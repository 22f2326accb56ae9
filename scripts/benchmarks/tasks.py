"""Class sub-models beside the whole model by gossip, and beside central training, on the same unlike devices.

All three are runs of the lab with the same job but for its mode, the same samples and as many passes over them. Central
training is a group of one: the fastest device alone, with everybody's samples. Spoken digits with DS-CNN;
``tasks_cifar`` is the same with VGG-11. Accuracy over time comes from the snapshots that the peers save anyway, so
that looking costs the devices nothing. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laboratory import host, jobs, session
from laboratory.quota import sweep
from laboratory.spec import Device, LabSpec, device_of

from benchmarks import plots
from benchmarks.common import REPOSITORY, SEED, Column, Sample, Settings
from p2ptrain.errors import UserError
from p2ptrain.experiment import measure

BASELINE = "central training on the fastest device; the whole model on every device, averaged by gossip"
COLUMNS = (
    Column("accuracy", "accuracy, %", 1),
    Column("trained_s", "seconds", 0),
    Column("flops_share_most", "FLOPs/sample, most, %", 1),
    Column("flops_share_least", "least, %", 1),
    Column("memory_mb", "peak memory, MB", 0),
    Column("sent_mb", "sent a device, MB", 1),
)
SHARES = (0.8, 0.5, 0.3, 0.2)
"""Of a core: four to one, within two cores."""
RATES_MBIT = (100.0, 50.0, 50.0, 20.0)
NUM_POINTS = 12
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Workload:
    data: str
    job: dict[str, Any]
    subset: int = 1
    """Of the training samples one in so many is used."""


def data_file(name: str) -> str:
    """A data set that does not come with the project. Raises ``UserError``."""
    path = Path(os.environ.get("P2PTRAIN_DATA", REPOSITORY.parent / "shared" / "data")) / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; P2PTRAIN_DATA names the folder with {name}")
    return str(path)


def run(settings: Settings) -> Iterator[Sample]:
    training = {"rounds": 12, "batch_size": 32, "learning_rate": 0.05}
    job = {"model": {"name": "dscnn"}, "training": training, "augment": True}
    if settings.tiny:
        yield from compare(Workload("digits", {"model": {"name": "lenet"}, "training": {"rounds": 2}}), settings)
    else:
        yield from compare(Workload(f"audio:{data_file('spoken-digits.zip')}", job), settings)


def compare(workload: Workload, settings: Settings) -> Iterator[Sample]:
    """Central, replicas and tasks in turn, as often as asked for."""
    controllers = host.check_host()
    sweep(controllers)
    count = 2 if settings.tiny else len(SHARES)
    everyone = tuple(
        device_of(f"device{i + 1}", SHARES[i], RATES_MBIT[i], shard=f"{i + 1}/{count * workload.subset}")
        for i in range(count)
    )
    shard = f"1/{workload.subset}" if workload.subset > 1 else ""
    alone = (device_of("device1", SHARES[0], RATES_MBIT[0], shard=shard),)
    cases: tuple[tuple[str, str, tuple[Device, ...]], ...] = (
        ("central, fastest device", "replicas", alone),
        ("whole model by gossip", "replicas", everyone),
        ("class sub-models", "tasks", everyone),
    )
    for repetition in range(settings.repeat):
        for case, mode, devices in cases:
            tables = workload.job | {"mode": mode, "seed": SEED + repetition}
            spec = LabSpec(case, workload.data, tables, devices, timeout_s=TIMEOUT_S)
            figures = _run_lab(spec, controllers, calibrated=not settings.tiny)
            yield Sample(case, repetition, figures, is_baseline=mode == "replicas")


def _run_lab(spec: LabSpec, controllers: Any, *, calibrated: bool) -> dict[str, float]:
    job = jobs.job_of(spec)
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        lab = session.run(
            spec,
            job,
            controllers,
            Path(folder),
            lambda text: None,
            lambda seconds, status: None,
            calibrated=calibrated,
            num_points=NUM_POINTS,
        )
    result = measure.measure(session.experiment_of(spec, job), lab.outcome, None, 1)
    shares = [100 * peer.flops_share for peer in result.peers]
    figures = {
        "accuracy": 100 * result.assembled_accuracy,
        "trained_s": lab.outcome.trained_s,
        "flops_share_most": max(shares),
        "flops_share_least": min(shares),
        "memory_mb": max(use.peak_memory_bytes for use in lab.use.values()) / 1e6,
        "sent_mb": max(peer.bytes_sent for peer in result.peers) / 1e6,
    }
    for device, use in lab.use.items():
        figures |= {f"memory_mb_{device}": use.peak_memory_bytes / 1e6, f"cpu_s_{device}": use.cpu_s}
    for peer in result.peers:
        figures[f"flops_share_{peer.name}"] = 100 * peer.flops_share
    for number, (at_s, accuracy) in enumerate(lab.accuracies):
        figures |= {f"at_s_{number}": at_s, f"accuracy_{number}": 100 * accuracy}
    return figures


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Accuracy over wall-clock time, and what it cost."""
    left, right = figure.subplots(1, 2)
    for number, case in enumerate(result["cases"]):
        found = case["figures"]
        points = [(found[f"at_s_{i}"]["median"], found[f"accuracy_{i}"]["median"]) for i in range(NUM_POINTS)
                  if f"at_s_{i}" in found]  # fmt: skip
        shown = plots.mark(number, is_baseline=case["is_baseline"])
        style = shown.pop("fmt")
        left.plot(*zip(*points, strict=True), marker=style, label=case["case"], **shown)
        right.plot(found["sent_mb"]["median"], found["flops_share_most"]["median"], marker=style, linestyle="", **shown)
        right.annotate(f" {case['case']}", (found["sent_mb"]["median"], found["flops_share_most"]["median"]))
    left.set_xlabel("seconds since the first process was started")
    left.set_ylabel("accuracy on the test samples, %")
    right.set_xlabel("sent by the device that sent most, MB")
    right.set_ylabel("training FLOPs per sample, of the full model's, %")
    right.margins(x=0.5, y=0.2)
    plots.legend(left)

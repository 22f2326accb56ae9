"""Class sub-models beside the whole model by gossip, and beside central training: what unlike devices reach in a time.

All three are runs of the lab for the same wall time from when the first device trains, with the same samples, model,
batch size and learning rate. Central training is a group of one: the fastest device alone, with everybody's samples.
Time is what is equal, because it is what the devices' owners wait for: passes over the samples say nothing where one
device makes four while another makes one, and where a pass costs a sub-model a tenth. When the time is up all training
stops, and the model is assembled from the freshest snapshots, as a harvest at that moment would. The learning rate is
flat, as nobody knows how far a device will get. It rises over the first 3 % of a job's rounds; so each case has about
half as many rounds again as its fastest device makes: nobody ends early, and the rise takes all cases alike.

Accuracy over time comes from the snapshots that the peers save anyway, so that looking costs the devices nothing. What
is measured counts only if the devices were what they are said to be, in speed before the runs and in CPU time during
each; otherwise it is measured again. Spoken digits with DS-CNN; ``tasks-cifar`` is the same on CIFAR-10 with VGG-11,
for a machine that has an hour. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from lab import host, jobs, session
from lab.calibration import OffSpeedError, Speed
from lab.quota import sweep
from lab.spec import Device, LabSpec, device_of

from benchmarks import plots
from benchmarks.common import REPOSITORY, SEED, Column, Sample, Settings
from benchmarks.rows import Remark, Row, Section
from p2ptrain.errors import UserError
from p2ptrain.experiment import measure

LISTED = {
    "tasks": "class sub-models in a lab of unlike devices, beside central training and gossip of the whole model",
    "tasks-cifar": "the same on CIFAR-10 with VGG-11 (hours)",
}
BASELINE = "central training on the fastest device; the whole model on every device, averaged by gossip"
COLUMNS = (
    Column("accuracy", "accuracy, %", 1),
    Column("reached_s", "s to the worst's accuracy", 0),
    Column("samples_trained_k", "samples trained, thousands", 1),
    Column("flops_share_most", "FLOPs/sample, most, %", 1),
    Column("flops_share_least", "least, %", 1),
    Column("memory_mb", "peak memory, MB", 0),
    Column("sent_mb", "sent a device, MB", 1),
    Column("cpu_got", "CPU time got, least, %", 0),
)
SHARES = (0.4, 0.25, 0.15, 0.1)
"""Of a core: four to one, and one of two cores stays free for whatever else runs."""
RATES_MBIT = (100.0, 50.0, 50.0, 20.0)
NUM_POINTS = 12
ATTEMPTS = 5
LEAST_CPU = 0.9
"""Of the CPU time that a device's quota allows; with less while training, something else had taken it."""
CENTRAL, GOSSIP, TASKS = "central, fastest device", "whole model by gossip", "class sub-models"


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workload:
    """``rounds`` of each case."""

    data: str
    job: dict[str, Any]
    train_s: float
    rounds: dict[str, int]
    subset: int = 1
    """Of the training samples one in so many is used."""


def data_file(name: str) -> str:
    """A data set that does not come with the project. Raises ``UserError``."""
    path = Path(os.environ.get("P2PTRAIN_DATA", REPOSITORY.parent / "shared" / "data")) / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; P2PTRAIN_DATA names the folder with {name}")
    return str(path)


def run(settings: Settings) -> Iterator[Sample]:
    training = {"epochs_per_round": 0.25, "batch_size": 32, "learning_rate": 0.05, "schedule": "constant"}
    job = {"model": {"name": "dscnn"}, "training": training, "augment": True}
    if settings.tiny:
        tiny = {"model": {"name": "lenet"}, "training": {"schedule": "constant"}}
        yield from compare(Workload("digits", tiny, 4.0, dict.fromkeys((CENTRAL, GOSSIP, TASKS), 1000)), settings)
    else:
        rounds = {CENTRAL: 45, GOSSIP: 150, TASKS: 450}
        yield from compare(Workload(f"audio:{data_file('spoken-digits.zip')}", job, 120.0, rounds), settings)


def run_cifar(settings: Settings) -> Iterator[Sample]:
    training = {"epochs_per_round": 0.2, "batch_size": 64, "learning_rate": 0.05, "schedule": "constant"}
    job = {"model": {"name": "vgg11_bn"}, "training": training, "augment": True}
    rounds = {CENTRAL: 20, GOSSIP: 80, TASKS: 370}
    train_s, subset = (8.0, 500) if settings.tiny else (200.0, 10)
    data = f"images:{data_file('cifar10-images.zip')}"
    yield from compare(Workload(data, job, train_s, rounds, subset), settings)


def compare(workload: Workload, settings: Settings) -> Iterator[Sample]:
    """Central, gossip and tasks in turn, as often as asked for."""
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
        (CENTRAL, "replicas", alone),
        (GOSSIP, "replicas", everyone),
        (TASKS, "tasks", everyone),
    )
    for repetition in settings.repetitions:
        speeds = () if settings.tiny else _speeds(workload, everyone, controllers)
        found: dict[str, dict[str, float]] = {}
        for case, mode, devices in cases:
            training = workload.job["training"] | {"rounds": workload.rounds[case]}
            tables = workload.job | {"training": training, "mode": mode, "seed": SEED + repetition}
            spec = LabSpec(case, workload.data, tables, devices, train_s=workload.train_s)
            found[case] = undisturbed(partial(_run_lab, spec, controllers, speeds), case)
        worst = min(figures[f"accuracy_{NUM_POINTS - 1}"] for figures in found.values())
        for case, mode, _ in cases:
            yield Sample(case, repetition, found[case] | reached(found[case], worst), is_baseline=mode == "replicas")


def reached(figures: dict[str, float], accuracy: float) -> dict[str, float]:
    """When the curve is first at ``accuracy`` or above, in %."""
    numbers = [i for i in range(NUM_POINTS) if figures.get(f"accuracy_{i}", -1.0) >= accuracy]
    return {"reached_s": figures[f"at_s_{numbers[0]}"]} if numbers else {}


def _speeds(workload: Workload, devices: tuple[Device, ...], controllers: Any) -> tuple[Speed, ...]:
    """Of all devices at the whole model."""
    spec = LabSpec("calibration", workload.data, workload.job, devices)
    job = jobs.job_of(spec)
    return undisturbed(lambda: tuple(session.speeds_of(spec, job, controllers, _say)), spec.name)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def undisturbed(measured: Callable[[], T], what: str) -> T:
    """What is found when the devices are what they are said to be. Raises ``TimeoutError`` if they never are."""
    said = ""
    for attempt in range(ATTEMPTS):
        try:
            return measured()
        except OffSpeedError as error:
            said = str(error)
            _say(f"{what}, {attempt + 1} of at most {ATTEMPTS} times: {said}")
    raise TimeoutError(f"{what}: something disturbed it {ATTEMPTS} times: {said}")


def _run_lab(spec: LabSpec, controllers: Any, speeds: Sequence[Speed]) -> dict[str, float]:
    """Raises ``OffSpeedError`` if a device did not get its CPU time, as far as ``speeds`` tell what it should get."""
    job = jobs.job_of(spec)
    own = [speed for speed in speeds if speed.device in {device.name for device in spec.devices}]
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        lab = session.run(
            spec,
            job,
            controllers,
            Path(folder),
            lambda text: None,
            lambda seconds, status: None,
            calibrated=False,
            speeds=own,
            num_points=NUM_POINTS,
        )
    trained_s = lab.outcome.trained_s - lab.training_s
    correction = {speed.device: speed.correction for speed in own}
    got = {
        device.name: lab.use[device.name].training_cpu_s / (device.share * correction.get(device.name, 1.0) * trained_s)
        for device in spec.devices
    }
    for name, share in got.items():
        if own and share < LEAST_CPU:
            raise OffSpeedError(f"{name} got only {share:.0%} of its CPU time while it trained")
    result = measure.measure(session.experiment_of(spec, job), lab.outcome, None, 1)
    shares = [100 * peer.flops_share for peer in result.peers]
    figures = {
        "accuracy": 100 * result.assembled_accuracy,
        "started_s": lab.training_s,
        "trained_s": trained_s,
        "samples_trained_k": sum(peer.samples_seen for peer in result.peers) / 1e3,
        "flops_share_most": max(shares),
        "flops_share_least": min(shares),
        "memory_mb": max(use.peak_memory_bytes for use in lab.use.values()) / 1e6,
        "sent_mb": max(peer.bytes_sent for peer in result.peers) / 1e6,
        "cpu_got": 100 * min(got.values()),
    }
    for device, use in lab.use.items():
        figures |= {f"memory_mb_{device}": use.peak_memory_bytes / 1e6, f"cpu_got_{device}": 100 * got[device]}
    for peer in result.peers:
        figures |= {
            f"flops_share_{peer.name}": 100 * peer.flops_share,
            f"samples_trained_k_{peer.name}": peer.samples_seen / 1e3,
            f"sent_mb_{peer.name}": peer.bytes_sent / 1e6,
            f"num_classes_{peer.name}": len(peer.classes),
            f"own_class_accuracy_{peer.name}": 100 * peer.own_class_accuracy,
            f"rounds_{peer.name}": lab.outcome.records[peer.name].round,
        }
    for at_s, accuracy in lab.accuracies:
        number = round((at_s - lab.training_s) / trained_s * NUM_POINTS) - 1
        figures |= {f"at_s_{number}": at_s - lab.training_s, f"accuracy_{number}": 100 * accuracy}
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
    left.set_xlabel("seconds since the first device was training")
    left.set_ylabel("accuracy on the test samples, %")
    right.set_xlabel("sent by the device that sent most, MB")
    right.set_ylabel("training FLOPs per sample, of the full model's, %")
    right.margins(x=0.5, y=0.2)
    plots.legend(left)


NAMED = {"cifar": SimpleNamespace(BASELINE=BASELINE, COLUMNS=COLUMNS, run=run_cifar, plot=plot)}

FIGURES = Section(
    "Unlike devices",
    "Class sub-models on four unlike devices, in equal time",
    [
        row
        for name, words in (("tasks", "spoken digits, DS-CNN,"), ("tasks-cifar", "a tenth of CIFAR-10, VGG-11,"))
        for row in (
            Row(
                name,
                f"{words} on four unlike devices (0.4 to 0.1 of a core): accuracy after"
                " {class sub-models/trained_s:.0f} s; when that of the worst of the three was reached",
                "class sub-models: {class sub-models/accuracy:.1f} %; {class sub-models/reached_s:.0f} s",
                "whole model by gossip: {whole model by gossip/accuracy:.1f} %;"
                " {whole model by gossip/reached_s:.0f} s;"
                " central, on the fastest alone: {central, fastest device/accuracy:.1f} %;"
                " {central, fastest device/reached_s:.0f} s",
            ),
            Row(
                name,
                "the same: thousand samples trained, all devices; FLOPs a sample of the full model's, most and"
                " least; peak memory and MB sent of a device, most",
                "{class sub-models/samples_trained_k:.0f}; {class sub-models/flops_share_most:.1f} %,"
                " {class sub-models/flops_share_least:.1f} %; {class sub-models/memory_mb:.0f} MB;"
                " {class sub-models/sent_mb:.1f} MB",
                "whole model by gossip: {whole model by gossip/samples_trained_k:.0f}; 100 %;"
                " {whole model by gossip/memory_mb:.0f} MB; {whole model by gossip/sent_mb:.1f} MB;"
                " central: {central, fastest device/samples_trained_k:.0f}",
            ),
        )
    ],
    (
        Remark(
            "tasks",
            "In equal time class sub-models win clearly, as they train on five to eleven times as many samples.",
        ),
        Remark(
            "tasks",
            "This was measured before a device of the lab stayed on one core, and over links whose frames the kernel"
            " handled one by one.",
        ),
    ),
    in_readme=(
        Row(
            "tasks",
            "spoken digits on four unlike devices: accuracy after two minutes",
            "{class sub-models/accuracy:.0f} %",
            "whole model by gossip: {whole model by gossip/accuracy:.0f} %; the fastest device alone:"
            " {central, fastest device/accuracy:.0f} %",
        ),
    ),
)

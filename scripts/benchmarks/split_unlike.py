"""Samples that are unlike from device to device: accuracy over wall-clock time of split training, and of other ways.

The room of ``split``: a helper without samples and four weak devices, each with samples of its own kind: shares cut by
a Dirichlet distribution of 0.3 (``split_unlike``), or two classes each (``split_unlike-classes``). Every way trains
for the same seconds, from the same initial weights, and is judged on the test samples by what a harvest would have
given at ``NUM_POINTS`` times: split training as planned, with a tail for each unit and with one for all; all alone
(federated averaging); plain gossip of the whole model; class sub-models. Each has a minute, a narrow model and few
samples: what counts is which is ahead. Cases can be chosen (``--only``, ``--resume``). Needs Linux and root, as the lab
does.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab import host, jobs, rehearsal, session
from lab.quota import sweep
from lab.spec import Device, LabSpec, device_of

from benchmarks import plots
from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.rows import Row, Section
from benchmarks.split import BATCH_SIZE, HELPERS, MICRO_BATCHES, NUM_SAMPLES, SAMPLES, WEAK
from benchmarks.tasks import data_file

LISTED = {
    "split_unlike": "split training on unlike samples in a lab: accuracy over time, beside FedAvg and gossip",
    "split_unlike-classes": "the same with two classes on each device",
}
BASELINE = "all alone (federated averaging); gossip of the whole model; class sub-models"
NUM_POINTS = 10
COLUMNS = (
    Column("accuracy", "accuracy at the end, %", 1),
    Column("rounds", "rounds", 0),
    Column("trained_s", "s", 0),
)
ALPHA = 0.3
TRAIN_S, TINY_S = 65.0, 40.0
TWO_CLASSES = (("airplane", "automobile"), ("bird", "cat"), ("deer", "dog"), ("frog", "horse"))
SPLIT, SHARED, ALONE = "split training", "split training, shared tails", "all alone (federated averaging)"
GOSSIP, SUBMODELS = "gossip of the whole model", "class sub-models"
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ALONE: ("split", {"strategy": "alone"}),
    GOSSIP: ("replicas", {}),
    SUBMODELS: ("tasks", {}),
    SHARED: ("split", {"tails": "shared"}),
    SPLIT: ("split", {}),
}
"""By name, the mode and what the job says of it."""
CHOICES = tuple(CASES)
TINY_CASES = (ALONE, SPLIT)
MODEL = {"name": "alexnet", "width": 0.5}


def run(settings: Settings) -> Iterator[Sample]:
    yield from compare(settings)


def compare(settings: Settings, *, by_classes: bool = False) -> Iterator[Sample]:
    """All ways in turn; with ``tiny`` two of them, on digits."""
    controllers = host.check_host()
    sweep(controllers)
    data, tables = "digits", {"model": {"name": "lenet", "width": 2.0}}
    if not settings.tiny:
        data, tables = f"images:{data_file('cifar10-images.zip')}", {"model": MODEL}
    devices = devices_of(by_classes and not settings.tiny, tiny=settings.tiny)
    times: dict[str, Mapping[str, bytes]] = {}
    for repetition in settings.repetitions:
        names = TINY_CASES if settings.tiny else CHOICES
        for name in (name for name in names if settings.wants(name, repetition)):
            mode, values = CASES[name]
            spec = spec_of(name, data, tables, devices, mode, values, SEED + repetition, tiny=settings.tiny)
            job = jobs.job_of(spec)
            if mode == "split" and mode not in times:
                times[mode] = rehearsal.rehearse(job, devices, controllers)[1]
            yield Sample(
                name,
                repetition,
                _figures(spec, job, controllers, times.get(mode)),
                is_baseline=name not in (SPLIT, SHARED),
            )


def devices_of(by_classes: bool, *, tiny: bool = False) -> tuple[Device, ...]:
    """The helper without samples, and the weak ones with samples of their own kind."""
    total, samples = (1437, 256) if tiny else (NUM_SAMPLES, SAMPLES)
    helpers = [device_of(name, share, rate, has_data=False) for name, (share, rate) in HELPERS.items()]
    weak = []
    for number, (name, (share, rate)) in enumerate(WEAK.items()):
        device = device_of(name, share, rate, shard=f"{number + 1}/{max(len(WEAK), total // samples)}")
        if by_classes:
            device = dataclasses.replace(device, classes=TWO_CLASSES[number])
        else:
            device = dataclasses.replace(device, dirichlet=ALPHA)
        weak.append(device)
    return (*helpers, *weak)


def spec_of(
    name: str,
    data: str,
    tables: Mapping[str, Any],
    devices: tuple[Device, ...],
    mode: str,
    values: Mapping[str, Any],
    seed: int,
    *,
    tiny: bool,
) -> LabSpec:
    training = {"rounds": 1000, "batch_size": BATCH_SIZE, "learning_rate": 0.01, "schedule": "constant"}
    job: dict[str, Any] = {"seed": seed, "mode": mode, **tables, "training": training, "data": {"val": 0.0}}
    if mode == "split":
        job["split"] = {"micro_batches": MICRO_BATCHES, **values}
    else:  # who has no samples has nothing to do
        devices = tuple(device for device in devices if device.has_data)
    return LabSpec(name, data, job, devices, train_s=TINY_S if tiny else TRAIN_S)


def _figures(spec: LabSpec, job: Any, controllers: Any, times: Mapping[str, bytes] | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="p2ptrain-split-unlike-") as out:
        lab = session.run(
            spec,
            job,
            controllers,
            Path(out),
            lambda text: None,
            lambda seconds, status: None,
            calibrated=False,
            num_points=NUM_POINTS,
            rehearsed=times,
        )
    trained_s = lab.outcome.trained_s - lab.training_s
    figures = {
        "trained_s": trained_s,
        "rounds": float(max(record.round for record in lab.outcome.records.values())),
    }
    for at_s, accuracy in lab.accuracies:
        number = round((at_s - lab.training_s) / trained_s * NUM_POINTS) - 1
        figures |= {f"at_s_{number}": at_s - lab.training_s, f"accuracy_{number}": 100 * accuracy}
        figures["accuracy"] = 100 * accuracy
    return figures


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Accuracy over wall-clock time."""
    axes = figure.subplots()
    for number, case in enumerate(result["cases"]):
        found = case["figures"]
        known = [i for i in range(NUM_POINTS) if f"at_s_{i}" in found]
        shown = plots.mark(number, is_baseline=case["is_baseline"])
        style = shown.pop("fmt")
        seconds = [found[f"at_s_{i}"]["median"] for i in known]
        axes.plot(seconds, [found[f"accuracy_{i}"]["median"] for i in known], marker=style, label=case["case"], **shown)
    axes.set_xlabel("seconds since the first device was training")
    axes.set_ylabel("accuracy on the test samples, %")
    plots.legend(axes)


NAMED = {
    "classes": SimpleNamespace(
        BASELINE=BASELINE, COLUMNS=COLUMNS, CHOICES=CHOICES, run=partial(compare, by_classes=True), plot=plot
    )
}


def _row(file: str, samples: str) -> Row:
    return Row(
        file,
        f"AlexNet (width 0.5) on four weak devices with {samples} and one helper: accuracy after"
        f" {{{SPLIT}/trained_s:.0f}} s",
        f"{{{SPLIT}/accuracy:.1f}} %<; with shared tails {{{SHARED}/accuracy:.1f}} %>",
        "".join(
            f"<{words}: {{{name}/accuracy:.1f}} %. >"
            for words, name in (("federated averaging", ALONE), ("gossip", GOSSIP), ("class sub-models", SUBMODELS))
        ),
    )


FIGURES = Section(
    "Unlike devices",
    "Split training on unlike samples",
    (
        _row("split_unlike", "samples cut by a Dirichlet distribution of 0.3"),
        _row("split_unlike-classes", "two classes each"),
    ),
)

"""VGG-11 in depth slices on devices of speeds 1 : 0.1 : 1 in the lab: throughput, beside what is predicted for it.

Each case trains on the same devices and samples: the pipeline that the group plans, with activations and gradients as
they are and in int8, with a flush after each batch and without (what all that does to accuracy: ``slices_accuracy``);
as many blocks on every device, the slow one in the middle (``strategy = "equal"``), with and without a flush; the whole
model on every device (``strategy = "data-parallel"``); and plain training on one of the fast devices alone, while the
others train for themselves. How batches are counted, and what is predicted: ``slices_lab``. Needs Linux and root, as
the lab does.

``pipeline-mobilenet`` is the same with MobileNetV2: many small blocks, and little to average. ``pipeline-wired`` is
VGG-11 over links of 1 Gbit/s, which hardly hold anybody up, without compression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from lab import host
from lab.quota import sweep

from benchmarks import slices_lab
from benchmarks.common import Column, Sample, Settings
from benchmarks.pace import Stint
from benchmarks.slices_lab import ALONE, Ran, Workload
from benchmarks.tasks import data_file
from p2ptrain.config import Coding, Schedule

BASELINE = "plain training on the fastest device alone; an equal split; data parallel"
SINGLE = "one fast device alone"


@dataclass(frozen=True, slots=True)
class Case:
    """``strategy``: of the job; ``schedule`` and ``crossing``: of its pipeline."""

    strategy: str
    schedule: Schedule = "sync"
    crossing: Coding = "none"


CASES = {
    SINGLE: Case(ALONE),
    "equal split": Case("equal"),
    "equal split, async": Case("equal", "async"),
    "planned": Case("planned"),
    "planned, int8": Case("planned", crossing="int8"),
    "planned, async": Case("planned", "async"),
    "planned, async, int8": Case("planned", "async", "int8"),
    "data parallel": Case("data-parallel"),
}
TINY_CASES = (SINGLE, "planned")
WIRED = {name: case for name, case in CASES.items() if case.crossing == "none" and case.strategy != "data-parallel"}
COLUMNS = (*slices_lab.COLUMNS, Column("times_equal", "x equal split, same schedule", 1))
SPEEDS = {"fast-1": 1.0, "slow": 0.1, "fast-2": 1.0}
RATE_MBIT, WIRED_RATE_MBIT = 100.0, 1000.0
BATCH_SIZE, MICRO_BATCHES = 256, 16
"""Small micro-batches compute slowly (VGG-11's convolutions at 8 samples do half of what they do at 64), and few of
them leave a pipeline idle: so a batch has to be some hundred samples for a pipeline to be worth much."""
STINT = Stint(batches=30, enough_batches=3, enough_s=45.0, most_s=300.0)
"""A batch of the equal split may take half a minute."""
SUBSET = 10
"""Of CIFAR-10's training samples one in so many is used."""


def run(settings: Settings) -> Iterator[Sample]:
    yield from compare("vgg11", settings)


def compare(
    model: str, settings: Settings, cases: Mapping[str, Case] = CASES, rate_mbit: float = RATE_MBIT
) -> Iterator[Sample]:
    """The cases of one model, in turn; with ``tiny`` a LeNet in its place."""
    controllers = host.check_host()
    sweep(controllers)
    if settings.tiny:
        workload = Workload("lenet", "digits", {"model": {"name": "lenet", "width": 2.0}}, 64)
    else:
        data = f"images:{data_file('cifar10-images.zip')}"
        workload = Workload(model, data, {"model": {"name": model}}, BATCH_SIZE, MICRO_BATCHES)
    for repetition in settings.repetitions:
        yield from measured(workload, settings, repetition, controllers, cases, rate_mbit)


def measured(
    workload: Workload,
    settings: Settings,
    repetition: int,
    controllers: Any,
    cases: Mapping[str, Case],
    rate_mbit: float,
) -> Iterator[Sample]:
    """The cases in turn; with ``tiny`` plain training and the plan only, on two devices."""
    if settings.tiny:
        devices = slices_lab.devices_of({"fast-1": 1.0, "fast-2": 1.0}, slices_lab.TINY_CORES, [rate_mbit] * 2)
        stint, cases = slices_lab.TINY, {name: CASES[name] for name in TINY_CASES}
    else:
        devices = slices_lab.devices_of(SPEEDS, slices_lab.CORES, [rate_mbit] * 3, SUBSET)
        stint = STINT
    times = slices_lab.rehearse(workload, devices, stint, controllers)
    alone: Ran | None = None
    equal: dict[Schedule, float] = {}
    for name, case in cases.items():
        chosen = dataclasses.replace(workload, crossing=case.crossing, schedule=case.schedule)
        ran = slices_lab.run_case(chosen, case.strategy, devices, stint, repetition, controllers, times)
        figures = ran.figures()
        if case.strategy == ALONE:
            alone = ran
        elif alone is not None:
            figures |= slices_lab.compared(ran, alone)
        if case.strategy == "equal":
            equal[case.schedule] = ran.samples_per_s
        elif case.strategy == "planned" and case.schedule in equal:
            figures["times_equal"] = ran.samples_per_s / equal[case.schedule]
        yield Sample(name, repetition, figures, is_baseline=case.strategy != "planned")


NAMED = {
    "mobilenet": SimpleNamespace(BASELINE=BASELINE, COLUMNS=COLUMNS, run=partial(compare, "mobilenetv2")),
    "wired": SimpleNamespace(
        BASELINE=BASELINE, COLUMNS=COLUMNS, run=partial(compare, "vgg11", cases=WIRED, rate_mbit=WIRED_RATE_MBIT)
    ),
}

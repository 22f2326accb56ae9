"""VGG-11 in depth slices on devices of speeds 1 : 0.1 : 1 in the lab: throughput, beside what is predicted for it.

Each case trains on the same devices and samples: the pipeline that the group plans, with activations and gradients as
they are and in int8 (what that does to accuracy: ``slices_accuracy``); as many blocks on every device
(``strategy = "equal"``); the whole model on every device (``strategy = "data-parallel"``); and plain training on one of
the fast devices alone, while the others train for themselves. How batches are counted, and what is predicted:
``slices_lab``. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from laboratory import host
from laboratory.quota import sweep

from benchmarks import slices_lab
from benchmarks.common import Sample, Settings
from benchmarks.pace import Stint
from benchmarks.slices_lab import ALONE, COLUMNS, Ran, Workload
from benchmarks.tasks import data_file

__all__ = ["BASELINE", "COLUMNS", "run"]

BASELINE = "plain training on the fastest device alone; an equal split; data parallel"
SINGLE = "one fast device alone"
PLANNED, INT8 = "planned", "planned, int8"
CASES = {
    SINGLE: ALONE,
    PLANNED: "planned",
    INT8: "planned",
    "equal split": "equal",
    "data parallel": "data-parallel",
}
SPEEDS = {"fast-1": 1.0, "slow": 0.1, "fast-2": 1.0}
RATE_MBIT = 100.0
BATCH_SIZE, MICRO_BATCHES = 256, 16
"""Small micro-batches compute slowly (VGG-11's convolutions at 8 samples do half of what they do at 64), and few of
them leave a pipeline idle: so a batch has to be some hundred samples for a pipeline to be worth much."""
STINT = Stint(batches=30, enough_batches=3, enough_s=45.0, most_s=300.0)
"""A batch of the equal split may take half a minute."""
SUBSET = 10
"""Of CIFAR-10's training samples one in so many is used."""


def run(settings: Settings) -> Iterator[Sample]:
    yield from compare("vgg11", settings)


def compare(model: str, settings: Settings) -> Iterator[Sample]:
    """All cases of one model, in turn; with ``tiny`` a LeNet in its place."""
    controllers = host.check_host()
    sweep(controllers)
    if settings.tiny:
        workload = Workload("lenet", "digits", {"model": {"name": "lenet", "width": 2.0}}, 64)
    else:
        data = f"images:{data_file('cifar10-images.zip')}"
        workload = Workload(model, data, {"model": {"name": model}}, BATCH_SIZE, MICRO_BATCHES)
    for repetition in settings.repetitions:
        yield from measured(workload, settings, repetition, controllers)


def measured(workload: Workload, settings: Settings, repetition: int, controllers: Any) -> Iterator[Sample]:
    """The cases in turn; with ``tiny`` plain training and the plan only, on two devices."""
    if settings.tiny:
        devices = slices_lab.devices_of({"fast-1": 1.0, "fast-2": 1.0}, slices_lab.TINY_CORES, [RATE_MBIT] * 2)
        stint, cases = slices_lab.TINY, dict(list(CASES.items())[:2])
    else:
        devices = slices_lab.devices_of(SPEEDS, slices_lab.CORES, [RATE_MBIT] * 3, SUBSET)
        stint, cases = STINT, CASES
    times = slices_lab.rehearse(workload, devices, stint, controllers)
    alone: Ran | None = None
    for case, strategy in cases.items():
        chosen = dataclasses.replace(workload, crossing="int8") if case == INT8 else workload
        ran = slices_lab.run_case(chosen, strategy, devices, stint, repetition, controllers, times)
        figures = ran.figures()
        if strategy == ALONE:
            alone = ran
        elif alone is not None:
            figures |= slices_lab.compared(ran, alone)
        yield Sample(case, repetition, figures, is_baseline=case not in (PLANNED, INT8))

"""A transformer in a pipeline on four unlike devices in the lab: much to average, little to pass on.

The encoder after BERT-small reads 32 bytes a sample and has 13 M parameters: data parallel training, whose gradients
are averaged after every batch, sends 79 MB a device and batch, while a stage passes on 68 kB a sample. Each case trains
on the same four devices, links and samples: the pipeline that the group plans, which may have several devices in a
stage; pipeline alone, one device a stage (there is no such strategy: as many blocks on every device, ``strategy =
"equal"``, is the closest); data parallel alone (``strategy = "data-parallel"``); plain training on the fastest device,
while the others train for themselves. How batches are counted, and what is predicted: ``pipeline_lab``. The text is the
help that comes with Python. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import host
from lab.quota import sweep

from benchmarks import pipeline_lab, plots
from benchmarks.common import Column, Sample, Settings
from benchmarks.pace import Stint
from benchmarks.pipeline_lab import ALONE, Ran, Workload
from benchmarks.rows import Remark, Row, Section

LISTED = {
    "pipeline_text": "a transformer in a pipeline, beside prediction, data parallel, equal split, one device alone",
}
BASELINE = "plain training on the fastest device alone; an equal split (pipeline alone); data parallel alone"
COLUMNS = (
    Column("batch_s", "s a batch", 2),
    Column("predicted_s", "predicted", 2),
    Column("measured_of_predicted", "measured/predicted speed", 2),
    Column("same_speed_of_predicted", "at one speed", 2),
    Column("times_single", "x one device alone", 2),
    Column("same_speed_times_single", "at one speed", 2),
    Column("times_data_parallel", "x data parallel", 1),
    Column("sent_mb", "sent a batch, all devices, MB", 1),
    Column("idle_most", "idle, most idle stage, %", 0),
    Column("stages", "stages", 0),
    Column("devices_used", "devices", 0),
)
FASTEST, DATA_PARALLEL = "fastest device alone", "data parallel alone"
CASES = {
    FASTEST: ALONE,
    DATA_PARALLEL: "data-parallel",
    "equal split": "equal",
    "planned": "planned",
}
SPEEDS = {"device1": 0.6, "device2": 0.5, "device3": 0.4, "device4": 0.3}
RATES_MBIT = (100.0, 100.0, 50.0, 50.0)
BATCH_SIZE = 32
CONTEXT = 32
"""Bytes of a sample."""
SUBSET = 16
"""Of the samples one in so many is used: a pass of a device is a dozen batches, and ends with a snapshot, whether it
trains alone or begins a pipeline."""
TINY_SNAPSHOT_STEPS = 3
STINT = Stint(batches=60, enough_batches=4, enough_s=40.0, most_s=110.0)
"""A data parallel batch takes long, and each as long as the others."""


def run(settings: Settings) -> Iterator[Sample]:
    controllers = host.check_host()
    sweep(controllers)
    with tempfile.TemporaryDirectory(prefix="p2ptrain-text-") as folder:
        workload = text_workload(Path(folder), 0.125 if settings.tiny else 1.0)
        if settings.tiny:  # a round is longer than the case
            workload = dataclasses.replace(workload, snapshot_steps=TINY_SNAPSHOT_STEPS)
        for repetition in settings.repetitions:
            yield from _measured(workload, settings, repetition, controllers)


def text_workload(folder: Path, width: float) -> Workload:
    """``folder`` gets the text."""
    text = folder / "help.txt"
    text.write_text(python_help(), encoding="utf-8")
    tables = {"model": {"name": "bert_small", "width": width}, "input_shape": [1, 1, CONTEXT]}
    return Workload("text", f"text:{text}", tables, BATCH_SIZE)


def python_help() -> str:
    """What ``help`` says of Python's topics: 700 kB of English and code, the same for a version of Python."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(text for _, text in sorted(topics.items()))


def _measured(workload: Workload, settings: Settings, repetition: int, controllers: Any) -> Iterator[Sample]:
    if settings.tiny:
        speeds, cores, cases = (
            {"device1": 0.6, "device2": 0.4},
            pipeline_lab.TINY_CORES,
            [FASTEST, "planned"],
        )
    else:
        speeds, cores, cases = SPEEDS, min(pipeline_lab.CORES, sum(SPEEDS.values())), list(CASES)
    devices = pipeline_lab.devices_of(speeds, cores, RATES_MBIT[: len(speeds)], SUBSET)
    found: dict[str, Ran] = {}
    stint = pipeline_lab.TINY if settings.tiny else STINT
    times = pipeline_lab.rehearse(workload, devices, stint, controllers)
    for case in cases:
        ran = pipeline_lab.run_case(workload, CASES[case], devices, stint, repetition, controllers, times)
        found[case], figures = ran, ran.figures()
        sent = sum(record.bytes_sent for record in ran.lab.outcome.records.values())
        figures["sent_mb"] = sent / ran.pace.marks[-1].step / 1e6
        if "predicted_per_s" in figures:
            figures["predicted_s"] = BATCH_SIZE / figures["predicted_per_s"]
        if case != FASTEST:
            figures |= pipeline_lab.compared(ran, found[FASTEST])
        if DATA_PARALLEL in found and case != DATA_PARALLEL:
            figures["times_data_parallel"] = ran.samples_per_s / found[DATA_PARALLEL].samples_per_s
        yield Sample(case, repetition, figures, is_baseline=case != "planned")


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Samples per second, measured and predicted."""
    axes = figure.subplots(1, 1)
    cases = result["cases"]
    for number, (name, key) in enumerate((("measured", "samples_per_s"), ("predicted", "predicted_per_s"))):
        points = [(row, case["figures"][key]) for row, case in enumerate(cases) if key in case["figures"]]
        shown = plots.mark(number, is_baseline=name == "predicted")
        for label, (row, found) in zip([name] + [None] * len(points), points, strict=False):
            spread = [[found["median"] - found["low"]], [found["high"] - found["median"]]]
            axes.errorbar(row, found["median"], yerr=spread, capsize=3, label=label, **shown)
    axes.set_yscale("log")
    plots.plain_numbers(axes.yaxis)
    axes.set_xticks(range(len(cases)), [case["case"] for case in cases])
    axes.set_ylabel("samples/s")
    plots.legend(axes)


FIGURES = Section(
    "Pipelines",
    "A transformer on four unlike devices",
    (
        Row(
            "pipeline_text",
            "the encoder after BERT-small on text, four unlike devices at 50 and 100 Mbit/s: seconds a batch of 32;"
            " times data parallel, times the fastest device alone; measured/predicted; MB sent a batch",
            "{planned/batch_s:.2f} s; {planned/times_data_parallel:.1f}, {planned/times_single:.2f};"
            " {planned/measured_of_predicted:.2f}; {planned/sent_mb:.1f} MB",
            "data parallel: {data parallel alone/batch_s:.2f} s, {data parallel alone/measured_of_predicted:.2f} of"
            " predicted, {data parallel alone/sent_mb:.0f} MB; equal split: {equal split/batch_s:.2f} s,"
            " {equal split/measured_of_predicted:.2f} of predicted; fastest device alone:"
            " {fastest device alone/batch_s:.2f} s",
        ),
    ),
    (
        Remark(
            "pipeline_text",
            "The group trains about fifteen times as fast as data parallel, and little faster than the fastest device"
            " alone. Where a model fits into one device, most of what a pipeline brings is lost again on the way.",
        ),
        Remark(
            "pipeline_text",
            "Runs of the five versions before came to 1.0-1.35 times the fastest device (0.86-1.11 of what was"
            " promised).",
        ),
    ),
    in_readme=(
        Row(
            "pipeline_text",
            "a small transformer in a pipeline of four unlike devices: seconds a batch",
            "{planned/batch_s:.1f} s",
            "data parallel: {data parallel alone/batch_s:.0f} s; the fastest device alone:"
            " {fastest device alone/batch_s:.1f} s",
        ),
    ),
)

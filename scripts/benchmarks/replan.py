"""A device gets slow in the middle of training: how soon the group trains by a new plan, and how well it does then.

Three devices train VGG-11 in a pipeline in the lab; then the fastest of them gets a quarter of its share of a core.
Measured are the batches from then until the new plan takes over, batches that are lost or done twice on the way (by the
trainers' own words on where they halted, and by the samples counted at the end), and the throughput by the last plan.
Beside it: a fresh group, started with that device as slow from the beginning, once before and once after, as a machine
that others use does not stay as fast as it is. All of it with a flush after every batch and without one. How batches
are counted, what is predicted, and what *at one speed* is: ``pipeline_lab``. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from lab import host
from lab.quota import sweep
from lab.spec import Device, Event, device_of

from benchmarks import pipeline_lab, plots
from benchmarks.common import Column, Sample, Settings
from benchmarks.pace import Mark, Pace, Stint
from benchmarks.pipeline_lab import Ran, Workload
from benchmarks.rows import Remark, Row, Section
from benchmarks.tasks import data_file
from p2ptrain.config import Schedule
from p2ptrain.modes.pipeline.plan import PipelineBody

LISTED = {
    "replan": "a device gets slow while it trains in a pipeline: the new plan, beside a group that starts afresh",
}
BASELINE = "a fresh group, started with the slowed device"
COLUMNS = (
    Column("samples_per_s", "samples/s by the last plan", 1),
    Column("ratio", "of the fresh groups'", 2),
    Column("same_speed_ratio", "at one speed", 2),
    Column("measured_of_predicted", "measured/predicted", 2),
    Column("before_per_s", "samples/s before", 1),
    Column("meanwhile_per_s", "slowed, by the old plan", 1),
    Column("batches_until", "batches until the new plan", 0),
    Column("seconds_until", "s until the new plan", 1),
    Column("batches_wrong", "batches lost or done twice", 0),
    Column("replans", "plans after the first", 0),
)
FRESH, SLOWED = "fresh group", "slowed while training"
SCHEDULES: dict[Schedule, str] = {"sync": "", "async": ", async"}
"""And what their cases' names end with."""
SLOW = "device3"
SPEEDS = {"device1": 1.0, "device2": 1.0, SLOW: 1.2}
"""The one that gets slow is the fastest before: no plan leaves it out."""
FACTOR, TINY_FACTOR = 0.25, 0.5
RATE_MBIT = 100.0
SUBSET = 10
"""Of CIFAR-10's training samples one in so many is used."""
SLOW_AT_S = 20.0
NUM_CURVE = 60
"""Points of the picture."""


def run(settings: Settings) -> Iterator[Sample]:
    controllers = host.check_host()
    sweep(controllers)
    if settings.tiny:
        workload = Workload("vgg11", "digits", {"model": {"name": "vgg11", "width": 0.5}}, 64)
        cores, slow_at_s, subset, stint = pipeline_lab.TINY_CORES, 5.0, 1, Stint(6, 3, 12.0, 40.0, 0.0)
    else:
        data = f"images:{data_file('cifar10-images.zip')}"
        workload = Workload("vgg11", data, {"model": {"name": "vgg11"}}, 64)
        cores, slow_at_s, subset, stint = pipeline_lab.CORES, SLOW_AT_S, SUBSET, Stint(60, 20, 110.0, 150.0)
    speeds = {"device1": 1.0, SLOW: SPEEDS[SLOW]} if settings.tiny else SPEEDS
    devices = pipeline_lab.devices_of(speeds, cores, [RATE_MBIT] * len(speeds), subset)
    slowed_share = devices[-1].share * (TINY_FACTOR if settings.tiny else FACTOR)
    slower = _slowed(devices, slowed_share)
    event = Event(slow_at_s, "slow", SLOW, share=slowed_share)
    for repetition in settings.repetitions:
        for schedule, end in SCHEDULES.items():
            if settings.tiny and end:
                continue
            work = dataclasses.replace(workload, schedule=schedule)
            run_on = partial(_ran, work, stint, repetition, controllers)
            before = run_on(slower)
            yield Sample(FRESH + end, repetition, before.figures(), is_baseline=True)
            slowed = run_on(devices, events=[event], until=lambda pace: _is_over(pace, slow_at_s, stint))
            after = run_on(slower)
            yield Sample(FRESH + end, repetition, after.figures(), is_baseline=True)
            yield Sample(SLOWED + end, repetition, _figures(slowed, [before, after]))


def _ran(
    work: Workload,
    stint: Stint,
    repetition: int,
    controllers: Any,
    devices: tuple[Device, ...],
    *,
    events: Sequence[Event] = (),
    until: Callable[[Pace], bool] | None = None,
) -> Ran:
    times = pipeline_lab.rehearse(work, devices, stint, controllers)
    return pipeline_lab.run_case(
        work, "planned", devices, stint, repetition, controllers, times, events=events, until=until
    )


def _slowed(devices: tuple[Device, ...], share: float) -> tuple[Device, ...]:
    last = devices[-1]
    return (*devices[:-1], device_of(last.name, share, last.rate_mbit, shard=last.shard))


def _is_over(pace: Pace, slow_at_s: float, stint: Stint) -> bool:
    """Once there has been a plan after the event, and enough batches by the last one."""
    if pace.began is None or not pace.current:
        return False
    return pace.current[0].seconds > pace.began + slow_at_s + 1.0 and pace.is_enough(stint)


def _figures(ran: Ran, fresh: Sequence[Ran]) -> dict[str, float]:
    """Raises ``TimeoutError`` where no plan came after the event."""
    event_s = ran.lab.events[0].at_s
    marks, batch_size = ran.pace.marks, ran.job.training.batch_size
    plans = {plan.hash: plan.body for _, plan in ran.lab.plans}
    later = next((mark for mark in marks if mark.seconds > event_s and mark.plan != _at(marks, event_s).plan), None)
    body = plans.get(later.plan) if later is not None else None
    if later is None or body is None:
        raise TimeoutError(f"no new plan in {marks[-1].seconds - event_s:.0f} s after a device got slow")
    before = [m for m in marks if m.seconds <= event_s and m.plan == _at(marks, event_s).plan][1:]
    meanwhile = [m for m in marks if event_s < m.seconds and m.plan == _at(marks, event_s).plan]
    figures = ran.figures() | {
        "batches_until": float(body.from_step - _at(marks, event_s).step),
        "seconds_until": later.seconds - event_s,
        "batches_wrong": _batches_wrong(ran),
    }
    compared = [pipeline_lab.compared(ran, other) for other in fresh]
    for name, of in (("ratio", "times_single"), ("same_speed_ratio", "same_speed_times_single")):
        if all(of in each for each in compared):
            figures[name] = statistics.harmonic_mean(each[of] for each in compared)  # by the mean of what they did
    for name, points in (("before_per_s", before), ("meanwhile_per_s", meanwhile)):
        if len(points) > 1:
            done = points[-1].step - points[0].step
            figures[name] = done * batch_size / (points[-1].seconds - points[0].seconds)
    figures |= {"event_s": event_s - marks[0].seconds, "new_plan_s": later.seconds - marks[0].seconds}
    return figures | _curve(marks, batch_size)


def _at(marks: list[Mark], seconds: float) -> Mark:
    """The last mark up to then; the first if there is none."""
    return marks[max(0, bisect.bisect_right([mark.seconds for mark in marks], seconds) - 1)]


def _batches_wrong(ran: Ran) -> float:
    """Lost or done twice. Who began to train under one plan must halt for the next with just those batches done that
    come before it; who stood by, or never got its stage, halts where it did long ago."""
    wrong = 0
    plans = [plan for _, plan in ran.lab.plans if isinstance(plan.body, PipelineBody)]
    for before, plan in itertools.pairwise(plans):
        trained = {
            device
            for device, journal in ran.journals.items()
            if any(line["kind"] == "training" and line["epoch"] == before.epoch for line in journal)
        }
        halts = [
            line["step"]
            for device, journal in ran.journals.items()
            for line in journal
            if device in trained and line["kind"] == "halted" and line["epoch"] == plan.epoch and line["step"] >= 0
        ]
        assert isinstance(plan.body, PipelineBody)
        wrong += max((abs(step - plan.body.from_step) for step in halts), default=0)
    last = ran.pace.marks[-1]
    return float(wrong + abs(last.step - round(last.samples / ran.job.training.batch_size)))


def _curve(marks: list[Mark], batch_size: int) -> dict[str, float]:
    """Samples per second in equal pieces of the time."""
    start, end = marks[0].seconds, marks[-1].seconds
    figures = {}
    for number in range(NUM_CURVE):
        first, last = (_at(marks, start + (end - start) * (number + k) / NUM_CURVE) for k in (-1, 1))
        if last.seconds > first.seconds and last.step > first.step:
            at_s = (first.seconds + last.seconds) / 2 - start
            rate = (last.step - first.step) * batch_size / (last.seconds - first.seconds)
            figures |= {f"curve_s_{number}": at_s, f"curve_{number}": rate}
    return figures


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Throughput by the time, of the first repetition, beside the fresh group's; a picture for each schedule."""
    cases = {case["case"]: case for case in result["cases"]}
    for axes, end in zip(figure.subplots(1, len(SCHEDULES), sharey=True), SCHEDULES.values(), strict=True):
        runs = [sample["figures"] for sample in result["samples"] if sample["case"] == SLOWED + end]
        if runs:
            first = runs[0]
            points = [(first[f"curve_s_{i}"], first[f"curve_{i}"]) for i in range(NUM_CURVE) if f"curve_{i}" in first]
            axes.plot(*zip(*points, strict=True), color=plots.COLOURS[0], label=f"{SLOWED}{end}, first repetition")
            for at_s, words, style in ((first["event_s"], "slowed", ":"), (first["new_plan_s"], "new plan", "--")):
                axes.axvline(at_s, color=plots.COLOURS[-1], linestyle=style, linewidth=1, label=words)
        if FRESH + end in cases:
            fresh = cases[FRESH + end]["figures"]["samples_per_s"]
            axes.axhline(fresh["median"], color=plots.COLOURS[1], label=f"{FRESH}{end}, median")
            axes.axhspan(fresh["low"], fresh["high"], color=plots.COLOURS[1], alpha=0.2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the first batch")
        axes.set_ylabel("samples/s")
        plots.legend(axes)


FIGURES = Section(
    "Pipelines",
    "A device gets slow",
    [
        Row(
            "replan",
            f"VGG-11 in a pipeline{flush}, the fastest of three devices slowed to a quarter while it trains: batches"
            " until the new plan; batches lost or done twice; samples/s before, by the old plan, by the new one",
            f"{{{slowed}/batches_until:.0f}}; {{{slowed}/batches_wrong:.0f}}; {{{slowed}/before_per_s:.0f}},"
            f" {{{slowed}/meanwhile_per_s:.0f}}, {{{slowed}/samples_per_s:.0f}}",
            f"fresh groups with the slowed device, before and after: {{{fresh}/samples_per_s:.0f}} samples/s; of that"
            f" the replanned one has {{{slowed}/ratio:.2f}}",
        )
        for flush, slowed, fresh in (
            ("", SLOWED, FRESH),
            (pipeline_lab.NO_FLUSH, f"{SLOWED}, async", f"{FRESH}, async"),
        )
    ],
    (
        Remark(
            "replan",
            "After a device has got slow the group trains as fast as fresh groups do: {slowed while training/ratio:.2f}"
            " times with a flush, {slowed while training, async/ratio:.2f} without. The aim is 0.95.",
        ),
        Remark(
            "replan",
            "It took 23 to 35 s, and one new plan in each of the six cases. No batch was lost.",
        ),
        Remark(
            "replan",
            "An earlier version kept the slowed device as a third stage, for 3 % more speed on paper, and was 10 to 20"
            " % slower than fresh groups, which left it out. Now the fewest devices are taken that are as fast to"
            " within a twentieth.",
        ),
        Remark(
            "replan",
            "In an earlier version a plan could follow while blocks of the one before were on their way. It then began"
            " with a batch for which nobody would ever have them (once 22 batches were lost or done twice). Now none"
            " follows before all train by the last one.",
        ),
    ),
)

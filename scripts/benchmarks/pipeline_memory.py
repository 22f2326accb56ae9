"""A model that no single device has the memory for, trained by three of them in a pipeline in the lab.

Each device's cgroup has the same limit, and the encoder after BERT-small at twice its width, with AdamW, needs more
than that for parameters, gradients, optimizer state and activations.
Measured: one device alone, which should say at once that it can't, and if it tries is ended by the limit; one device
alone that is made to try (its profile claims more memory than it has); and three together, which train, are harvested,
and whose model is evaluated on text that nobody trained on.

*Peak* is all memory charged to a device, node and trainer and copies of files, as the kernel counts it; *without files*
is what the kernel can't give back when memory gets short, the most seen in four looks a second. *Estimated* is what the
planner counts on for the device that needs most, node and trainer included; of one device alone, for the whole model
at the smallest micro-batch. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab import host
from lab.quota import sweep
from lab.spec import Device, device_of

from benchmarks import pipeline_lab
from benchmarks.common import Column, Sample, Settings
from benchmarks.pace import Stint
from benchmarks.pipeline_lab import Ran, Workload
from benchmarks.pipeline_text import text_workload
from benchmarks.rows import Remark, Row, Section
from p2ptrain.api import Status
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment import measure
from p2ptrain.learning.data import load, open_source, select
from p2ptrain.learning.models import global_model
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.devices.footprint import PEER_BASE_BYTES
from p2ptrain.planning.pipeline.cost import stage_memory_bytes

LISTED = {
    "pipeline_memory": "a model that no device alone has the memory for, in a pipeline on three of them",
}
BASELINE = "one device alone, with the same limit"
COLUMNS = (
    Column("limit_mb", "limit of a device, MB", 0),
    Column("estimated_mb", "estimated, MB", 0),
    Column("kept_mb", "peak without files, MB", 0),
    Column("peak_mb", "peak, MB", 0),
    Column("batches", "batches done", 0),
    Column("batches_per_s", "batches/s", 2),
    Column("loss_first", "loss, first batches", 2),
    Column("loss_last", "last", 2),
    Column("accuracy", "accuracy of the harvest, %", 1),
    Column("refused_s", "s until refused", 0),
    Column("killed_s", "s until killed", 0),
)
ALONE, FORCED, TOGETHER = "alone", "alone, made to try", "three together"
CASES = (TOGETHER, ALONE, FORCED)
SPEEDS = {"device1": 1.0, "device2": 1.0, "device3": 1.0}
RATE_MBIT = 100.0
LIMIT_MB, TINY_LIMIT_MB = 1000.0, 720.0
WIDTH, TINY_WIDTH = 2.0, 1.5
NUM_BATCHES = 30
SNAPSHOT_STEPS, TINY_SNAPSHOT_STEPS = 10, 2
NUM_JUDGED = 256
"""Test samples that the harvested model is evaluated on."""
NUM_LOSSES = 5
"""First and last ones of which a mean is taken."""
REFUSED = "a plan that can be made: "
"""How a record says what stands in the way of one."""
KILLED = "the trainer was killed"
"""How a peer's log says it."""
START_S = 120.0


class RefusedError(Exception):
    """The group says why it does not train."""


def run(settings: Settings) -> Iterator[Sample]:
    controllers = host.check_host()
    sweep(controllers)
    with tempfile.TemporaryDirectory(prefix="p2ptrain-text-") as folder:
        workload = text_workload(Path(folder), TINY_WIDTH if settings.tiny else WIDTH)
        training = {"optimizer": "adamw", "learning_rate": 3e-4}
        steps = TINY_SNAPSHOT_STEPS if settings.tiny else SNAPSHOT_STEPS
        workload = dataclasses.replace(workload, tables={**workload.tables, "training": training}, snapshot_steps=steps)
        for repetition in settings.repetitions:
            yield from _measured(workload, settings, repetition, controllers)


def _measured(workload: Workload, settings: Settings, repetition: int, controllers: Any) -> Iterator[Sample]:
    limit_mb = TINY_LIMIT_MB if settings.tiny else LIMIT_MB
    cores = pipeline_lab.TINY_CORES if settings.tiny else pipeline_lab.CORES
    devices = [
        device_of(d.name, d.share, d.rate_mbit, limit_mb, shard=d.shard)
        for d in pipeline_lab.devices_of(SPEEDS, cores, [RATE_MBIT] * len(SPEEDS))
    ]
    stint = Stint(6, 3, 8.0, 60.0, 0.0) if settings.tiny else Stint(NUM_BATCHES, NUM_BATCHES, 0.0, 180.0)
    ran = pipeline_lab.run_case(workload, "planned", devices, stint, repetition, controllers)
    alone_mb, together_mb = estimates_mb(ran)
    figures = {
        "limit_mb": limit_mb,
        "estimated_mb": max(together_mb),
        "kept_mb": max(use.peak_kept_bytes for use in ran.lab.use.values()) / 1e6,
        "peak_mb": max(use.peak_memory_bytes for use in ran.lab.use.values()) / 1e6,
        "batches_per_s": ran.pace.steps_per_s,
        "accuracy": 100 * _accuracy(ran),
    }
    for name, use in ran.lab.use.items():
        figures |= {f"kept_mb_{name}": use.peak_kept_bytes / 1e6, f"peak_mb_{name}": use.peak_memory_bytes / 1e6}
    yield Sample(TOGETHER, repetition, ran.figures() | figures | losses(ran))
    fixed = {"limit_mb": limit_mb, "estimated_mb": alone_mb}
    workload = dataclasses.replace(workload, snapshot_steps=1)
    claimed = dataclasses.replace(
        devices[0], profile=device_of(devices[0].name, devices[0].share, devices[0].rate_mbit).profile
    )
    for case, device in ((ALONE, devices[0]), (FORCED, claimed)):
        yield Sample(case, repetition, fixed | _alone(workload, device, stint, repetition, controllers), True)


def estimates_mb(ran: Ran) -> tuple[float, list[float]]:
    """Of one device that trains the whole model in the smallest micro-batches; and of each device of the plan."""
    assert ran.plan is not None and isinstance(ran.plan.body, PipelineBody)
    pipeline, least = ran.plan.body.pipeline, ran.fleet.costs(pipeline_of(ran.job).micro_batches)
    whole = least.fixed_bytes(0, least.num_units)
    whole += least.task.micro_batch * least.sample_bytes(0, least.num_units, 1)
    costs = ran.fleet.costs(pipeline.num_micro_batches)
    needs = [need for stage in pipeline.stages for need in stage_memory_bytes(costs, stage)]
    return (whole + PEER_BASE_BYTES) / 1e6, [(need + PEER_BASE_BYTES) / 1e6 for need in needs]


def losses(ran: Ran) -> dict[str, float]:
    """Means of the first and of the last few that the last stage told."""
    told = [mark.loss for mark in ran.pace.marks if mark.loss > 0]
    if not told:
        return {}
    return {"loss_first": statistics.mean(told[:NUM_LOSSES]), "loss_last": statistics.mean(told[-NUM_LOSSES:])}


def _accuracy(ran: Ran) -> float:
    source = open_source(ran.spec.data)
    chosen: Sequence[int] = select(source, ran.job.data, "test", seed=ran.job.seed)[:NUM_JUDGED]
    model = global_model(ran.job, allow_user_code=False)
    model.load_state_dict(ran.lab.outcome.harvest.state)
    test = load(source, ran.job.data, "test", chosen)
    return measure.accuracy(model, test, len(ran.job.data.classes)).accuracy


def _alone(workload: Workload, device: Device, stint: Stint, repetition: int, controllers: Any) -> dict[str, float]:
    """Seconds from the start until it says that it can't train, or until the kernel has ended its trainer for good.

    And the batches that it did before. Raises ``TimeoutError`` if it does neither.
    """
    seen = {"batches": 0.0}
    seen_s = 0.0

    def observe(seconds: float, status: Status) -> None:
        nonlocal seen_s
        seen_s = seconds
        seen["batches"] = float(max([int(seen["batches"]), *(record.step for record in status.records)]))
        for record in status.records:
            if record.waiting_for.startswith(REFUSED) and "memory" in record.waiting_for:
                raise RefusedError(record.waiting_for.removeprefix(REFUSED))
        if seconds > stint.most_s + START_S:
            raise TimeoutError(f"one device alone neither refused nor failed within {seconds:.0f} s")

    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        try:
            pipeline_lab.run_case(
                workload,
                "planned",
                [device],
                stint,
                repetition,
                controllers,
                until=lambda pace: False,
                observe=observe,
                out=Path(folder),
            )
        except RefusedError as error:
            print(f"  {device.name} alone: {error}", file=sys.stderr)
            return seen | {"refused_s": seen_s}
        except P2PTrainError as error:
            if KILLED not in (Path(folder) / f"{device.name}.log").read_text(encoding="utf-8"):
                raise
            print(f"  {device.name} alone: {error}", file=sys.stderr)
            return seen | {"killed_s": seen_s}
    raise TimeoutError("one device alone trains a model that it has no memory for")


FIGURES = Section(
    "Pipelines",
    "A model that fits into no single device",
    (
        Row(
            "pipeline_memory",
            "a model that needs {alone/estimated_mb:.0f} MB, on three devices of {three together/limit_mb:.0f} MB each:"
            " peak that no file gives back, of the device that needs most (the planner's estimate); batches/s; loss at"
            " first and at last",
            "{three together/kept_mb:.0f} MB ({three together/estimated_mb:.0f} MB);"
            " {three together/batches_per_s:.2f}; {three together/loss_first:.2f}, {three together/loss_last:.2f}",
            "one device alone says {alone/refused_s:.0f} s after its start that it can't; made to try, it is ended by"
            " its limit after {alone, made to try/killed_s:.0f} s",
        ),
    ),
    (
        Remark("pipeline_memory", "The memory that the plan was made with was above what was taken."),
        Remark("pipeline_memory", "This is one run."),
    ),
)

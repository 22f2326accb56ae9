"""Depth slices on devices of speeds 1 : 0.1 : 1 in the lab: throughput, beside what the cost model predicts for it.

Each case trains for the same wall time, on the same devices and samples: the pipeline that the group plans; as many
blocks on every device (``strategy = "equal"``); the whole model on every device (``strategy = "data-parallel"``); and
plain training on one of the fast devices alone. A batch is counted when a device says that it is done; a change of plan
starts the count anew, so a figure is of the last plan that a case ended with. *Predicted* is of that plan, from the
times of blocks that the devices measured themselves and that the plan carries. *Idle* is the share of the time in which
a stage's trainer had nothing to compute (the bubble), from its journal. Needs Linux and root, as the lab does.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laboratory import host, jobs, session
from laboratory.quota import sweep
from laboratory.spec import LabSpec, device_of

from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.tasks import data_file
from p2ptrain.api import Status
from p2ptrain.learning.block_costs import profile_blocks
from p2ptrain.learning.blocks import Chain
from p2ptrain.learning.parts import global_model
from p2ptrain.planning.pipeline_cost import CostModel
from p2ptrain.planning.plan import Plan
from p2ptrain.planning.slice_figures import batch_s, task_of

BASELINE = "plain training on the fastest device alone; an equal split; data parallel"
COLUMNS = (
    Column("samples_per_s", "samples/s", 1),
    Column("predicted_per_s", "predicted", 1),
    Column("measured_of_predicted", "measured/predicted", 2),
    Column("times_single", "x one device alone", 2),
    Column("idle_most", "idle, most idle stage, %", 0),
    Column("stages", "stages", 0),
    Column("replans", "plans after the first", 0),
)
SINGLE = "one fast device alone"
CASES = {"planned": "planned", "equal split": "equal", "data parallel": "data-parallel"}
SPEEDS = {"fast-1": 1.0, "slow": 0.1, "fast-2": 1.0}
CORES = 1.89
"""For all devices together; the rest of two is for looking on."""
RATE_MBIT = 100.0
BATCH, MICRO_BATCHES = 64, 8
MODELS = ("vgg11", "mobilenetv2")
TRAIN_S = 90.0
SUBSET = 30
"""Of CIFAR-10's training samples one in so many is used."""


@dataclass(slots=True)
class Pace:
    """Batches by the time, since the plan changed last."""

    plan: str = ""
    num_plans: int = 0
    points: list[tuple[float, int]] = field(default_factory=list)

    def look(self, seconds: float, status: Status) -> None:
        name = status.plan.hash if status.plan is not None else ""
        if name != self.plan:
            self.plan, self.num_plans = name, self.num_plans + 1
            self.points.clear()
        step = max((record.step for record in status.records if record.phase == "training"), default=0)
        if step > 0 and (not self.points or step > self.points[-1][1]):
            self.points.append((seconds, step))

    @property
    def steps_per_s(self) -> float:
        """Without the first batches, which fill caches. Raises ``TimeoutError`` where there are too few."""
        points = self.points[1:]
        if len(points) < 2:
            raise TimeoutError("too few batches to measure; give it more time")
        return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def run(settings: Settings) -> Iterator[Sample]:
    controllers = host.check_host()
    sweep(controllers)
    for repetition in range(settings.repeat):
        for model in MODELS[:1] if settings.tiny else MODELS:
            single = _run_lab(model, SINGLE, settings, repetition, controllers)
            yield Sample(f"{model}: {SINGLE}", repetition, single, is_baseline=True)
            for case in list(CASES)[:1] if settings.tiny else CASES:
                figures = _run_lab(model, case, settings, repetition, controllers)
                figures["times_single"] = figures["samples_per_s"] / single["samples_per_s"]
                yield Sample(f"{model}: {case}", repetition, figures, is_baseline=case != "planned")


def _run_lab(model: str, case: str, settings: Settings, repetition: int, controllers: Any) -> dict[str, float]:
    training = {"rounds": 1000, "batch_size": BATCH, "learning_rate": 0.01, "schedule": "constant"}
    tables: dict[str, Any] = {"model": {"name": model}, "training": training, "seed": SEED + repetition}
    if settings.tiny:
        tables["model"], data = {"name": "lenet", "width": 2.0}, "digits"
    else:
        data = f"images:{data_file('cifar10-images.zip')}"
    names = list(SPEEDS)[:1] if case == SINGLE else list(SPEEDS)
    if case == SINGLE:
        tables |= {"mode": "replicas"}
    else:
        slices = {"micro_batches": MICRO_BATCHES, "strategy": CASES[case], "snapshot_steps": 5}
        tables |= {"mode": "slices", "slices": slices, "group": {"custodians": 0}}
    core = CORES / sum(SPEEDS.values())
    parts = 3 if settings.tiny else 3 * SUBSET
    devices = tuple(
        device_of(name, SPEEDS[name] * core, RATE_MBIT, shard=f"{1 + number}/{parts}")
        for number, name in enumerate(names)
    )
    spec = LabSpec(f"{model}, {case}", data, tables, devices, train_s=10.0 if settings.tiny else TRAIN_S)
    job, pace = jobs.job_of(spec), Pace()
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        lab = session.run(spec, job, controllers, Path(folder), lambda text: None, pace.look, calibrated=False)
        idle = [_idle_share(Path(folder) / f"{name}.journal.jsonl") for name in names]
    figures = {"samples_per_s": pace.steps_per_s * BATCH, "batches": float(pace.points[-1][1])}
    figures["memory_mb"] = max(use.peak_memory_bytes for use in lab.use.values()) / 1e6
    plan = next((plan for _, plan in lab.plans if plan.hash == pace.plan), None)
    if plan is None or plan.slices is None:
        return figures
    predicted = BATCH / _predicted_s(plan, model, job)
    at_work = [share for share in idle if share is not None]
    return figures | {
        "predicted_per_s": predicted,
        "measured_of_predicted": figures["samples_per_s"] / predicted,
        "stages": float(len(plan.slices.pipeline.stages)),
        "replans": float(pace.num_plans - 1),
        "idle_most": 100 * max(at_work, default=0.0),
        "idle_least": 100 * min(at_work, default=0.0),
    }


def _predicted_s(plan: Plan, model: str, job: Any) -> float:
    """Of a batch, by the figures that the plan was made from."""
    assert plan.slices is not None
    chain = Chain(global_model(job, allow_user_code=False), job.data.input_shape)
    task = task_of(job, profile_blocks(chain, job.model.name), plan.peers, plan.slices.profiles)
    return batch_s(CostModel(task), plan.slices.pipeline)


def _idle_share(journal: Path) -> float | None:
    """Median over a device's reports; None for one that had no stage at the end."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    busy = [line["busy"] for line in lines if line["kind"] == "stage"]
    return 1 - statistics.median(busy[-5:]) if busy else None

"""What the benchmarks of depth slices in the lab share: a case run on unlike devices, its pace, and what was predicted.

A batch is counted when a device says that it is done. A change of plan starts the count anew, so a pace is of the last
plan that a case ended with. *Predicted* is of that plan, from the times of blocks that the devices measured themselves
and that the plan carries: once for all cases of a repetition, by all devices at once. *Idle* is the share of the time
in which a stage's trainer had nothing to compute (the bubble), from its journal.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laboratory import jobs, rehearsal, session
from laboratory.spec import Device, Event, LabSpec, device_of

from benchmarks.common import SEED, Column
from p2ptrain.api import Status
from p2ptrain.config import Crossing, Job
from p2ptrain.errors import NotCoveredError
from p2ptrain.learning.block_costs import profile_blocks
from p2ptrain.learning.blocks import Chain
from p2ptrain.learning.parts import global_model
from p2ptrain.planning.plan import Plan
from p2ptrain.planning.slice_figures import Room

CORES = 1.89
"""For all devices together; the rest of two is for looking on."""
TINY_CORES = 1.0
ALONE = "alone"
"""In the place of a strategy: plain training on the first device."""
COLUMNS = (
    Column("samples_per_s", "samples/s", 1),
    Column("predicted_per_s", "predicted", 1),
    Column("measured_of_predicted", "measured/predicted", 2),
    Column("times_single", "x one device alone", 2),
    Column("idle_most", "idle, most idle stage, %", 0),
    Column("stages", "stages", 0),
    Column("replans", "plans after the first", 0),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """``tables``: of the job, but for what makes the case. ``snapshot_steps``: of the job; 0 = a round.

    ``crossing``: how activations and gradients travel.
    """

    name: str
    data: str
    tables: Mapping[str, Any]
    batch_size: int
    micro_batches: int = 8
    snapshot_steps: int = 0
    crossing: Crossing = "none"


@dataclass(frozen=True, slots=True)
class Stint:
    """How long a case trains: until it has measured ``batches`` by one plan, or ``enough_batches`` and ``enough_s`` are
    over; ``most_s`` at most. Seconds since the first device trains."""

    batches: int = 60
    enough_batches: int = 20
    enough_s: float = 50.0
    most_s: float = 110.0
    warm_up_s: float = 10.0
    """Of each plan's training, which does not count."""


UNPLANNED_SNAPSHOT_STEPS = 2
"""A harvest needs a snapshot, and without a plan a round may take longer than a case."""

TINY = Stint(6, 3, 8.0, 25.0, 0.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """The group had done ``step`` batches at ``seconds`` since the lab's start, under the plan with this hash."""

    seconds: float
    step: int
    plan: str
    samples: int
    loss: float
    """0 where nobody had said one."""


@dataclass(slots=True)
class Pace:
    """Batches by the time. ``warm_up_s``: of ``Stint``."""

    warm_up_s: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)
    began: float | None = None
    """When the first device was training."""
    seconds: float = 0.0

    def look(self, seconds: float, status: Status) -> None:
        self.seconds = seconds
        plan = status.plan.hash if status.plan is not None else ""
        if plan and plan not in self.plans[-1:]:
            self.plans.append(plan)
        training = [record for record in status.records if record.phase == "training"]
        if training and self.began is None:
            self.began = seconds
        step = max((record.step for record in training if record.plan == plan), default=0)
        last = self.marks[-1] if self.marks else None
        begins_at = status.plan.slices.from_step if status.plan is not None and status.plan.slices is not None else 0
        if step > begins_at and (last is None or plan != last.plan or step != last.step):
            loss = max((record.loss for record in training if record.step == step), default=0.0)
            samples = max(record.samples for record in training if record.step == step)
            self.marks.append(Mark(seconds, step, plan, samples, loss))

    @property
    def current(self) -> list[Mark]:
        """Of the last plan, without the time in which it warms up: caches fill, and heaps grow."""
        marks = [mark for mark in self.marks if mark.plan == self.plans[-1]] if self.plans else []
        warm_s = marks[0].seconds + self.warm_up_s if marks else 0.0
        return [mark for mark in marks[1:] if mark.seconds >= warm_s]

    @property
    def num_batches(self) -> int:
        points = self.current
        return points[-1].step - points[0].step if points else 0

    def is_enough(self, stint: Stint) -> bool:
        trained = self.seconds - self.began if self.began is not None else 0.0
        least = stint.enough_batches if trained >= stint.enough_s else stint.batches
        return self.num_batches >= least

    @property
    def steps_per_s(self) -> float:
        """Raises ``TimeoutError`` where there are too few."""
        points = self.current
        if self.num_batches < 2 or len(points) < 2:
            raise TimeoutError("too few batches to measure; give it more time")
        return self.num_batches / (points[-1].seconds - points[0].seconds)


@dataclass(frozen=True, slots=True)
class Ran:
    """A case that was run."""

    job: Job
    spec: LabSpec
    lab: session.LabOutcome
    pace: Pace
    journals: Mapping[str, Sequence[Mapping[str, Any]]]
    """By device."""

    @property
    def plan(self) -> Plan | None:
        """The last one, if it is a pipeline."""
        plan = self.lab.plans[-1][1] if self.lab.plans else None
        return plan if plan is not None and plan.slices is not None else None

    @property
    def room(self) -> Room:
        """The devices with their figures, as the last plan was made from them."""
        assert self.plan is not None and self.plan.slices is not None
        chain = Chain(global_model(self.job, allow_user_code=False), self.job.data.input_shape)
        model = profile_blocks(chain, self.job.model.name)
        return Room(self.job, model, self.plan.peers, self.plan.slices.profiles)

    @property
    def samples_per_s(self) -> float:
        return self.pace.steps_per_s * self.job.training.batch_size

    def figures(self) -> dict[str, float]:
        """Of the columns, but for ``times_single``, and some more. Raises ``TimeoutError`` with too few batches."""
        figures = {"samples_per_s": self.samples_per_s, "batches": float(self.pace.marks[-1].step)}
        figures["batch_s"] = 1 / self.pace.steps_per_s
        figures["memory_mb"] = max(use.peak_memory_bytes for use in self.lab.use.values()) / 1e6
        if self.plan is None or self.plan.slices is None:
            return figures
        pipeline = self.plan.slices.pipeline
        predicted = self.job.training.batch_size / self.room.batch_s(pipeline)
        idle = [share for journal in self.journals.values() if (share := idle_share(journal)) is not None]
        return figures | {
            "predicted_per_s": predicted,
            "measured_of_predicted": figures["samples_per_s"] / predicted,
            "stages": float(len(pipeline.stages)),
            "replans": float(len(self.pace.plans) - 1),
            "devices_used": float(sum(len(stage.peers) for stage in pipeline.stages)),
            "micro_batches": float(pipeline.num_micro_batches),
            "idle_most": 100 * max(idle, default=0.0),
            "idle_least": 100 * min(idle, default=0.0),
        }


def devices_of(
    speeds: Mapping[str, float], cores: float, rates_mbit: Sequence[float], subset: int = 1
) -> tuple[Device, ...]:
    """Devices of these speeds to each other, ``cores`` together, with a share each of one sample in ``subset``."""
    unit, parts = cores / sum(speeds.values()), subset * len(speeds)
    return tuple(
        device_of(name, speed * unit, rate, shard=f"{number}/{parts}")
        for number, ((name, speed), rate) in enumerate(zip(speeds.items(), rates_mbit, strict=True), 1)
    )


def rehearse(workload: Workload, devices: Sequence[Device], stint: Stint, controllers: Any) -> dict[str, bytes]:
    """For ``run_case``, by device: the times of the model's blocks, measured by all at once."""
    return rehearsal.rehearse(jobs.job_of(spec_of(workload, "planned", devices, stint, 0)), devices, controllers)


def run_case(
    workload: Workload,
    strategy: str,
    devices: Sequence[Device],
    stint: Stint,
    repetition: int,
    controllers: Any,
    rehearsed: Mapping[str, bytes] | None = None,
    *,
    events: Sequence[Event] = (),
    until: Callable[[Pace], bool] | None = None,
    observe: Callable[[float, Status], None] = lambda seconds, status: None,
    out: Path | None = None,
) -> Ran:
    """Run the lab until the stint is over (or ``until`` says so). Raises ``P2PTrainError``, and what ``observe`` does;
    ``TimeoutError`` where nothing was saved that could be harvested.

    ``rehearsed``: of ``rehearse``; without it devices start, and measure, with their shares of a core.
    ``out``: a folder that keeps logs and journals, also of a case that failed.
    """
    spec, pace = spec_of(workload, strategy, devices, stint, repetition, events), Pace(stint.warm_up_s)
    job = jobs.job_of(spec)

    def look(seconds: float, status: Status) -> None:
        pace.look(seconds, status)
        observe(seconds, status)

    def is_over() -> bool:
        return until(pace) if until is not None else pace.is_enough(stint)

    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as made:
        folder = out or Path(made)
        try:
            lab = session.run(
                spec,
                job,
                controllers,
                folder,
                lambda text: None,
                look,
                calibrated=False,
                until=is_over,
                rehearsed=rehearsed,
            )
        except NotCoveredError:
            raise TimeoutError(f"{spec.name}: nothing was saved within {stint.most_s:g} s") from None
        journals = {device.name: read_journal(folder / f"{device.name}.journal.jsonl") for device in spec.devices}
    return Ran(job, spec, lab, pace, journals)


def spec_of(
    workload: Workload,
    strategy: str,
    devices: Sequence[Device],
    stint: Stint,
    repetition: int,
    events: Sequence[Event] = (),
) -> LabSpec:
    training = {"rounds": 1000, "batch_size": workload.batch_size, "learning_rate": 0.01, "schedule": "constant"}
    tables: dict[str, Any] = {"seed": SEED + repetition, **workload.tables}
    tables["training"] = training | dict(tables.get("training", {}))
    if strategy == ALONE:
        tables["mode"], devices = "replicas", devices[:1]
    else:
        tables["mode"], tables["group"] = "slices", {"custodians": 0}
        tables["slices"] = {
            "micro_batches": workload.micro_batches,
            "strategy": strategy,
            "activations": workload.crossing,
            "gradients": workload.crossing,
            "snapshot_steps": workload.snapshot_steps if strategy == "planned" else UNPLANNED_SNAPSHOT_STEPS,
        }
    name = f"{workload.name}, {strategy}"
    return LabSpec(name, workload.data, tables, tuple(devices), tuple(events), train_s=stint.most_s)


def read_journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def idle_share(journal: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over a device's last reports; None for one that never had a stage."""
    busy = [line["busy"] for line in journal if line["kind"] == "stage"]
    return 1 - statistics.median(busy[-5:]) if busy else None

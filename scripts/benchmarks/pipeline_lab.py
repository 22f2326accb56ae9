"""What the benchmarks of pipelines in the lab share: a case run on unlike devices, its pace, and what was predicted.

A batch is counted when a device says that it is done. A change of plan starts the count anew, so a pace is of the last
plan that a case ended with. *Predicted* is of that plan, from the times of blocks that the devices measured themselves
and that the plan carries: once for all cases of a repetition, by all devices at once. *Idle* is the share of the time
in which a stage's trainer had nothing to compute (the bubble), from its journal.

A machine that others use, too, may be a third faster in one minute than in the next. So a speedometer runs beside all
cases, and *at one speed* is by how many times a case is faster than one device alone if the machine is taken to have
been as fast in both; a prediction *at one speed* is by the speed of the minute in which blocks were timed.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import jobs, rehearsal, session, speedometer
from lab.bystanders import bystanders
from lab.spec import Device, Event, LabSpec, device_of
from lab.speedometer import Speedometer

from benchmarks.common import SEED, Column
from benchmarks.pace import Pace, Stint
from p2ptrain.api import Status
from p2ptrain.config import Coding, Job, Schedule
from p2ptrain.core.plan import Plan
from p2ptrain.errors import NotCoveredError
from p2ptrain.ids import PeerId
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.learning.models import global_model
from p2ptrain.modes.pipeline.figures import fleet_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.stages import PipelinePlan

CORES = 1.8
"""For all devices together; the rest of two is for looking on, at them and at the machine's speed."""
TINY_CORES = 1.0
ALONE = "alone"
"""In the place of a strategy: plain training on the first device, while the others do the same for themselves."""
NO_FLUSH = ", no flush between batches (`async`)"
"""In words of rows."""
COLUMNS = (
    Column("samples_per_s", "samples/s", 1),
    Column("predicted_per_s", "predicted", 1),
    Column("measured_of_predicted", "measured/predicted", 2),
    Column("same_speed_of_predicted", "at one speed", 2),
    Column("times_single", "x one device alone", 2),
    Column("same_speed_times_single", "at one speed", 2),
    Column("idle_most", "idle, most idle stage, %", 0),
    Column("stages", "stages", 0),
    Column("weakest_at", "stage of the weakest device", 0),
    Column("replans", "plans after the first", 0),
    Column("node_ms", "node's CPU ms a batch, most", 0),
    Column("node_ms_standby", "standing by", 0),
    Column("node_ms_planned", "planned for stage messages", 0),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """``tables``: of the job, but for what makes the case. ``snapshot_steps``: of the job; 0 = a round.

    ``crossing``: how activations and gradients travel. ``schedule``: of the pipeline.
    """

    name: str
    data: str
    tables: Mapping[str, Any]
    batch_size: int
    micro_batches: int = 8
    snapshot_steps: int = 0
    crossing: Coding = "none"
    schedule: Schedule = "sync"


UNPLANNED_SNAPSHOT_STEPS = 2
"""A harvest needs a snapshot, and without a plan a round may take longer than a case."""

TINY = Stint(6, 3, 8.0, 25.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """``times``: of the model's blocks, by device. ``speeds``: of the cores, while they were taken."""

    times: Mapping[str, bytes]
    speeds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Ran:
    """A case that was run."""

    job: Job
    spec: LabSpec
    lab: session.LabOutcome
    pace: Pace
    journals: Mapping[str, Sequence[Mapping[str, Any]]]
    """By device."""
    speeds: Mapping[int, float]
    """Of the cores, while its pace was measured."""
    rehearsed_speeds: Mapping[int, float]
    """Of the cores, while the times were taken that it was planned with; none if they were taken by its own devices."""

    @property
    def plan(self) -> Plan | None:
        """The last one, if it is a pipeline."""
        plan = self.lab.plans[-1][1] if self.lab.plans else None
        return plan if plan is not None and isinstance(plan.body, PipelineBody) else None

    @property
    def fleet(self) -> Fleet:
        """The devices with their figures, as the last plan was made from them."""
        assert self.plan is not None and isinstance(self.plan.body, PipelineBody)
        chain = Chain(global_model(self.job, allow_user_code=False), self.job.data.input_shape)
        model = profile_blocks(chain, self.job.model.name)
        return fleet_of(self.job, model, self.plan.peers, self.plan.body.figures)

    @property
    def samples_per_s(self) -> float:
        return self.pace.steps_per_s * self.job.training.batch_size

    def figures(self) -> dict[str, float]:
        """Of the columns, but for ``times_single``, and some more. Raises ``TimeoutError`` with too few batches."""
        figures = {"samples_per_s": self.samples_per_s, "batches": float(self.pace.marks[-1].step)}
        figures["batch_s"] = 1 / self.pace.steps_per_s
        figures["memory_mb"] = max(use.peak_memory_bytes for use in self.lab.use.values()) / 1e6
        figures |= {f"speed_{cpu}": speed for cpu, speed in self.speeds.items()}
        if self.plan is None or not isinstance(self.plan.body, PipelineBody):
            return figures
        pipeline = self.plan.body.pipeline
        fleet = self.fleet
        predicted = self.job.training.batch_size / fleet.batch_s(pipeline)
        ratio, faster = figures["samples_per_s"] / predicted, speedometer.change(self.rehearsed_speeds, self.speeds)
        figures |= {"same_speed_of_predicted": ratio / faster} if faster else {}
        idle = [share for journal in self.journals.values() if (share := idle_share(journal)) is not None]
        figures |= {"idle_most": 100 * max(idle), "idle_least": 100 * min(idle)} if idle else {}
        return figures | {
            "predicted_per_s": predicted,
            "measured_of_predicted": ratio,
            "stages": float(len(pipeline.stages)),
            **weakest_at(self.spec.devices, self.lab.names, pipeline),
            "replans": float(len(self.pace.plans) - 1),
            "devices_used": float(sum(len(stage.peers) for stage in pipeline.stages)),
            "micro_batches": float(pipeline.num_micro_batches),
            **self._node_figures(fleet, pipeline, figures["batches"]),
        }

    def _node_figures(self, fleet: Fleet, pipeline: PipelinePlan, num_batches: float) -> dict[str, float]:
        """CPU ms of a batch: what the busiest node took, what is planned of that for stage messages, and, as all that a
        node does is counted, what one took that stands by."""
        took = {peer: self.lab.use[name].node_cpu_s for peer, name in self.lab.names.items() if name in self.lab.use}
        peer = max((peer for stage in pipeline.stages for peer in stage.peers), key=lambda peer: took[PeerId(peer)])
        figures = {"node_ms": took[PeerId(peer)] / num_batches, "node_ms_planned": fleet.node_s(pipeline, peer)}
        standing_by = [took[PeerId(peer)] for peer in pipeline.left_out]
        figures |= {"node_ms_standby": max(standing_by) / num_batches} if standing_by else {}
        return {name: 1e3 * seconds for name, seconds in figures.items()}


def devices_of(
    speeds: Mapping[str, float], cores: float, rates_mbit: Sequence[float], subset: int = 1
) -> tuple[Device, ...]:
    """Devices of these speeds to each other, ``cores`` together, with a share each of one sample in ``subset``."""
    unit, parts = cores / sum(speeds.values()), subset * len(speeds)
    return tuple(
        device_of(name, speed * unit, rate, shard=f"{number}/{parts}")
        for number, ((name, speed), rate) in enumerate(zip(speeds.items(), rates_mbit, strict=True), 1)
    )


def compared(ran: Ran, alone: Ran) -> dict[str, float]:
    """Of a case, beside one device alone."""
    times, faster = ran.samples_per_s / alone.samples_per_s, speedometer.change(alone.speeds, ran.speeds)
    return {"times_single": times} | ({"same_speed_times_single": times / faster} if faster else {})


def rehearse(workload: Workload, devices: Sequence[Device], stint: Stint, controllers: Any) -> Rehearsal:
    """For ``run_case``: the times of the model's blocks, measured by all devices at once."""
    job = jobs.job_of(spec_of(workload, "planned", devices, stint, 0))
    with Speedometer() as meter:
        began, times = rehearsal.rehearse(job, devices, controllers)
        return Rehearsal(times, speedometer.speed_of(meter.readings(), began, time.monotonic()))


def run_case(
    workload: Workload,
    strategy: str,
    devices: Sequence[Device],
    stint: Stint,
    repetition: int,
    controllers: Any,
    rehearsed: Rehearsal | None = None,
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
    job, started_at = jobs.job_of(spec), 0.0

    def look(seconds: float, status: Status) -> None:
        nonlocal started_at
        started_at = time.monotonic() - seconds
        pace.look(seconds, status)
        observe(seconds, status)

    def is_over() -> bool:
        return until(pace) if until is not None else pace.is_enough(stint)

    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptrain-bench-")))
        meter = stack.enter_context(Speedometer())
        if strategy == ALONE:
            stack.enter_context(bystanders(job, devices, devices[0].name, controllers))
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
                rehearsed=rehearsed.times if rehearsed else None,
            )
        except NotCoveredError:
            raise TimeoutError(f"{spec.name}: nothing was saved within {stint.most_s:g} s") from None
        journals = {device.name: read_journal(folder / f"{device.name}.journal.jsonl") for device in spec.devices}
        readings = meter.readings()
    seconds = [mark.seconds for mark in pace.current] or [0.0, math.inf]
    speeds = speedometer.speed_of(readings, started_at + seconds[0], started_at + seconds[-1])
    return Ran(job, spec, lab, pace, journals, speeds, rehearsed.speeds if rehearsed else {})


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
        tables["mode"], tables["group"] = "pipeline", {"replicas": 0}
        tables["pipeline"] = {
            "micro_batches": workload.micro_batches,
            "strategy": strategy,
            "schedule": workload.schedule,
            "activations": workload.crossing,
            "gradients": workload.crossing,
            "snapshot_steps": workload.snapshot_steps if strategy == "planned" else UNPLANNED_SNAPSHOT_STEPS,
        }
    name = f"{workload.name}, {strategy}"
    return LabSpec(name, workload.data, tables, tuple(devices), tuple(events), train_s=stint.most_s)


def read_journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def weakest_at(devices: Sequence[Device], names: Mapping[PeerId, str], pipeline: PipelinePlan) -> dict[str, float]:
    """The stage of the weakest device, from 1 on; nothing where it is left out. ``names``: of devices, by peer id."""
    weakest = min(devices, key=lambda device: device.share).name
    at = next((pipeline.stage_of(peer) for peer, name in names.items() if name == weakest), None)
    return {} if at is None else {"weakest_at": float(at + 1)}


def idle_share(journal: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over a device's last reports; None for one that never had a stage."""
    busy = [line["busy"] for line in journal if line["kind"] == "stage"]
    return 1 - statistics.median(busy[-5:]) if busy else None

"""One run of a lab: devices made, calibrated, started, followed through the events to the harvest, and taken apart.

Invariant: however the run ends, its processes, cgroups and network are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.calibration import Speed, calibrate
from lab.camera import Camera
from lab.devices import LabDevices
from lab.host import environment
from lab.network import OWN_ADDRESS, Line, Network
from lab.placement import device_groups
from lab.quota import Controllers, DeviceGroup
from lab.spec import Device, LabSpec
from lab.timeline import Happened, Timeline
from p2ptrain.api import Status, observing, snapshot_status
from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment.group import Experiment, Outcome, PeerShare, harvest_with
from p2ptrain.ids import PeerId
from p2ptrain.learning.profiling.device import available_cores
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.split.plan import SplitBody
from p2ptrain.net.keys import new_group
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode

POLL_S = 0.25
Say = Callable[[str], None]
Progress = Callable[[float, Status], None]


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one device used, start to end. ``training_cpu_s``: of that, from when the first trained to the harvest."""

    peak_memory_bytes: int
    cpu_s: float
    training_cpu_s: float = 0.0
    peak_kept_bytes: int = 0
    """Of the memory what no file gives back: the most that was seen, looking a few times a second."""
    node_cpu_s: float = 0.0
    """Of ``training_cpu_s`` what its node took: all but the trainer."""


@dataclass(frozen=True, slots=True)
class LabOutcome:
    """``plans``: by the time, in seconds since the lab's start, at which each was first seen."""

    outcome: Outcome
    speeds: tuple[Speed, ...]
    events: tuple[Happened, ...]
    plans: tuple[tuple[float, Plan], ...]
    names: Mapping[PeerId, str]
    """Device names by peer id."""
    use: Mapping[str, DeviceUse]
    accuracies: tuple[tuple[float, float], ...]
    """(seconds since the lab's start, accuracy on the test samples) over the run, if that was asked for."""
    training_s: float
    """Seconds from the lab's start until the first device was training."""
    started_at: float
    """Seconds since 1970."""


def experiment_of(spec: LabSpec, job: Job) -> Experiment:
    """Who trains on what."""
    shares = tuple(
        PeerShare(device.name, device.shard, device.classes, device.has_data, dirichlet=device.dirichlet)
        for device in spec.devices
    )
    return Experiment(job, spec.data, shares, timeout_s=spec.timeout_s)


def run(
    spec: LabSpec,
    job: Job,
    controllers: Controllers,
    out: Path,
    say: Say,
    progress: Progress,
    *,
    calibrated: bool,
    speeds: Sequence[Speed] = (),
    num_points: int = 0,
    until: Callable[[], bool] = lambda: False,
    rehearsed: Mapping[str, bytes] | None = None,
) -> LabOutcome:
    """Run a lab to the harvested model. Raises ``P2PTrainError``; ``OffSpeedError`` if a device is not as described.

    ``calibrated``: measure the devices first, unless ``speeds`` says what was measured before. ``num_points``: of the
    accuracy over time, evaluated after the run. ``until``: asked after each ``progress``; then training ends, as after
    ``spec.train_s``. ``rehearsed``: what each device's peer remembers of the times of its blocks (see ``rehearsal``).
    Nothing is measured then before one trains, and until that devices have a whole core each: a tenth of one takes
    minutes to start.
    """
    experiment = experiment_of(spec, job)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptrain-lab-")))
        (folder / "job.toml").write_text(job.to_toml(), encoding="utf-8")
        shutil.copy(folder / "job.toml", out / "job.toml")
        network = stack.enter_context(Network(Line(spec.delay_ms, spec.loss)))
        for device in spec.devices:
            network.add(device.name, device.rate_mbit)
        groups = stack.enter_context(device_groups(spec.devices, controllers))
        if calibrated and not speeds:
            speeds = measured(job, spec.devices, groups, say)
        for speed in speeds:
            groups[speed.device].correct(speed.correction)
        stack.callback(keep_papers, folder, spec.devices, out)
        devices = LabDevices(spec, experiment, folder, network, groups, new_group())
        devices.give_identities()
        if rehearsed is not None:
            devices.hurry(rehearsed)
        if num_points:
            devices.camera = Camera(folder / "frames", job, is_shared=job.mode == "split")
        with contextlib.ExitStack() as peers:
            peers.callback(devices.end)
            lab = asyncio.run(_follow(devices, tuple(speeds), say, progress, until))
        if devices.camera is not None:
            end_s, step_s = lab.outcome.trained_s, (lab.outcome.trained_s - lab.training_s) / num_points
            times = [end_s - step_s * number for number in reversed(range(num_points))]
            points = devices.camera.accuracies(lab.outcome.harvest.plan, spec.data, times)
            lab = dataclasses.replace(lab, accuracies=tuple(points))
        return lab


def speeds_of(spec: LabSpec, job: Job, controllers: Controllers, say: Say) -> list[Speed]:
    """Only make and calibrate the devices. Raises ``OffSpeedError``."""
    with device_groups(spec.devices, controllers) as groups:
        return measured(job, spec.devices, groups, say)


def measured(job: Job, devices: Sequence[Device], groups: Mapping[str, DeviceGroup], say: Say) -> list[Speed]:
    """Calibrate the devices. Raises ``OffSpeedError`` if one is not as fast as its share says."""
    say("calibrating: each device's speed at the job's model, alone")
    return calibrate(job, devices, groups, available_cores(), environment(), say)


async def _follow(
    devices: LabDevices, speeds: tuple[Speed, ...], say: Say, progress: Progress, until: Callable[[], bool]
) -> LabOutcome:
    timeline = Timeline(devices.spec.events, devices, say)
    start, started_at = time.monotonic(), time.time()
    formed, training, cpu_before, node_before = 0.0, 0.0, dict[str, float](), dict[str, float]()
    plans: list[tuple[float, Plan]] = []
    for device in devices.spec.devices:
        if device.name not in devices.spec.late:
            devices.start(device.name)
    timeline.begin("start", start)
    async with observing(devices.code, NetworkConfig(interfaces=(OWN_ADDRESS,))) as node:
        while True:
            await asyncio.sleep(POLL_S)
            now = time.monotonic()
            status = snapshot_status(node)
            progress(now - start, status)
            timeline.carry_out(now, time.time, time.monotonic)
            devices.check(status)
            devices.look(now - start)
            plan = status.plan
            if plan is not None and (not plans or plans[-1][1].hash != plan.hash):
                plans.append((now - start, plan))
            alive = [r for r in status.records if status.states.get(r.peer) in ("alive", "suspect")]
            phases = {record.name: record.phase for record in alive}
            if not formed and devices.running <= phases.keys():
                formed = now - start
                say(f"{formed:.1f} s: the group is formed")
            trains = {name for name, phase in phases.items() if phase != "waiting"}
            if trains and not training:
                devices.keep_to_shares()
                training, cpu_before, node_before = now - start, _cpu_s(devices), devices.node_cpu_s()
                say(f"{training:.1f} s: {' '.join(sorted(trains))} began to train")
            if not timeline.began("training") and formed and devices.running <= trains | _standing_by(status):
                timeline.begin("training", now)
                say(f"{now - start:.1f} s: all are training")
            if training and (0 < devices.spec.train_s <= now - start - training or until()):
                devices.end_training()
                break
            if timeline.finished and devices.running and all(phases.get(n) == "done" for n in devices.running):
                break
            if now - start > devices.spec.timeout_s:
                raise P2PTrainError(f"not done after {devices.spec.timeout_s:g} s: {_where(status)}")
        trained, cpu, node_cpu = time.monotonic() - start, _cpu_s(devices), devices.node_cpu_s()
        say(f"{trained:.1f} s: done; harvesting")
        outcome = await _harvested(node, formed, trained, start)
        devices.look(trained)  # nothing has been trained since then, but the last snapshot may have been on its way
        names = {record.peer: record.name for record in node.observer.records.values()}
    use = {
        name: DeviceUse(
            group.peak_memory_bytes(),
            group.cpu_s(),
            cpu[name] - cpu_before.get(name, 0.0),
            devices.peak_kept_bytes.get(name, 0),
            node_cpu.get(name, 0.0) - node_before.get(name, 0.0),
        )
        for name, group in devices.groups.items()
    }
    return LabOutcome(outcome, speeds, tuple(timeline.log), tuple(plans), names, use, (), training, started_at)


async def _harvested(node: ObserverNode, formed: float, trained: float, start: float) -> Outcome:
    harvest, records = await harvest_with(node)
    return Outcome(harvest, records, "mdns", formed, trained, time.monotonic() - start - trained)


def _standing_by(status: Status) -> set[str]:
    """Devices that the plan in force leaves out: others may be faster without them."""
    plan = status.plan
    if plan is None or not isinstance(plan.body, (PipelineBody, SplitBody)):
        return set()
    return {r.name for r in status.records if r.plan == plan.hash and plan.part_of(r.peer) is None}


def _cpu_s(devices: LabDevices) -> dict[str, float]:
    return {name: group.cpu_s() for name, group in devices.groups.items()}


def _where(status: Status) -> str:
    return "; ".join(f"{r.name} {r.phase} round {r.round} {r.waiting_for}".rstrip() for r in status.records)


def keep_papers(folder: Path, devices: Sequence[Device], out: Path) -> None:
    """The peers' logs and journals, whatever came of the run."""
    for device in devices:
        for source, name in (
            (folder / f"{device.name}.log", f"{device.name}.log"),
            (folder / device.name / "journal.jsonl", f"{device.name}.journal.jsonl"),
        ):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(source, out / name)

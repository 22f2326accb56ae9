"""The devices of a running lab, and what can be done to them: peers started, killed, stalled, slowed, cut off.

Invariant: what is running on a device was started by the very command that a person would type there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lab.camera import Camera
from lab.enter import entering
from lab.network import Network
from lab.quota import DeviceGroup
from lab.spec import LabSpec
from p2ptrain.api import Status
from p2ptrain.experiment.group import Experiment, check_running, peer_command
from p2ptrain.experiment.processes import start, stop
from p2ptrain.learning.profiling.device import available_cores
from p2ptrain.net.keys import Group, load_or_make_identity
from p2ptrain.runtime.node.peer_node import BLOCK_TIMES


@dataclass(slots=True)
class LabDevices:
    """The devices of a running lab: what events act on."""

    spec: LabSpec
    experiment: Experiment
    folder: Path
    network: Network
    groups: Mapping[str, DeviceGroup]
    code: Group
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    camera: Camera | None = None
    peak_kept_bytes: dict[str, int] = field(default_factory=dict)
    """Of each device's memory what no file gives back, as far as it was looked at."""

    def give_identities(self) -> None:
        """Before any peer starts: ids that rise in the order of the spec's devices.

        What goes by ids would go by chance otherwise, such as which stage of an equal split a weak device gets.
        """
        keys = [self.folder / f"keys-{number}" for number in range(len(self.spec.devices))]
        for state in keys:
            state.mkdir(mode=0o700)
        keys.sort(key=lambda state: load_or_make_identity(state).peer)
        for state, device in zip(keys, self.spec.devices, strict=True):
            state.rename(self.folder / device.name)

    def start(self, device: str) -> None:
        """Start the device's peer, for the first time or again with the state that it left."""
        own = next(d for d in self.spec.devices if d.name == device)
        share = next(s for s in self.experiment.shares if s.name == device)
        profile = self.folder / f"{device}.toml"
        profile.write_text(own.profile.to_toml(), encoding="utf-8")
        where = ["--interface", self.network.ports[device].address, "--profile", str(profile)]
        job_file = self.folder / "job.toml" if own is self.spec.devices[0] else None
        experiment = dataclasses.replace(self.experiment, threads=own.num_threads(available_cores()))
        command = peer_command(experiment, share, self.folder / device, where, job_file=job_file)
        port, group = self.network.ports[device], self.groups[device]
        environment = os.environ | {"P2PTRAIN_CODE": str(self.code), "PYTHONUNBUFFERED": "1"}
        inside = entering(port.fd, group.entrances, group.cpus, command)
        log = self.folder / f"{device}.log"
        self.processes[device] = start(inside, log, environment, pass_fds=(port.fd,))
        self.killed.discard(device)

    def hurry(self, block_times: Mapping[str, bytes]) -> None:
        """A whole core for each device until ``keep_to_shares``; its peer remembers these times of its blocks."""
        for device in self.spec.devices:
            self.groups[device.name].set_share(max(1.0, device.share))
            if times := block_times.get(device.name):
                (self.folder / device.name / BLOCK_TIMES).write_bytes(times)

    def keep_to_shares(self) -> None:
        for device in self.spec.devices:
            self.groups[device.name].set_share(device.share)

    def kill(self, device: str) -> None:
        self.killed.add(device)
        self.groups[device].signal(signal.SIGKILL)
        if device in self.processes:
            self.processes[device].wait()

    def stall(self, device: str) -> None:
        self.groups[device].signal(signal.SIGSTOP)

    def resume(self, device: str) -> None:
        self.groups[device].signal(signal.SIGCONT)

    def slow(self, device: str, share: float) -> None:
        self.groups[device].set_share(share)

    def rate(self, device: str, rate_mbit: float) -> None:
        self.network.set_rate(device, rate_mbit)

    def cut(self, sides: Sequence[Sequence[str]]) -> None:
        self.network.cut(sides)

    def heal(self) -> None:
        self.network.heal()

    def end_training(self) -> None:
        """Stop every trainer where it is; the nodes hand out what they have, which no longer changes."""
        for device in self.running:
            for pid in set(self.groups[device].pids()) - {self.processes[device].pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    def node_cpu_s(self) -> dict[str, float]:
        """CPU seconds of each running device's node, without its trainer, since it was started."""
        found = {}
        for device in self.running:
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(self.processes[device].pid).cpu_times()
                found[device] = times.user + times.system
        return found

    def end(self) -> None:
        """Let all leave, then kill whoever has not."""
        for device in self.processes:
            self.resume(device)  # who is stopped hears no goodbye
        stop(self.processes.values())

    def look(self, now_s: float) -> None:
        """Keep what has been saved since the last look, for the accuracy over time; and what memory is in use."""
        for name, group in self.groups.items():
            self.peak_kept_bytes[name] = max(self.peak_kept_bytes.get(name, 0), group.kept_bytes())
        if self.camera is not None:
            self.camera.look((self.folder / name for name in self.processes), now_s)

    @property
    def running(self) -> frozenset[str]:
        return frozenset(self.processes) - self.killed

    def check(self, status: Status) -> None:
        """A peer that ended though nobody killed it, or says that it failed, ends the lab."""
        check_running(self.folder, self.processes, self.running, status)

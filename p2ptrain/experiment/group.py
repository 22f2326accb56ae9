"""A whole group on this machine, measured: peers as real processes, harvest, and central training beside it.

Invariant: the peers are started by the very command that a person would type, each with a state directory of its own,
and every process that was started is gone when ``run`` returns, however it returns.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from p2ptrain.api import Status, observing, snapshot_status
from p2ptrain.config import Job
from p2ptrain.core.harvest import Harvest
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.experiment.processes import LOOPBACK, free_port, log_end, slowed_trainers, start, stop
from p2ptrain.net.keys import Group, new_group
from p2ptrain.net.multicast import multicast_works
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.messages import Record

POLL_S = 0.5
PROFILE = "device.toml"
LINGER = "5m"
"""How long a peer waits for the harvest when all is done."""


@dataclass(frozen=True, slots=True)
class PeerShare:
    """What one peer of the experiment trains on."""

    name: str
    shard: str = ""
    classes: tuple[str, ...] = ()
    has_data: bool = True
    """Without, it only helps others."""
    speed: float = 1.0
    """Of this machine's: less makes it a weak device."""
    dirichlet: float = 0.0
    """How unevenly shares are cut by class, as ``peer --dirichlet``; 0 = evenly."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """``threads`` is for each peer's trainer; ``timeout_s`` for the whole training."""

    job: Job
    data: str
    shares: tuple[PeerShare, ...]
    threads: int = 1
    timeout_s: float = 24 * 3600.0
    allow_model: str = ""
    central_epochs: float = 0.0
    """Passes of central training over the samples; 0 = as many as the job's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the group did, before anything is evaluated."""

    harvest: Harvest
    records: dict[str, Record]
    """By peer name, as they were at the end."""
    found_by: str
    """"mdns" or "address"."""
    formed_s: float
    trained_s: float
    harvested_s: float


Progress = Callable[[float, Status], None]


def shares(num_peers: int, classes: Sequence[str], how: str, subset: str = "1/1") -> tuple[PeerShare, ...]:
    """``same``: every peer has all of the subset; ``iid``: a share each; ``disjoint``: class y goes to peer y mod P."""
    index, _, count = subset.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--subset {subset}: expected K/N, for example 1/5 for the first fifth of the training samples")
    k, n = int(index), int(count)
    whole = "" if n == 1 else subset
    made = []
    for peer in range(num_peers):
        name = f"peer-{peer + 1}"
        if how == "iid":
            made.append(PeerShare(name, f"{(k - 1) * num_peers + peer + 1}/{n * num_peers}"))
        elif how == "disjoint":
            own = tuple(c for i, c in enumerate(classes) if i % num_peers == peer)
            made.append(PeerShare(name, whole, own))
        else:
            made.append(PeerShare(name, whole))
    return tuple(made)


def with_helper(shares: Sequence[PeerShare], speed: float) -> tuple[PeerShare, ...]:
    """These as weak devices, and a fast one without samples."""
    weak = [replace(share, speed=speed) for share in shares]
    return (*weak, PeerShare(f"peer-{len(weak) + 1}", has_data=False))


def run(experiment: Experiment, directory: Path, say: Callable[[str], None], progress: Progress) -> Outcome:
    """Start the group, wait until its job is done, harvest. ``directory`` gets the peers' states and logs."""
    group = new_group()
    directory.mkdir(parents=True, exist_ok=True)
    job_file = directory / "job.toml"
    job_file.write_text(experiment.job.to_toml(), encoding="utf-8")
    write_profile(directory / PROFILE)
    mdns = multicast_works(LOOPBACK)
    ports = [] if mdns else [free_port()]
    if not mdns:
        say("no multicast on loopback here: the peers find each other by address")
    with _peers(experiment, group, directory, job_file, ports) as processes:
        network = NetworkConfig(
            interfaces=(LOOPBACK,), discover=mdns, peers=tuple(f"{LOOPBACK}:{port}" for port in ports)
        )
        found_by = "mdns" if mdns else "address"
        return asyncio.run(_follow(experiment, group, network, directory, processes, progress, found_by))


async def _follow(
    experiment: Experiment,
    group: Group,
    network: NetworkConfig,
    directory: Path,
    processes: dict[str, subprocess.Popen[bytes]],
    progress: Progress,
    found_by: str,
) -> Outcome:
    start = time.monotonic()
    formed = trained = 0.0
    async with observing(group, network) as node:
        while True:
            await asyncio.sleep(POLL_S)
            now = time.monotonic() - start
            status = snapshot_status(node)
            progress(now, status)
            check_running(directory, processes, processes.keys(), status)
            alive = [r for r in status.records if status.states.get(r.peer) in ("alive", "suspect")]
            if not formed and len(alive) == len(processes):
                formed = now
            if len(alive) == len(processes) and all(r.phase == "done" for r in alive):
                trained = now
                break
            if now > experiment.timeout_s:
                raise UserError(f"the group was not done after {experiment.timeout_s:g} s; see the peers' logs")
        harvest, records = await harvest_with(node, experiment.allow_model)
    return Outcome(harvest, records, found_by, formed, trained, time.monotonic() - start - trained)


async def harvest_with(node: ObserverNode, allow_model: str = "") -> tuple[Harvest, dict[str, Record]]:
    """The assembled model, and the peers' records by name."""
    await asyncio.sleep(1.5)  # let the last counts of bytes arrive
    harvest = await harvesting.of_group(node, 10.0, allow_user_code=bool(allow_model))
    return harvest, {record.name: record for record in node.observer.records.values()}


def check_running(
    folder: Path, processes: Mapping[str, subprocess.Popen[bytes]], names: Collection[str], status: Status
) -> None:
    """Raises ``P2PTrainError`` with the end of its log when one of these peers ended, or says that it failed.

    ``folder``: has the log of each, ``NAME.log``.
    """
    for name in sorted(names):
        code = processes[name].poll()
        if code is not None:
            raise P2PTrainError(f"{name} ended by itself with status {code}; {log_end(folder / f'{name}.log')}")
    for record in status.records:
        if record.phase == "failed" and record.name in names:
            log = log_end(folder / f"{record.name}.log")
            raise P2PTrainError(f"{record.name}: its trainer failed; {log}")


@contextmanager
def _peers(
    experiment: Experiment, group: Group, directory: Path, job_file: Path, ports: list[int]
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The peers' processes, in process groups of their own; all gone afterwards."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    environment = os.environ | {"P2PTRAIN_CODE": str(group), "PYTHONUNBUFFERED": "1"}
    try:
        for index, share in enumerate(experiment.shares):
            state = directory / share.name
            shutil.rmtree(state, ignore_errors=True)
            log = directory / f"{share.name}.log"
            log.unlink(missing_ok=True)
            where = ["--interface", LOOPBACK, "--profile", str(directory / PROFILE)]
            if ports:
                where += ["--no-discovery"]
                where += ["--peer", f"{LOOPBACK}:{ports[0]}"] if index else ["--port", str(ports[0])]
            command = peer_command(experiment, share, state, where, job_file=None if index else job_file)
            processes[share.name] = start(command, log, environment)
        speeds = {processes[share.name].pid: share.speed for share in experiment.shares if share.speed < 1}
        with slowed_trainers(speeds):
            yield processes
    finally:
        stop(processes.values())


def peer_command(
    experiment: Experiment, share: PeerShare, state: Path, where: Sequence[str], *, job_file: Path | None
) -> list[str]:
    """What a person would type. ``where``: network and profile; without ``job_file`` the job comes from the group."""
    command = [sys.executable, "-m", "p2ptrain.cli.main", "peer", "--name", share.name]
    if share.has_data:
        command += ["--data", experiment.data]
    command += ["--state", str(state), "--threads", str(experiment.threads), "--linger", LINGER]
    command += ["--no-model", *where]
    if job_file is not None:
        command += ["--job", str(job_file)]
    if share.shard:
        command += ["--shard", share.shard]
    if share.dirichlet:
        command += ["--dirichlet", str(share.dirichlet)]
    if share.classes:
        command += ["--classes", ",".join(share.classes)]
    if experiment.allow_model:
        command += ["--allow-model", experiment.allow_model]
    return command


def write_profile(path: Path) -> None:
    """This device, measured once: its peers are alike, and measuring themselves while all start would hide that."""
    from p2ptrain.learning.profiling.device import default_kind, profile_of, quick_probe

    path.write_text(profile_of(quick_probe(), "this machine", default_kind()).to_toml(), encoding="utf-8")

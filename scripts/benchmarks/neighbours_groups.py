"""A group of three on loopback for the benchmark ``neighbours``: p2ptrain's peers, or the workers of another framework.

Invariant: all train the same samples from the same initial weights, and every process is gone when the group is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import PeerGroup, PeerProcess
from p2ptrain.config import Job
from p2ptrain.experiment.group import PeerShare
from p2ptrain.learning.data import load, open_source, select
from p2ptrain.learning.models import global_model

WORKERS = Path(__file__).with_name("neighbours_workers")
READY_S = 180.0
"""Until the processes of a group have started: each imports torch, and they share the cores."""

Options = dict[str, Any]
HIVEMIND: Options = {
    "target_group_size": 3,
    "min_matchmaking_time": 2.0,
    "request_timeout": 1.0,
    "next_chunk_timeout": 2.0,
}
HIVEMIND_STEP_S = 30.0
"""The longest that looking for a group may take in a round."""
LIGHTHOUSE: Options = {
    "min_replicas": 1,
    "join_timeout_ms": 10_000,
    "quorum_tick_ms": 100,
    "heartbeat_timeout_ms": 2_000,
}
TORCHFT: Options = {"timeout_s": 30.0, "gloo_timeout_s": 5.0}

MAX_LAST_WORDS = 120


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that train, in the order of their shares; ``server`` is one more that they need, if they do."""

    peers: Sequence[PeerProcess]
    server: PeerProcess | None = None
    code: str = ""
    """p2ptrain's join code."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a run reads. ``digits`` is the whole data set for p2ptrain's peers; the workers have a file a share."""

    digits: Path
    shares: tuple[Path, ...]
    everything: Path
    """All training samples, for central training."""


def write_files(folder: Path, job: Job, shares: Sequence[PeerShare]) -> Files:
    """The digits, normalised as the job says and shared as p2ptrain's peers share them, with the initial weights."""
    source = open_source("digits")
    raw: dict[str, NDArray[Any]] = {}
    for split in ("train", "test"):
        samples = load(source, job.data, split)  # type: ignore[arg-type]
        raw |= {f"x_{split}": samples.x, f"y_{split}": samples.y}
    digits = folder / "digits.npz"
    np.savez(digits, **raw)  # type: ignore[arg-type]
    weights = {f"weight/{n}": t.numpy() for n, t in global_model(job, allow_user_code=False).state_dict().items()}
    x_test, y_test = load(source, job.data, "test").tensors()

    def write(name: str, share: PeerShare) -> Path:
        chosen = select(
            source, job.data, "train", shard=share.shard or None, classes=share.classes or None, seed=job.seed
        )
        x, y = load(source, job.data, "train", chosen).tensors()
        path = folder / f"{name}.npz"
        np.savez(path, x=x.numpy(), y=y.numpy(), x_test=x_test.numpy(), y_test=y_test.numpy(), **weights)
        return path

    return Files(digits, tuple(write(s.name, s) for s in shares), write("everything", PeerShare("everything")))


@contextmanager
def p2ptrain_group(folder: Path, job: Job, files: Files, shares: Sequence[PeerShare]) -> Iterator[Group]:
    with PeerGroup(folder / "state", job, f"npz:{files.digits}") as group:
        for share in shares:
            group.add(share.shard, share.classes)
        yield Group(group.peers, code=group.code)


Starter = Callable[["_Workers"], Group]


@contextmanager
def worker_group(folder: Path, python: Path, job: Job, data: Sequence[Path], start: Starter) -> Iterator[Group]:
    """One worker a data file, all told to go once all are ready."""
    workers = _Workers(folder, python, job, data)
    try:
        group = start(workers)
        for peer in group.peers:
            peer.wait_for("ready", READY_S)
        for peer in group.peers:
            assert peer.process.stdin is not None
            peer.process.stdin.write("go\n")
            peer.process.stdin.flush()
        yield group
    except TimeoutError as error:
        raise TimeoutError(f"{error}; {workers.last_words()}") from None
    finally:
        workers.stop()


def start_central(workers: _Workers) -> Group:
    return Group([workers.start("central.py", number, {}) for number in range(workers.num_shares)])


def start_hivemind(workers: _Workers) -> Group:
    options: Options = {"averager": HIVEMIND, "timeout_s": HIVEMIND_STEP_S}
    first = workers.start("hivemind_worker.py", 0, options | {"initial_peers": []})
    options["initial_peers"] = first.wait_for("address", READY_S).fields["addresses"]
    rest = [workers.start("hivemind_worker.py", number, options) for number in range(1, workers.num_shares)]
    return Group([first, *rest])


def start_torchft(workers: _Workers) -> Group:
    server = workers.start("torchft_lighthouse.py", 0, dict(LIGHTHOUSE))
    (address,) = server.wait_for("address", READY_S).fields["addresses"]
    options = TORCHFT | {"lighthouse": address}
    peers = [workers.start("torchft_worker.py", number, options) for number in range(workers.num_shares)]
    return Group(peers, server)


class _Workers:
    """Starts workers, and ends each with all that it started."""

    def __init__(self, folder: Path, python: Path, job: Job, data: Sequence[Path]) -> None:
        self._folder = folder
        self._python = python
        self._data = data
        t = job.training
        self._setting: dict[str, Any] = {
            name: value
            for name, value in asdict(t).items()
            if name in ("rounds", "batch_size", "learning_rate", "momentum", "weight_decay")
        } | {"warmup": job.training.warmup, "max_norm": job.training.max_norm, "seed": job.seed}
        self._started: list[PeerProcess] = []

    @property
    def num_shares(self) -> int:
        return len(self._data)

    def start(self, script: str, number: int, options: Options) -> PeerProcess:
        name = f"{Path(script).stem}-{number}"
        environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}
        with (self._folder / f"{name}.log").open("wb") as log:
            process = PeerProcess.spawn(
                name,
                [str(self._python), str(WORKERS / script)],
                environment | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                log=log,
                number=number,
                data=str(self._data[number]),
                options=options,
                **self._setting,
            )
        self._started.append(process)
        return process

    def last_words(self) -> str:
        """The last line of each one's standard error."""
        lines = {log.stem: log.read_text(errors="replace").split("\n") for log in sorted(self._folder.glob("*.log"))}
        said = {
            name: next((line.strip() for line in reversed(text) if line.strip()), "") for name, text in lines.items()
        }
        return "; ".join(f"{name}: {line[:MAX_LAST_WORDS]}" for name, line in said.items() if line)

    def stop(self) -> None:
        for process in self._started:
            process.ask_to_stop()
        for process in self._started:
            process.stop()

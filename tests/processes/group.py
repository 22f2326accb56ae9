"""Real peers as processes on 127.0.0.1, each with a state directory of its own; their journals tell what they did.

Every wait has a deadline and fails with the tails of all journals. All that a peer ever starts inherits a mark in its
environment, and is found, and ended, by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

from p2ptrain import api
from p2ptrain.config import DataConfig, GroupConfig, Job, TrainingConfig
from p2ptrain.experiment.processes import free_port, kill, port_is_free, start
from p2ptrain.ids import PeerId
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.net.keys import Group, load_or_make_identity, new_group
from p2ptrain.runtime.node import journal
from p2ptrain.runtime.node.journal import Line
from p2ptrain.runtime.node.node import NetworkConfig

T = TypeVar("T")
SOON_S = 120.0
"""What takes a moment, on a machine that is many times overloaded."""
START_S = 240.0
"""Until a group of four trains, or small ones are done: each imports torch, on two cores, which may be as busy."""
MARK = "P2PTRAIN_TEST_PEER"


@cache
def digits() -> DataConfig:
    """The data contract of scikit-learn's digits, all of which are trained on."""
    return dataclasses.replace(propose_contract(open_source("digits")), val=0.0)


def digits_file(home: Path) -> str:
    """The same digits in a file: each trainer that need not import scikit-learn starts 1.5 s sooner."""
    path, source, everything = home / "digits.npz", open_source("digits"), {}
    if not path.exists():
        for split in ("train", "test"):
            samples = load(source, digits(), split)  # type: ignore[arg-type]
            everything |= {f"x_{split}": samples.x, f"y_{split}": samples.y}
        np.savez(path, **everything)
    return f"npz:{path}"


def make_job(
    *,
    mode: str = "tasks",
    rounds: int = 12,
    epochs: float = 4.0,
    peers: int = 2,
    settle_s: float = 1.0,
    replicas: int = 1,
    compression: str = "none",
    head_fit_steps: int = 300,
    batch_size: int = 32,
) -> Job:
    """Rounds of ``epochs`` passes: with some passes a round takes long enough to be killed in."""
    return Job(
        name="digits",
        mode=mode,  # type: ignore[arg-type]
        data=digits(),
        training=TrainingConfig(rounds=rounds, epochs_per_round=epochs, batch_size=batch_size),
        tables=(TasksConfig(head_fit_steps=head_fit_steps),),
        group=GroupConfig(
            min_peers=peers,
            settle_s=settle_s,
            compression=compression,  # type: ignore[arg-type]
            replicas=replicas,
        ),
    )


class PeerProcess:
    """One peer: its process, if it runs, and what lies in its state directory."""

    def __init__(self, home: Path, group: Group, name: str, port: int, **options: Any) -> None:
        self.name = name
        self.state = home / name
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.options: dict[str, Any] = {
            "data": digits_file(home),
            "peers": [],
            "job": "",
            "init": "",
            "shard": "",
            "classes": [],
            "quota_bytes": 0,
            "trainer_still_s": 0.0,
        }
        self.options |= {"code": str(group), "name": name, "port": port, "state": str(self.state)}
        self.options |= {"linger_s": 600.0, "keep_model": False, **options}
        self.mark = secrets.token_hex(8)
        self.errors = home / f"{name}.err"
        self._lines: list[Line] = []
        self._read_of = self._read_to = 0
        """The journal's file, and how many bytes of it are in ``_lines``."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def id(self) -> PeerId:
        return load_or_make_identity(self.state).peer

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, **options: Any) -> PeerProcess:
        """With ``options`` in place of those it had."""
        assert not self.running
        self.options |= options
        command = [sys.executable, str(Path(__file__).with_name("peer_main.py")), json.dumps(self.options)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", MARK: self.mark}
        self.process = start(command, self.errors, environment)
        return self

    def send(self, number: signal.Signals) -> None:
        """To the node alone."""
        os.kill(self.pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """To the node and all that it started, as when a laptop sleeps."""
        for process in self.everything():
            process.send_signal(number)

    def kill(self) -> float:
        """``kill -9`` of the node; the time of it."""
        at = time.time()
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        return at

    def wait(self, timeout_s: float) -> int:
        """Its exit status."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s\n{self.tail(40)}") from None

    def end(self) -> None:
        """Whatever is left of it, at once."""
        kill(self.everything())
        if self.process is not None:
            self.process.wait()

    def everything(self) -> list[psutil.Process]:
        """All processes that it ever started and that run. (Whoever inherited an ended one has yet to take note.)"""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def trainers(self) -> list[psutil.Process]:
        """The node's trainer processes that live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children()
            return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def trainer(self) -> psutil.Process:
        (one,) = self.trainers()
        return one

    # --- what it says ---

    def lines(self, kind: str = "", since: float = 0.0, **fields: object) -> list[Line]:
        """Its journal's lines of this kind, with these fields, written at ``since`` or later."""
        return [
            line
            for line in self._journal()
            if (not kind or line.kind == kind)
            and line.time >= since
            and all(line.fields.get(name) == value for name, value in fields.items())
        ]

    def _journal(self) -> list[Line]:
        """All of it: what is new is read, as tests look many times a second."""
        path = self.state / "journal.jsonl"
        if journal.old_path(path).exists():
            return list(journal.read(path))
        try:
            with path.open("rb") as file:
                if (number := os.fstat(file.fileno()).st_ino) != self._read_of:
                    self._read_of, self._read_to, self._lines = number, 0, []
                file.seek(self._read_to)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._lines += [line for each in whole.splitlines() if (line := journal.decode(each)) is not None]
        return self._lines

    def said(self, kind: str, since: float = 0.0, **fields: object) -> bool:
        return bool(self.lines(kind, since, **fields))

    def tail(self, count: int = 12) -> str:
        lines = [journal.render(line) for line in self.lines()[-count:]]
        errors = self.errors.read_text(errors="replace").splitlines() if self.errors.exists() else []
        errors = errors[-count:] if self.running else errors[-100:]  # of a crash, every thread's stack
        state = "runs" if self.running else "does not run"
        return "\n".join([f"--- {self.name} ({state}, {self.state})", *lines, *(f"! {line}" for line in errors)])

    def manifest(self) -> dict[str, Any]:
        """Of the one job in its state directory."""
        (path,) = self.state.glob("????????????????/manifest.json")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found


class PeerGroup:
    """Peers with one join code."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.group = new_group()
        self.peers: list[PeerProcess] = []

    def add(self, name: str = "", *, group: Group | None = None, **options: Any) -> PeerProcess:
        """A peer that knows the first two, and the first two each other; not started yet."""
        port = free_port()
        name = name or "abcdefgh"[len(self.peers)]
        known = [peer.address for peer in self.peers[:2]]
        if len(self.peers) == 1:
            self.peers[0].options["peers"] = [f"127.0.0.1:{port}"]
        peer = PeerProcess(self.home, group or self.group, name, port, **{"peers": known, **options})
        self.peers.append(peer)
        return peer

    def start(self, count: int, job: Job, **options: Any) -> list[PeerProcess]:
        """So many, each with its share of the digits."""
        made = [self.add(job=job.to_json(), **{"shard": f"{number + 1}/{count}", **options}) for number in range(count)]
        return [peer.start() for peer in made]

    def until(self, done: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Wait; how long it took. Fails with what every peer said last."""
        start = time.monotonic()
        while not done():
            if time.monotonic() - start > timeout_s:
                pytest.fail(f"not within {timeout_s:g} s: {what}\n{self.tails()}", pytrace=False)
            time.sleep(0.02)
        return time.monotonic() - start

    def tails(self) -> str:
        return "\n".join(peer.tail() for peer in self.peers)

    def until_all(
        self, kind: str, timeout_s: float = START_S, peers: list[PeerProcess] | None = None, **fields: object
    ) -> None:
        """Each of ``peers`` (all) has such a line."""
        for peer in peers or self.peers:
            fail = f"{peer.name}: {kind} {fields or ''}"
            self.until(lambda peer=peer: peer.said(kind, **fields), timeout_s, fail)  # type: ignore[misc]

    def until_round(self, number: int, peers: list[PeerProcess] | None = None, timeout_s: float = START_S) -> None:
        """Each of ``peers`` (all) has finished this round."""
        for peer in peers or self.peers:

            def there(peer: PeerProcess = peer) -> bool:
                return any(int(line.fields["round"] or 0) >= number for line in peer.lines("round"))

            self.until(there, timeout_s, f"{peer.name}: round {number}")

    # --- from outside ---

    def network(self, peers: list[PeerProcess] | None = None) -> NetworkConfig:
        """Of an observer that knows ``peers`` (those that run)."""
        known = tuple(peer.address for peer in peers or self.peers if peer.running)
        return NetworkConfig(("127.0.0.1",), peers=known, discover=False)

    def status(self) -> api.Status:
        return self.ask(api.status(self.group, network=self.network(), wait_s=SOON_S))

    def harvest(self, **options: Any) -> api.Harvest:
        return self.ask(api.harvest(self.group, network=self.network(), **({"wait_s": SOON_S} | options)))

    def ask(self, question: Awaitable[T], timeout_s: float = START_S) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(question, timeout_s)

        try:
            return asyncio.run(bounded())
        except TimeoutError:
            pytest.fail(f"no answer within {timeout_s:g} s\n{self.tails()}", pytrace=False)

    # --- the end ---

    def end(self) -> None:
        for peer in self.peers:
            peer.end()
        left = [process for peer in self.peers for process in peer.everything()]
        _, left = psutil.wait_procs(left, timeout=SOON_S)
        assert not left, f"processes are left over: {left}"
        assert all(port_is_free(peer.port) and port_is_free(peer.port + 1) for peer in self.peers), "a port is kept"


@contextlib.contextmanager
def stopped_trainers(peers: list[PeerProcess]) -> Iterator[None]:
    """Their nodes go on and answer, but nothing is trained, as on devices that have other work to do."""
    trainers = [peer.trainer() for peer in peers]
    for trainer in trainers:
        trainer.suspend()
    try:
        yield
    finally:
        for trainer in trainers:
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.resume()


@contextlib.contextmanager
def peer_group(home: Path) -> Iterator[PeerGroup]:
    made = PeerGroup(home)
    try:
        yield made
    finally:
        made.end()

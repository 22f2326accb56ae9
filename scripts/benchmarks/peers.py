"""A group of real peers as processes on loopback, and what happens in each, with times.

Invariant: a peer process ends when its standard input closes, however its parent ends. Times are of the monotonic
clock, which all processes of a machine share.

    python -m benchmarks.peers        (started by ``PeerProcess``, never by hand; reads its setting from stdin)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.common import child_environment
from p2ptrain.config import Job
from p2ptrain.experiment.processes import LOOPBACK, end, free_port, kill, wait_until, with_children
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.net.keys import new_group, read_code

STOP_S = 2.0
"""Then it is killed: nobody needs what it would still hand over."""


@dataclass(frozen=True, slots=True)
class Happened:
    """A journal note or an effect carried out by a peer's node, and when."""

    at: float
    kind: str
    fields: dict[str, Any]


@dataclass(slots=True)
class PeerProcess:
    """One peer. ``events`` grows while it runs."""

    name: str
    process: subprocess.Popen[str]
    started_at: float
    events: list[Happened] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, **setting: Any) -> PeerProcess:
        return cls.spawn(name, [sys.executable, "-m", "benchmarks.peers"], child_environment(), **setting)

    @classmethod
    def spawn(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
        **setting: Any,
    ) -> PeerProcess:
        """Any program that reads its setting as we do and prints its events likewise; ``log``: its standard error."""
        started_at = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        peer = cls(name, process, started_at)
        assert process.stdin is not None
        process.stdin.write(json.dumps({"name": name, **setting}) + "\n")
        process.stdin.flush()
        threading.Thread(target=peer._read, name=f"read {name}", daemon=True).start()
        return peer

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            raw = json.loads(line)
            self.events.append(Happened(raw.pop("at"), raw.pop("kind"), raw))

    def seen(self, kind: str, **fields: Any) -> list[Happened]:
        """Events so far of a kind, with these fields."""
        return [e for e in list(self.events) if e.kind == kind and fields.items() <= e.fields.items()]

    def wait_for(self, kind: str, timeout_s: float, count: int = 1, **fields: Any) -> Happened:
        """The ``count``-th event of a kind. Raises ``TimeoutError`` if it does not come or the process ends."""

        def there() -> bool:
            if self.process.poll() is not None and len(self.seen(kind, **fields)) < count:
                raise TimeoutError(f"{self.name} ended with status {self.process.returncode} before {kind!r}")
            return len(self.seen(kind, **fields)) >= count

        wait_until(there, timeout_s, f"{self.name}: {kind}")
        return self.seen(kind, **fields)[count - 1]

    @property
    def node(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def everything(self) -> list[psutil.Process]:
        """Its process and all that this one started, in this order, as far as they run."""
        return with_children(self.process.pid)

    def kill(self) -> float:
        """``kill -9`` of all of it at once, as a power cut would; when that was."""
        processes = self.everything()
        at = time.monotonic()
        kill(processes)
        return at

    @property
    def trainer(self) -> psutil.Process | None:
        """Its trainer process, once that runs."""
        for child in self.node.children():
            with contextlib.suppress(psutil.Error):
                if "p2ptrain.runtime.trainer" in child.cmdline():
                    return child
        return None

    def ask_to_stop(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def stop(self) -> None:
        """Ask, wait, and kill what does not listen, with all that it started."""
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        end(self.process)


class PeerGroup:
    """A context in which peers run on loopback, found by mDNS or by the address of the first one."""

    def __init__(self, folder: Path, job: Job, data: str, *, by_address: bool = True, trace: bool = False) -> None:
        self.peers: list[PeerProcess] = []
        self.code = str(new_group())
        self._folder = folder
        self._setting = {"job": job.to_json(), "data": data, "discover": not by_address, "trace": trace}
        self._port = free_port() if by_address else 0

    @property
    def address(self) -> str:
        """Of the first peer, where they are found by that."""
        return f"{LOOPBACK}:{self._port}"

    def add(
        self, shard: str = "", classes: Sequence[str] = (), *, port: int = 0, log: IO[bytes] | None = None
    ) -> PeerProcess:
        """Start one more peer, with this share of the samples or those of these classes."""
        self.peers.append(self.start(len(self.peers), shard, classes, port=port, log=log))
        return self.peers[-1]

    def start(
        self, number: int, shard: str, classes: Sequence[str] = (), *, port: int = 0, log: IO[bytes] | None = None
    ) -> PeerProcess:
        """One with the state of this number, which may have run before."""
        return PeerProcess.start(
            f"peer{number}",
            code=self.code,
            shard=shard,
            classes=list(classes),
            state=str(self._folder / f"peer{number}"),
            port=port or (0 if number else self._port),
            log=log,
            peers=[self.address] if self._port and number else [],
            **self._setting,
        )

    def add_many(self, num_peers: int) -> list[PeerProcess]:
        """Start some at once, each with its share of the data."""
        return [self.add(f"{i + 1}/{num_peers}") for i in range(num_peers)]

    def __enter__(self) -> PeerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            peer.ask_to_stop()
        for peer in self.peers:
            peer.stop()


def wait_for_all(peers: Sequence[PeerProcess], kind: str, timeout_s: float, count: int = 1) -> float:
    """When the last of ``peers`` had its ``count``-th event of a kind."""
    deadline = time.monotonic() + timeout_s
    return max(peer.wait_for(kind, max(0.1, deadline - time.monotonic()), count).at for peer in peers)


# --- the peer's side ------------------------------------------------------------------------------------------------


def _say(kind: str, at: float | None = None, /, **fields: Any) -> None:
    print(json.dumps({"at": time.monotonic() if at is None else at, "kind": kind, **fields}), flush=True)


_OWN_FIELDS = ("at", "kind")


def _brief(value: object) -> Any:
    """An effect's field as far as it helps to read a trace."""
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    return value if isinstance(value, (str, int, float, bool)) else None


def _watch(node: Any, trace: bool) -> None:
    """Pass on what the node notes and, with ``trace``, what it carries out."""
    note, carry_out = node.note, node.carry_out_other

    def noting(entry: Any) -> None:
        note(entry)
        _say("note:" + entry.kind, **{key: _brief(value) for key, value in entry.fields if key not in _OWN_FIELDS})

    def carrying(effect: Any) -> None:
        command = getattr(effect, "command", None)
        if type(effect).__name__ in ("ToTrainer", "BeginBlob", "VerifyBlob"):
            source = effect if command is None else command
            names = [f.name for f in dataclasses.fields(source)]
            fields = {name: _brief(getattr(source, name)) for name in names}
            _say(type(source).__name__, **fields | {"blob": effect.blob})
        carry_out(effect)

    node.note = noting
    if trace:
        node.carry_out_other = carrying


async def _peer(setting: dict[str, Any]) -> None:
    from p2ptrain.api import run_peer
    from p2ptrain.runtime.node.node import NetworkConfig
    from p2ptrain.runtime.node.peer_options import PeerOptions

    _say("imported")
    until = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch_parent() -> None:
        while sys.stdin.readline():
            pass
        loop.call_soon_threadsafe(until.set)

    threading.Thread(target=watch_parent, name="parent", daemon=True).start()
    options = PeerOptions(
        data=setting["data"],
        name=setting["name"],
        job=job_from_json(setting["job"], "benchmark"),
        shard=setting["shard"],
        classes=tuple(setting["classes"]),
        flops_per_s=setting.get("flops_per_s", 1e9),
        memory_bytes=setting.get("memory_bytes", 4 << 30),
        num_threads=1,
        device="cpu",
        linger_s=600.0,
        keep_model=False,
    )
    network = NetworkConfig(
        (setting.get("interface", LOOPBACK),), setting["port"], tuple(setting["peers"]), setting["discover"]
    )

    def started(node: Any) -> None:
        _watch(node, setting["trace"])
        _say("listening", port=node.transport.port)

    await run_peer(
        read_code(setting["code"]),
        options,
        network=network,
        state_dir=Path(setting["state"]),
        until=until,
        on_start=started,
    )


def main() -> None:
    setting = json.loads(sys.stdin.readline())
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_peer(setting))


if __name__ == "__main__":
    main()

"""A pipeline of real peers that loses some of them, and when each of them noticed, agreed, had its blocks and went on.

With a rate each peer is in a network namespace of its own behind a link of so many Mbit/s both ways (``lab.network``,
which needs Linux and root); without one all are on loopback. All start from the same times of the model's blocks, so
that the first plan is the same.

Invariant: times are of the monotonic clock, from journal lines of the peers themselves.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from lab.enter import entering
from lab.network import Network

from benchmarks.common import SEED, child_environment
from benchmarks.peers import Happened, PeerGroup, PeerProcess, wait_for_all
from p2ptrain.config import Job
from p2ptrain.experiment.processes import LOOPBACK, wait_until
from p2ptrain.runtime.node.peer_node import BLOCK_TIMES

START_S, RECOVERY_S = 300.0, 180.0
PORT = 5710
PHASES = ("detect", "agree", "fetch", "build", "batch")
FLOPS_PER_S = 2e10
"""Of each device, as the others are told: by it the work of passing messages on is planned for."""


def pictures(folder: Path, side: int = 32, num: int = 2048) -> str:
    """Made-up samples: what is trained does not bear on how long a recovery takes."""
    path, generator = folder / "pictures.npz", np.random.default_rng(SEED)
    shape = (num, side, side, 3)
    np.savez(
        path,
        x_train=generator.integers(0, 256, shape, dtype=np.uint8),
        y_train=np.arange(num) % 10,
        x_test=generator.integers(0, 256, (64, *shape[1:]), dtype=np.uint8),
        y_test=np.arange(64) % 10,
    )
    return f"npz:{path}"


class LimitedGroup(PeerGroup):
    """As ``PeerGroup``, each peer behind a link of ``rate_mbit``; 0 = all on loopback. ``memory_bytes``: that each says
    that it has; 0 = enough."""

    def __init__(
        self, folder: Path, job: Job, data: str, network: Network | None, rate_mbit: float, memory_bytes: int = 0
    ) -> None:
        super().__init__(folder, job, data)
        self._setting |= {"flops_per_s": FLOPS_PER_S}
        self._setting |= {"memory_bytes": memory_bytes} if memory_bytes else {}
        self._network = network
        self._rate_mbit = rate_mbit
        self._states = folder

    def add(self, shard: str = "", classes: Sequence[str] = ()) -> PeerProcess:
        number = len(self.peers)
        name = f"peer{number}"
        setting = self._setting | {"code": self.code, "shard": shard, "classes": list(classes)}
        setting["state"] = str(self._states / name)
        if self._network is None:
            peers = [f"{LOOPBACK}:{self._port}"] if number else []
            peer = PeerProcess.start(name, port=0 if number else self._port, peers=peers, **setting)
        else:
            port = self._network.add(name, self._rate_mbit)
            first = self._network.ports["peer0"].address
            peers = [f"{first}:{PORT}"] if number else []
            command = entering(port.fd, (), (), [sys.executable, "-m", "benchmarks.peers"])
            setting |= {"interface": port.address, "port": PORT, "peers": peers}
            peer = PeerProcess.spawn(name, command, child_environment(), pass_fds=(port.fd,), **setting)
        self.peers.append(peer)
        return peer


@contextlib.contextmanager
def peers_of(
    job: Job, num_peers: int, rate_mbit: float, times: Path, data: str, memory_bytes: int = 0
) -> Iterator[list[PeerProcess]]:
    """A group that has done a batch. ``times``: a file that keeps the times of blocks."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptrain-bench-")))
        network = stack.enter_context(Network()) if rate_mbit else None
        group = stack.enter_context(LimitedGroup(folder, job, data, network, rate_mbit, memory_bytes))
        for number in range(num_peers):
            state = folder / f"peer{number}"
            state.mkdir(mode=0o700)
            if times.exists():
                shutil.copy(times, state / BLOCK_TIMES)
        peers = group.add_many(num_peers)
        wait_for_all(peers, "note:plan-adopted", START_S)
        if not times.exists():
            shutil.copy(folder / "peer0" / BLOCK_TIMES, times)
        # A batch is done by all stages: then who has one is known.
        wait_until(lambda: any(peer.seen("note:first-batch") for peer in peers), START_S, "a first batch")
        yield peers


@contextlib.contextmanager
def pipeline_group(
    job: Job, num_peers: int, rate_mbit: float, times: Path, data: str, memory_bytes: int = 0
) -> Iterator[list[PeerProcess]]:
    """One that has saved some of what it trained everywhere."""
    with peers_of(job, num_peers, rate_mbit, times, data, memory_bytes) as peers:
        wait_for_all(trainers(peers), "note:replica-acked", START_S, count=4)
        yield peers


def trainers(peers: Collection[PeerProcess]) -> list[PeerProcess]:
    """Those with a stage of the last plan that they heard of, in the order of the stages."""
    found = [(e[-1].fields["part"], p) for p in peers if (e := p.seen("note:training"))]
    return [peer for _, peer in sorted(found, key=lambda each: each[0])]


def lost(peers: Sequence[PeerProcess], victims: Sequence[PeerProcess], how: str) -> dict[str, float]:
    """End ``victims`` ("kill", "trainer" or "leave") and follow the others until all train again."""
    if how == "trainer":
        at = time.monotonic()
        for victim in victims:
            trainer = victim.trainer
            assert trainer is not None, "its trainer runs"
            trainer.kill()
    elif how == "leave":
        at = time.monotonic()
        for victim in victims:
            victim.ask_to_stop()
    else:
        at = min([victim.kill() for victim in victims])
    stay = [peer for peer in peers if how == "trainer" or peer not in victims]
    wait_until(lambda: all(_later(p, "note:plan-adopted", at) for p in stay), RECOVERY_S, "a new plan")
    wait_until(lambda: _goes_on(stay, at), RECOVERY_S, "a batch by the new plan")
    return _figures(stay, victims, how, at)


def _later(peer: PeerProcess, kind: str, at: float) -> list[Happened]:
    return [event for event in peer.seen(kind) if event.at > at]


def _newest(stay: Sequence[PeerProcess], at: float) -> int:
    return max((e.fields["epoch"] for p in stay for e in _later(p, "note:plan-adopted", at)), default=0)


def _goes_on(stay: Sequence[PeerProcess], at: float) -> bool:
    """Whether all who got a stage of a new plan have done a batch of it."""
    began = [p for p in stay if _later(p, "note:training", at)]
    return bool(began) and all(
        any(e.fields["epoch"] == each.fields["epoch"] for e in p.seen("note:first-batch"))
        for p in began
        for each in _later(p, "note:training", at)[:1]
    )


def _figures(stay: Sequence[PeerProcess], victims: Sequence[PeerProcess], how: str, at: float) -> dict[str, float]:
    """Of the first plan that brought a batch."""
    began = [p for p in stay if _later(p, "note:training", at)]
    epoch = min(_later(p, "note:training", at)[0].fields["epoch"] for p in began)

    def last(events: Callable[[PeerProcess], list[Happened]], floor: float) -> float:
        """When the last of them had the last of these; not before ``floor``."""
        return max([floor, *(found[-1].at for p in stay if (found := events(p)))])

    def of_plan(kind: str) -> Callable[[PeerProcess], list[Happened]]:
        return lambda peer: [e for e in _later(peer, kind, at) if e.fields.get("epoch") == epoch][:1]

    def missed(peer: PeerProcess) -> list[Happened]:
        if how == "trainer":
            return _later(peer, "note:trainer-failed", at)[:1]
        return [e for e in _later(peer, "note:failed", at) if e.fields["name"] in {v.name for v in victims}]

    def given(peer: PeerProcess) -> list[Happened]:
        """The last one before its stage was ready."""
        began = of_plan("note:training")(peer)
        return [e for e in _later(peer, "note:blocks-here", at) if began and e.at <= began[0].at][-1:]

    agreed = last(of_plan("note:plan-adopted"), at)
    detected = min(last(missed, at), agreed)
    if how == "leave":  # all trained on by the plan before until they halted
        at = detected = agreed = last(lambda p: [e for e in of_plan("note:halted")(p) if e.fields["step"] >= 0], at)
    here = last(given, agreed)
    built = last(of_plan("note:training"), here)
    first = last(of_plan("note:first-batch"), built)
    marks = (at, detected, agreed, here, built, first)
    figures = {f"{name}_s": stop - start for name, start, stop in zip(PHASES, marks, marks[1:], strict=False)}
    back = [e for p in stay for e in p.seen("note:goes-back", step=_first_step(stay, epoch))]
    return figures | {
        "s": first - at,
        "ready_s": built - at,
        "fetched_mb": sum(e.fields["fetched_bytes"] for p in stay for e in given(p)) / 1e6,
        "batches": float(max((e.fields["batches"] for e in back), default=0)),
    }


def _first_step(stay: Sequence[PeerProcess], epoch: int) -> int:
    """The step that a plan began with."""
    return min(e.fields["step"] for p in stay for e in p.seen("note:first-batch", epoch=epoch)) - 1

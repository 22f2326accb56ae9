"""A whole peer on a simulated device: every byte of it goes through sessions and codec, its disk is memory.

A device's disk outlives its peer; its trainer does not. The trainer is a double that the caller's ``Traits`` make.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.effects import JobDone, JobReceived, RestartTrainer, StartTrainer, Stopping, ToTrainer, TrainerLost
from p2ptrain.core.peer_config import PeerConfig, Resume
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.rules import PlanWork
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session.effects import Ban, Dial, HangUp, Knocked, NoticeTold
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.simulation.disk import SimulatedDisk
from p2ptrain.simulation.disk_work import DISK_S, DiskWork
from p2ptrain.simulation.signing import signing_as
from p2ptrain.simulation.world import FrameHost, World
from p2ptrain.wire.messages import Lane, Record
from p2ptrain.wire.schema import RawBytes

THOUGHT_S = 0.1
ROUNDING_S = 1e-6
"""What is due so soon is due: clocks that are apart don't agree on the last digits."""
CODE = b"c" * 32
SOFTWARE = "p2ptrain/simulated"
At = Callable[[float, Callable[[], None]], None]
"""Do something after so many seconds."""


class Trainer(Protocol):
    """What stands in for a trainer process: commands in, events out through what it was made with."""

    def handle(self, command: object) -> None: ...

    def kill(self) -> None: ...


class Traits(Protocol):
    """What there is to say of one trainer: a dataclass, whose first field is its samples of each class."""

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> Trainer:
        """A new one. ``at`` is its clock."""
        ...


class Device(FrameHost):
    """``peer`` runs on it unless it was killed."""

    def __init__(
        self,
        world: World,
        number: int,
        traits: Traits,
        job: Job | None = None,
        *,
        flops_per_s: float = 1e9,
        memory_bytes: int = 0,
        allow: str = "",
        remote_stop: bool = True,
        save_s: float | None = 0.0,
    ) -> None:
        super().__init__(number)
        self.world = world
        self.traits = traits
        self.job = job
        """What it is started with; without one it gets the group's."""
        self.flops_per_s = flops_per_s
        self.memory_bytes = memory_bytes
        """0: nobody knows."""
        self.allow = allow
        """The user's model that it may run."""
        self.remote_stop = remote_stop
        self.save_s = save_s
        """How much longer a snapshot takes to be saved; ``None``: the disk has no room for any."""
        self.served: Callable[[bytes], bytes] = lambda data: data
        """What becomes of what others read from its disk."""
        self.disk = SimulatedDisk()
        self._disk_work = self._work_on_disk()
        self.peer: Peer | None = None
        self.trainer: Trainer | None = None
        self.notes: list[tuple[float, Note]] = []
        self.banned: dict[bytes, float] = {}
        self.done, self.lost, self._due = False, "", 0.0
        self.was_stopped: Stopping | None = None
        self.ahead_s = 0.0
        """How far its monotonic clock is ahead of the others': it jumps when a suspended machine goes on."""
        self.wall_ahead_s = 0.0
        """The same of the clock on its wall, which may jump back: a board has none that outlives its power."""

    @property
    def is_on(self) -> bool:
        return self.peer is not None

    @property
    def core(self) -> Peer:
        if self.peer is None:
            raise LocalError(f"device {self.number} is off")
        return self.peer

    @property
    def record(self) -> Record:
        return self.core.records.own

    @property
    def now(self) -> float:
        """By its own clock."""
        return self.world.network.now + self.ahead_s

    def jump(self, seconds: float) -> None:
        """Its clock does, and all its timers see it."""
        self.ahead_s += seconds
        self.world.perform(self, [])

    def _work_on_disk(self) -> DiskWork:
        return DiskWork(self.disk, lambda: self.core, lambda: self.now, self._later, lambda data: self.served(data))

    def start(self) -> None:
        world, now = self.world, self.now
        self._disk_work = self._work_on_disk()  # that may be another one by now
        config = PeerConfig(
            own_key=self.key,
            proof_key=CODE,
            addresses=(self.address,),
            bulk_port=5711,
            name=f"device {self.number}",
            software=SOFTWARE,
            signing=signing_as(self.key),
            flops_per_s=self.flops_per_s,
            memory_bytes=self.memory_bytes,
            allow_user_code=self.allow,
            remote_stop=self.remote_stop,
        )
        self.peer = Peer(config, random.Random(f"{world.seed}/{self.number}/{now}"), now, self._wall_ms())
        self.done, self.was_stopped, self.lost, self.banned = False, None, "", {}
        world.network.add(self.id, self)
        if self.job is not None:
            self._open(self.job)

    def _wall_ms(self) -> int:
        return max(0, int(1e6 + (self.world.network.now + self.wall_ahead_s) * 1000))

    def kill(self) -> None:
        """Like ``kill -9``: the disk is left."""
        self.world.network.crash(self.id)
        self.peer = None
        if self.trainer is not None:
            self.trainer.kill()
            self.trainer = None
        self.disk.restarted()

    def end(self) -> None:
        """Its process ends, and the device stays: it tells whoever asks that nobody listens there any more."""
        self.kill()
        self.world.connections_close(self.id)

    def process_gone(self, peer: PeerId) -> None:
        """Its connection closed, and nobody listens there."""
        if self.peer is not None:
            self.world.perform(self, self.peer.process_gone(peer, self.now))

    def stall(self, seconds: float) -> None:
        """It does nothing for so long, its trainer neither, as a laptop that was closed."""
        self.world.network.stall(self.id, seconds)

    def note_kinds(self) -> Counter[str]:
        return Counter(note.kind for _, note in self.notes)

    # --- the network's side ---

    def tick(self, now: float) -> list[object]:
        due = self._due  # the network has just asked for it
        return list(self.core.tick(due if 0 < due - self.now < ROUNDING_S else self.now))

    def next_deadline(self) -> float:
        self._due = self.core.next_deadline()
        return self._due - self.ahead_s

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[RawBytes], now: float) -> list[object]:
        if self.banned.get(sender_key, 0.0) > self.now:
            return []
        return list(self.core.frames_received(lane, sender_key, frames, self.now))

    # --- what a node does ---

    def carry_out(self, effect: object, now: float) -> list[object]:
        if (on_disk := self._disk_work.handlers.get(type(effect))) is not None:
            on_disk(effect)
            return []
        match effect:
            case Note():
                self.notes.append((now, effect))
            case ToTrainer():
                self._to_trainer(effect)
            case JobReceived():
                self._open(effect.job)
            case StartTrainer() | RestartTrainer():
                self._start_trainer()
            case TrainerLost():
                self.lost = effect.detail
            case JobDone():
                self.done = True
            case Stopping():
                self.was_stopped = effect
            case PlanWork():
                answer = effect.work()
                self._later(THOUGHT_S, lambda: self.core.plan_worked_out(answer, self.now))
            case Ban():
                self.banned[effect.key] = self.now + effect.seconds
            case Dial() | HangUp() | NoticeTold() | Knocked():
                pass  # a simulated group keeps its code, which lets everybody in
            case _:
                raise LocalError(f"nobody carries out {effect}")
        return []

    def _open(self, job: Job) -> None:
        disk = self.disk
        if disk.job not in (None, job):
            raise LocalError("another job is on this disk")
        disk.job = job
        disk.opened()
        resume = Resume(
            plan=disk.plan,
            own=disk.own,
            kept=tuple(h for h in disk.replicas if h.kind == "part"),
            looked_at=tuple(h for h in disk.replicas if h.kind == "kept"),
            result=next((h for h in reversed(disk.replicas) if h.kind == "head"), None),
            has_blob=disk.__contains__,
            voted=disk.voted,
        )
        self._later(0.0, lambda: self.core.job_opened(job, resume, self.now))

    def _start_trainer(self) -> None:
        job, name = self.disk.job, f"device {self.number}"
        if job is None:
            raise LocalError("a trainer without a job")
        if self.trainer is not None:
            self.trainer.kill()
        network = self.world.network
        trainer: Trainer = self.traits.trainer(
            name,
            lambda wait_s, action: network.at_host(self.id, network.now + wait_s, action),
            lambda event: self._said(trainer, event),
        )
        self.trainer = trainer
        trainer.handle(c.Configure(job=job.to_json(), data="none", name=name))

    def _to_trainer(self, effect: ToTrainer) -> None:
        if effect.blob is None:
            if self.trainer is not None:
                self.trainer.handle(effect.command)
            return
        blob = effect.blob

        def send(data: bytes | None) -> list[object]:
            if data is None:
                self.notes.append((self.world.network.now, Note("blob-missing", (("blob", blob),))))
            elif self.trainer is not None:
                command: Any = effect.command
                self.trainer.handle(dataclasses.replace(command, **{effect.into: data}))
            return []

        self._disk_work.do(lambda: self.disk.get(blob), send)

    def _said(self, trainer: Trainer, event: Any) -> None:
        if trainer is not self.trainer or self.peer is None:
            return
        field = getattr(type(event), "STORED", "")
        data = getattr(event, field) if field else b""
        if not data:
            self.world.perform(self, self.core.trainer_said(event, None, 0, self.now))
            return
        event = dataclasses.replace(event, **{field: b""})
        if isinstance(event, c.SnapshotTaken) and self.save_s is None:
            self.world.perform(self, self.core.trainer_said(event, None, 0, self.now))
            return
        wait_s = DISK_S + (self.save_s or 0.0) * isinstance(event, c.SnapshotTaken)

        def put() -> list[object]:
            blob = self.disk.put(data, passing=getattr(type(event), "IS_PASSING", False))
            return self.core.trainer_said(event, blob, len(data), self.now)

        self._later(wait_s, put)

    def _later(self, wait_s: float, work: Callable[[], Iterable[object]]) -> None:
        """If the same peer still runs then."""
        peer = self.peer

        def go() -> None:
            if peer is not None and self.peer is peer:
                self.world.perform(self, work())

        self.world.network.at_host(self.id, self.world.network.now + wait_s, go)

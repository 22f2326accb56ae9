"""Whole peers in virtual time: every byte of theirs goes through sessions and codec, over links that behave like TCP.

A ``Room`` is a network of ``Device``s. A device's disk outlives its peer; its trainer does not. Frames of one lane
from one peer to another keep their order, and may be lost (a link that broke); the receiver gets the sender's key, as
ZAP would give it. A failing run names its seed; ``P2PTRAIN_SEED=<seed> pytest <test>`` repeats just that one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fake_trainer import Traits

from p2ptrain.config import DataConfig, GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core import commands as c
from p2ptrain.core.effects import (
    AbandonBlob,
    BeginBlob,
    JobDone,
    JobReceived,
    KeepCustody,
    KeepPlan,
    KeepResult,
    KeepSnapshot,
    ReadResult,
    ReleaseBlob,
    RestartTrainer,
    StartTrainer,
    ToTrainer,
    TrainerLost,
    Unusable,
    VerifyBlob,
)
from p2ptrain.core.peer_config import PeerConfig, Resume
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId, blob_id, peer_id
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.net.simulated import Conditions, SimulatedNetwork
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.consensus.rules import Question
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session.effects import Ban, Dial, HangUp, SendFrames
from p2ptrain.runtime.node.observer_node import Observer
from p2ptrain.runtime.peer.core import Core
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.wire.messages import HEAD_PART, Holding, Lane, Record

DISK_S = 0.002
THOUGHT_S = 0.1
CODE = b"c" * 32
CLASSES = tuple("abcdef")
At = Callable[[float, Callable[[], None]], None]
"""Do something after so many seconds."""
LAN = Conditions(delay_s=0.001, jitter_s=0.003)


def seeds(count: int) -> list[int]:
    """``count`` of them, or the one to repeat."""
    wanted = os.environ.get("P2PTRAIN_SEED")
    return [int(wanted)] if wanted else list(range(count))


def key(number: int) -> bytes:
    return b"%040d" % number


def address(number: int) -> str:
    return f"tcp://10.0.{number // 250}.{number % 250 + 1}:5710"


def job(mode: str = "tasks", *, rounds: int = 6, name: str = "job", **changes: Any) -> Job:
    """A small job; ``changes`` to ``tasks``, ``group`` and, of what those don't have, ``pipeline`` by field name."""
    tasks = {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(TasksConfig)}}
    group = {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(GroupConfig)}}
    pipeline = {k: v for k, v in changes.items() if k not in tasks and k not in group}
    return Job(
        name=name,
        mode=mode,
        model=ModelConfig("lenet"),
        data=DataConfig(CLASSES, (1, 8, 8), mean=(0.0,), std=(1.0,), val=0.0 if mode == "pipeline" else 0.1),
        training=TrainingConfig(rounds=rounds),
        tables=(
            TasksConfig(**({"calibrate": "never", "calibration_steps": 5} | tasks)),
            PipelineConfig(**pipeline),
        ),
        group=GroupConfig(**({"settle_s": 1.0} | group)),
    )


class TrainerDouble(Protocol):
    """What stands in for a trainer process: commands in, events out through what it was made with."""

    def handle(self, command: object) -> None: ...
    def kill(self) -> None: ...


class TrainerTraits(Protocol):
    """What a test makes of one trainer."""

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> TrainerDouble:
        """A new one. ``at`` is its clock."""
        ...


class MemoryDisk:
    """What the store does, as strict as it: one job, own snapshots, custody, blobs. It survives its peer."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.plan: Plan | None = None
        self.own: tuple[Holding, ...] = ()
        self.custody: tuple[Holding, ...] = ()
        self.blobs: dict[BlobId, bytes] = {}
        self.fresh: set[BlobId] = set()
        self.pinned: frozenset[BlobId] = frozenset()
        self.passing: dict[BlobId, bytes] = {}
        self.incoming: dict[BlobId, tuple[bytearray, bool]] = {}

    def restarted(self) -> None:
        """What a kill leaves."""
        self.passing.clear()
        self.incoming.clear()
        self.fresh.clear()
        self._collect(frozenset())

    def __contains__(self, blob: object) -> bool:
        return blob in self.blobs or blob in self.passing

    def get(self, blob: BlobId) -> bytes | None:
        return self.passing.get(blob, self.blobs.get(blob))

    def put(self, data: bytes, *, passing: bool = False) -> BlobId:
        blob = blob_id(data)
        (self.passing if passing else self.blobs).setdefault(blob, data)
        if not passing:
            self.fresh.add(blob)
        while len(self.passing) > 64:
            del self.passing[next(iter(self.passing))]
        return blob

    def begin(self, blob: BlobId, num_bytes: int, passing: bool) -> None:
        if num_bytes > 1 << 24:
            raise OSError("no room")
        self.incoming[blob] = (bytearray(num_bytes), passing)

    def write(self, blob: BlobId, offset: int, data: bytes) -> None:
        if blob not in self.incoming:
            raise OSError("not being received")
        memory = self.incoming[blob][0]
        assert offset + len(data) <= len(memory)
        memory[offset : offset + len(data)] = data

    def finish(self, blob: BlobId) -> bool:
        memory, passing = self.incoming.get(blob, (bytearray(), True))
        if blob_id(memory) != blob:
            return False
        del self.incoming[blob]
        self.put(bytes(memory), passing=passing)
        return True

    def release(self, blob: BlobId) -> None:
        self.fresh.discard(blob)
        self._collect(self.pinned)

    def save(self, pinned: frozenset[BlobId], **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.pinned = pinned
        for holding in (*self.own, *self.custody):
            assert holding.blob in self.blobs, f"the manifest would name {holding}, which is not here"
            self.fresh.discard(holding.blob)
        self._collect(pinned)

    def _collect(self, pinned: frozenset[BlobId]) -> None:
        needed = {h.blob for h in (*self.own, *self.custody)} | pinned | self.fresh
        self.blobs = {blob: data for blob, data in self.blobs.items() if blob in needed}


@dataclass
class Device:
    """A device with a disk; ``peer`` runs on it unless it was killed."""

    room: Room
    number: int
    traits: TrainerTraits
    job: Job | None = None
    flops_per_s: float = 1e9
    allow: str = ""
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    peer: Peer | None = None
    trainer: TrainerDouble | None = None
    notes: list[tuple[float, Note]] = field(default_factory=list)
    banned: dict[bytes, float] = field(default_factory=dict)
    save_s: float | None = 0.0
    """How much longer a snapshot takes to be saved; ``None``: the disk has no room for any."""
    done: bool = False
    lost: str = ""
    unusable: str = ""

    @property
    def id(self) -> PeerId:
        return peer_id(key(self.number))

    @property
    def core(self) -> Peer:
        assert self.peer is not None, f"device {self.number} is off"
        return self.peer

    @property
    def record(self) -> Record:
        return self.core.records.own

    def start(self) -> None:
        room, now = self.room, self.room.network.now
        config = PeerConfig(
            own_key=key(self.number),
            proof_key=room.code,
            addresses=(address(self.number),),
            bulk_port=5711,
            name=f"device {self.number}",
            software="p2ptrain/test",
            flops_per_s=self.flops_per_s,
            allow_user_code=self.allow,
        )
        self.peer = Peer(config, random.Random(f"{room.seed}/{self.number}/{now}"), now, int(1e6 + now * 1000))
        self.done, self.lost, self.banned = False, "", {}
        room.network.add(self.id, self)
        if self.job is not None:
            self._open(self.job)

    def kill(self) -> None:
        """Like ``kill -9``: the disk is left."""
        self.room.network.crash(self.id)
        self.peer = None
        if self.trainer is not None:
            self.trainer.kill()
            self.trainer = None
        self.disk.restarted()

    def note_kinds(self) -> Counter[str]:
        return Counter(note.kind for _, note in self.notes)

    # --- the network's side ---

    def tick(self, now: float) -> list[object]:
        return list(self.core.tick(now))

    def next_deadline(self) -> float:
        return self.core.next_deadline()

    def handle(self, sender: PeerId, message: object, now: float) -> list[object]:
        raise AssertionError("frames come by ``frames``")

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[bytes], now: float) -> list[object]:
        if self.banned.get(sender_key, 0.0) > now:
            return []
        return list(self.core.frames_received(lane, sender_key, frames, now))

    # --- what a node does ---

    def carry_out(self, effect: object, now: float) -> list[object]:
        match effect:
            case Note():
                self.notes.append((now, effect))
            case ToTrainer():
                self._to_trainer(effect)
            case JobReceived():
                self._open(effect.job)
            case Unusable():
                self.unusable = effect.reason
            case BeginBlob():
                self._incoming(effect.blob, lambda: self.disk.begin(effect.blob, effect.num_bytes, effect.ephemeral))
            case WriteChunk():
                self._incoming(effect.blob, lambda: self.disk.write(effect.blob, effect.offset, effect.data))
            case AbandonBlob():
                self._on_disk(lambda: self.disk.incoming.pop(effect.blob, None), lambda _: [])
            case VerifyBlob():
                self._on_disk(
                    lambda: self.disk.finish(effect.blob),
                    lambda sound: self.core.blob_checked(effect.blob, bool(sound), self.room.network.now),
                )
            case ReadChunk():
                self._on_disk(
                    lambda: self._read(effect),
                    lambda data: self.core.chunk_read(effect, data, self.room.network.now),
                )
            case KeepSnapshot():
                gone = (*effect.drop, effect.holding.blob)
                self._save(
                    lambda: {"own": (*(h for h in self.disk.own if h.blob not in gone), effect.holding)},
                    lambda: self.core.snapshot_kept(effect, True, self.room.network.now),
                )
            case KeepCustody():
                self._keep_custody(effect)
            case ReleaseBlob():
                self._on_disk(lambda: self.disk.release(effect.blob), lambda _: [])
            case KeepPlan():
                self._save(lambda: {"plan": effect.plan}, lambda: [])
            case KeepResult():
                self._keep_result(effect)
            case ReadResult():
                self._on_disk(
                    lambda: self.disk.get(effect.holding.blob) or b"",
                    lambda data: self.core.result_kept(effect.holding, data, self.room.network.now),
                )
            case StartTrainer() | RestartTrainer():
                self._start_trainer()
            case TrainerLost():
                self.lost = effect.detail
            case JobDone():
                self.done = True
            case Question():
                answer = effect.work()
                self.room.later(self, THOUGHT_S, lambda: self.core.plan_worked_out(answer, self.room.network.now))
            case Ban():
                self.banned[effect.key] = now + effect.seconds
            case Dial() | HangUp():
                pass
            case _:
                raise AssertionError(effect)
        return []

    def _read(self, effect: ReadChunk) -> bytes | None:
        data = self.disk.get(effect.blob)
        if data is None or effect.offset + effect.length > len(data):
            return None
        return self.room.served(self, data[effect.offset : effect.offset + effect.length])

    def _open(self, job: Job) -> None:
        assert self.disk.job in (None, job)
        disk = self.disk
        disk.job = job
        resume = Resume(
            plan=disk.plan,
            own=disk.own,
            kept=tuple(h for h in disk.custody if h.part != HEAD_PART),
            result=next((h for h in reversed(disk.custody) if h.part == HEAD_PART), None),
            has_blob=disk.__contains__,
        )
        self.room.later(self, 0.0, lambda: self.core.job_opened(job, resume, self.room.network.now))

    def _start_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.kill()
        name = f"device {self.number}"
        at: Any = lambda wait, action: self.room.network.at(self.room.network.now + wait, action)  # noqa: E731
        assert self.disk.job is not None
        trainer = self.trainer = self.traits.trainer(name, at, lambda event: self._said(trainer, event))
        trainer.handle(c.Configure(job=self.disk.job.to_json(), data="none", name=name))

    def _to_trainer(self, effect: ToTrainer) -> None:
        if effect.blob is None:
            if self.trainer is not None:
                self.trainer.handle(effect.command)
            return
        blob = effect.blob

        def send(data: bytes | None) -> list[object]:
            if data is None:
                self.notes.append((self.room.network.now, Note("blob-missing", (("blob", blob),))))
            elif self.trainer is not None:
                command: Any = effect.command
                self.trainer.handle(dataclasses.replace(command, **{effect.into: data}))
            return []

        self._on_disk(lambda: self.disk.get(blob), send)

    def _said(self, trainer: TrainerDouble, event: Any) -> None:
        if trainer is not self.trainer or self.peer is None:
            return
        field = getattr(type(event), "STORED", "")
        data = getattr(event, field) if field else b""
        if not data:
            self.room.perform(self, self.core.trainer_said(event, None, 0, self.room.network.now))
            return
        event = dataclasses.replace(event, **{field: b""})
        if isinstance(event, c.SnapshotTaken) and self.save_s is None:
            self.room.perform(self, self.core.trainer_said(event, None, 0, self.room.network.now))
            return
        wait_s = DISK_S + (self.save_s or 0.0) * isinstance(event, c.SnapshotTaken)

        def put() -> list[object]:
            blob = self.disk.put(data, passing=getattr(type(event), "IS_PASSING", False))
            return self.core.trainer_said(event, blob, len(data), self.room.network.now)

        self.room.later(self, wait_s, put)

    def _keep_custody(self, effect: KeepCustody) -> None:
        def change() -> dict[str, object]:
            others = tuple(h for h in self.disk.custody if h != effect.holding)
            return {"custody": (*others, effect.holding) if effect.keep else others}

        def then() -> list[object]:
            return self.core.custody_kept(effect.holding, True, self.room.network.now) if effect.keep else []

        self._save(change, then)

    def _keep_result(self, effect: KeepResult) -> None:
        def save() -> None:
            self.disk.put(effect.data)
            self.disk.save(frozenset(), custody=(*self.disk.custody, effect.holding))

        self._on_disk(save, lambda _: self.core.result_kept(effect.holding, effect.data, self.room.network.now))

    def _save(self, change: Callable[[], dict[str, object]], then: Callable[[], list[object]]) -> None:
        role = self.core.role
        pinned = role.replicas.custody.pinned() if role else frozenset()
        self._on_disk(lambda: self.disk.save(pinned, **change()), lambda _: then())

    def _incoming(self, blob: BlobId, work: Callable[[], None]) -> None:
        def tried() -> str:
            try:
                work()
            except OSError as error:
                return str(error)
            return ""

        self._on_disk(tried, lambda error: self.core.blob_refused(blob, error, self.room.network.now) if error else [])

    def _on_disk(self, work: Callable[[], Any], then: Callable[[Any], list[object]]) -> None:
        """In order: all work takes equally long."""
        self.room.later(self, DISK_S, lambda: then(work()))


@dataclass
class Visitor:
    """An observer core on the same network."""

    room: Room
    number: int
    core: Observer
    blobs: dict[BlobId, bytes] = field(default_factory=dict)
    incoming: dict[BlobId, bytearray] = field(default_factory=dict)
    gone: bool = False

    @property
    def id(self) -> PeerId:
        return peer_id(key(self.number))

    def handle(self, sender: PeerId, message: object, now: float) -> list[object]:
        raise AssertionError("frames come by ``frames``")

    def tick(self, now: float) -> list[object]:
        return list(self.core.tick(now))

    def next_deadline(self) -> float:
        return self.core.next_deadline()

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[bytes], now: float) -> list[object]:
        return list(self.core.frames_received(lane, sender_key, frames, now))

    def fetch(self, holding: Holding) -> None:
        self.incoming[holding.blob] = bytearray(holding.num_bytes)
        self.room.perform(self, self.core.fetch(holding, self.room.network.now))

    def carry_out(self, effect: object, now: float) -> list[object]:
        match effect:
            case WriteChunk():
                self.incoming[effect.blob][effect.offset : effect.offset + len(effect.data)] = effect.data
            case VerifyBlob():
                sound = blob_id(self.incoming[effect.blob]) == effect.blob
                if sound:
                    self.blobs[effect.blob] = bytes(self.incoming.pop(effect.blob))
                return list(self.core.blob_checked(effect.blob, sound, now))
            case ReadChunk():
                return list(self.core.chunk_read(effect, None, now))
            case Note() | Dial() | HangUp() | Ban() | AbandonBlob():
                pass
            case _:
                raise AssertionError(effect)
        return []


class Room:
    """Devices, and the network between them."""

    def __init__(
        self,
        seed: int,
        conditions: Conditions = LAN,
        *,
        traits: Callable[..., TrainerTraits] = Traits,
        bytes_per_s: float = math.inf,
    ) -> None:
        """``traits``: a dataclass, of the trainers of the job's mode. ``bytes_per_s``: of each link, one way."""
        print(f"P2PTRAIN_SEED={seed}")
        self.seed = seed
        self.traits = traits
        self.conditions = conditions
        self.bytes_per_s = bytes_per_s
        self.code = CODE
        self.rng = random.Random(f"{seed}/room")
        self.network = SimulatedNetwork(seed, on_effect=self._carry_out)
        self.devices: dict[int, Device] = {}
        self.hosts: dict[PeerId, Device | Visitor] = {}
        self.counts: Counter[str] = Counter()
        self.served: Callable[[Device, bytes], bytes] = lambda device, data: data
        self._by_address: dict[str, PeerId] = {}
        self._sides: dict[PeerId, int] = {}
        self._arrives: dict[tuple[PeerId, PeerId, Lane], float] = {}

    # --- what a test does ---

    def add(self, number: int, counts: Sequence[int] = (10,) * 6, job: Job | None = None, **changes: Any) -> Device:
        """A device that is on, and has been told the address of the first one."""
        names = {f.name for f in dataclasses.fields(self.traits)}  # type: ignore[arg-type]
        traits = self.traits(tuple(counts), **{k: v for k, v in changes.items() if k in names})
        device = Device(self, number, traits, job, **{k: v for k, v in changes.items() if k not in names})
        self.devices[number] = device
        self._place(device)
        device.start()
        self.introduce(device)
        return device

    def introduce(self, device: Device) -> None:
        """As mDNS would: everyone that is on hears of the newcomer, and it of them."""
        now = self.network.now
        for other in list(self.devices.values()):
            if other is not device and other.peer is not None:
                self.perform(device, device.core.propose(address(other.number), now))
                self.perform(other, other.core.propose(address(device.number), now))

    def restart(self, number: int) -> Device:
        device = self.devices[number]
        device.start()
        self.introduce(device)
        return device

    def visit(self, number: int, peers: Iterable[int]) -> Visitor:
        rng = random.Random(f"{self.seed}/visitor/{number}")
        core = Observer(key(number), self.code, (address(number),), 5711, rng)
        visitor = Visitor(self, number, core)
        self._place(visitor)
        self.network.add(visitor.id, visitor)  # type: ignore[arg-type]
        for peer in peers:
            self.perform(visitor, core.propose(address(peer), self.network.now))
        return visitor

    def end_visit(self, visitor: Visitor, *, goodbye: bool) -> None:
        """It says goodbye and closes; or it is killed."""
        if goodbye:
            self.perform(visitor, visitor.core.leave(self.network.now))
        visitor.gone = True
        self.network.crash(visitor.id)

    def partition(self, *groups: Iterable[int]) -> None:
        self._sides = {peer_id(key(n)): side for side, group in enumerate(groups, start=1) for n in group}

    def heal(self) -> None:
        self._sides = {}

    def on(self) -> list[Device]:
        return [device for _, device in sorted(self.devices.items()) if device.peer is not None]

    def run(self, seconds: float, stop: Callable[[], bool] | None = None) -> bool:
        return self.network.run(self.network.now + seconds, stop, every_s=0.05)

    def all_done(self) -> bool:
        return all(device.done for device in self.on())

    def epochs(self) -> set[int]:
        return {device.core.epoch for device in self.on()}

    def plans(self) -> set[str]:
        return {device.core.agreement.hash if device.core.agreement else "" for device in self.on()}

    def covered(self) -> set[int]:
        """Parts of which somebody who is on says, truly, that it has a copy."""
        return {h.part for d in self.on() for h in d.record.holdings if h.blob in d.disk and h.part != HEAD_PART}

    # --- inside ---

    def perform(self, host: Device | Visitor, effects: Iterable[object]) -> None:
        self.network.perform(host.id, effects)

    def later(self, device: Device, wait_s: float, work: Callable[[], Iterable[object]]) -> None:
        peer = device.peer

        def go() -> None:
            if device.peer is peer and peer is not None:
                self.perform(device, work())

        self.network.at(self.network.now + wait_s, go)

    def _place(self, host: Device | Visitor) -> None:
        self.hosts[host.id] = host
        self._by_address[address(host.number)] = host.id

    def _carry_out(self, who: PeerId, effect: object, now: float) -> Iterable[object] | None:
        if isinstance(effect, SendFrames):
            self.send(who, effect)
            return None
        host = self.hosts[who]
        if isinstance(host, Device) and host.peer is None:
            return None
        return host.carry_out(effect, now)

    def send(self, who: PeerId, effect: SendFrames) -> None:
        """Frames go to whoever is at the address; they are lost like a link breaks, and never overtake each other."""
        to = self._by_address.get(effect.address)
        self.counts[effect.lane] += 1
        if to is None or self.rng.random() < self.conditions.loss:
            self.counts["lost"] += 1
            return
        wait = self.conditions.delay_s + self.conditions.jitter_s * self.rng.random()
        channel = (who, to, effect.lane)
        frames = [bytes(frame) for frame in effect.frames]
        through_s = sum(map(len, frames)) / self.bytes_per_s
        when = max(self.network.now + wait + through_s, self._arrives.get(channel, 0.0) + through_s)
        self._arrives[channel] = when
        self.network.at(when, lambda: self._deliver(who, to, effect.lane, frames))

    def _deliver(self, sender: PeerId, to: PeerId, lane: Lane, frames: Sequence[bytes]) -> None:
        host = self.hosts[to]
        if host.gone if isinstance(host, Visitor) else host.peer is None:
            return
        if self._sides.get(sender, 0) != self._sides.get(to, 0):
            return
        self.perform(host, host.frames(lane, key(self.hosts[sender].number), frames, self.network.now))


def sizes(core: Core) -> Counter[str]:
    """How many things each table of a core and of its machines holds, by its path."""
    found: Counter[str] = Counter()
    seen: set[int] = set()

    def look(thing: object, path: str) -> None:
        if id(thing) in seen or isinstance(thing, str | bytes | int | float | type(None)) or callable(thing):
            return
        seen.add(id(thing))
        if hasattr(thing, "__len__"):
            found[path] += len(thing)
        if isinstance(thing, dict):
            for inner in list(thing.values()):
                look(inner, path + "[]")
        elif isinstance(thing, list | tuple | set | frozenset) or type(thing).__name__ == "deque":
            for inner in list(thing):  # type: ignore[call-overload]
                look(inner, path + "[]")
        elif type(thing).__module__.startswith("p2ptrain.") and not isinstance(thing, Job | Plan | Record | Holding):
            names = list(getattr(thing, "__dict__", {})) + list(getattr(type(thing), "__slots__", ()))
            for name in names:
                if name not in ("_handlers", "_on_message", "_peer"):
                    look(getattr(thing, name, None), f"{path}.{name}")

    look(core, type(core).__name__)
    return found


__all__ = ["Device", "RemoteError", "Room", "Visitor", "address", "job", "key", "seeds", "sizes"]

"""Rooms of whole peers as tests have them: a small job, a trainer of a few numbers, and the seed in the output."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fake_trainer import Traits

from p2ptrain.config import DataConfig, GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.mode import Harvester
from p2ptrain.core.plan import Plan
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.runtime.peer.core import Core
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN, Conditions
from p2ptrain.simulation.room import Room as SimulatedRoom
from p2ptrain.wire.messages import Record, SnapshotRef

CLASSES = tuple("abcdef")
NOTHING = (0,) * len(CLASSES)
"""Samples of who has none."""
LOSSY = Conditions(delay_s=0.002, jitter_s=0.02, loss=0.1)
RATE = 12.5e6
"""Of a link, bytes/s."""
FORGIVEN = ("old-epoch", "replay", "session", "echo")
"""What loss alone brings about."""


def job(mode: str = "tasks", *, rounds: int = 6, name: str = "job", **changes: Any) -> Job:
    """A small job; ``changes`` to ``tasks``, ``group`` and, of what those don't have, ``pipeline`` by field name."""
    tasks = {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(TasksConfig)}}
    group = {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(GroupConfig)}}
    pipeline = {k: v for k, v in changes.items() if k not in tasks and k not in group}
    return Job(
        name=name,
        mode=mode,
        model=ModelConfig("lenet"),
        data=DataConfig(CLASSES, (1, 8, 8), mean=(0.0,), std=(1.0,), val=0.0 if mode in ("pipeline", "split") else 0.1),
        training=TrainingConfig(rounds=rounds),
        tables=(
            TasksConfig(**({"fit_head": "never", "head_fit_steps": 5} | tasks)),
            PipelineConfig(**pipeline),
        ),
        group=GroupConfig(**({"settle_s": 1.0} | group)),
    )


class Room(SimulatedRoom):
    """Of trainers of a few numbers, unless ``traits`` says otherwise."""

    def __init__(self, seed: int, conditions: Conditions = LAN, **options: Any) -> None:
        print(f"P2PTRAIN_SEED={seed}")
        super().__init__(seed, conditions, **({"traits": Traits} | options))

    def add(self, number: int, counts: Sequence[int] = (10,) * 6, job: Job | None = None, **changes: Any) -> Device:
        return super().add(number, counts, job, **changes)


def plan_of(device: Device) -> Plan:
    assert device.core.agreement is not None and device.core.agreement.current is not None
    return device.core.agreement.current


def refusals(room: Room) -> Counter[str]:
    """But for what loss alone brings about."""
    total: Counter[str] = Counter()
    for device in room.on():
        total += device.core.refused + device.core.sessions.refused
    return Counter({reason: n for reason, n in total.items() if reason not in FORGIVEN})


def harvest(room: Room, harvester: Harvester, visitor_number: int = 99) -> dict[int, tuple[SnapshotRef, bytes]]:
    """As ``p2ptrain harvest`` does it, through an observer."""
    on = room.on()
    visitor = room.visit(visitor_number, [device.number for device in on])
    room.run(3)
    holdings = {h.blob: h for device in on for h in device.record.holdings if h.kind != "kept"}

    async def fetch(holding: SnapshotRef, what: str) -> bytes | None:
        visitor.fetch(holding)
        room.run(20, lambda: holding.blob in visitor.blobs)
        return visitor.blobs.get(holding.blob)

    _, parts = asyncio.run(harvester.fetch(plan_of(on[0]), list(holdings.values()), fetch))
    return {first: (snapshot.holding, snapshot.data) for first, (snapshot,) in parts.items()}


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
        elif type(thing).__module__.startswith("p2ptrain.") and not isinstance(
            thing, Job | Plan | Record | SnapshotRef
        ):
            names = list(getattr(thing, "__dict__", {})) + list(getattr(type(thing), "__slots__", ()))
            for name in names:
                if name not in ("_handlers", "_on_message", "_peer"):
                    look(getattr(thing, name, None), f"{path}.{name}")

    look(core, type(core).__name__)
    return found

"""A pipeline to which anything happens at any moment: kills, stalls, cuts, returns, by a seed. And what must hold.

One run is one seed. ``scripts/explore.py`` runs many of them, and repeats one that fails.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
from blocks_trainer import NUM_BLOCKS
from peer_group import LOSSY
from stage_group import check_done, committed, furthest, group, state_of, told_untruly, trainer
from stage_trainer import ledger, read_piece

from p2ptrain.core import commands as c
from p2ptrain.planning.pipeline.coverage import cover, newest_whole
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.disk import SimulatedDisk
from p2ptrain.simulation.network import LAN
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import SnapshotRef

EVERY = 3
SAMPLES = (24,) * 6
"""Of each owner: so few that most jobs are done soon after what happens to them."""
KINDS = (
    *("kill",) * 4,
    *("kill two", "kill three", "stall", "stall", "cut", "cut", "trainer", "trainer", "clock", "leave"),
    *("all", "loss", "disk"),
)
PATIENCE_S = 60.0
LEAVE_S = 30.0
"""So long a person waits for a device that is asked to leave."""
SLACK = EVERY + 4
"""Batches: of two parts that meet, one that is no further ahead than news of it takes may be the one that loses."""


class Explorer:
    """A few devices; a few things happen to them, then all come back and the job is to be done."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"explore/{seed}")
        count = self.rng.choice((3, 4, 4, 5, 6))
        self.room = group(
            seed,
            count,
            owners=self.rng.choice((count, count, 2)),
            samples=SAMPLES,
            rounds=self.rng.choice((4, 8, 16)),
            snapshot_steps=EVERY,
            micro_batches=2,
            patience_s=PATIENCE_S,
            strategy=self.rng.choice(("planned", "planned", "equal")),
            schedule=self.rng.choice(("sync", "sync", "async")),
        )
        self.num_events = self.rng.choice((1, 2, 3, 3, 5, 8))
        self.leaving: set[int] = set()
        """Devices, by number."""
        self.log: list[str] = []

    def run(self) -> None:
        """Raises ``AssertionError`` where something does not hold."""
        room = self.room
        assert room.run(60, lambda: furthest(room) >= 4), state_of(room)
        for _ in range(self.num_events):
            room.run(self.rng.choice((0.05, 0.5, 1.5, 1.5, 3.0, 3.0, 8.0, 30.0)) * self.rng.uniform(0.5, 1.5))
            self.check()
            self.happen()
            self.check()
        room.heal()
        room.conditions = LAN
        room.run(LEAVE_S + 1, lambda: not self.leaving)  # who is leaving is gone
        for device in room.devices.values():
            if not device.is_on:
                room.restart(device.number)
                room.run(self.rng.uniform(0, 2))
        kept = histories(list(room.devices.values()))
        assert room.run(900, room.all_done), ("somebody waits for ever", self.log, state_of(room))
        self.check()
        epochs = check_done(room)
        num = max(0, min(map(len, kept), default=0) - SLACK)
        is_kept = not kept or any((epochs[:num] == each[:num]).all() for each in kept)
        assert is_kept, ("lost what somebody had", self.log, epochs.tolist(), [k.tolist() for k in kept])

    def happen(self) -> None:
        """Something does."""
        room, kind = self.room, self.rng.choice(KINDS)
        on = room.on()
        off = [device for device in room.devices.values() if not device.is_on]
        if off and (self.rng.random() < 0.4 or not on):
            kind = "return"
        self.log.append(f"{room.network.now:.2f} at step {furthest(room)}: {kind}")
        match kind:
            case "return":
                self.restart(self.rng.choice(off))
            case "kill" | "kill two" | "kill three" | "all":
                num = {"kill": 1, "kill two": 2, "kill three": 3, "all": len(on)}[kind]
                self.kill(self.rng.sample(on, min(num, len(on))))
            case "stall":
                device = self.of(on)
                device.stall(self.rng.choice((1.0, 2.5, 5.0, 25.0, 100.0)))
            case "cut" if len(on) > 1:
                numbers = [device.number for device in self.rng.sample(on, len(on))]
                cuts = sorted(
                    self.rng.sample(range(1, len(numbers)), min(self.rng.choice((1, 1, 2)), len(numbers) - 1))
                )
                sides = [numbers[a:b] for a, b in itertools.pairwise([0, *cuts, len(numbers)])]
                self.log.append(f"  {' from '.join(map(str, sides))}")
                room.partition(*sides)
                if self.rng.random() < 0.7:
                    room.network.at(room.network.now + self.rng.choice((2.0, 10.0, 40.0)), room.heal)
            case "trainer":
                device = self.of(on)
                if device.trainer is not None and trainer(device).step >= 0:
                    trainer(device).dead = True
                    trainer(device)._say(c.TrainerFailed("killed", user_error=False))
            case "clock":
                self.of(on).jump(self.rng.choice((0.5, 3.0, 60.0, 4000.0)))
            case "leave":
                self.leave(self.of(on))
            case "loss":
                room.conditions = self.rng.choice((LOSSY, dataclasses.replace(LAN, loss=0.3)))
                room.network.at(room.network.now + self.rng.choice((2.0, 20.0)), self.mend)
            case "disk":
                device = self.of(on)
                if self.rng.random() < 0.5:
                    self.kill([device])
                device.disk.blobs = {blob: b"x" * len(data) for blob, data in device.disk.blobs.items()}

    def of(self, devices: list[Device]) -> Device:
        device = self.rng.choice(devices)
        self.log.append(f"  {device.number}")
        return device

    def mend(self) -> None:
        self.room.conditions = LAN

    def kill(self, devices: list[Device]) -> None:
        """The devices, or only the processes, which the others hear of at once."""
        is_off = self.rng.random() < 0.5
        for device in devices:
            self.log.append(f"  {device.number}" + (", silently" if is_off else ""))
            device.kill() if is_off else device.end()

    def restart(self, device: Device) -> None:
        """Its clock on the wall may be anywhere, and what it saved be lost. Its vote is not: without that it would have
        lost its key, too, and be somebody else."""
        has_lost = self.rng.random() < 0.1
        self.log.append(f"  {device.number}" + (", with an empty disk" if has_lost else ""))
        if has_lost:
            voted, device.disk = device.disk.voted, SimulatedDisk()
            device.disk.voted = voted
        device.wall_ahead_s = self.rng.choice((0.0, 0.0, 0.0, -20.0, -900.0, 3600.0))
        self.room.restart(device.number)

    def leave(self, device: Device) -> None:
        """As when a person presses Ctrl-C: it is off when it is free, or its patience ends."""
        room = self.room
        room.perform(device, device.core.run(device.core.group.say(device.now, leaving=True), device.now))
        peer = device.peer
        self.leaving.add(device.number)

        def gone() -> None:
            self.leaving.discard(device.number)
            if device.peer is peer:
                device.kill()

        def go(left_s: float) -> None:
            if device.peer is not peer or peer is None:
                self.leaving.discard(device.number)
                return
            if left_s > 0 and peer.role is not None and not peer.role.is_free_to_leave:
                room.network.at(room.network.now + 0.2, lambda: go(left_s - 0.2))
                return
            room.perform(device, peer.leave(device.now))
            room.network.at(room.network.now + 0.3, gone)

        go(LEAVE_S)

    def check(self) -> None:
        """Of one epoch there is one plan, and as many batches were told of as lost as were."""
        plans = committed(self.room)
        assert all(len(names) == 1 for epoch, names in plans.items() if epoch > 1), (self.log, plans)
        untrue = told_untruly(self.room)
        assert not untrue, ("told of other losses than there were", self.log, untrue)


def histories(devices: list[Device]) -> list[np.ndarray]:
    """Of the states that are the furthest of those saved whole: by batch, the epoch it was trained in. And of those who
    train, if they are as far."""
    data: dict[str, bytes] = {}
    found: dict[str, SnapshotRef] = {}
    for device in devices:
        for holding in (*device.disk.own, *device.disk.replicas):
            blob = device.disk.blobs.get(holding.blob)
            if blob is not None and not blob.startswith(b"xxxx"):
                found[holding.blob], data[holding.blob] = holding, blob
    everything = list(found.values())
    furthest_step, _ = newest_whole(NUM_BLOCKS, everything)
    if not furthest_step:
        return []
    kept = []
    for step, epoch in sorted({(h.step, h.epoch) for h in everything if h.step >= furthest_step}):
        chosen = cover([(0, NUM_BLOCKS)], (step, epoch), everything, lambda _: 0)
        if chosen is not None:
            books = ledger([read_piece(data[h.blob], step, _total(data[h.blob])) for h in chosen])
            kept.append(books[0].epoch[:step])
    for device in devices:
        if device.is_on and device.trainer is not None and trainer(device).step >= furthest_step:
            books = next(iter(trainer(device).blocks.values()), None)
            kept += [books.epoch[: trainer(device).step]] if books is not None else []
    return [each[:furthest_step] for each in kept]


def _total(data: bytes) -> int:
    return len(next(iter(tensorfile.read(data).arrays().values())))


def explore(seed: int) -> Explorer:
    """One run. A failure names its seed."""
    explorer = Explorer(seed)
    explorer.run()
    return explorer

"""A pipeline to which anything happens at any moment: kills, stalls, cuts, returns, by a seed. And what must hold.

One run is one seed. ``scripts/explore.sh`` runs many of them, and says how to repeat one that fails.
"""

from __future__ import annotations

import random

from stage_group import all_at, check_done, committed, group, state_of, trainer

from p2ptrain.core import commands as c
from p2ptrain.simulation.device import Device

EVERY = 3
KINDS = ("kill", "kill", "kill two", "kill three", "stall", "cut", "trainer", "all")
PATIENCE_S = 60.0


class Explorer:
    """``count`` devices; ``num_events`` things happen to them, then all come back and the job is to be done."""

    def __init__(self, seed: int, num_events: int = 3) -> None:
        self.rng = random.Random(f"explore/{seed}")
        count = self.rng.choice((3, 4, 4, 5))
        self.room = group(
            seed, count, owners=count, rounds=6, snapshot_steps=EVERY, micro_batches=2, patience_s=PATIENCE_S
        )
        self.num_events = num_events
        self.log: list[str] = []

    def run(self) -> None:
        """Raises ``AssertionError`` where something does not hold."""
        room = self.room
        assert room.run(60, all_at(room, 4)), state_of(room)
        for _ in range(self.num_events):
            room.run(self.rng.choice((0.05, 0.5, 1.5, 3.0, 8.0, 30.0)) * self.rng.uniform(0.5, 1.5))
            self.happen()
            self.check()
        room.heal()
        for device in room.devices.values():
            if not device.is_on:
                room.restart(device.number)
                room.run(self.rng.uniform(0, 2))
        assert room.run(900, room.all_done), ("somebody waits for ever", self.log, state_of(room))
        self.check()
        check_done(room)

    def happen(self) -> None:
        """Something does."""
        room, kind = self.room, self.rng.choice(KINDS)
        on = room.on()
        off = [device for device in room.devices.values() if not device.is_on]
        if off and self.rng.random() < 0.4:
            kind = "return"
        self.log.append(f"{room.network.now:.2f} {kind}")
        match kind:
            case "return":
                room.restart(self.rng.choice(off).number)
            case "kill" | "kill two" | "kill three" | "all":
                num = {"kill": 1, "kill two": 2, "kill three": 3, "all": len(on)}[kind]
                self.kill(self.rng.sample(on, min(num, len(on))))
            case "stall" if on:
                self.rng.choice(on).stall(self.rng.choice((1.0, 5.0, 25.0)))
            case "cut" if len(on) > 1:
                numbers = [device.number for device in self.rng.sample(on, len(on))]
                at = self.rng.randrange(1, len(numbers))
                room.partition(numbers[:at], numbers[at:])
                if self.rng.random() < 0.7:
                    room.network.at(room.network.now + self.rng.choice((2.0, 10.0, 40.0)), room.heal)
            case "trainer" if on:
                device = self.rng.choice(on)
                if device.trainer is not None and trainer(device).step >= 0:
                    trainer(device).dead = True
                    trainer(device)._say(c.TrainerFailed("killed", user_error=False))

    def kill(self, devices: list[Device]) -> None:
        for device in devices:
            self.log.append(f"  {device.number}")
            device.kill()

    def check(self) -> None:
        """Of one epoch there is one plan; and what is saved whole by those who are on is not behind what they train."""
        plans = committed(self.room)
        assert all(len(names) == 1 for epoch, names in plans.items() if epoch > 1), (self.log, plans)


def explore(seed: int, num_events: int = 3) -> Explorer:
    """One run. A failure names its seed."""
    explorer = Explorer(seed, num_events)
    explorer.run()
    return explorer

"""Split training to which anything happens at any moment, by a seed: kills, stalls, cuts, returns, bad updates, other
speeds. And what must hold: no sample of a round counts twice, no average is over two sets of units, no finished round
goes with one peer, nobody waits for ever.

One run is one seed. ``scripts/explore.py`` runs many of them, and repeats one that fails.
"""

from __future__ import annotations

import dataclasses
import random

from test_units import LOSSY, all_at, check_done, group, newest_saved, state_of, trainer

from p2ptrain.core import commands as c
from p2ptrain.modes.split.commands import UpdateMade
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN

KINDS = ("kill", "kill", "kill two", "stall", "cut", "trainer", "all", "nonsense", "speed")
CALM_S = 20.0
"""After that all copies are made that were missing."""


class Explorer:
    """Owners and helpers; ``num_events`` things happen to them, then all come back and the job is to be done."""

    def __init__(self, seed: int, num_events: int = 3) -> None:
        self.rng = random.Random(f"explore units/{seed}")
        self.owners = self.rng.choice((2, 3, 3))
        helpers = self.rng.choice((1, 1, 2))
        self.lies = self.rng.random() < 0.15
        """Helpers are as slow as those that they help, and claim a hundred times as much."""
        self.room = group(
            seed,
            self.owners,
            helpers,
            LOSSY if self.rng.random() < 0.2 else LAN,
            rounds=10,
            min_peers=self.owners + helpers,
            strategy=self.rng.choice(("planned", "planned", "mid-cut", "alone")),
            ballast_bytes=self.rng.choice((0, 200_000)),
            **({"weak_s": 0.004, "strong_s": 0.004, "claimed": 100.0} if self.lies else {}),
        )
        self.num_events = num_events
        self.calm_since = 0.0
        self.log: list[str] = []

    def run(self) -> None:
        """Raises ``AssertionError`` where something does not hold."""
        room = self.room
        assert room.run(180 if self.lies else 60, all_at(room, 1)), state_of(room)
        for _ in range(self.num_events):
            room.run(self.rng.choice((0.05, 0.3, 1.0, 3.0, 8.0, 30.0)) * self.rng.uniform(0.5, 1.5))
            self.happen()
        room.heal()
        for device in room.devices.values():
            if not device.is_on:
                room.restart(device.number)
                room.run(self.rng.uniform(0, 2))
        assert room.run(900, room.all_done), ("somebody waits for ever", self.log, state_of(room))
        check_done(room, self.owners)

    def happen(self) -> None:
        """Something does."""
        room, kind = self.room, self.rng.choice(KINDS)
        on = room.on()
        off = [device for device in room.devices.values() if not device.is_on]
        if off and self.rng.random() < 0.5:
            kind = "return"
        self.log.append(f"{room.network.now:.2f} {kind}")
        is_calm = room.network.now > self.calm_since + CALM_S
        self.calm_since = room.network.now
        match kind:
            case "return":
                room.restart(self.rng.choice(off).number)
            case "kill" if len(on) > 1:
                whole = newest_saved(on)
                self.kill([self.rng.choice(on)])
                if is_calm:
                    self.check_finished(room.on(), whole)
            case "kill two" | "all":
                self.kill(self.rng.sample(on, min({"kill two": 2, "all": len(on)}[kind], len(on))))
            case "stall" if on:
                self.rng.choice(on).stall(self.rng.choice((1.0, 5.0, 25.0)))
            case "cut" if len(on) > 1:
                numbers = [device.number for device in self.rng.sample(on, len(on))]
                at = self.rng.randrange(1, len(numbers))
                room.partition(numbers[:at], numbers[at:])
                after_s = self.rng.choice((2.0, 10.0, 40.0))
                room.network.at(room.network.now + after_s, room.heal)
                self.calm_since += after_s
            case "trainer" | "nonsense" | "speed" if on:
                self.meddle(kind, self.rng.choice(on))

    def meddle(self, kind: str, device: Device) -> None:
        """With its trainer, if it has one."""
        if device.trainer is None:
            return
        odd = trainer(device)
        if kind == "trainer":
            odd.dead = True
            odd._say(c.TrainerFailed("killed", user_error=False))
        elif kind == "speed":
            odd.slowdown = self.rng.choice((1.0, 4.0, 15.0))
            if device.number >= self.owners and not self.lies and self.rng.random() < 0.5:  # overloaded, for a while
                odd.slowdown = 1000.0
                room, after_s = self.room, self.rng.uniform(10, 100)
                room.network.at(room.network.now + after_s, lambda: setattr(odd, "slowdown", min(odd.slowdown, 15.0)))
        else:
            say = odd._say
            odd._say = lambda event: say(
                dataclasses.replace(event, update=b"nonsense") if isinstance(event, UpdateMade) else event
            )

    def kill(self, devices: list[Device]) -> None:
        for device in devices:
            self.log.append(f"  {device.number}")
            device.kill()

    def check_finished(self, left: list[Device], whole: int) -> None:
        """One peer is gone from a group in which all was calm: what others go on from is still there, unless it went
        with two peers at once before. ``whole``: the newest round that was there until now."""
        told = [round for device in left if device.trainer is not None for _, round in trainer(device).begun]
        if told:
            due = min(whole, max(told))
            assert newest_saved(left) >= due, ("a finished round is lost", self.log, state_of(self.room))


def explore(seed: int, num_events: int = 3) -> Explorer:
    """One run. A failure names its seed."""
    explorer = Explorer(seed, num_events)
    explorer.run()
    return explorer

"""What a device measures of itself, for whoever looks: how busy it is, how warm it is, its battery.

Invariant: never raises and never waits for long; what the system does not tell is left out.
"""

from __future__ import annotations

import contextlib
import math
import time

import psutil

from p2ptrain.protocol.machine import Note

SENSORS_S = 10.0
"""Temperatures and batteries change slowly, and some systems take long to tell them."""
ELSE = ("plan-adopted", "trainer-failed", "trainer-hangs", "goes-back", "gives-way", "done")
OF_A_STAGE = {"computes": "busy", "batch_s": "batch_s", "sends_bytes_per_s": "sends_bytes_per_s"}
"""Figures, by what the trainer's notes call them."""
UNTOLD = (psutil.Error, OSError, ValueError, AttributeError, NotImplementedError, RuntimeError)
"""What psutil raises where a system or its drivers tell nothing of use."""


class DeviceFigures:
    """Of this process and its trainer. ``threads``: that the trainer may use."""

    def __init__(self, threads: int) -> None:
        self._threads = max(1, threads)
        self._own = _Share()
        self._trainer = _Share()
        self._stage: dict[str, float] = {}
        self._sensors: dict[str, float] = {}
        self._sensors_at = -math.inf

    def heard(self, note: Note) -> None:
        """What a trainer of a stage tells of its time, until it does something else."""
        if note.kind == "stage" and "batch_s" in (told := dict(note.fields)):  # the first look counts what came before
            self._stage = {name: float(told[field]) for name, field in OF_A_STAGE.items() if field in told}
        elif note.kind in ELSE:
            self._stage = {}

    def read(self, trainer_s: float | None, now: float) -> dict[str, float]:
        """``trainer_s``: CPU time of the trainer so far. Since the last look: ``trainer_cpu``: share of its threads'
        time that the trainer used; ``node_cpu``: share of a core that this process used. Now: ``temperature_c`` of the
        warmest sensor, ``battery``: share that is left. Of a stage: ``computes``: share of its time, ``batch_s``,
        ``sends_bytes_per_s``."""
        figures = {
            "node_cpu": self._own.since(time.process_time(), now),  # needs no file, of which there may be none left
            "trainer_cpu": self._trainer.since(trainer_s, now),
        }
        if figures["trainer_cpu"] is not None:
            figures["trainer_cpu"] = min(1.0, figures["trainer_cpu"] / self._threads)
        if now - self._sensors_at >= SENSORS_S:
            self._sensors, self._sensors_at = _sensors(), now
        return {name: value for name, value in figures.items() if value is not None} | self._stage | self._sensors


class _Share:
    """CPU seconds a second, from one look to the next."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def since(self, used_s: float | None, now: float) -> float | None:
        before, self._before = self._before, None if used_s is None else (used_s, now)
        if before is None or used_s is None or used_s < before[0] or now <= before[1]:
            return None  # no trainer yet, or another one
        return (used_s - before[0]) / (now - before[1])


def _sensors() -> dict[str, float]:
    found: dict[str, float] = {}
    with contextlib.suppress(*UNTOLD):
        groups = psutil.sensors_temperatures().values()
        warm = [each.current for group in groups for each in group if each.current and 0 < each.current < 150]
        if warm:
            found["temperature_c"] = float(max(warm))
    with contextlib.suppress(*UNTOLD):
        battery = psutil.sensors_battery()
        if battery is not None and battery.percent is not None:
            found["battery"] = min(1.0, max(0.0, battery.percent / 100))
    return found

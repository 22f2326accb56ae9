"""What happens to the devices when: the events of a lab file, carried out in order and logged with their times.

Invariant: an event happens once, at its time or as soon after as the lab looks, and stands in the log with the time at
which it had been carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lab.spec import After, Event


class Devices(Protocol):
    """What can be done to the devices."""

    def kill(self, device: str) -> None: ...
    def stall(self, device: str) -> None: ...
    def resume(self, device: str) -> None: ...
    def slow(self, device: str, share: float) -> None: ...
    def rate(self, device: str, rate_mbit: float) -> None: ...
    def cut(self, sides: Sequence[Sequence[str]]) -> None: ...
    def heal(self) -> None: ...
    def start(self, device: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Happened:
    """An event and when it was done: ``time`` in seconds since 1970, as in journals; ``at_s`` since the lab's start."""

    time: float
    at_s: float
    do: str
    what: str

    def to_plain(self) -> dict[str, Any]:
        return {"time": self.time, "at_s": round(self.at_s, 3), "do": self.do, "what": self.what}


@dataclass(slots=True)
class Timeline:
    """``say`` hears every event when it is done."""

    events: Sequence[Event]
    devices: Devices
    say: Callable[[str], None]
    log: list[Happened] = field(default_factory=list)
    _began: dict[After, float] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)

    def begin(self, what: After, now: float) -> None:
        """From now on events after ``what`` count; later calls change nothing."""
        self._began.setdefault(what, now)

    def began(self, what: After) -> bool:
        return what in self._began

    @property
    def finished(self) -> bool:
        return len(self._done) == len(self.events)

    def carry_out(self, now: float, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        """Do what is due at ``now`` (of the monotonic clock)."""
        due = [
            (self._began[event.after] + event.at_s, number)
            for number, event in enumerate(self.events)
            if number not in self._done and event.after in self._began
        ]
        for at, number in sorted(due):
            if at > now:
                return
            event = self.events[number]
            what = self._do(event)
            self._done.add(number)
            start = self._began.get("start", now)
            self.log.append(Happened(wall(), monotonic() - start, event.do, what))
            self.say(f"{self.log[-1].at_s:.1f} s: {event.do} {what}".rstrip())

    def _do(self, event: Event) -> str:
        devices = self.devices
        match event.do:
            case "kill":
                devices.kill(event.device)
            case "stall":
                devices.stall(event.device)
            case "continue":
                devices.resume(event.device)
            case "start":
                devices.start(event.device)
            case "slow":
                devices.slow(event.device, event.share)
                return f"{event.device} to {event.share:g} of a core"
            case "rate":
                devices.rate(event.device, event.rate_mbit)
                return f"{event.device} to {event.rate_mbit:g} Mbit/s"
            case "cut":
                devices.cut(event.sides)
                return " | ".join(" ".join(side) for side in event.sides)
            case "heal":
                devices.heal()
        return event.device

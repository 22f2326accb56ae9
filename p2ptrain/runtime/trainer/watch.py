"""Whether the trainer still moves, by its own usual pace.

Invariant: a trainer that waits for commands is never said to hang, nor one that is slow but computes as it always did;
time in which this process itself did not run does not count.

    idle <--says that it waits-- at work --says nothing for long, and uses no processor--> hangs
                                         --says nothing for very long---------------------> hangs
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

STILL_S = 60.0
STILL_TIMES = 30
"""Without a word and without processor time it hangs after so many times the longest pause of late, but not before."""
STARTING_S = 300.0
"""Instead of ``STILL_S`` until its first word: it reads a gigabyte of libraries, maybe from an SD card."""
SPINNING_S = 3600.0
SPINNING_TIMES = 100
"""Without a word, though it computes: a validation at the end of a round may take much longer than any step."""
MOVES_SHARE = 0.005
"""Of one processor: less is the background of libraries, not work."""
LOOK_S = 1.0
"""Between two looks; whatever is above twice as long was a stall of ours."""
REMEMBERED = 64
STARTING = "starting"
GETTING_READY = "getting ready"
TRAINING = "training"
SERVING = "working for the group"


@dataclass(frozen=True, slots=True)
class Silence:
    doing: str
    silent_s: float
    usual_s: float
    """The longest of the last pauses between two words while it did that; 0 = it never did so far."""
    limit_s: float
    hangs: bool

    def __str__(self) -> str:
        usual = f" (usually {max(1, round(self.usual_s))} s at most)" if self.usual_s else ""
        return f"nothing from the training process for {self.silent_s:.0f} s while {self.doing}{usual}"


class TrainerWatch:
    """Of one trainer process, from its start at ``now``."""

    def __init__(self, now: float) -> None:
        self._doing = STARTING
        self._pauses: dict[str, deque[float]] = {}
        self._awake_s = 0.0
        self._looked_at = now
        self._heard_at = self._moved_at = 0.0
        """Seconds that this process was awake."""
        self._cpu_s = 0.0

    def heard(self, doing: str | None = None) -> None:
        """A word from the trainer: what it does from now on, "" for nothing; None: it goes on."""
        if self._doing:
            pauses = self._pauses.setdefault(self._doing, deque(maxlen=REMEMBERED))
            pauses.append(self._awake_s - self._heard_at)
        self._heard_at = self._moved_at = self._awake_s
        self._doing = self._doing if doing is None else doing

    def look(self, cpu_s: float | None, now: float) -> Silence | None:
        """Once a second, with the processor time it has used so far (None = not known). None: it waits for commands."""
        looked_s = min(now - self._looked_at, 2 * LOOK_S)
        self._awake_s += looked_s
        self._looked_at = now
        if cpu_s is None or cpu_s - self._cpu_s >= MOVES_SHARE * looked_s:
            self._moved_at = self._awake_s
        self._cpu_s = self._cpu_s if cpu_s is None else cpu_s
        if not self._doing:
            return None
        usual_s = max(self._pauses.get(self._doing, ()), default=0.0)
        silent_s, still_s = self._awake_s - self._heard_at, self._awake_s - self._moved_at
        still_limit_s = max(STARTING_S if self._doing == STARTING else STILL_S, STILL_TIMES * usual_s)
        spinning_limit_s = max(SPINNING_S, SPINNING_TIMES * usual_s)
        hangs = still_s >= still_limit_s or silent_s >= spinning_limit_s
        limit_s = still_limit_s if still_s >= silent_s / 2 else spinning_limit_s
        return Silence(self._doing, silent_s, usual_s, limit_s, hangs)

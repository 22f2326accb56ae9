"""What the page is told: the group as ``status --json`` tells it, how it went until now, and what comes next.

Invariant: one look a second is enough for any number of pages, and what a look costs grows with the group alone; who
does not look costs nothing but the history.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import MODES
from p2ptrain.ui import status_table
from p2ptrain.ui.status_table import Snapshot, is_here
from p2ptrain.web.events import Events
from p2ptrain.web.history import History
from p2ptrain.wire.messages import MemberState, Record

MAX_PEERS = 200
"""That a page shows."""
Cursor = tuple[int, int]
"""How much of the history and of the events a page has."""
NOTHING: Cursor = (-1, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class _Shown:
    """As many peers as a page shows."""

    job: Job | None
    plan: Plan | None
    records: tuple[Record, ...]
    states: dict[PeerId, MemberState]
    refused: dict[PeerId, dict[str, int]]
    troubles: dict[str, str]
    sent: Mapping[PeerId, Mapping[str, int]]
    figures: Mapping[PeerId, Mapping[str, float]]


class View:
    """``look``: the group now, None where nobody is here; ``own``: the peer on this device, if it is one."""

    def __init__(
        self,
        look: Callable[[], Snapshot | None],
        *,
        own: Callable[[], PeerId | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        tells_itself: bool = False,
        ask: Callable[[], None] = lambda: None,
    ) -> None:
        """``tells_itself``: what happens is said by ``say``, from a peer's journal. ``ask``: called when somebody
        looks; asks the others what only they know."""
        self.history, self.events = History(), Events()
        self._look, self._own, self._clock = look, own, clock
        self._tells_itself = tells_itself
        self._ask = ask
        self._pace = Pace()

    def say(self, text: str, kind: str = "note") -> None:
        """Something happened; ``kind`` as of an ``Event``."""
        self.events.say(self._clock(), text, kind)

    def glance(self) -> None:
        """Once a second, whether anybody looks or not."""
        if (found := self._look()) is None:
            return
        now = self._clock()
        here = [record for record in found.records if is_here(found, record)]
        self.history.add(here, found.job.id if found.job else "", now)
        self.events.look(found, now, plans=not self._tells_itself)
        trainers = found.plan.trainers() if found.plan else {}
        rounds = min((record.round for record in here if record.peer in trainers), default=0)
        self._pace.seen(rounds, now)

    def now(self) -> str:
        """The group, as JSON on one line."""
        self._ask()
        found, now = self._look(), self._clock()
        if found is None:
            return json.dumps({"time": now, "own": self._own(), "group": None, "left_out": 0, "next": None})
        left_out = max(0, len(found.records) - MAX_PEERS)
        plain = status_table.to_plain(_fewer(found) if left_out else found)
        told = {"time": now, "own": self._own(), "group": plain, "left_out": left_out, "next": self._next(found, now)}
        return json.dumps(told, ensure_ascii=False, allow_nan=False)

    def news(self, cursor: Cursor) -> tuple[str, Cursor]:
        """What a page does not have yet, as JSON on one line ("" = nothing), and what it has then."""
        reached = self.history.number, self.events.number
        if cursor == reached:
            return "", reached
        whole, points = self.history.since(cursor[0])
        events = self.events.since(cursor[1])
        plain: dict[str, Any] = {
            "whole": whole,
            "points": [[peer, round(p.time, 1), p.round, p.samples, p.loss, p.accuracy] for peer, p in points],
            "events": [[round(e.time, 1), e.kind, e.text] for e in events],
        }
        return json.dumps(plain, ensure_ascii=False, allow_nan=False), reached

    def _next(self, found: Snapshot, now: float) -> dict[str, Any] | None:
        """Which round the group is in, and about when it and the last one end."""
        if found.job is None or found.plan is None:
            return None
        rounds, done = found.job.training.rounds, self._pace.rounds
        if done >= rounds:
            return None
        round_s = self._pace.round_s
        ends = None if round_s is None else max(0.0, round_s - (now - self._pace.since))
        return {
            "round": done + 1,
            "of": rounds,
            "round_s": round_s,
            "planned_round_s": MODES[found.plan.mode].words.plan_plain(found.plan).get("round_s"),
            "round_ends_in_s": ends,
            "ends_in_s": None if round_s is None or ends is None else ends + (rounds - done - 1) * round_s,
        }


def _fewer(found: Snapshot) -> _Shown:
    """Those who are here first."""
    records = sorted(found.records, key=lambda record: (not is_here(found, record), record.peer))[:MAX_PEERS]
    return _Shown(
        found.job,
        found.plan,
        tuple(sorted(records, key=lambda record: record.peer)),
        dict(found.states),
        {peer: dict(counts) for peer, counts in found.refused.items()},
        dict(found.troubles),
        found.sent,
        found.figures,
    )


class Pace:
    """How long a round of the group takes, from the last few."""

    def __init__(self) -> None:
        self.rounds = 0
        self.since = 0.0
        """When the round under way began, as far as it was seen."""
        self._ends: deque[tuple[float, int]] = deque(maxlen=5)

    def seen(self, rounds: int, now: float) -> None:
        """The group has done so many rounds."""
        if rounds < self.rounds:
            self._ends.clear()
        if rounds > self.rounds:
            if self._ends or self.rounds:
                self._ends.append((now, rounds))
            self.since = now
        self.rounds = rounds

    @property
    def round_s(self) -> float | None:
        """None until two ends of rounds were seen."""
        if len(self._ends) < 2:
            return None
        (first, low), (last, high) = self._ends[0], self._ends[-1]
        return (last - first) / (high - low)

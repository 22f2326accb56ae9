"""What happened in a group, told from how one look at it differs from the next, or by a peer's own journal.

Invariant: bounded; each event is told once, in words, with the reason and the seconds where they are known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import MODES
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.ui.status_table import Snapshot, is_here, with_names
from p2ptrain.wire.messages import Record
from p2ptrain.words import clean, listed

MAX_EVENTS, MAX_ROUNDS = 200, 30
"""All that is kept, and of it ends of rounds, which in a fast group would leave no room for anything else."""
MAX_NAMED = 6
"""Peers in one sentence on a plan."""
ENDS = {"dead": "is lost: no answer any more", "left": "left"}
PHASES = {
    "trained": "has had all its rounds",
    "fitting": "takes part in fitting the last layer",
    "done": "is done",
    "failed": "trains no more: its trainer failed",
}


class Event(NamedTuple):
    time: float
    kind: str
    """``good``, ``bad``, ``plan``, ``round`` or ``note``."""
    text: str


class Events:
    def __init__(self) -> None:
        self.number = 0
        self._last: deque[tuple[int, Event]] = deque(maxlen=MAX_EVENTS)
        """Each with its number."""
        self._before: dict[PeerId, tuple[str, str]] = {}
        """State and phase of each peer, as they were."""
        self._plan = ""
        self._round, self._round_at = -1, 0.0
        self._lost: tuple[float, int] | None = None
        """When a peer was lost, and how many batches all others together had done."""

    def say(self, at: float, text: str, kind: str = "note") -> None:
        rounds = [each for each in self._last if each[1].kind == "round"]
        if kind == "round" and len(rounds) >= MAX_ROUNDS:
            self._last.remove(rounds[0])
        self.number += 1
        self._last.append((self.number, Event(at, kind, clean(text, 400))))

    def since(self, number: int) -> tuple[Event, ...]:
        """Those after the first ``number``, as far as they are still known."""
        return tuple(event for at, event in self._last if at > number)

    def look(self, snapshot: Snapshot, now: float, *, plans: bool = True) -> None:
        """``plans``: whether to tell who comes and goes and what the plan is, or only how far everybody is."""
        here = [record for record in snapshot.records if is_here(snapshot, record)]
        for record in snapshot.records:
            self._compare(snapshot, record, now, ends=plans)
        if snapshot.plan is not None and snapshot.plan.hash != self._plan:
            self._plan = snapshot.plan.hash
            if plans:
                self.say(now, self._plan_sentence(snapshot), "plan")
        trainers = snapshot.plan.trainers() if snapshot.plan is not None else {}
        self._rounds(snapshot, [record for record in here if record.peer in trainers], now)
        if self._lost is not None and _steps(here) > self._lost[1]:
            if plans:
                self.say(now, f"training goes on, about {now - self._lost[0]:.0f} s after the loss was seen", "good")
            self._lost = None

    def _compare(self, snapshot: Snapshot, record: Record, now: float, *, ends: bool) -> None:
        name = clean(record.name, 24) or record.peer[:6]
        state = snapshot.states.get(record.peer, "alive")
        is_new, (old_state, old_phase) = record.peer not in self._before, self._before.get(record.peer, ("", ""))
        if is_new and len(self._before) >= 4096:
            return
        self._before[record.peer] = (state, record.phase)
        if state in ENDS:
            if state != old_state and ends and not is_new:
                self.say(now, f"{name} {ENDS[state]}", "bad" if state == "dead" else "note")
            if state == "dead" and old_state not in ("", "dead"):
                others = [r for r in snapshot.records if is_here(snapshot, r)]
                self._lost = (now, _steps(others))
            return
        if (is_new or old_state in ENDS) and ends:
            self.say(now, f"{name} is here{'' if is_new else ' again'}", "good")
        elif state == "suspect" and old_state == "alive":
            self.say(now, f"{name} has not answered for a moment")
        if record.phase != old_phase and record.phase in PHASES and not is_new:
            why = f" ({clean(record.waiting_for, 200)})" if record.phase == "failed" and record.waiting_for else ""
            self.say(now, f"{name} {PHASES[record.phase]}{why}", "bad" if record.phase == "failed" else "good")

    def _plan_sentence(self, snapshot: Snapshot) -> str:
        plan, job = snapshot.plan, snapshot.job
        if plan is None or job is None:
            return f"plan of epoch {epoch_words(plan.epoch)}" if plan else ""
        texts = []
        for part in plan.parts[:MAX_NAMED]:
            what = MODES[plan.mode].words.part_text(plan, job, part.index)
            who = listed((with_names(snapshot, peer) for peer in part.trainers), MAX_NAMED) or "nobody"
            texts.append(with_names(snapshot, f"{who}: {what}"))
        more = f"; {len(plan.parts) - MAX_NAMED} more" if len(plan.parts) > MAX_NAMED else ""
        return f"plan of epoch {epoch_words(plan.epoch)}: {'; '.join(texts)}{more}"

    def _rounds(self, snapshot: Snapshot, trainers: Sequence[Record], now: float) -> None:
        """A round is over when all who train have ended it."""
        rounds = min((record.round for record in trainers), default=-1)
        if rounds > self._round:
            if self._round >= 0 and snapshot.job is not None:
                took = f", after {now - self._round_at:.0f} s" if self._round_at and rounds == self._round + 1 else ""
                self.say(now, f"round {rounds} of {snapshot.job.training.rounds} is done everywhere{took}", "round")
            self._round_at = now if self._round >= 0 else 0.0
        self._round = rounds


def _steps(records: Sequence[Record]) -> int:
    return max((record.step for record in records), default=0)

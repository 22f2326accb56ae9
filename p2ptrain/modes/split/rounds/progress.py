"""How far the group is by the plan in force, as one of its peers sees it: what a next plan is made by.

Invariant: by what the group has saved and what the others' records say, which may be a second old.
"""

from __future__ import annotations

import statistics
from collections import deque

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.early_end import EarlyEnd
from p2ptrain.core.stages.rules import has_lost_part
from p2ptrain.modes.split.plan import body_of
from p2ptrain.modes.split.rounds.saved import SavedStates
from p2ptrain.wire import messages as m

EARLY_S, EARLY_PART = 3.0, 0.1
"""So long after its beginning, or in that part of it, little of a round is lost with a change of plan."""
LATE, LATE_S = 1.3, 0.5
"""Times as long as expected, and at least so much longer."""
NUM_ROUNDS = 3
"""The last ones, whose median is what a round takes; that is known from the second on."""


class Progress:
    """Of one group, as seen here."""

    def __init__(self, group: GroupView, saved: SavedStates, rounds: int) -> None:
        self._group = group
        self._saved = saved
        self.end = EarlyEnd(group, rounds)
        saved.is_last = lambda round: round >= self.end.last_round
        self._plan: Plan | None = None
        self._name = ""
        self._now = 0.0
        self._round = 0
        self._begun_at = 0.0
        self._seconds: deque[float] = deque(maxlen=NUM_ROUNDS)
        self._expected_s = 0.0
        """What rounds under this plan took when one was late last."""

    def begin(self, plan: Plan, name: str, now: float) -> None:
        """The plan, with this hash, is in force. Its first round doesn't count: peers wait for their blocks."""
        self._plan, self._name, self._now = plan, name, now
        self._round, self._begun_at = body_of(plan).from_round, now
        self._seconds.clear()
        self._expected_s = 0.0

    def ends_round(self, ref: m.SnapshotRef) -> bool:
        """Any average does."""
        return ref.step == ref.round

    def look(self, now: float) -> bool:
        """Another round may have begun. Whether that is worth a look at the plan: ``round_s`` is known for the first
        time under it, or the time is over for which a peer was shut out, or its word on its speed did not count."""
        self._now = now
        newest = self._saved.newest_round()
        if self._plan is None or newest <= self._round:
            return False
        knew = self.round_s() > 0
        if newest == self._round + 1 and self._round > body_of(self._plan).from_round:
            self._seconds.append(now - self._begun_at)
        before, self._round, self._begun_at = self._round, newest, now
        body = body_of(self._plan)
        until = [*(each.until_round for each in body.shut_out), *(each.until_round for each in body.seen)]
        is_over = any(before < round <= newest for round in until)
        return is_over or (self.round_s() > 0 and not knew)

    def round_s(self) -> float:
        """Seconds of a round under the plan in force; 0 as long as too few are over."""
        return statistics.median(self._seconds) if len(self._seconds) > 1 else 0.0

    def is_late(self) -> bool:
        """Whether the last round took much longer than is expected by now: links may have become slow. What rounds take
        then is expected from there on, until they are faster again: links are not measured after each slow one."""
        if self._plan is None or not self._seconds:
            return False
        body = body_of(self._plan)
        expected_s = max(body.stretch * body.split.round_s, self._expected_s)
        if self._seconds[-1] <= max(LATE * expected_s, expected_s + LATE_S):
            self._expected_s = min(self._expected_s, statistics.median(self._seconds))
            return False
        self._expected_s = statistics.median(self._seconds)
        return True

    def is_between_rounds(self) -> bool:
        """Whether little is lost with a change of plan now. Not in a plan's first round: some may be on their way."""
        if self._plan is None or self._round <= body_of(self._plan).from_round:
            return False
        early_s = max(EARLY_S, EARLY_PART * (self._seconds[-1] if self._seconds else 0.0))
        return self._now <= self._begun_at + early_s

    def elapsed_s(self) -> float:
        """Of the round under way; 0 between rounds."""
        return 0.0 if self._plan is None or self.is_between_rounds() else self._now - self._begun_at

    def is_complete(self) -> bool:
        """Whether the last round is finished."""
        return self._plan is None or self._saved.finished_round() >= self.end.last_round

    @property
    def done(self) -> int:
        """Rounds, once it is complete."""
        return max(self.end.last_round, self._saved.finished_round())

    def is_lost(self, record: m.Record) -> bool:
        """Whether a peer that the plan gives work to says that it has none."""
        return self._plan is not None and has_lost_part(self._plan, self._name, record)

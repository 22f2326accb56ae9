"""What a group could go on from now, and whether it should rather wait for peers that are gone.

Invariant: what a peer that may come back has on its disk is not given up before ``pipeline.patience_s`` is over, unless
what is saved here is nearly as new; and what is given up is named, in batches, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.checkpoints import Checkpoints
from p2ptrain.modes.pipeline.stage.interval import Interval
from p2ptrain.modes.pipeline.stage.progress import Progress
from p2ptrain.planning.pipeline.coverage import NO_STATE, State
from p2ptrain.protocol.machine import NEVER

NEAR = 2
"""What is saved is near if no more than so many intervals between snapshots were done since: the last one may not have
been everywhere yet."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a group is, as its next plan needs to know."""

    next_step: int
    """After so many batches a plan proposed now can take over, with nothing done twice."""
    saved: State = NO_STATE
    """The newest state that is saved whole here."""
    is_ahead: bool = False
    """That is of another history, and further than what is trained now."""
    waits: bool = False
    """Who is gone may have a newer one, and is waited for."""


class WayBack:
    """Of one peer, in one job."""

    def __init__(
        self,
        group: GroupView,
        saved: Checkpoints,
        progress: Progress,
        settings: PipelineConfig,
        interval: Interval,
    ) -> None:
        self._group = group
        self._saved = saved
        self._progress = progress
        self._settings = settings
        self._interval = interval
        self._plan: Plan | None = None
        self._waits_since = NEVER
        self._is_over = False
        self._was_ahead = False

    def begin(self, plan: Plan) -> None:
        """The plan is in force."""
        self._plan, self._waits_since, self._is_over = plan, NEVER, False

    def standing(self) -> Standing:
        """By what is known now."""
        plan = self._plan
        if plan is None:
            return Standing(0)
        saved, newest = self._saved.newest(plan), max(self._progress.newest(), body_of(plan).from_step)
        is_ahead = saved[0] > newest and saved[1] != plan.epoch
        waits = not self._is_over and not is_ahead and bool(self.waited_for())
        return Standing(self._progress.next_step(), saved, is_ahead, waits)

    def done(self) -> int:
        """Batches of the plan's history that are known to have been done."""
        plan = self._plan
        if plan is None:
            return 0
        saved = [h.step for h in self._saved.known(absent=True) if h.epoch == plan.epoch]
        return max([self._progress.newest(absent=True), body_of(plan).from_step, *saved])

    def waited_for(self) -> list[PeerId]:
        """Peers that are gone and may have a state that is newer than all that is saved here, which is not near."""
        plan = self._plan
        if plan is None or not self._progress.is_torn():
            return []
        saved = self._saved.newest(plan)
        if self.done() - saved[0] <= NEAR * self._interval.steps(plan):
            return []
        newer = self._saved.newest(plan, absent=True)
        absent = {record.peer: record for record in self._group.absent()}
        unheard = [each.peer for each in plan.peers if each.peer not in (*absent, *self._group.members())]
        if newer <= saved:
            return unheard
        having = [p for p, r in absent.items() if any((h.step, h.epoch) == newer for h in r.holdings)]
        return sorted(having) or unheard

    def look(self, now: float) -> bool:
        """Whether there is news for the next plan: patience has ended, or more is saved now than is trained."""
        was_ahead, self._was_ahead = self._was_ahead, self.standing().is_ahead
        if self._was_ahead and not was_ahead:
            return True
        if self._is_over or not self.waited_for():
            self._waits_since = NEVER
            return False
        self._waits_since = min(self._waits_since, now)
        if now < self.deadline():
            return False
        self._is_over, self._waits_since = True, NEVER
        return True

    def deadline(self) -> float:
        return self._waits_since + self._settings.patience_s

    def words(self, now: float) -> str:
        """Who is waited for, for how long, and what happens then."""
        plan, peers = self._plan, self.waited_for() if self._waits_since != NEVER else []
        if plan is None or not peers:
            return ""
        step, left = self._saved.newest(plan)[0], max(0.0, self.deadline() - now)
        newer = self._saved.newest(plan, absent=True)[0]
        what = f"with the blocks of step {newer}" if newer > step else "with newer blocks"
        begins = f"goes back to step {step}" if step else "begins again"
        then = f"in {left:.0f} s the group {begins}: {self.done() - step} batches lost"
        return f"{self._group.names_of(peers)} to come back {what}; {then}"

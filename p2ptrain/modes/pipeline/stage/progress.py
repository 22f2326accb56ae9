"""How far the group is by the plan in force, as one of its peers sees it: what a next plan is made by.

Invariant: by what the own trainer does and what the others' records say, which may be a second old.
"""

from __future__ import annotations

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.calm import Calm
from p2ptrain.modes.pipeline.stage.checkpoints import Checkpoints
from p2ptrain.modes.pipeline.stage.pace import Pace
from p2ptrain.wire import messages as m

NOTICE_S = 2.0
"""A plan takes over no sooner than this after it was proposed, so that all have heard of it."""
PATIENCE_S = 20.0
"""Who does no batch for so long on the way to the step at which a plan takes over will not get there."""


class Progress:
    """``own``: the newest step of the own trainer."""

    def __init__(self, group: GroupView, saved: Checkpoints, rounds: int) -> None:
        self.own = 0
        self._group = group
        self._saved = saved
        self._rounds = rounds
        self._plan: Plan | None = None
        self._name = ""
        self._pace = Pace()
        self.calm = Calm()

    def begin(self, plan: Plan, name: str, now: float) -> None:
        """The plan, with this hash, is in force."""
        if name != self._name:
            self.calm.adopted(self._plan, plan, now)
        self._plan, self._name = plan, name
        self._pace.begin(body_of(plan).from_step)

    def look(self, now: float) -> bool:
        """Whether ``batch_s`` is worth a look, or a faster plan that had to wait."""
        had_to_wait = self.calm.ends(now)
        return self._pace.seen(self.newest(), now) or had_to_wait

    def newest(self) -> int:
        """Of all that train by the plan."""
        records = (self._group.record(p) for p in self._group.members())
        trainers = self._plan.trainers() if self._plan else {}
        steps = [r.step for r in records if r is not None and r.peer in trainers and r.plan == self._name]
        return max([self.own, *steps])

    def next_and_covered(self) -> tuple[int, int]:
        """The batch after which a plan proposed now can take over, and the newest one saved whole."""
        if self._plan is None:
            return 0, 0
        covered = self._saved.newest_step(self._plan)
        return max(self.newest() + self._pace.steps_in(NOTICE_S) + 1, covered), covered

    def batch_s(self) -> float:
        """Seconds of a batch under the plan in force; 0 as long as too few are done."""
        return self._pace.typical_s

    def patience_s(self) -> float:
        """How long a trainer that goes on may take for a batch, the slowest device of the group being what it is."""
        return max(PATIENCE_S, 4 * self._pace.seconds)

    def is_under_way(self) -> bool:
        """Whether all train by the plan, and how fast is known: before that nobody could say after which batch another
        one should take over."""
        if self._plan is None or not self._pace.is_known:
            return False
        records = [self._group.record(trainer) for trainer in self._plan.trainers()]
        return all(r is not None and r.plan == self._name and r.phase != "waiting" for r in records)

    def is_complete(self) -> bool:
        """Not while a peer's last blocks are gone with it: the others train the last batches again."""
        plan = self._plan
        if plan is None or set(self._group.members()).issuperset(plan.trainers()):
            return True
        return self._saved.newest_step(plan) >= self._rounds * body_of(plan).steps_per_round

    def is_lost(self, record: m.Record) -> bool:
        """Whether a peer that the plan gives a stage to says that it has none."""
        if self._plan is None or record.plan != self._name or record.part != m.NO_PART:
            return False
        return self._plan.part_of(record.peer) is not None

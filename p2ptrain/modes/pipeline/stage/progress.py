"""How far the group is by the plan in force, as one of its peers sees it: what a next plan is made by.

Invariant: by what the own trainer does and what the others' records say, which may be a second old.
"""

from __future__ import annotations

from collections.abc import Collection

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.early_end import EarlyEnd
from p2ptrain.core.stages.rules import has_lost_part
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.calm import Calm
from p2ptrain.modes.pipeline.stage.checkpoints import Checkpoints
from p2ptrain.modes.pipeline.stage.pace import Pace
from p2ptrain.planning.pipeline.coverage import State, models_at
from p2ptrain.wire import messages as m

NOTICE_S = 2.0
"""A plan takes over no sooner than this after it was proposed, so that all have heard of it."""
PATIENCE_S = 20.0
"""Who does no batch for so long on the way to the step at which a plan takes over will not get there."""


class Progress:
    """``own``: the newest step of the own trainer, in the history that the plan in force goes on with."""

    def __init__(self, group: GroupView, saved: Checkpoints, rounds: int) -> None:
        self.own = 0
        self.leads_on = True
        """Whether what the own trainer does on the way to the plan in force is of its history."""
        self._own_epoch = 0
        """Of the plan by which the own trainer trains."""
        self.end = EarlyEnd(group, rounds)
        self._group = group
        self._saved = saved
        saved.reach = self.reach
        self._plan: Plan | None = None
        self._name = ""
        self._pace = Pace()
        self.calm = Calm()

    def begin(self, plan: Plan, name: str, now: float) -> None:
        """The plan, with this hash, is in force."""
        body = body_of(plan)
        if name != self._name:
            self.calm.adopted(self._plan, plan, now)
            self.leads_on = not body.goes_back and body.from_epoch == self._own_epoch
            self.own = self.own if self.leads_on else body.from_step
        self._plan, self._name = plan, name
        self._pace.begin(body.from_step)

    def train(self, plan: Plan) -> None:
        """The own trainer begins its stage of the plan in force."""
        self.own, self._own_epoch, self.leads_on = body_of(plan).from_step, plan.epoch, True

    def begun(self) -> Plan | None:
        """The plan in force, if others have done a batch by it."""
        plan, own = self._plan, self._group.own_id
        records = [self._group.record(peer) for peer in plan.trainers() if peer != own] if plan is not None else []
        steps = [record.step for record in records if record is not None and record.plan == self._name]
        return plan if plan is not None and max(steps, default=0) > body_of(plan).from_step else None

    def ends_round(self, ref: m.SnapshotRef) -> bool:
        """Whether blocks are as they were just after the last batch of their round."""
        return self._plan is not None and ref.step == ref.round * body_of(self._plan).steps_per_round

    def is_stopped(self) -> bool:
        """Whether it has stopped so."""
        return self.end.is_early and self.is_saved()

    def look(self, now: float) -> bool:
        """Whether ``batch_s`` is worth a look, or a faster plan that had to wait."""
        had_to_wait = self.calm.ends(now)
        return self._pace.seen(self.newest(), now) or had_to_wait

    def newest(self, *, absent: bool = False) -> int:
        """Of all that train by the plan; ``absent``: also of those who are gone, as far as they said."""
        trainers = self._plan.trainers() if self._plan else {}
        peers = trainers if absent else [peer for peer in self._group.members() if peer in trainers]
        records = map(self._group.record, peers)
        return max([self.own, *(r.step for r in records if r is not None and r.plan == self._name)])

    def reach(self, but: PeerId, epoch: int) -> float:
        """Batches that the group can have done by what all say but one peer, in the history of ``epoch``."""
        records, plan = (*self._group.records(), *self._group.absent()), self._plan
        done = max([self.own, *(record.step for record in records if record.peer != but)])
        if plan is None or epoch != plan.epoch:
            return done
        return max(done, body_of(plan).from_step) + 2 * self.margin() + 2  # news is on its way

    def next_step(self) -> int:
        """The batch after which a plan proposed now can take over."""
        return self.newest() + self._pace.steps_in(NOTICE_S) + 1 if self._plan is not None else 0

    def margin(self) -> int:
        """Batches that are done while news of them is on its way."""
        return self._pace.steps_in(NOTICE_S)

    def lead(self, others: Collection[PeerId]) -> int:
        """So many batches the plan has brought its peers further than these, who follow another; below zero: less."""
        theirs = [record.step for record in map(self._group.record, others) if record is not None]
        return self.newest() - max(theirs, default=0)

    def is_torn(self) -> bool:
        """Whether a peer that the plan gives a stage to is gone, or has lost it."""
        if self._plan is None:
            return False
        records = self._group.records()
        here = {r.peer for r in records if r.peer == self._group.own_id or (r.profile and not self.is_lost(r))}
        return not here.issuperset(self._plan.trainers())

    def batch_s(self) -> float:
        """Seconds of a batch under the plan in force; 0 as long as too few are done."""
        return self._pace.typical_s

    def seconds(self) -> float:
        """Of a batch lately, as far as it is known, by whatever plan."""
        return self._pace.seconds

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
        return self.is_saved()

    def is_saved(self) -> bool:
        """Whether the trained model is saved whole, whoever trained it: nothing is left to do."""
        plan = self._plan
        return plan is not None and self._saved.newest(plan)[0] >= self.last_step(plan)

    def is_finished(self) -> bool:
        """Whether the plan's own peers have trained it to the end, and it is saved whole."""
        plan = self._plan
        if self.end.is_early:  # whoever trained it: they may be some batches further already
            return self.is_saved()
        return plan is not None and self._saved.is_whole(plan, (self.last_step(plan), plan.epoch))

    def models(self) -> dict[State, frozenset[str]]:
        """Where the model is trained: the whole ones, and who trained each, first the one that counts. More than one:
        parts of the group were apart at the end."""
        if self._plan is None or self._group.own.phase not in ("trained", "done"):
            return {}
        blocks = body_of(self._plan).pipeline.num_blocks
        return models_at(blocks, self.last_step(self._plan), self._saved.known())

    def last_step(self, plan: Plan) -> int:
        """At which the model is trained."""
        return self.end.last_round * body_of(plan).steps_per_round

    def is_lost(self, record: m.Record) -> bool:
        """Whether a peer that the plan gives a stage to says that it has none."""
        return self._plan is not None and has_lost_part(self._plan, self._name, record)

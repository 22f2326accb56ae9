"""What people are told of a loss: what is gone back to, how many batches that costs, and how long it took to go on.

Invariant: each loss is told once, with numbers of this peer's own view; a recovery ends with a batch that was done.

A plan that is in force has cost nothing yet: another one may follow before anybody trains by it, as where parts of a
group meet and hear of each other's plans one by one. What was done is given up when a stage of the new plan is begun,
here or by others; and only then it is told, against what was trained before.

    trained --a plan is in force (begin)--> changing --another one (begin)--> changing
    changing --the own stage begins, or others do a batch by the plan (take)--> told, if anything is lost: trained
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from p2ptrain.core.effects import Effects
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.checkpoints import Checkpoints
from p2ptrain.planning.pipeline.coverage import State
from p2ptrain.protocol.machine import NEVER, Note

MAX_TRAIL = 64


@dataclass(slots=True)
class _Change:
    """From what was trained to a plan that nobody has begun yet. ``before``: the last plan that was; ``done``: batches
    that were done by it. ``way``: plans that lead to those followed since."""

    before: Plan
    done: int
    way: list[Plan] = field(default_factory=list)


class Recovery:
    """Of one peer, in one job."""

    def __init__(self, group: GroupView, saved: Checkpoints) -> None:
        self._group = group
        self._saved = saved
        self._since = NEVER
        self._is_waiting = False
        self._from_step = -1
        """Of the plan that goes back, until a batch of it is done."""
        self._first: tuple[int, int] | None = None
        """Step and epoch from which on the plan in force holds, until a batch of it is done."""
        self._num_models = 0
        self._trail: list[Plan] = []
        """The plans by which what is trained here came to be, each going on from what the one before it has trained."""
        self._change: _Change | None = None

    def look(self, is_torn: bool, now: float) -> None:
        """Whether the plan in force can't go on."""
        if is_torn:
            self._since = min(self._since, now)
        elif self._from_step < 0:
            self._since = NEVER  # a false alarm

    def waits(self, words: str) -> Effects:
        """For peers that are gone, in these words; "" = for none."""
        was, self._is_waiting = self._is_waiting, bool(words)
        return [Note("waits-for-peers", (("words", words[:250]),))] if words and not was else []

    def begin(self, plan: Plan, before: Plan | None, done: int, now: float) -> None:
        """The plan is in force. ``done``: batches that were done by the one before."""
        body = body_of(plan)
        self._first = body.from_step, plan.epoch
        if before is None:  # this peer was just started
            self._leave(plan, self._group.path(plan))
            return
        if body.goes_back:
            self._from_step, self._since = body.from_step, min(self._since, now)
        if self._change is None:
            self._change = _Change(before, done)
        self._change.way = [*self._change.way, *self._group.path(plan)][-MAX_TRAIL:]

    def halted(self, trained: Plan | None, step: int) -> None:
        """The own trainer has, after so many batches by the plan that it trained: one more may have been done."""
        if self._change is not None and trained is not None and trained.epoch == self._change.before.epoch:
            self._change.done = max(self._change.done, step)

    def take(self, plan: Plan | None) -> Effects:
        """The plan in force is trained by: what it does not go on from is given up. Told once."""
        if plan is None or self._change is None:
            return []
        change, self._change, body = self._change, None, body_of(plan)
        common, is_of_others = self._leave(plan, change.way)
        lost = max(0, change.done - common)
        if is_of_others:
            return [Note("gives-way", (("first", common + 1), ("batches", lost)))] if lost else []
        if not body.goes_back:
            return []
        here = _peers(plan)
        gone = [peer for peer in change.before.trainers() if peer not in here]
        fields = (("step", body.from_step), ("batches", lost), ("without", self._group.names_of(gone)))
        return [Note("goes-back", fields)]

    def over(self, plan: Plan, done: int, last: int, *, is_own: bool) -> Effects:
        """The model is trained to its end, ``last``: by the plan's own peers, or by others who were apart. ``done``:
        batches done here, by this plan."""
        self._from_step, self._since, self._first = -1, NEVER, None
        change, self._change = self._change, None
        if is_own:  # some have begun what comes after the end, where the group was asked to stop
            return [Note("batches-dropped", (("batches", done - last),))] if done > last else []
        if change is not None:  # by the plan itself nothing was done yet
            plan, done = change.before, change.done
        apart = self._without(self._saved.trainers(self._saved.newest(plan)))
        first = min(body_of(each).from_step for each in (plan, *apart)) + 1
        return [Note("overtaken", (("first", first), ("batches", max(0, done + 1 - first))))]

    def met(self, models: Mapping[State, Collection[str]]) -> Effects:
        """Whole models of the last batch, and who trained each; the first one counts. Told once of each number."""
        if len(models) < 2 or len(models) <= self._num_models:
            return []
        self._num_models = len(models)
        who = [", ".join(sorted(self._group.name_of(PeerId(p)) for p in trainers)) for trainers in models.values()]
        others = "; ".join(who[1:])
        return [Note("finished-apart", (("taken", who[0][:200]), ("others", others[:200]), ("num", len(who))))]

    def _leave(self, plan: Plan, way: Collection[Plan]) -> tuple[int, bool]:
        """The last batch done here that ``plan`` goes on from, and whether it goes on with what others did since.

        What it goes on with is named by the epoch that was trained to there, which may be any other's: so its way is
        looked for in the plans that lead to it. Where those don't tell, whoever trained what it goes on with was apart
        as long as the plans here were without them.
        """
        body, trail = body_of(plan), self._trail
        others = {each.epoch: body_of(each) for each in way}
        own = {each.epoch: index for index, each in enumerate(trail)}
        common, epoch = body.begins_with
        while common and epoch not in own and epoch in others and epoch != others[epoch].from_epoch:
            common, epoch = min(common, others[epoch].from_step), others[epoch].from_epoch
        is_of_others = epoch != body.from_epoch
        if common and epoch in own:
            apart = trail[own[epoch] + 1 :]
            is_of_others |= bool(apart) and not body.goes_back
        else:
            by = self._saved.trainers(body.begins_with) or {plan.proposer}
            apart = self._without(by) if common else trail
            is_of_others |= bool(apart)
        common = min([common, *(body_of(each).from_step for each in apart)])
        self._trail = [*trail[: len(trail) - len(apart)], plan][-MAX_TRAIL:]
        return common, is_of_others and body.from_step > 0

    def _without(self, others: Collection[PeerId]) -> list[Plan]:
        """The last plans, by which what is trained here came to be, that know none of the others."""
        apart = itertools.takewhile(lambda each: _peers(each).isdisjoint(others), reversed(self._trail))
        return list(apart)[::-1]

    def step_done(self, step: int, now: float) -> Effects:
        """By the plan in force."""
        told: Effects = []
        if self._first is not None and step > self._first[0]:
            told = [Note("first-batch", (("step", step), ("epoch", self._first[1])))]
            self._first = None
        if self._from_step < 0 or step <= self._from_step:
            return told
        seconds, self._from_step, self._since = now - self._since, -1, NEVER
        return [*told, Note("goes-on", (("step", step), ("seconds", round(max(0.0, seconds), 2))))]


def _peers(plan: Plan) -> set[PeerId]:
    return {peer.peer for peer in plan.peers}

"""What people are told of a loss: what is gone back to, how many batches that costs, and how long it took to go on.

Invariant: each loss is told once, with numbers of this peer's own view; a recovery ends with a batch that was done.
"""

from __future__ import annotations

from p2ptrain.core.effects import Effects
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.protocol.machine import NEVER, Note

MAX_NAMES = 8


class Recovery:
    """Of one peer, in one job."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._since = NEVER
        self._is_waiting = False
        self._from_step = -1
        """Of the plan that goes back, until a batch of it is done."""
        self._first: tuple[int, int] | None = None
        """Step and epoch from which on the plan in force holds, until a batch of it is done."""

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

    def begin(self, plan: Plan, before: Plan | None, done: int, now: float) -> Effects:
        """The plan is in force. ``done``: batches that were done by the one before."""
        body = body_of(plan)
        self._first = body.from_step, plan.epoch
        if not body.goes_back:
            return []
        self._from_step, self._since = body.from_step, min(self._since, now)
        here = {peer.peer for peer in plan.peers}
        gone = [p for p in before.trainers() if p not in here] if before is not None else []
        names = ", ".join(self._group.name_of(peer) for peer in gone[:MAX_NAMES])
        batches = max(0, done - body.from_step)
        return [Note("goes-back", (("step", body.from_step), ("batches", batches), ("without", names)))]

    def over(self, plan: Plan, done: int, last: int, *, is_own: bool) -> Effects:
        """The model is trained to its end, ``last``: by the plan's own peers, or by others who were apart. ``done``:
        batches done here, by this plan."""
        self._from_step, self._since, self._first = -1, NEVER, None
        if is_own:  # some have begun what comes after the end, where the group was asked to stop
            return [Note("batches-dropped", (("batches", done - last),))] if done > last else []
        first = body_of(plan).from_step + 1
        return [Note("overtaken", (("first", first), ("batches", max(0, done + 1 - first))))]

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

"""What the trainer tells of its stage's work, as the group and the journal get it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from p2ptrain.core.commands import Progress
from p2ptrain.core.effects import Effects
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.stages.commands import Looked, StageUsed
from p2ptrain.core.stages.slowdown import SlowdownReport
from p2ptrain.core.stages.traffic import StageTraffic
from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.link_probe import LinkMeasured
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.messages import LinkFigure


class StageReports:
    """Of one peer, in one job."""

    def __init__(self, group: GroupView, traffic: StageTraffic) -> None:
        self.slowdown = SlowdownReport()
        self._group = group
        self._traffic = traffic
        self._looked: tuple[str, int, int, float] = ("", 0, 0, 0.0)
        """At the last look: the plan, its batches done, bytes sent in all, and when."""

    def progress(self, event: Progress, last: Sequence[str], now: float) -> Effects:
        """How far it is. ``last``: as in ``loss``."""
        changes: dict[str, float] = {"round": event.round, "step": event.step, "samples": event.samples}
        changes |= {"loss": self.loss(event.loss, last), "accuracy": event.accuracy}
        return self._group.say(now, samples_per_s=event.samples_per_s, **changes)

    def loss(self, own: float, last: Sequence[str]) -> float:
        """Who has the last block knows it; elsewhere it is what those said who have it (``last``), or 0 as long as they
        have said none."""
        if math.isfinite(own):
            return own
        records = [self._group.record(PeerId(peer)) for peer in last]
        return max((r.loss for r in records if r is not None and r.plan == self._traffic.plan), default=0.0)

    def used(self, event: StageUsed, now: float) -> Effects:
        """How the stage's time went."""
        fields = (("step", event.step), ("busy", round(event.busy_share, 3)), *self._since_last_look(event.step, now))
        return self._seen("stage", fields, event.slowdown, now)

    def _since_last_look(self, step: int, now: float) -> tuple[tuple[str, float], ...]:
        """Seconds a batch, and bytes/s sent; none at the first look under a plan."""
        before, self._looked = self._looked, (self._traffic.plan, step, self._traffic.pushed_bytes, now)
        plan, old_step, old_bytes, at = before
        if plan != self._traffic.plan or step <= old_step or now <= at:
            return ()
        sent = (self._traffic.pushed_bytes - old_bytes) / (now - at)
        return (("batch_s", (now - at) / (step - old_step)), ("sends_bytes_per_s", sent))

    def looked(self, event: Looked, now: float) -> Effects:
        """A trainer that stands by has timed some blocks."""
        return self._seen("look", (), event.slowdown, now)

    def link(self, effect: LinkMeasured, known: tuple[LinkFigure, ...], now: float) -> Effects:
        """A link was measured, one of those ``known``; of others that this peer does not measure, others tell."""
        figure = effect.figure
        rate = (("mbit_s", round(figure.bytes_per_s * 8e-6, 1)), ("latency_ms", round(figure.latency_s * 1e3, 2)))
        note = Note("link", (("peer", figure.peer), ("name", self._group.name_of(figure.peer)), *rate))
        return [note, *self._group.say(now, links=known)]

    def _seen(self, kind: str, figures: tuple[tuple[str, float], ...], slowdown: float, now: float) -> Effects:
        note = Note(kind, (*figures, ("slowdown", round(slowdown, 3))))
        if not self.slowdown.seen(round(slowdown, 2), now):
            return [note]
        return [note, *self._group.say(now, slowdown=self.slowdown.told)]

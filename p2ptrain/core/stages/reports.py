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
        return self._seen("stage", (("step", event.step), ("busy", round(event.busy_share, 3))), event.slowdown, now)

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

"""How many batches a peer trains from one snapshot to the next, where the job leaves that open.

What a snapshot costs is measured: how long the trainer stood still for it, and the work of its node, which hands on as
many copies as it takes in. The least is lost where the time between two snapshots is the root of twice that cost times
the time between two losses (Young 1974, "A first order approximation to the optimum checkpoint interval"). It is longer
where the copies would take more than a share of the slowest link, or the cost a larger share of the time.

Invariant: a power of two of batches, so that snapshots of peers that choose apart are of the same steps all the same;
and all take the longest time that one of the plan's peers asks for.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages import figures
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.planning.pipeline.fleet import BYTE_FLOPS

LEAST_S = 10.0
MOST_SHARE = 0.03
"""Of the time, for snapshots and copies."""
LINK_SHARE = 0.25
"""Of what a link carries, for copies."""
SOON_SHARE = 0.5
"""The same, for those of what a recovery brought together."""
SPREAD = 0.5
"""Of the time between two snapshots, in which copies of the first are under way at most."""
BETWEEN_LOSSES_S = 3600.0
"""Before anything was lost, a loss an hour is expected; each that happens tells more."""
MAX_STEPS = 2**20
MARGIN = 0.25
"""Of a doubling: so much more has to be called for before the interval is changed."""
LEAST_BYTES_PER_S = 64e3
"""A copy is fetched no more slowly than this, or the fetch would count as one that has failed."""
NUM_COSTS = 5


class Interval:
    """Of one peer, in one job. ``num_holders``: of each snapshot."""

    def __init__(self, group: GroupView, settings: PipelineConfig, num_holders: int) -> None:
        self._group = group
        self._settings = settings
        self._num_holders = num_holders
        self._costs: deque[float] = deque(maxlen=NUM_COSTS)
        self._num_bytes = 0
        self._num_losses = 0
        self._since: float | None = None
        self.wanted = min(settings.snapshot_steps, MAX_STEPS)
        """Batches: what the job says, or what this peer asks for; 0 = not known yet."""

    def taken(self, seconds: float, num_bytes: int) -> None:
        """A snapshot was, for which the trainer stood still for so long."""
        self._num_bytes = num_bytes
        flops, copies = self._group.own.flops_per_s, 1 + 2 * self._num_holders
        self._costs.append(seconds + (BYTE_FLOPS * num_bytes * copies / flops if flops > 0 else 0.0))

    def lost(self) -> None:
        """The group goes back to what is saved."""
        self._num_losses += 1

    def seconds(self, now: float) -> float:
        """What this peer would have between two snapshots, by what is known."""
        self._since = now if self._since is None else self._since
        cost_s = statistics.median(self._costs) if self._costs else 0.0
        apart_s = (BETWEEN_LOSSES_S + now - self._since) / (1 + self._num_losses)
        copying_s = self._num_bytes * self._num_holders / (LINK_SHARE * link) if (link := self._slowest()) else 0.0
        return max(LEAST_S, math.sqrt(2 * cost_s * apart_s), cost_s / MOST_SHARE, copying_s)

    def look(self, batch_s: float, now: float) -> bool:
        """Whether ``wanted`` is another by now: soon for the first time, which tells what it costs. ``batch_s``: of a
        typical batch; 0 = not known."""
        if self._settings.snapshot_steps or not batch_s:
            return False
        exact, before = math.log2(max(1.0, self.seconds(now) / batch_s)), self.wanted
        if before and before.bit_length() - 2 - MARGIN < exact <= before.bit_length() - 1 + MARGIN:
            return False
        self.wanted = min(2 ** math.ceil(exact), MAX_STEPS)
        return self.wanted != before

    def steps(self, plan: Plan | None) -> int:
        """Batches from one snapshot to the next, for all peers of the plan. There is one after every round, too."""
        if plan is None:
            return 0
        a_round = body_of(plan).steps_per_round
        return min(self._settings.snapshot_steps or self._longest(plan.trainers()) or a_round, a_round)

    def bytes_per_s(self, num_bytes: int, batch_s: float, plan: Plan) -> float:
        """At which a copy is fetched: a share of the link, and at least so that it is here long before the next one."""
        spread_s = SPREAD * batch_s * self.steps(plan)
        link = LINK_SHARE * self._slowest() / max(1, self._num_holders)
        return max(LEAST_BYTES_PER_S, link, num_bytes / spread_s)

    def soon_bytes_per_s(self) -> float:
        """The same, for what has few copies as long as these are not here; 0 = as fast as it goes: no link is known."""
        link = SOON_SHARE * self._slowest() / max(1, self._num_holders)
        return max(LEAST_BYTES_PER_S, link) if link else 0.0

    def _longest(self, trainers: Collection[PeerId]) -> int:
        """0 as long as somebody has not said what it asks for."""
        records = (self._group.record(peer) for peer in trainers if peer != self._group.own_id)
        asked = [self.wanted, *(record.saves_every for record in records if record is not None)]
        return max(asked) if all(asked) else 0

    def _slowest(self) -> float:
        """Bytes/s of the slowest of the own links that are measured; 0 = none is."""
        own = self._group.own_id
        rates = [
            figure.bytes_per_s
            for record in self._group.records()
            for figure in record.links
            if own in (record.peer, figure.peer) and figure.bytes_per_s >= figures.LEAST_BYTES_PER_S
        ]
        return min(rates, default=0.0)

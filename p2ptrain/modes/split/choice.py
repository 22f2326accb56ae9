"""Which split plan a group takes: its peers as the planner's task, and the job's strategy.

Invariant: pure; the same figures in any order give the same plan. An owner that no plan has room for, or whose rounds
would never end, is left out, and the others are planned for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from p2ptrain.config import CODINGS, Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.core.stages.figures import DeviceFigures, planned_peers
from p2ptrain.errors import LocalError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.config import SplitConfig, split_of
from p2ptrain.modes.split.plan import needs_of, workers
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.pipeline.task import held_copies
from p2ptrain.planning.split.cost import cost_of, placed_by, played_of, with_seconds
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.end import averager_of, held_by
from p2ptrain.planning.split.rounds.simulation import Played
from p2ptrain.planning.split.search import Search
from p2ptrain.planning.split.strategies import (
    ALONE,
    ALTERNATING,
    COMMON_CUT,
    CUTS_ONLY,
    MID_CUT,
    SHARES_ONLY,
    UNSPLIT,
    all_alone,
    strategies,
)
from p2ptrain.planning.split.task import SplitPeer, SplitTask
from p2ptrain.planning.split.units import SplitPlan

LONGEST_S = 1e7
"""Of a round. What would take longer, four months, is none: the figures are wrong, or the device."""

BASELINES = {
    "alone": ALONE,
    "mid-cut": MID_CUT,
    "common-cut": COMMON_CUT,
    "cuts-only": CUTS_ONLY,
    "shares-only": SHARES_ONLY,
    "alternating": ALTERNATING,
    "unsplit": UNSPLIT,
}


@dataclass(frozen=True)
class Choice:
    """A question to the planner, and what the job says of the answer."""

    task: SplitTask
    settings: SplitConfig

    @property
    def owners(self) -> tuple[str, ...]:
        """Who has samples that a unit can be trained on."""
        return tuple(sorted(peer.name for peer in self.task.owners))

    def best(self) -> SplitPlan:
        """Raises ``UserError`` where there is none, saying what is missing."""
        task = self.task
        while True:
            room = Room(task)
            try:
                return self._best(room)
            except UserError:
                unable = [peer for peer in task.owners if _lone_s(room, peer.name) > LONGEST_S]
                if not unable or len(task.owners) == 1:
                    raise
                least = min(unable, key=lambda p: (-_lone_s(room, p.name), p.device.memory_bytes, p.name))
                task = replace(task, peers=tuple(_without_samples(p) if p is least else p for p in task.peers))

    def _best(self, room: Room) -> SplitPlan:
        search, wanted = Search(room), self.settings.strategy
        best = planned(search)
        plan = best if wanted == "planned" else strategies()[BASELINES[wanted]](search, best)
        if plan is None:
            raise UserError(
                f'split.strategy = "{wanted}" finds no plan that fits into the memory of these {len(room.peers)} '
                'peers, or nobody who could help; take "planned", a smaller batch_size or a narrower model'
            )
        if plan.round_s > LONGEST_S:
            slowest = max(plan.units, key=lambda unit: unit.round_s)
            raise UserError(
                f"by what was measured a round would take {plan.round_s / 86400:.3g} days, {slowest.owner} longest; "
                "measure the devices and their links again (`p2ptrain probe`), or take a smaller model"
            )
        return plan

    def today(self, plan: SplitPlan) -> SplitPlan | None:
        """The same plan with what it takes by today's figures; None where it is not one of these peers."""
        try:
            return with_seconds(self._room_of(plan), plan)
        except (LocalError, UserError):
            return None

    def fits(self, plan: SplitPlan) -> bool:
        """Whether everybody has the memory. Raises ``UserError``, ``LocalError``."""
        return cost_of(self._room_of(plan), plan).fits

    def played(self, plan: SplitPlan) -> list[Played]:
        """What each unit's passes take by these figures. Raises ``UserError``, ``LocalError``."""
        return played_of(self._room_of(plan), plan)

    def alone(self, owners: Collection[str]) -> SplitPlan | None:
        """All of these train alone; None where somebody can't."""
        peers = tuple(p if p.name in owners else _without_samples(p) for p in self.task.peers)
        return all_alone(Room(replace(self.task, peers=peers)))

    def moving_s(self, before: SplitPlan, after: SplitPlan) -> float:
        """Until whoever works by the next plan has the blocks that it did not train before. Raises ``UserError``."""
        room, blocks = self._room_of(after), self.task.model.blocks
        longest = 0.0
        for peer in workers(after):
            had, needs = (_blocks_of(split, peer) for split in (before, after))
            fetched = sum(blocks[block].parameter_bytes + blocks[block].buffer_bytes for block in needs - had)
            longest = max(longest, room.fetch_s(peer, fetched))
        return longest

    def averager(self, plan: SplitPlan) -> PeerId:
        """Who averages the copies by this plan. Raises ``UserError``."""
        room = self._room_of(plan)
        return PeerId(averager_of(room, held_by(room, placed_by(room, plan))))

    def averaged_by(self, plan: SplitPlan, averager: str) -> Choice:
        """The question in whose answer that one of the plan's peers averages: who would have, failed."""
        choice, failed = self, set[str]()
        while (who := choice.averager(plan)) != averager and who not in failed:
            failed.add(who)
            choice = replace(self, task=replace(self.task, failed=frozenset(failed)))
        return choice

    def is_unable(self, owner: str) -> bool:
        """Whether it has not the memory to train alone, or its rounds would never end."""
        return _lone_s(Room(self.task), owner) > LONGEST_S

    def _room_of(self, plan: SplitPlan) -> Room:
        owners = {unit.owner for unit in plan.units}
        peers = tuple(peer if peer.name in owners else _without_samples(peer) for peer in self.task.peers)
        return Room(replace(self.task, peers=peers))


def choice_of(
    job: Job,
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    figures: Sequence[DeviceFigures],
    failed: Collection[str] = (),
) -> Choice:
    """``failed``: who was to average, and could not. Raises ``UserError`` where nobody can be planned with."""
    settings = split_of(job)
    devices, pair_rates, latency_s = planned_peers(snapshots, figures)
    samples = {peer.peer: peer.num_samples if peer.num_samples >= model.least_samples else 0 for peer in snapshots}
    peers = [SplitPeer(device, samples[PeerId(device.name)]) for device in devices]
    task = SplitTask(
        model,
        tuple(peers),
        job.training.batch_size,
        settings.micro_batches,
        job.training.epochs_per_round,
        settings.tails,
        settings.labels,
        settings.medium,
        latency_s=latency_s,
        pair_rates=pair_rates,
        optimizer_copies=held_copies(job.training.optimizer_name, "sync"),
        codings=CODINGS if settings.coding == "auto" else (settings.coding,),
        keeps_copies=job.group.replicas > 0,
        failed=frozenset(failed),
    )
    if settings.medium == "shared":  # what one pair of it was seen to carry, all carry together
        task = replace(task, medium_bytes_per_s=max(device.link_bytes_per_s for device in devices))
    return Choice(task, settings)


def _lone_s(room: Room, owner: str) -> float:
    """Of a round in which it trains alone; infinite where it has not the memory."""
    alone = room.alone(owner)
    return math.inf if alone is None else alone.round_s + alone.exchange_s


def _blocks_of(split: SplitPlan, peer: str) -> set[int]:
    return {block for first, stop in needs_of(split, peer) for block in range(first, stop)}


def _without_samples(peer: SplitPeer) -> SplitPeer:
    return replace(peer, samples=0)

"""How a peer takes part in looking at the group's whole model while it is trained: it keeps its copies as they were
after some rounds, gets those of others, and has its trainer look at what comes of them.

    waiting --all trainers have ended a round that is looked at, and it is whole--> fetching --all copies are with the
    trainer--> looking --it has looked, can't, or died--> waiting

Invariant: bounded. Kept are the copies of the best state, of the best that most samples were looked at with, and of
the last ``NEWEST`` rounds; where the job does not say how often, a peer looks for no more than a ``COSTS``th of the
time. What travels to others are sums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.downloads import Borrowed, Downloads
from p2ptrain.core.effects import Effects, ForgetBlob, KeepReplica, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.harvest import Harvester, chosen
from p2ptrain.core.looks.figures import GroupLook, best_of, best_of_largest, looks_of_group, told_on
from p2ptrain.core.mode import Role
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.wire.messages import LookFigure, Record, SnapshotRef
from p2ptrain.wire.schema import to_plain

NEWEST = 2
"""Rounds, of which copies are kept until they are looked at."""
LOOKS = 10
"""In all, where the job does not say how often."""
COSTS = 20
"""Then a look takes at most one part in so many of the time."""
SETTLE_S = 0.5
"""News of the last copies may be on their way."""
LATE_S = 600.0
"""A look that takes longer is given up."""
MAX_DONE = 16
MAX_COPIES = 4
"""Of one part: of more the mean is hardly another."""
IN_MEMORY = 32 << 20
"""Bytes: a larger copy is fetched to the disk."""


@dataclass(slots=True)
class Target:
    """What is looked at."""

    state: str
    round: int
    copies: list[SnapshotRef]
    left: list[SnapshotRef]
    began_at: float
    num_sent: int = 0
    fetching: BlobId | None = None


def rounds_between(job: Job) -> int:
    """From one look to the next."""
    return job.training.look_every or max(1, math.ceil(job.training.rounds / LOOKS))


class Looks:
    """Of one peer, in one job. ``kept``: what lies on its disk from an earlier start."""

    def __init__(
        self,
        job: Job,
        group: GroupView,
        downloads: Downloads,
        role: Role,
        harvester: Harvester,
        kept: Iterable[SnapshotRef],
    ) -> None:
        self._job, self._group, self._downloads, self._role, self._harvester = job, group, downloads, role, harvester
        self._kept = {ref.blob: ref for ref in kept}
        self._saving: set[BlobId] = set()
        self._every = rounds_between(job)
        self._is_asked_for = job.data.val > 0 and self._every < job.training.rounds
        self._num_val = 0
        self._done: list[str] = []
        """States that were looked at here, or can't be; the newest last."""
        self._last = 0
        """The round that was looked at last."""
        self._seen = "", 0.0
        """The state that is next, and since when it is whole."""
        self._next_at = 0.0
        self._look_at = NEVER
        self._target: Target | None = None
        self._borrowed = Borrowed(downloads)
        """Copies that are fetched for looks alone."""

    def holdings(self) -> tuple[SnapshotRef, ...]:
        """For the own record, the newest first."""
        return tuple(sorted(self._kept.values(), key=lambda ref: (-ref.round, ref.part)))

    def ready(self, num_val: int, now: float) -> Effects:
        """The trainer has its data, so many of them for validation; what one before it was about is lost."""
        self._num_val = num_val
        self._next_at = max(self._next_at, now + (0.0 if self._job.training.look_every else COSTS))
        return self._give_up("the training process died")

    # --- what is kept ---

    def look(self, now: float) -> Effects:
        """Somebody came or went, or says something else."""
        if not self._is_asked_for or self._role.plan is None or now < self._look_at - SETTLE_S / 2 < NEVER:
            return []
        self._look_at = now + SETTLE_S
        told = [ref for record in self._group.records() for ref in record.holdings if ref.kind == "kept"]
        return [*self.keep(told), *self._let_go(now), *self._begin(now)]

    def keep(self, told: Iterable[SnapshotRef] = ()) -> Effects:
        """What this peer made itself, or what others have ``told`` that they keep, as far as it is here."""
        if not self._is_asked_for:
            return []
        known = self._kept.keys() | self._saving
        here = {ref.blob: ref for ref in self._role.holdings() if ref.kind == "part" and ref.blob not in known}
        of = {ref.blob: ref for ref in told if here.get(ref.blob) == dataclasses.replace(ref, kind="part")}
        found = {blob: ref for blob, ref in of.items() if self._fits(ref)}
        for ref in here.values():
            if ref.trainer == self._group.own_id and self._fits(ref):
                found[ref.blob] = self._group.made(dataclasses.replace(ref, kind="kept"))
        newest = sorted({ref.round for ref in (*found.values(), *self._kept.values())})[-NEWEST:]
        new = [ref for ref in found.values() if ref.round in newest]
        self._saving.update(ref.blob for ref in new)
        return [KeepReplica(ref) for ref in new]

    def _fits(self, ref: SnapshotRef) -> bool:
        """Whether it is of a round that is looked at, and of the model as it is cut now."""
        is_looked_at = ref.round % self._every == 0 and 0 < ref.round < self._job.training.rounds
        return is_looked_at and self._role.ends_round(ref)

    def replica_kept(self, ref: SnapshotRef, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepReplica`` of what is kept for a look."""
        self._saving.discard(ref.blob)
        if not saved:
            return []
        self._kept[ref.blob] = ref
        return self._group.say_holdings(now)

    def _let_go(self, now: float) -> Effects:
        best = self._best()
        rounds = sorted({ref.round for ref in self._kept.values()})
        keep = {*rounds[-NEWEST:], *(look.round for look in best)}
        if self._target is not None:
            keep.add(self._target.round)
        gone = [ref for ref in self._kept.values() if ref.round not in keep or not self._role.ends_round(ref)]
        for ref in gone:
            del self._kept[ref.blob]
        effects: Effects = [KeepReplica(ref, keep=False) for ref in gone]
        return [*effects, *self._group.say_holdings(now)] if gone else []

    def _best(self) -> list[GroupLook]:
        """The best, and what was before some told of a newer one that all may find worse."""
        looks = looks_of_group(self._group.records(), self._group.job)
        return [look for look in (best_of(looks), best_of_largest(looks)) if look is not None]

    # --- a look ---

    def _begin(self, now: float) -> Effects:
        if self._target is not None and now > self._target.began_at + LATE_S:
            return self._give_up("it took too long")
        plan = self._role.plan
        if self._target is not None or not self._num_val or now < self._next_at or plan is None:
            return []
        refs: dict[int, list[SnapshotRef]] = {}
        for record in self._group.records():
            for ref in record.holdings:
                if ref.kind == "kept" and self._fits(ref):
                    refs.setdefault(ref.round, []).append(ref)
        for round in sorted(refs, reverse=True)[:NEWEST]:
            if self._is_awaited(round) or (round <= self._last and not self._job.training.look_every):
                continue  # looks that are few are for what is new
            copies = chosen(self._harvester, plan, few_copies(refs[round]))
            state = name_of(copies or ())
            if copies is None or state in self._done:
                continue
            if self._seen[0] != state:
                self._seen = state, now
            if now < self._seen[1] + SETTLE_S:
                return []
            self._done, self._last = [*self._done[-MAX_DONE:], state], round
            self._target = Target(state, round, copies, list(copies), now)
            return self._next(self._target, now)
        return []

    def _is_awaited(self, round: int) -> bool:
        """Whether somebody has yet to end that round."""
        plan, records = self._role.plan, self._group.records()
        trains = plan.trainers() if plan is not None else {}

        def is_busy(record: Record) -> bool:
            return record.peer in trains and record.round < round and record.phase in ("training", "waiting")

        return any(map(is_busy, records))

    def _next(self, target: Target, now: float) -> Effects:
        """One copy after the other goes to the trainer."""
        effects: Effects = []
        while target.left:
            ref = target.left[0]
            if not self._downloads.is_local(ref.blob):
                target.fetching = ref.blob
                sources, pace = self._group.holders(ref.blob), self._role.replicas.pace(ref)
                if not sources:
                    return [*effects, *self._give_up("a copy is gone")]
                asked = (ref.blob, ref.num_bytes, sources, now)
                if ref.num_bytes <= IN_MEMORY:
                    return [*effects, *self._downloads.fetch(*asked, ephemeral=True, bytes_per_s=pace)]
                return [*effects, *self._borrowed.fetch(*asked, bytes_per_s=pace)]
            target.left.pop(0)
            is_first, plan = target.num_sent == 0, self._role.plan
            command = c.LookAtModel(
                target.state,
                json.dumps(to_plain(ref)),
                b"",
                plan=plan.to_json() if is_first and plan is not None else "",
                num_bytes=sum(each.num_bytes for each in target.copies) if is_first else 0,
                is_last=not target.left,
                num_copies=len(target.copies),
            )
            target.num_sent += 1
            effects.append(ToTrainer(command, ref.blob, "snapshot"))
            if target.fetching == ref.blob and self._downloads.is_passing(ref.blob) and self._is_training():
                effects.append(ForgetBlob(ref.blob))
        target.fetching = None
        return effects

    def _is_training(self) -> bool:
        """Later somebody else here may want the same copies."""
        return self._group.own.phase == "training"

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        target = self._target
        return self._next(target, now) if target is not None and target.fetching == blob else []

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        target = self._target
        return self._give_up("a copy is gone") if target is not None and target.fetching == blob else []

    def _give_up(self, why: str) -> Effects:
        target, self._target = self._target, None
        if target is None:
            return []
        return [Note("look-given-up", (("round", target.round), ("why", why[:200])))]

    def looked(self, event: c.ModelLooked, now: float) -> Effects:
        """The trainer's answer."""
        target = self._target
        if target is None or event.state != target.state:
            return []
        if not self._job.training.look_every:
            self._next_at = now + COSTS * max(event.seconds, 0.1)
        if not event.samples:
            return self._give_up(event.why or "there are no samples")
        self._target = None
        own, group = self._group.own, self._group
        new = LookFigure(target.state, target.round, event.samples, event.correct, event.loss)
        told = told_on(own.looks, new, {look.state for look in self._best()})
        accuracy, seconds = event.correct / event.samples, round(event.seconds, 2)
        words = (("round", target.round), ("accuracy", round(accuracy, 4)), ("samples", event.samples))
        note = Note("looked", (*words, ("seconds", seconds)))
        return [note, *group.say(now, looks=told)]

    # --- time ---

    def tick(self, now: float) -> Effects:
        wanted = {ref.blob for ref in self._target.copies} if self._target is not None else set()
        return [*self._borrowed.let_go(wanted.__contains__), *(self.look(now) if now >= self._look_at else ())]

    def next_deadline(self) -> float:
        return self._look_at


def few_copies(refs: Iterable[SnapshotRef]) -> list[SnapshotRef]:
    """Of each part those of the first trainers, by their ids, as all take them; as parts that a harvest takes."""
    by_part: dict[tuple[int, int], dict[PeerId, SnapshotRef]] = {}
    for ref in sorted(refs, key=lambda ref: (ref.part, ref.span, ref.trainer, ref.blob)):
        by_part.setdefault((ref.part, ref.span), {}).setdefault(ref.trainer, ref)
    few = [ref for copies in by_part.values() for ref in list(copies.values())[:MAX_COPIES]]
    return [dataclasses.replace(ref, kind="part") for ref in few]


def name_of(copies: Sequence[SnapshotRef]) -> str:
    """The same for the same copies, wherever."""
    return hashlib.sha256("".join(sorted(ref.blob for ref in copies)).encode()).hexdigest()[:16]

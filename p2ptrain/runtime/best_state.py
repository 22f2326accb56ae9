"""Collecting the best state of the whole model that a group has looked at while it trained, in place of the last one.

Invariant: what is taken is of one state, by name; where the best one is not whole any more, the next best is taken, and
that is said.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from p2ptrain.config import Job
from p2ptrain.core.harvest import BestState, Collected, Harvester, Look, Snapshot, chosen, looks_of
from p2ptrain.core.looks.figures import GroupLook, best_of, looks_of_group
from p2ptrain.core.looks.looks import few_copies, name_of
from p2ptrain.core.plan import Plan
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.runtime.node.observer import Observer
from p2ptrain.wire.messages import Record, SnapshotRef

BEST = "best.safetensors"
"""In a job's folder, beside the finished model: the best one, from when the group was done."""
Fetch = Callable[[SnapshotRef, str], Awaitable[bytes | None]]


async def collect_best(
    observer: Observer, job: Job, plan: Plan, harvester: Harvester, fetch: Fetch, say: Callable[[str], None]
) -> Collected:
    """Raises ``NotCoveredError`` where there is none."""
    records = list(observer.records.values())
    looks = looks_of_group(records, job.id)
    for look in _by_merit(looks):
        copies = _copies_of(look, harvester, plan, observer.members())
        parts = await _parts_of(look, copies, fetch) if copies is not None else None
        if parts is not None:
            finished = await _finished(job, harvester, observer.members(), fetch)
            best = BestState(look, looks[-1], finished)
            return Collected(job, plan, parts, None, dict(observer.records), best=best)
        say(f"the state after round {look.round} is not whole any more; looking for the next best")
    if not looks:
        raise NotCoveredError(
            "the group has not looked at its whole model yet: that is after some rounds (training.look_every), where "
            "there are validation samples; harvest without --best"
        )
    raise NotCoveredError("no state that the group has looked at is whole any more: harvest without --best")


def _by_merit(looks: Sequence[GroupLook]) -> list[GroupLook]:
    """The best first."""
    left, found = list(looks), list[GroupLook]()
    while (best := best_of(left)) is not None:
        found.append(best)
        left.remove(best)
    return found


def _copies_of(
    look: GroupLook, harvester: Harvester, plan: Plan, records: Sequence[Record]
) -> list[SnapshotRef] | None:
    kept = [ref for r in records for ref in r.holdings if ref.kind == "kept" and ref.round == look.round]
    copies = chosen(harvester, plan, few_copies(kept))
    return copies if copies is not None and name_of(copies) == look.state else None


async def _parts_of(look: GroupLook, copies: Sequence[SnapshotRef], fetch: Fetch) -> dict[int, list[Snapshot]] | None:
    parts: dict[int, list[Snapshot]] = {}
    for ref in copies:
        data = await fetch(ref, f"the state after round {look.round}, from {ref.part} on")
        if data is None:
            return None
        parts.setdefault(ref.part, []).append(Snapshot(ref, data))
    return parts


async def _finished(job: Job, harvester: Harvester, records: Sequence[Record], fetch: Fetch) -> Look | None:
    """How good the finished model is, if anybody knows."""
    heads = [ref for record in records for ref in record.holdings if ref.kind == "head"]
    for ref in sorted(heads, key=lambda h: (h.epoch, h.step, h.samples, h.blob), reverse=True)[:2]:
        data = await fetch(ref, "what the group found of its finished model")
        if data is not None and (found := harvester.judged(Snapshot(ref, data))) is not None:
            return Look("", *found)
    looks = looks_of(records, job.id)
    samples = sum(look.samples for look in looks)
    return Look("", samples, sum(look.accuracy * look.samples for look in looks) / samples) if samples else None


def kept_best(folder: Path) -> Path:
    """The best state's file in a job's folder. Raises ``UserError``."""
    path = folder / BEST
    if not path.is_file():
        raise UserError(
            f"{folder}: keeps no best state: that is written when a group that has looked at its model while it "
            "trained is done; harvest without --best"
        )
    return path

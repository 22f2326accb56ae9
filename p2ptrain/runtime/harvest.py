"""Collecting one fresh copy of every part, and assembling the global model from them.

Invariant: what is assembled is either complete or says what is missing, and how far its parts are. Fitted heads are
used with exactly the snapshots that they were fitted to; without one, copies of a part by several trainers are averaged
by samples. Where the group has looked at its model, the head that got most right is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import NotCoveredError, RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.learning.candidates import FITTED
from p2ptrain.modes.pipeline.harvest import assemble_slices, fetch_slices
from p2ptrain.modes.tasks.head_blob import head_holdings
from p2ptrain.modes.tasks.verdict import Verdict, read_verdict
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.messages import HEAD_PART, Holding, Record

if TYPE_CHECKING:
    from torch import Tensor

FETCH_TIMEOUT_S = 300.0
ATTEMPTS = 3
"""Snapshots are replaced while a group trains: look again for fresher ones so often."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    holding: Holding
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything that a harvest needs, before torch is imported."""

    job: Job
    plan: Plan
    parts: dict[int, list[Snapshot]]
    head: Snapshot | None
    records: dict[PeerId, Record]
    trained: frozenset[int] = frozenset()
    """Parts that somebody who is alive trains."""


@dataclass(frozen=True, slots=True)
class PartReport:
    part: int
    classes: tuple[str, ...]
    share: float
    trainers: tuple[str, ...]
    round: int
    rounds: int
    step: int
    samples: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Harvest:
    """The assembled global model and how it came about."""

    job: Job
    plan: Plan
    state: dict[str, Tensor] = field(repr=False)
    parts: dict[int, dict[str, Tensor]] = field(repr=False)
    """The sub-models' own states, each the mean of its copies."""
    report: tuple[PartReport, ...]
    missing: tuple[int, ...]
    calibrated: bool
    """The last layer is the one that the group fitted."""
    verdict: Verdict | None = None
    """What the group found on everybody's validation samples, if it has looked."""
    names: Mapping[PeerId, str] = field(default_factory=dict)
    """What peers call themselves."""
    stopped: tuple[int, ...] = ()
    """Parts that have rounds left and that nobody here trains, while the group has come to its end without."""

    @property
    def is_half_way(self) -> bool:
        """Training goes on, or the group has yet to fit the last layer that its plan asks for."""
        behind = any(part.round < part.rounds and part.part not in self.stopped for part in self.report)
        return behind or (self.plan.calibrate and not self.calibrated and self.verdict is None)


async def collect(
    node: ObserverNode, wait_s: float, *, partial: bool, say: Callable[[str], None] = lambda text: None
) -> Collected:
    """Fetch the freshest copies that anyone alive has. Raises ``NotCoveredError``, ``UserError``."""
    await node.look_around(wait_s, need_job=True)
    observer = node.observer
    job, plan = observer.job, observer.plan()
    if job is None or plan is None:
        raise UserError(
            "the group has no plan yet, so there is nothing to harvest; `p2ptrain status` says what it waits for"
        )
    for attempt in range(ATTEMPTS):
        head, parts = await _fetch_all(node, plan, say)
        missing = _missing(plan, parts)
        has_head = any(h.part == HEAD_PART for record in observer.alive() for h in record.holdings)
        if (not missing and (head is not None or not has_head)) or attempt == ATTEMPTS - 1:
            break
        await node.look_around(wait_s, need_job=True)
        plan = observer.plan() or plan
    if not parts or (missing and not partial):
        raise NotCoveredError(_lament(job, plan, missing))
    trained = frozenset(record.part for record in observer.alive() if record.phase != "failed")
    return Collected(job, plan, parts, head, dict(observer.records), trained)


def _missing(plan: Plan, parts: Mapping[int, list[Snapshot]]) -> list[int]:
    """Parts without a copy. Of depth slices there is all or nothing."""
    if plan.slices is not None:
        return [] if parts else [part.index for part in plan.parts]
    return [part.index for part in plan.parts if part.index not in parts]


async def _fetch_all(
    node: ObserverNode, plan: Plan, say: Callable[[str], None]
) -> tuple[Snapshot | None, dict[int, list[Snapshot]]]:
    holdings = {h.blob: h for record in node.observer.alive() for h in record.holdings}.values()
    if plan.slices is not None:
        runs = await fetch_slices(plan, list(holdings), lambda h, what: _get(node, h, say, what))
        return None, {first: [Snapshot(*run)] for first, run in runs.items()}
    heads = sorted((h for h in holdings if h.part == HEAD_PART), key=lambda h: (h.epoch, h.step, h.samples, h.blob))
    for holding in reversed(heads):
        data = await _get(node, holding, say, "the fitted head")
        if data is None:
            continue
        try:
            wanted = head_holdings(data)
        except RemoteError:
            continue
        parts: dict[int, list[Snapshot]] = {}
        for part in wanted:
            if (bytes_ := await _get(node, part, say, f"part {part.part}")) is not None:
                parts.setdefault(part.part, []).append(Snapshot(part, bytes_))
        if sum(len(copies) for copies in parts.values()) == len(wanted):
            return Snapshot(holding, data), parts
    return None, await _fetch_parts(node, plan, list(holdings), say)


async def _fetch_parts(
    node: ObserverNode, plan: Plan, holdings: list[Holding], say: Callable[[str], None]
) -> dict[int, list[Snapshot]]:
    parts: dict[int, list[Snapshot]] = {}
    for part in plan.parts:
        left = sorted((h for h in holdings if h.part == part.index), key=_freshness)
        while left and part.index not in parts:  # what is said to be the freshest may not be had
            newest = {h.trainer: h for h in left if h.round >= left[-1].round - 1}
            for _, holding in sorted(newest.items()):  # replicas that are about as fresh are averaged
                left.remove(holding)
                data = await _get(node, holding, say, f"part {part.index}")
                if data is not None:
                    parts.setdefault(part.index, []).append(Snapshot(holding, data))
    return parts


async def _get(node: ObserverNode, holding: Holding, say: Callable[[str], None], what: str) -> bytes | None:
    say(f"{what}: {holding.num_bytes / 1e6:.1f} MB, trained by {_name(node, holding.trainer)}")
    return await node.fetch(holding, FETCH_TIMEOUT_S)


def _name(node: ObserverNode, peer: PeerId) -> str:
    record = node.observer.records.get(peer)
    return record.name if record else peer


def _freshness(holding: Holding) -> tuple[int, int, int]:
    return holding.round, holding.step, holding.samples


def _lament(job: Job, plan: Plan, missing: list[int]) -> str:
    if plan.slices is not None:
        return (
            "there is no step yet of which everybody's blocks are saved: that is after the first round (job file: "
            "training.epochs_per_round, slices.snapshot_steps); `p2ptrain status` says how far it is"
        )
    names = [f"part {i} ({', '.join(job.data.classes[c] for c in plan.parts[i].classes)})" for i in missing]
    return (
        f"nobody alive has a copy of {', '.join(names)}; start a peer that trained or kept it, "
        "or go on without with --partial"
    )


def assemble(collected: Collected, *, allow_user_code: bool = False) -> Harvest:
    """Put the parts together. Raises ``UserError`` for parts that don't fit."""
    from p2ptrain.learning.averaging import weighted_mean
    from p2ptrain.learning.head_fit import check_fit_state
    from p2ptrain.learning.snapshots import model_state, read_snapshot
    from p2ptrain.modes.tasks.parts import Parts

    job, plan = collected.job, collected.plan
    if plan.slices is not None:
        runs = [(s.holding, s.data) for snapshots in collected.parts.values() for s in snapshots]
        state = assemble_slices(job, runs, allow_user_code=allow_user_code)
        return Harvest(job, plan, state, {}, _report(collected), (), calibrated=False)
    parts = Parts(job, plan, allow_user_code=allow_user_code)
    copies: dict[int, list[tuple[float, Any]]] = {}
    for index, snapshots in sorted(collected.parts.items()):
        for snapshot in sorted(snapshots, key=lambda s: s.holding.trainer):
            tensors, metadata = read_snapshot(snapshot.data)
            if metadata.get("partition") != plan.partition:
                raise UserError(
                    f"part {index}: the copy of {snapshot.holding.trainer} belongs to another plan; try again"
                )
            copies.setdefault(index, []).append((float(max(1, snapshot.holding.samples)), model_state(tensors)))
    state = parts.assemble(copies)
    means = {index: weighted_mean(versions) for index, versions in copies.items()}
    verdict, taken = None, ""
    if collected.head is not None:
        fitted, _ = read_snapshot(collected.head.data)
        verdict = read_verdict(collected.head.data)
        taken = verdict.chosen if verdict else FITTED
        if taken == FITTED:
            check_fit_state(fitted, len(job.data.classes), state[f"{parts.head}.weight"].shape[1])
        state = parts.with_candidate(state, taken, fitted, means)
    missing = tuple(part.index for part in plan.parts if part.index not in copies)
    names = {peer: record.name for peer, record in collected.records.items()}
    report = _report(collected)
    behind = [part.part for part in report if part.round < part.rounds and part.part not in collected.trained]
    stopped = tuple(behind) if collected.head is not None else ()
    return Harvest(job, plan, state, means, report, missing, taken == FITTED, verdict, names, stopped)


def _report(collected: Collected) -> tuple[PartReport, ...]:
    job, plan = collected.job, collected.plan
    lines = []
    for index, snapshots in sorted(collected.parts.items()):
        if plan.slices is not None:
            lines.append(_slice_report(collected, snapshots[0]))
            continue
        spec, freshest = plan.parts[index], max((s.holding for s in snapshots), key=_freshness)
        names = [collected.records[s.holding.trainer].name for s in snapshots if s.holding.trainer in collected.records]
        lines.append(
            PartReport(
                part=index,
                classes=tuple(job.data.classes[c] for c in spec.classes),
                share=spec.share,
                trainers=tuple(names or [s.holding.trainer for s in snapshots]),
                round=freshest.round,
                rounds=job.training.rounds,
                step=freshest.step,
                samples=sum(s.holding.samples for s in snapshots),
                num_bytes=sum(len(s.data) for s in snapshots),
            )
        )
    return tuple(lines)


def _slice_report(collected: Collected, snapshot: Snapshot) -> PartReport:
    """Of a run of blocks; ``part`` is its first."""
    job, holding = collected.job, snapshot.holding
    record = collected.records.get(holding.trainer)
    pipeline = collected.plan.slices.pipeline if collected.plan.slices else None
    return PartReport(
        part=holding.part,
        classes=job.data.classes,
        share=holding.span / pipeline.num_blocks if pipeline else 0.0,
        trainers=(record.name if record else holding.trainer,),
        round=holding.round,
        rounds=job.training.rounds,
        step=holding.step,
        samples=holding.samples,
        num_bytes=len(snapshot.data),
    )

"""A harvest of class sub-models: copies of every part, and the last layer that the group fitted.

Invariant: a fitted head is used with exactly the snapshots that it was fitted to; without one, copies of a part by
several trainers are averaged by samples. Where the group has looked at its model, the head that got most right is
taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.harvest import Collected, Fetch, Harvest, MisfitError, PartReport, Snapshot
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.learning.candidates import FITTED, JOINED, owner_of
from p2ptrain.modes.tasks.head.blob import head_holdings
from p2ptrain.modes.tasks.head.verdict import Verdict, read_verdict
from p2ptrain.modes.tasks.plan import body_of, parts_of
from p2ptrain.wire.messages import SnapshotRef

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TasksHarvest(Harvest):
    """With the last layer, and what the group found when it looked at its model."""

    is_fitted: bool = False
    verdict: Verdict | None = None
    """On everybody's validation samples, if the group has looked."""
    asked_without: frozenset[PeerId] = frozenset()
    """Whose contributions are left out as asked."""

    @property
    def head_fitted(self) -> bool:
        return self.is_fitted

    @property
    def is_judged(self) -> bool:
        return self.verdict is not None

    @property
    def is_half_way(self) -> bool:
        """Training goes on, or the group has yet to fit the last layer that its plan asks for."""
        lacks_head = self.best is None and body_of(self.plan).fit_head and not self.is_fitted and self.verdict is None
        return lacks_head or super().is_half_way

    def part_models(self, *, allow_user_code: bool = False) -> dict[int, tuple[nn.Module, tuple[int, ...]]]:
        from p2ptrain.learning.snapshots import put_state
        from p2ptrain.modes.tasks.parts import Parts

        parts, models = Parts(self.job, self.plan, allow_user_code=allow_user_code), {}
        for index, state in sorted(self.parts.items()):
            model = parts.submodel(index)
            put_state(model, state)
            targets = parts.body.targets if parts.decoupling is not None else "all"
            classes = parts.body.parts[index].classes
            models[index] = model, {"all": (), "own": classes, "rest": (*classes, -1)}[targets]
        return models


async def fetch(
    plan: Plan, holdings: Sequence[SnapshotRef], fetch: Fetch
) -> tuple[Snapshot | None, dict[int, list[Snapshot]]]:
    """The newest head that can be had with all the parts it is of; else the freshest copies of each part. A head of
    fewer parts than can be had is not taken: one member can make up any."""
    known = {part.index for part in plan.parts} & {h.part for h in holdings if h.kind == "part"}
    lacking: tuple[Snapshot, dict[int, list[Snapshot]]] | None = None
    heads = sorted((h for h in holdings if h.kind == "head"), key=lambda h: (h.epoch, h.step, h.samples, h.blob))
    for holding in reversed(heads):
        data = await fetch(holding, "the fitted head")
        if data is None:
            continue
        try:
            wanted = head_holdings(data)
        except RemoteError:
            continue
        parts: dict[int, list[Snapshot]] = {}
        for part in wanted:
            if (bytes_ := await fetch(part, f"part {part.part}")) is not None:
                parts.setdefault(part.part, []).append(Snapshot(part, bytes_))
        if sum(len(copies) for copies in parts.values()) == len(wanted):
            if parts.keys() >= known:
                return Snapshot(holding, data), parts
            lacking = lacking or (Snapshot(holding, data), parts)
    freshest = await _fetch_parts(plan, holdings, fetch)
    if lacking is not None and lacking[1].keys() >= freshest.keys():
        return lacking  # of the other parts there are only words
    return None, freshest


async def _fetch_parts(plan: Plan, holdings: Sequence[SnapshotRef], fetch: Fetch) -> dict[int, list[Snapshot]]:
    parts: dict[int, list[Snapshot]] = {}
    for part in plan.parts:
        left = sorted((h for h in holdings if (h.kind, h.part) == ("part", part.index)), key=_freshness)
        while left and part.index not in parts:  # what is said to be the freshest may not be had
            newest = {h.trainer: h for h in left if h.round == left[-1].round}
            for _, holding in sorted(newest.items()):  # copies of one and the same round are averaged
                left.remove(holding)
                data = await fetch(holding, f"part {part.index}")
                if data is not None:
                    parts.setdefault(part.index, []).append(Snapshot(holding, data))
    return parts


def missing(plan: Plan, parts: Mapping[int, list[Snapshot]]) -> list[int]:
    """Parts without a copy."""
    return [part.index for part in plan.parts if part.index not in parts]


def lament(job: Job, plan: Plan, missing: Sequence[int]) -> str:
    """Whose parts there is no copy of, and what to do."""
    names = [f"part {i} ({', '.join(job.data.classes[c] for c in parts_of(plan)[i].classes)})" for i in missing]
    return (
        f"nobody alive has a copy of {', '.join(names)}; start a peer that trained or kept it, "
        "or go on without with --partial"
    )


def contributors(collected: Collected) -> frozenset[PeerId]:
    """Who trained a copy that is here."""
    return frozenset(snapshot.holding.trainer for snapshots in collected.parts.values() for snapshot in snapshots)


def judged(result: Snapshot) -> tuple[int, float] | None:
    """What the group found when it looked at its finished model."""
    try:
        verdict = read_verdict(result.data)
    except RemoteError:
        return None
    return (verdict.samples, verdict.accuracy()) if verdict is not None and verdict.samples else None


def assemble(collected: Collected, *, allow_user_code: bool) -> TasksHarvest:
    """Put the parts together. Raises ``UserError`` for parts that don't fit."""
    from p2ptrain.learning.head_fit import check_fit_state
    from p2ptrain.learning.robust.means import sound
    from p2ptrain.learning.snapshots import model_state, read_snapshot
    from p2ptrain.modes.tasks.parts import Parts

    job, plan = collected.job, collected.plan
    parts = Parts(job, plan, allow_user_code=allow_user_code)
    copies: dict[int, list[tuple[float, Any]]] = {}
    own: dict[str, Any] = {}
    left_out = {collected.name_of(peer): "as asked" for peer in sorted(collected.without)}
    for index, snapshots in sorted(collected.parts.items()):
        like = parts.submodel(index).state_dict()
        for snapshot in sorted(snapshots, key=lambda s: s.holding.trainer):
            if snapshot.holding.trainer in collected.without:
                continue
            try:
                tensors, metadata = read_snapshot(snapshot.data)
            except RemoteError as error:
                left_out[collected.name_of(snapshot.holding.trainer)] = f"its copy of part {index}: {error}"
                continue
            if metadata.get("partition") != plan.partition:
                message = f"part {index}: the copy of {snapshot.holding.trainer} belongs to another plan; try again"
                raise MisfitError(message, [snapshot.holding])
            owner = snapshot.holding.trainer
            copy = (float(max(1, snapshot.holding.samples)), model_state(tensors))
            if not sound([copy], like):
                left_out[collected.name_of(owner)] = f"its copy of part {index} is no sound model"
                continue
            own[owner] = copy[1]
            copies.setdefault(index, []).append(copy)
    for index, snapshots in sorted(collected.parts.items()):
        if index not in copies and not collected.without.issuperset(s.holding.trainer for s in snapshots):
            who = " and ".join(collected.name_of(s.holding.trainer) for s in snapshots)
            message = f"no copy of part {index} is sound ({_reasons(left_out)}); go on without {who}: --without NAME"
            raise MisfitError(message, [s.holding for s in snapshots])
    if not copies:
        raise UserError(f"nothing is left: left out are {_reasons(left_out)}")
    means = {index: parts.mean_of(index, versions) for index, versions in copies.items()}
    state = parts.assemble({index: [(1.0, mean)] for index, mean in means.items()} if not parts.has_trunk else copies)
    verdict, taken = None, ""
    gone = sorted(collected.parts.keys() - copies.keys())
    if collected.result is not None:
        try:
            fitted, _ = read_snapshot(collected.result.data)
            verdict = read_verdict(collected.result.data)
            is_fit = "whiten" in fitted
            if is_fit:
                check_fit_state(fitted, len(job.data.classes), state[f"{parts.head}.weight"].shape[1])
            taken = verdict.chosen if verdict else FITTED
            if taken == FITTED and not is_fit:
                raise RemoteError("head", "is of no fit")
        except RemoteError as error:
            maker = collected.name_of(collected.result.holding.trainer)
            message = f"the last layer that {maker} says the group fitted is of no use ({error}); try again"
            raise MisfitError(message, [collected.result.holding]) from None
        is_own_gone = owner_of(taken) in collected.without
        if is_own_gone or (gone and taken not in (FITTED, JOINED)):
            taken = FITTED if is_fit else JOINED
        if gone and taken == FITTED:
            head = parts.head_without(gone, {}, fitted)
            state = parts.with_head(state, {"weight": head.weight, "bias": head.bias})
        else:
            try:
                state = parts.with_candidate(state, taken, fitted, means, own)
            except UserError as error:  # it may be made up
                raise MisfitError(str(error), [collected.result.holding]) from None
    known_without = taken == FITTED or parts.body.combine == "sum"
    report = _report(collected)
    behind = [part.part for part in report if part.round < part.rounds and part.part not in collected.trained]
    return TasksHarvest(
        job,
        plan,
        state,
        means,
        report,
        missing=tuple(p.index for p in plan.parts if p.index not in copies and not (p.index in gone and known_without)),
        names={peer: record.name for peer, record in collected.records.items()},
        stopped=tuple(behind) if collected.result is not None else (),
        left_out=left_out,
        is_fitted=taken == FITTED,
        verdict=verdict,
        asked_without=collected.without,
    )


def _reasons(left_out: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in left_out.items())


def _report(collected: Collected) -> tuple[PartReport, ...]:
    job, lines = collected.job, []
    for index, everyone in sorted(collected.parts.items()):
        snapshots = [s for s in everyone if s.holding.trainer not in collected.without]
        if not snapshots:
            continue
        spec, freshest = parts_of(collected.plan)[index], max((s.holding for s in snapshots), key=_freshness)
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


def _freshness(holding: SnapshotRef) -> tuple[int, int, int]:
    return holding.round, holding.step, holding.samples

"""The model: both numbers, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2ptrain.config import Job
from p2ptrain.core.harvest import Collected, Fetch, Harvest, PartReport, Snapshot
from p2ptrain.core.plan import Plan
from p2ptrain.wire.messages import SnapshotRef
from toy_mode.worker import read


async def fetch(
    plan: Plan, holdings: Sequence[SnapshotRef], fetch: Fetch
) -> tuple[Snapshot | None, dict[int, list[Snapshot]]]:
    parts: dict[int, list[Snapshot]] = {}
    for holding in sorted(holdings, key=lambda h: -h.round):
        if holding.part not in parts and (data := await fetch(holding, f"part {holding.part}")) is not None:
            parts[holding.part] = [Snapshot(holding, data)]
    return None, parts


def missing(plan: Plan, parts: Mapping[int, list[Snapshot]]) -> list[int]:
    return [part.index for part in plan.parts if part.index not in parts]


def judged(result: Snapshot) -> None:
    return None


def lament(job: Job, plan: Plan, missing: Sequence[int]) -> str:
    return f"nobody has counted {', '.join(map(str, missing))}"


def assemble(collected: Collected, *, allow_user_code: bool) -> Harvest:
    from torch import tensor

    state = {f"number.{part}": tensor(read(copies[0].data)) for part, copies in sorted(collected.parts.items())}
    report = tuple(_report(collected, copies[0]) for _, copies in sorted(collected.parts.items()))
    return Harvest(collected.job, collected.plan, state, {}, report)


def _report(collected: Collected, copy: Snapshot) -> PartReport:
    who, h = (collected.name_of(copy.holding.trainer),), copy.holding
    rounds = collected.job.training.rounds
    return PartReport(h.part, (), 1 / len(collected.plan.parts), who, h.round, rounds, h.step, 0, h.num_bytes)

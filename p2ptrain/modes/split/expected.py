"""What the passes of a unit are planned to take on this device, were it as fast as it was measured."""

from __future__ import annotations

from p2ptrain.core.plan import Plan
from p2ptrain.learning.pipeline.training import StageUse
from p2ptrain.learning.split.units import unit_pipeline
from p2ptrain.modes.split.plan import body_of, samples_of
from p2ptrain.planning.devices.blocks import BlockTimes
from p2ptrain.planning.split.units import SplitPlan, Unit


def expected_s(plan: Plan | None, times: BlockTimes | None, own: str, owner: str, use: StageUse) -> float:
    """Seconds of these passes of ``owner``'s unit at the peer ``own``; 0 = not known."""
    split = body_of(plan).split if plan is not None else None
    unit = split.unit_of(owner) if split is not None else None
    if plan is None or times is None or split is None or unit is None:
        return 0.0
    rows = _rows(split, unit, samples_of(plan))
    mine = slice(0, unit.cut) if owner == own else slice(unit.cut, split.num_blocks)
    return use.num_forward * sum(times.forward(rows)[mine]) + use.num_backward * sum(times.backward(rows)[mine])


def _rows(split: SplitPlan, unit: Unit, samples: dict[str, int]) -> int:
    """Of a micro-batch; with shared tails on average."""
    if split.tails == "replica":
        return unit_pipeline(split, unit, samples[unit.owner]).micro_batch
    share = samples[unit.owner] / sum(samples.values())
    return max(1, round(split.batch_size * share / unit.micro_batches))

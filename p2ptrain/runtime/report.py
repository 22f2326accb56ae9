"""The report of a harvest: which part of the model came from whom, how fresh it is, and what is missing.

Invariant: reads the report lines of a harvest and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from p2ptrain.core.harvest import BestState, DeviceWork, Harvest, KeptHarvest, Look
from p2ptrain.core.looks.figures import GroupLook
from p2ptrain.modes.registry import mode_of
from p2ptrain.words import clean, listed, part_of, percent, scaled, table

COMPLETE, HALF_WAY, INCOMPLETE, BEST = "complete", "half-way", "incomplete", "best"


def render(harvest: Harvest) -> str:
    """A line a part, then what was done with the head, then what is missing."""
    if isinstance(harvest, KeptHarvest):
        return harvest.told
    words = mode_of(harvest.job).words
    first, share = words.REPORT_TITLES
    rows = [(first, "classes", share, "round", "step", "samples seen", "size", "trained by")]
    for part in harvest.report:
        rows.append(
            (
                str(part.part),
                listed(part.classes),
                f"{100 * part.share:.0f} %",
                f"{part.round}/{part.rounds}",
                str(part.step),
                f"{part.samples:,}",
                scaled(part.num_bytes, "B"),
                listed(part.trainers),
            )
        )
    lines = table(rows, right=(0, 2, 3, 4, 5, 6))
    lines += words.harvest_head_line(harvest)
    for part in harvest.report:
        if part.part in harvest.stopped:
            lines.append(
                f"STOPPED: part {part.part} ({listed(part.classes)}) after {part.round} of {part.rounds} rounds, as no "
                "device that is here trains it. The model knows what the part had learnt by then; start its device "
                "again to go on, and harvest again"
            )
    lines += best_lines(harvest.best)
    if harvest.best is None and (
        behind := [part for part in harvest.report if part.round < part.rounds and part.part not in harvest.stopped]
    ):
        rounds = ", ".join(f"{part.round} of {part.rounds} rounds of part {part.part}" for part in behind)
        if len(behind) == len(harvest.report) and len({part.round for part in behind}) == 1:
            rounds = f"{behind[0].round} of {behind[0].rounds} rounds"
        how = "harvest again when `p2ptrain status` says that all are done"
        if harvest.stopped_after:
            how = "there the group was stopped (`p2ptrain stop`); start its peers again to go on"
            if harvest.job.training.patience:
                how = f"there the group has ended: {_why_ended(harvest)}. Start its peers again to go on"
        lines.append(f"HALF-WAY: so far {rounds}; {how}")
    lines += words.harvest_lines(harvest)
    for other in harvest.others:
        lines.append(
            f"NOT IN IT: the model that {listed(other.trainers)}, apart from the others at the end, trained "
            f"as far, to batch {other.step}. Of several, that of more devices is taken, else the one of the latest plan"
        )
    lines += look_lines(harvest.looks)
    lines += work_line(harvest.works)
    lines += [f"  {clean(work.name, 24)}: {work_text(work)}" for work in harvest.works]
    for name, why in harvest.left_out.items():
        lines.append(f"LEFT OUT: {name}, {why}")
    for index in harvest.missing:
        name = words.part_name(harvest.plan, harvest.job, index)
        lines.append(f"MISSING: part {index} ({name}): its classes can't be recognised")
    return "\n".join(lines)


def _why_ended(harvest: Harvest) -> str:
    """Where the job has patience."""
    best, patience = harvest.best_look, harvest.job.training.patience
    why = f"its model got no better in {patience} looks (training.patience), or it was stopped (`p2ptrain stop`)"
    if best is None:
        return why
    right = f"{percent(best.accuracy)} of {best.samples:,} validation samples right"
    return f"{why}. Its best state is that after round {best.round}, {right} (`harvest --best`)"


def best_lines(best: BestState | None) -> list[str]:
    """Which state it is, and how good beside the last one."""
    if best is None:
        return []
    look, last = best.look, best.last
    who = f"{look.num_peers} device{'s' if look.num_peers > 1 else ''}"
    lines = [
        f"BEST: the model as it was after round {look.round}: {percent(look.accuracy)} of {look.samples:,} validation "
        f"samples of {who} right, loss {look.loss:.3f}"
    ]
    if last.round != look.round:
        figures = f"{percent(last.accuracy)} of {last.samples:,}, loss {last.loss:.3f}"
        lines.append(f"at the last look, after round {last.round}: {figures}")
    if best.finished is not None:
        figures = f"{percent(best.finished.accuracy)} of {best.finished.samples:,}"
        lines.append(f"the finished model: {figures} (harvest without --best)")
    return lines


def _best_plain(best: BestState | None) -> dict[str, Any] | None:
    if best is None:
        return None
    finished = best.finished
    return {
        **_look_plain(best.look),
        "last": _look_plain(best.last),
        "finished": {"samples": finished.samples, "accuracy": finished.accuracy} if finished is not None else None,
    }


def _look_plain(look: GroupLook) -> dict[str, Any]:
    return {name: getattr(look, name) for name in ("round", "samples", "accuracy", "loss")}


def look_lines(looks: Sequence[Look]) -> list[str]:
    """How good peers found the finished model: all of their samples together, then each that has another number."""
    samples = sum(look.samples for look in looks)
    if not samples:
        return []
    who = looks[0].name if len(looks) == 1 else f"{len(looks)} devices"
    each = [f"{clean(look.name, 32)} {percent(look.accuracy)} of {look.samples:,}" for look in looks]
    by_each = f" ({listed(each, width=64)})" if len(looks) > 1 else ""
    return [f"on {samples:,} validation samples of {who}: {percent(mean_of(looks))} right{by_each}"]


def work_line(works: Sequence[DeviceWork]) -> list[str]:
    """What all devices computed together, beside central training; nothing where nobody knows."""
    if not works:
        return []
    together = DeviceWork("", sum(work.flops for work in works), works[0].central_flops)
    return [
        f"training work of {len(works)} device{'s' if len(works) > 1 else ''}, all included: {work_text(together)} "
        f"({scaled(together.central_flops, 'FLOP')} or more)"
    ]


def work_text(work: DeviceWork) -> str:
    """``74 TFLOP, at most 1/12.3 of central training``."""
    return f"{scaled(work.flops, 'FLOP')}, at most {part_of(work.flops, work.central_flops)} central training"


def works_plain(works: Sequence[DeviceWork]) -> dict[str, Any] | None:
    """For programs; nothing where nobody knows."""
    if not works:
        return None
    central, total = works[0].central_flops, sum(work.flops for work in works)
    return {
        "central_flops": central,
        "group_flops": total,
        "group_share": total / central,
        "peers": [{"name": each.name, "flops": each.flops, "share": each.flops / central} for each in works],
    }


def mean_of(looks: Sequence[Look]) -> float | None:
    """Share of right answers on all their samples."""
    samples = sum(look.samples for look in looks)
    return sum(look.accuracy * look.samples for look in looks) / samples if samples else None


def _validation(looks: Sequence[Look]) -> dict[str, Any]:
    """For programs; nothing where nobody has looked."""
    if not looks:
        return {"validation": None}
    return {
        "validation": {
            "samples": sum(look.samples for look in looks),
            "accuracy": mean_of(looks),
            "peers": [{"name": each.name, "samples": each.samples, "accuracy": each.accuracy} for each in looks],
        }
    }


def completeness(harvest: Harvest) -> str:
    """What was harvested, in a word: ``COMPLETE``, ``HALF_WAY``, ``INCOMPLETE`` or ``BEST``."""
    if harvest.missing:
        return INCOMPLETE
    if harvest.best is not None or (isinstance(harvest, KeptHarvest) and harvest.plain.get("best")):
        return BEST
    return HALF_WAY if harvest.is_half_way else COMPLETE


def kind(harvest: Harvest) -> str:
    """What was harvested, in two words."""
    return f"{completeness(harvest)} model"


def to_plain(harvest: Harvest) -> dict[str, Any]:
    """What ``harvest --json`` prints, but for the path and the accuracy."""
    if isinstance(harvest, KeptHarvest):
        return dict(harvest.plain)
    job, words = harvest.job, mode_of(harvest.job).words
    return {
        "job": job.id,
        "plan": harvest.plan.hash,
        "epoch": harvest.plan.epoch,
        "head_fitted": harvest.head_fitted,
        "complete": not harvest.missing,
        "half_way": harvest.is_half_way,
        "stopped": list(harvest.stopped),
        "best": _best_plain(harvest.best),
        "stopped_after": harvest.stopped_after or None,
        "best_look": _look_plain(harvest.best_look) if harvest.best_look is not None else None,
        **_validation(harvest.looks),
        "work": works_plain(harvest.works),
        "left_out": dict(harvest.left_out),
        "others": [dataclasses.asdict(other) for other in harvest.others],
        **words.harvest_plain(harvest),
        "missing": [{"part": i, "classes": words.part_classes(harvest.plan, job, i)} for i in harvest.missing],
        "parts": [
            {
                "part": part.part,
                "classes": list(part.classes),
                "share": part.share,
                "trainers": list(part.trainers),
                "round": part.round,
                "rounds": part.rounds,
                "step": part.step,
                "samples": part.samples,
                "num_bytes": part.num_bytes,
            }
            for part in harvest.report
        ],
    }

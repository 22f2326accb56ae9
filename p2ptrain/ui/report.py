"""The report of a harvest: which part of the model came from whom, how fresh it is, and what is missing.

Invariant: reads the report lines of a harvest and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.verdict import Verdict
from p2ptrain.modes.tasks.verdict_words import verdict_lines
from p2ptrain.runtime.harvest import PartReport
from p2ptrain.words import clean, listed, scaled, table


class Harvested(Protocol):
    @property
    def job(self) -> Job: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def report(self) -> Sequence[PartReport]: ...
    @property
    def missing(self) -> Sequence[int]: ...
    @property
    def calibrated(self) -> bool: ...
    @property
    def is_half_way(self) -> bool: ...
    @property
    def verdict(self) -> Verdict | None: ...
    @property
    def names(self) -> Mapping[PeerId, str]: ...
    @property
    def stopped(self) -> Sequence[int]: ...


def render(harvest: Harvested) -> str:
    """A line a part, then what was done with the head, then what is missing."""
    sliced = harvest.plan.slices is not None
    share = "blocks" if sliced else "width"
    rows = [
        ("from block" if sliced else "part", "classes", share, "round", "step", "samples seen", "size", "trained by")
    ]
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
    if harvest.calibrated:
        lines.append("the last layer was fitted again by the whole group, to these very copies")
    elif harvest.plan.calibrate and harvest.verdict is None:
        lines.append(
            "THE LAST LAYER IS NOT FITTED YET, and the model much worse than it will be: the group does that when all "
            "have finished; harvest again then"
        )
    for part in harvest.report:
        if part.part in harvest.stopped:
            lines.append(
                f"STOPPED: part {part.part} ({listed(part.classes)}) after {part.round} of {part.rounds} rounds, as no "
                "device that is here trains it. The model knows what the part had learnt by then; start its device "
                "again to go on, and harvest again"
            )
    if behind := [part for part in harvest.report if part.round < part.rounds and part.part not in harvest.stopped]:
        rounds = ", ".join(f"{part.round} of {part.rounds} rounds of part {part.part}" for part in behind)
        lines.append(f"HALF-WAY: so far {rounds}; harvest again when `p2ptrain status` says that all are done")
    if harvest.verdict is not None:
        classes = harvest.job.data.classes
        lines += verdict_lines(harvest.verdict, harvest.plan, classes, lambda peer: harvest.names.get(peer, peer))
    for index in harvest.missing:
        lines.append(f"MISSING: part {index} ({_names(harvest, index)}): its classes can't be recognised")
    return "\n".join(lines)


def kind(harvest: Harvested) -> str:
    """What was harvested, in two words at most."""
    if harvest.missing:
        return "incomplete model"
    return "half-way model" if harvest.is_half_way else "complete model"


def _names(harvest: Harvested, index: int) -> str:
    return ", ".join(clean(harvest.job.data.classes[c], 24) for c in harvest.plan.parts[index].classes)


def to_plain(harvest: Harvested) -> dict[str, Any]:
    """What ``harvest --json`` prints, but for the path and the accuracy."""
    job = harvest.job
    return {
        "job": job.id,
        "plan": harvest.plan.hash,
        "epoch": harvest.plan.epoch,
        "calibrated": harvest.calibrated,
        "complete": not harvest.missing,
        "half_way": harvest.is_half_way,
        "stopped": list(harvest.stopped),
        "validation": None if harvest.verdict is None else _validation(harvest.verdict, job.data.classes),
        "missing": [
            {"part": i, "classes": [job.data.classes[c] for c in harvest.plan.parts[i].classes]}
            for i in harvest.missing
        ],
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


def _validation(verdict: Verdict, classes: Sequence[str]) -> dict[str, Any]:
    best = verdict.best_member
    return {
        "samples": verdict.samples,
        "accuracy": verdict.accuracy() if verdict.samples else None,
        "head": verdict.chosen,
        "candidates": {name: sum(right) for name, right in verdict.correct.items()},
        "per_class": {
            name: right / total if total else None
            for name, right, total in zip(classes, verdict.correct[verdict.chosen], verdict.totals, strict=True)
        },
        "best_member": None if best is None else {"peer": best[0], "accuracy": best[1], "model_accuracy": best[2]},
        "worse": [
            {
                "peer": worse.peer,
                "classes": [classes[c] for c in worse.classes],
                "own_accuracy": worse.own_accuracy,
                "model_accuracy": worse.group_accuracy,
            }
            for worse in verdict.worse()
        ],
    }

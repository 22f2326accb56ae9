"""What people and programs are told of class sub-models and replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import no_words
from p2ptrain.core.coverage import Cell, Coverage, of_parts
from p2ptrain.core.harvest import Harvest
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.harvest import TasksHarvest
from p2ptrain.modes.tasks.head.verdict_words import left_out_line, verdict_lines, verdict_plain
from p2ptrain.modes.tasks.plan import ClassPart, body_of, parts_of
from p2ptrain.modes.tasks.planning.assignment import notes
from p2ptrain.modes.tasks.planning.mode_choice import mode_for
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.wire.messages import Record
from p2ptrain.words import clean, listed

REPORT_TITLES = ("part", "width")
choice_lines, plan_lines, plan_plain = no_words.of_job, no_words.of_plan, no_words.plain_plan
granted, flows = no_words.of_links, no_words.flows
kept_lines, kept_plain = no_words.of_copies, no_words.plain_copies


def job_lines(job: Job) -> list[str]:
    """What ``job check`` tells beside what all jobs have."""
    if job.mode == "replicas" or job.data.reads_tokens:
        return []
    passes = tasks_of(job).passes
    if passes == 1:
        how_many = "1"
    elif passes:
        how_many = f"{passes:g}, or as many as are as much work if that is fewer"
    else:
        how_many = "as many as are as much work"
        if job.data.val:
            how_many += "; fewer where validation samples say that more bring nothing"
    budget = tasks_of(job).budget
    within = [f"budget    of central training's work, on each device: 1/{1 / budget:.3g}"] if budget else []
    return [*within, f"passes    of a class sub-model for one of the whole model: {how_many}"]


def plan_sentence(plan: Plan, job: Job, own: PeerId) -> str:
    """What the plan gives this peer."""
    body, names = body_of(plan), job.data.classes
    part = body.part_of(own)
    start = f"plan of epoch {epoch_words(plan.epoch)}, {len(body.parts)} part{'s' if len(body.parts) > 1 else ''}"
    if part is None:
        later = ", and its samples count when the group fits the last layer" if body.fit_head else ""
        return (
            f"{start}: none for this peer for now (more peers than parts, or no samples that fit); it stands by{later}"
        )
    classes = (
        "all classes" if len(part.classes) == len(names) else f"classes {listed([names[c] for c in part.classes])}"
    )
    width = "the whole model" if part.share == 1 else f"{100 * part.share:.0f} % of the width"
    others = len(part.trainers) - 1
    shared = f", with {others} other peer{'s' if others > 1 else ''}" if others else ""
    return f"{start}: this peer trains part {part.index}, {classes}, {width}{shared}"


def mode_sentence(plan: Plan, job: Job) -> str | None:
    """Which mode the group took, and why, where the job leaves that to the group; only the first plan knows why."""
    if job.mode != "auto":
        return None
    what = {"tasks": "a class sub-model each", "replicas": "the whole model on every device"}.get(plan.mode, plan.mode)
    why = mode_for(job, plan.peers)[1] if plan.epoch == 1 else "as the first plan had it"
    return f"mode {plan.mode} ({what}): {why}"


def plan_notes(plan: Plan, job: Job, own: PeerId) -> list[str]:
    """What a person at this device should know about the plan."""
    others = {peer.peer for peer in plan.peers} - {own}
    lines = [line for line in notes(job, plan) if line.partition(":")[0] not in others]
    return [line.replace(own, "this peer") for line in lines]


def part_text(plan: Plan, job: Job, index: int) -> str:
    """``#1 cat, dog, 33 % of the width``."""
    part = parts_of(plan)[index]
    names = _names(part, job)
    classes = "all classes" if len(names) == len(job.data.classes) else listed(names)
    width = "whole model" if part.share == 1 else f"{100 * part.share:.0f} % of the width"
    return f"#{index} {classes}, {width}"


def part_name(plan: Plan, job: Job, index: int) -> str:
    """What is missing where nobody has a part, in short."""
    return ", ".join(clean(name, 24) for name in _names(parts_of(plan)[index], job))


def coverage(plan: Plan, job: Job, here: Sequence[Record]) -> Coverage:
    """Of each part by its classes."""
    cells = []
    for part in parts_of(plan):
        names = _names(part, job)
        name = "all classes" if len(names) == len(job.data.classes) else listed(names)
        cells.append(Cell(name, part.index, part.index + 1, part.trainers))
    return of_parts(cells, here, job.training.rounds)


def part_classes(plan: Plan, job: Job | None, index: int) -> list[str]:
    """Of a part, for programs; by number as long as the job is not known."""
    part = parts_of(plan)[index]
    return _names(part, job) if job is not None else [str(c) for c in part.classes]


def _names(part: ClassPart, job: Job) -> list[str]:
    return [job.data.classes[c] if c < len(job.data.classes) else str(c) for c in part.classes]


def look_note(plan: Plan) -> str:
    """The last layer is fitted when all have ended."""
    return ", its last layer not fitted yet" if body_of(plan).fit_head else ""


def harvest_head_line(harvest: Harvest) -> list[str]:
    """What became of the last layer."""
    if harvest.head_fitted:
        return ["the last layer was fitted again by the whole group, to these very copies"]
    if body_of(harvest.plan).fit_head and harvest.best is not None:
        return [
            "its last layer is put together from the parts' own: the group fits it in the end only, to the last copies"
        ]
    if body_of(harvest.plan).fit_head and isinstance(harvest, TasksHarvest) and harvest.verdict is None:
        return [
            "THE LAST LAYER IS NOT FITTED YET, and the model much worse than it will be: the group does that when all "
            "have finished; harvest again then"
        ]
    return []


def harvest_lines(harvest: Harvest) -> list[str]:
    """What the group found when it looked at its model."""
    if not isinstance(harvest, TasksHarvest) or harvest.verdict is None:
        return []
    classes = harvest.job.data.classes
    if harvest.asked_without:
        return [left_out_line(harvest.verdict, harvest.asked_without)]
    return verdict_lines(harvest.verdict, harvest.plan, classes, _called(harvest))


def _called(harvest: Harvest) -> Callable[[PeerId], str]:
    """What people call a peer."""
    return lambda peer: harvest.names.get(peer, peer)


def harvest_plain(harvest: Harvest) -> Mapping[str, Any]:
    """What ``harvest --json`` prints of this mode alone."""
    verdict = harvest.verdict if isinstance(harvest, TasksHarvest) else None
    if verdict is None:
        return {}
    return {"validation": verdict_plain(verdict, harvest.job.data.classes, _called(harvest))}

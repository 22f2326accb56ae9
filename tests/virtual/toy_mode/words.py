"""What people are told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.harvest import Harvest
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import Record

REPORT_TITLES = ("number", "numbers")


def job_lines(job: Job) -> list[str]:
    return []


def choice_lines(job: Job) -> list[str]:
    """Nothing that ``job check`` does not tell."""
    return []


def plan_lines(plan: Plan, job: Job) -> list[str]:
    """The parts say it all."""
    return []


def plan_plain(plan: Plan) -> Mapping[str, Any]:
    """The parts say it all."""
    return {}


def plan_sentence(plan: Plan, job: Job, own: PeerId) -> str:
    part = plan.part_of(own)
    return f"plan of epoch {plan.epoch}: this peer counts {'nothing' if part is None else f'number {part.index}'}"


def mode_sentence(plan: Plan, job: Job) -> str | None:
    return None


def plan_notes(plan: Plan, job: Job, own: PeerId) -> list[str]:
    return []


def part_text(plan: Plan, job: Job, index: int) -> str:
    return f"number {index}"


def part_name(plan: Plan, job: Job, index: int) -> str:
    return f"number {index}"


def part_classes(plan: Plan, job: Job | None, index: int) -> list[str]:
    return []


def kept_lines(plan: Plan, here: Sequence[Record]) -> list[str]:
    """A part's copies are told by its holdings."""
    return []


def kept_plain(plan: Plan, here: Sequence[Record]) -> Mapping[str, Any] | None:
    return None


def harvest_head_line(harvest: Harvest) -> list[str]:
    return []


def harvest_lines(harvest: Harvest) -> list[str]:
    return []


def harvest_plain(harvest: Harvest) -> Mapping[str, Any]:
    return {}

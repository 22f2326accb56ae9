"""What people are told of it."""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.core import no_words
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId

REPORT_TITLES = ("number", "numbers")
job_lines = choice_lines = no_words.of_job
plan_lines, plan_plain, plan_notes = no_words.of_plan, no_words.plain_plan, no_words.for_peer
mode_sentence, part_classes = no_words.of_choice, no_words.classes
granted = no_words.of_links
coverage, flows = no_words.coverage, no_words.flows
kept_lines, kept_plain = no_words.of_copies, no_words.plain_copies
harvest_head_line = harvest_lines = no_words.of_harvest
look_note = no_words.of_looks
harvest_plain = no_words.plain_harvest


def plan_sentence(plan: Plan, job: Job, own: PeerId) -> str:
    part = plan.part_of(own)
    return f"plan of epoch {plan.epoch}: this peer counts {'nothing' if part is None else f'number {part.index}'}"


def part_text(plan: Plan, job: Job, index: int) -> str:
    return f"number {index}"


part_name = part_text

"""The group as a map, for programs: links, who sends to whom, who covers what, what a harvest would give now.

Invariant: plain JSON, by what the records say and nothing else; peers by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.harvest import looks_of
from p2ptrain.core.plan import Plan
from p2ptrain.modes.registry import MODES
from p2ptrain.runtime.report import COMPLETE, HALF_WAY, INCOMPLETE, mean_of
from p2ptrain.wire.messages import Record

HARVEST = "p2ptrain harvest -o global.safetensors"


def links(record: Record) -> list[dict[str, Any]]:
    """Those that a peer has measured: of a pair one does."""
    return [
        {"peer": each.peer, "bytes_per_s": each.bytes_per_s, "latency_s": each.latency_s}  # one way
        for each in record.links
    ]


def flows(job: Job | None, plan: Plan) -> list[dict[str, Any]]:
    """Who sends to whom for its training; ``both``: as the other does to it."""
    if job is None:
        return []
    found = MODES[plan.mode].words.flows(plan)
    return [{"from": each.sender, "to": each.receiver, "what": each.what, "both": each.both} for each in found]


def coverage(job: Job | None, plan: Plan | None, here: Sequence[Record]) -> dict[str, Any] | None:
    """Of every part, or run of blocks: who trains it, who has it saved and how far; what would be lost with whom."""
    if job is None or plan is None:
        return None
    found = MODES[plan.mode].words.coverage(plan, job, here)
    return {
        "counts": found.counts,
        "done": found.done,
        "total": found.total,
        "cells": [
            {"name": cell.name, "trainers": list(trainers), "copies": dict(copies), "saved": saved}
            for cell, trainers, copies, saved in zip(
                found.cells, found.trainers, found.copies, found.saved, strict=True
            )
        ],
        "lost_without": dict(found.lost_without),
    }


def harvest_now(
    job: Job | None, plan: Plan | None, records: Sequence[Record], here: Sequence[Record]
) -> dict[str, Any] | None:
    """What could be assembled of what is saved: from how far its oldest part is to how far its newest."""
    if job is None or plan is None:
        return None
    found, looks = MODES[plan.mode].words.coverage(plan, job, here), looks_of(records, job.id)
    missing = [cell.name for cell, saved in zip(found.cells, found.saved, strict=True) if not saved]
    oldest = min(found.saved, default=0)
    return {
        "state": INCOMPLETE if missing else COMPLETE if oldest >= found.total else HALF_WAY,
        "counts": found.counts,
        "oldest": oldest,
        "newest": max(found.saved, default=0),
        "of": found.total,
        "missing": missing,
        "accuracy": mean_of(looks),
        "samples": sum(look.samples for look in looks),
        "command": HARVEST,
    }

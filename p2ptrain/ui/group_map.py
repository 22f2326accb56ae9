"""The group as a map, for programs: links, who sends to whom, who covers what, what a harvest would give now.

Invariant: plain JSON, by what the records say and nothing else; peers by their ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


COMPARED = ("batch_s", "computes", "sends_bytes_per_s")
"""Of a stage: measured, and with ``planned_`` before their names what the plan was made by."""
FIGURES = (
    *("computes", "trainer_cpu", "node_cpu", "temperature_c", "battery", "batch_s", "sends_bytes_per_s"),
    *(f"planned_{name}" for name in COMPARED),
)
KINDS = {
    "stage messages": ("stage-data", "stage-ack"),
    "models and copies": ("fetch", "chunk", "fetch-refused", "replica-offer", "replica-ack", "gossip-push"),
    "the last layer": ("head-fit-call", "head-fit-ready", "head-fit-gradient", "head-fit-state"),
    "plans and jobs": (
        "job-request",
        "job-reply",
        "plan-request",
        "plan-reply",
        "plan-vote",
        "profile-request",
        "profile-reply",
    ),
    "links measured": ("link-probe", "link-echo"),
}
"""What people call kinds of messages; all others keep the group in touch."""
TOUCH = "staying in touch"


def figures(told: Mapping[str, float]) -> dict[str, float | None]:
    """What a device measures of itself, and what was planned of that; None: it does not tell. Shares are from 0 to 1.
    ``computes``: of the time, by the trainer of a stage; ``batch_s``: from one batch to the next."""
    return {name: told.get(name) for name in FIGURES}


def device_words(told: Mapping[str, float]) -> str:
    """``computes 83 % of the time; 61 °C; battery 40 %``."""
    names = ("computes", "trainer_cpu", "temperature_c", "battery")
    computes, cpu, warm, battery = (told.get(name) for name in names)
    planned = told.get("planned_computes")
    beside = f" ({100 * planned:.0f} % planned)" if planned is not None else ""
    said = [
        f"computes {100 * computes:.0f} % of the time{beside}" if computes is not None else "",
        f"trainer uses {100 * cpu:.0f} % of its threads" if cpu is not None else "",
        f"{warm:.0f} °C" if warm is not None else "",
        f"battery {100 * battery:.0f} %" if battery is not None else "",
    ]
    return "; ".join(filter(None, said))


def traffic(sent: Mapping[str, int]) -> dict[str, int]:
    """Bytes since a peer's start, by what people call the kinds of messages."""
    names = {kind: name for name, kinds in KINDS.items() for kind in kinds}
    found: dict[str, int] = {}
    for kind, num_bytes in sent.items():
        name = names.get(kind, TOUCH)
        found[name] = found.get(name, 0) + num_bytes
    return {name: found[name] for name in sorted(found, key=lambda each: -found[each])}


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

"""A record by itself: a blank one, and which changes of one bear on plans."""

from __future__ import annotations

import dataclasses
from typing import Any

from p2ptrain.ids import JobId, PeerId
from p2ptrain.wire.messages import NO_PART, Record


def blank_record(peer: PeerId, key: bytes, version: int, **known: Any) -> Record:
    """What a peer says of itself before it has a job, and, by field, what it knows already."""
    nothing = Record(
        peer=peer,
        version=version,
        key=key,
        name="",
        addresses=(),
        job=JobId(""),
        counts=(),
        wishes=(),
        flops_per_s=0.0,
        memory_bytes=0,
        epoch=0,
        plan="",
        part=NO_PART,
        phase="waiting",
        round=0,
        step=0,
        samples=0,
        loss=0.0,
        samples_per_s=0.0,
        bytes_sent=0,
        waiting_for="",
        holdings=(),
    )
    return dataclasses.replace(nothing, **known)


def has_lost_its_part(old: Record, new: Record) -> bool:
    """Whether its trainer, or what that trained, is gone."""
    return (old.part != NO_PART == new.part) or (bool(old.profile) and not new.profile)


def matters_to_plans(old: Record, new: Record) -> bool:
    """Whether a change of a record can matter to planning."""
    figures = ("flops_per_s", "memory_bytes", "link_bytes_per_s", "links", "slowdown", "profile")
    fields = ("job", "counts", "wishes", "max_groups", *figures, "epoch", "plan", "part", "vote", "phase", "leaving")
    return any(getattr(old, name) != getattr(new, name) for name in fields)

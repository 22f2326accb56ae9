"""What a mode says where it has nothing to say: see ``core.mode.Words``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.coverage import Cell, Coverage, Flow, of_parts
from p2ptrain.core.harvest import Harvest
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import Record


def of_job(job: Job) -> list[str]:
    """What all jobs have is all."""
    return []


def of_plan(plan: Plan, job: Job) -> list[str]:
    """The parts say it all."""
    return []


def plain_plan(plan: Plan) -> Mapping[str, Any]:
    """The parts say it all."""
    return {}


def coverage(plan: Plan, job: Job, here: Sequence[Record]) -> Coverage:
    """Parts have numbers for names."""
    cells = [Cell(f"part {part.index}", part.index, part.index + 1, part.trainers) for part in plan.parts]
    return of_parts(cells, here, job.training.rounds)


def flows(plan: Plan) -> list[Flow]:
    """Who trains the same part averages it with the others."""
    return [
        Flow(one, other, "averages", both=True)
        for part in plan.parts
        for one, other in itertools.combinations(part.trainers, 2)
    ]


def of_links(plan: Plan, peer: PeerId) -> Mapping[PeerId, float]:
    """Nobody is held to a share of a link."""
    return {}


def of_choice(plan: Plan, job: Job) -> str | None:
    """Nothing was chosen."""
    return None


def for_peer(plan: Plan, job: Job, own: PeerId) -> list[str]:
    """The plan's sentence says it all."""
    return []


def classes(plan: Plan, job: Job | None, index: int) -> list[str]:
    """No part has classes of its own."""
    return []


def of_copies(plan: Plan, job: Job, here: Sequence[Record]) -> list[str]:
    """Copies are told by the peers' holdings."""
    return []


def plain_copies(plan: Plan, here: Sequence[Record]) -> Mapping[str, Any] | None:
    return None


def of_looks(plan: Plan) -> str:
    """The whole model is what it will be."""
    return ""


def of_harvest(harvest: Harvest) -> list[str]:
    """The last layer is trained as all others are, and nobody looks at the model."""
    return []


def plain_harvest(harvest: Harvest) -> Mapping[str, Any]:
    return {}

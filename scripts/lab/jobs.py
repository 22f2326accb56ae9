"""The job that a lab file describes, complete: its tables, and the data contract that follows from its samples."""

from __future__ import annotations

import dataclasses
from typing import Any

from lab.spec import LabSpec
from p2ptrain.config import Job
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.modes.jobs import job_from_mapping


def job_of(spec: LabSpec) -> Job:
    """``augment``, ``input_shape`` and ``val`` of the job's own table go into the contract.

    A lab holds no validation samples out unless its file says so: what is compared has trained on all.

    Raises ``UserError`` naming the key that is wrong.
    """
    tables: dict[str, Any] = {"name": "lab", **spec.job}
    present = len(spec.devices) - len(spec.late)
    tables["group"] = {"min_peers": present, **tables.get("group", {})}
    augment, shape = tables.pop("augment", False), tables.pop("input_shape", None)
    val = tables.pop("val", 0.0)
    source = open_source(spec.data)
    contract = dataclasses.asdict(propose_contract(source, tuple(shape) if shape else None, augment=augment))
    return job_from_mapping({**tables, "data": contract | {"val": val}}, f"{spec.name}: job")

"""The modes that there are, each by the names that a job may say.

A mode is a folder beside this file and one name in ``MODES``.
"""

from __future__ import annotations

from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.commands import COMMON
from p2ptrain.core.mode import Mode
from p2ptrain.core.plan import Plan, plan_from_json
from p2ptrain.modes.pipeline import mode as pipeline
from p2ptrain.modes.split import mode as split
from p2ptrain.modes.tasks import mode as tasks

MODES: dict[str, Mode] = {name: mode for mode in (tasks.MODE, pipeline.MODE, split.MODE) for name in mode.names}


def mode_of(job: Job) -> Mode:
    """The mode of a job."""
    return MODES[job.mode]


def commands() -> dict[str, Any]:
    """What node and trainer may say to each other, by name."""
    return COMMON | {command.__name__: command for mode in MODES.values() for command in mode.commands}


def read_plan(data: bytes | str) -> Plan:
    """A plan of any mode. Raises ``RemoteError``."""
    return plan_from_json(data, {name: body for mode in MODES.values() for name, body in mode.bodies.items()})

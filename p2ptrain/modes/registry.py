"""The modes that there are, each by the names that a job may say.

A mode is a folder beside this file and one line here.
"""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.core.mode import Mode
from p2ptrain.modes.pipeline import mode as pipeline
from p2ptrain.modes.tasks import mode as tasks

MODES: dict[str, Mode] = {
    "tasks": tasks.MODE,
    "replicas": tasks.MODE,
    "auto": tasks.MODE,
    "slices": pipeline.MODE,
}


def mode_of(job: Job) -> Mode:
    """The mode of a job."""
    return MODES[job.mode]

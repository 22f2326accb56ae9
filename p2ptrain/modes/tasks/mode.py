"""Class sub-models, and replicas: all that the package asks of this mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.tasks import harvest, words
from p2ptrain.modes.tasks.commands import COMMANDS
from p2ptrain.modes.tasks.config import NAMES, TasksConfig
from p2ptrain.modes.tasks.plan import BODIES
from p2ptrain.modes.tasks.role import TasksRole

if TYPE_CHECKING:
    from torch import nn


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.tasks.worker import TasksWorker  # torch

    return TasksWorker(setup)


def _check_model(job: Job, model: nn.Module) -> Mapping[str, Any]:
    from p2ptrain.modes.tasks.division import check_model  # torch

    return check_model(job, model)


MODE = Mode(
    names=NAMES,
    old_names={},
    config=TasksConfig,
    bodies=BODIES,
    role=TasksRole,
    worker=_worker,
    commands=COMMANDS,
    harvester=harvest,
    words=words,
    majority=False,
    needs_data=True,
    check_model=_check_model,
)

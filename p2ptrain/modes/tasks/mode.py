"""Class sub-models, and replicas: all that the package asks of this mode."""

from __future__ import annotations

from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.tasks import harvest, words
from p2ptrain.modes.tasks.commands import COMMANDS
from p2ptrain.modes.tasks.plan import BODIES
from p2ptrain.modes.tasks.role import TasksRole


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.tasks.worker import TasksWorker  # torch

    return TasksWorker(setup)


MODE = Mode(
    bodies=BODIES,
    role=TasksRole,
    worker=_worker,
    commands=COMMANDS,
    harvester=harvest,
    words=words,
    majority=False,
    needs_data=True,
    validates=True,
)

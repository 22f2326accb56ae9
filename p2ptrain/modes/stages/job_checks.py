"""What modes that cut a model into blocks can't do of what any job may want."""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.errors import JobError
from p2ptrain.model_config import OF_THE_MODEL


def check_training(job: Job, where: str) -> None:
    """Raises ``JobError`` naming the key."""
    if methods := OF_THE_MODEL.intersection((job.training.loss, job.training.own_optimizer)):
        raise JobError(
            f'{where}: training: {sorted(methods)[0]} is of the whole model, and in mode "{job.mode}" no device runs '
            'all of it; name functions for a part of it (--loss, --own-optimizer), or take mode "replicas"'
        )
    if job.training.proximal:
        raise JobError(
            f'{where}: training.proximal: in mode "{job.mode}" blocks go from device to device within a round, and '
            'where it began is not kept of them; set 0, or take mode "replicas" or "tasks"'
        )

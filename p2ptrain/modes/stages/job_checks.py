"""What modes that cut a model into blocks can't do of what any job may want."""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.errors import JobError


def check_training(job: Job, where: str) -> None:
    """Raises ``JobError`` naming the key."""
    if job.training.own_optimizer:
        raise JobError(
            f'{where}: training.own_optimizer: in mode "{job.mode}" blocks go from device to device with the state of '
            'their optimizer, and what of an own one\'s is of which block is not known; take mode "replicas" or "tasks"'
        )
    if job.training.proximal:
        raise JobError(
            f'{where}: training.proximal: in mode "{job.mode}" blocks go from device to device within a round, and '
            'where it began is not kept of them; set 0, or take mode "replicas" or "tasks"'
        )
    if job.training.patience:
        raise JobError(
            f'{where}: training.patience: in mode "{job.mode}" no device holds the whole model while it trains, so '
            'none can see that rounds bring nothing; set 0, or take mode "tasks" or "replicas"'
        )

"""What modes that cut a model into blocks can't do of what any job may want."""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.errors import JobError


def check_training(job: Job, where: str) -> None:
    """Raises ``JobError`` naming the key."""
    if job.training.patience:
        raise JobError(
            f'{where}: training.patience: in mode "{job.mode}" no device holds the whole model while it trains, so '
            'none can see that rounds bring nothing; set 0, or take mode "tasks" or "replicas"'
        )

"""Split training: all that the package asks of this mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.pipeline.mode import check_blocks
from p2ptrain.modes.split import harvest, words
from p2ptrain.modes.split.commands import COMMANDS
from p2ptrain.modes.split.config import NAME, SplitConfig
from p2ptrain.modes.split.plan import BODIES
from p2ptrain.modes.split.role import SplitRole

if TYPE_CHECKING:
    from torch import nn


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.split.worker import UnitsWorker  # torch

    return UnitsWorker(setup)


def _check_model(job: Job, model: nn.Module) -> Mapping[str, Any]:
    """It has to be a chain of blocks."""
    return check_blocks(job, model)


MODE = Mode(
    names=(NAME,),
    old_names={},
    config=SplitConfig,
    bodies=BODIES,
    role=SplitRole,
    worker=_worker,
    commands=COMMANDS,
    harvester=harvest,
    words=words,
    majority=True,
    needs_data=False,
    validates=False,
    check_model=_check_model,
)

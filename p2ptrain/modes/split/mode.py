"""Split training: all that the package asks of this mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.split import harvest, words
from p2ptrain.modes.split.commands import COMMANDS
from p2ptrain.modes.split.config import NAME, SplitConfig, split_of
from p2ptrain.modes.split.plan import BODIES
from p2ptrain.modes.split.role import SplitRole
from p2ptrain.modes.stages.assembly import check_blocks

if TYPE_CHECKING:
    from torch import nn


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.split.worker import UnitsWorker  # torch

    return UnitsWorker(setup)


def _check_model(job: Job, model: nn.Module) -> Mapping[str, Any]:
    """A chain of blocks, of three runs at least where labels stay. Raises ``UserError``."""
    found = check_blocks(job, model)
    if split_of(job).labels == "stay":
        from p2ptrain.learning.blocks.chain import Chain
        from p2ptrain.learning.blocks.costs import profile_blocks
        from p2ptrain.planning.split.task import check_labels

        check_labels("stay", profile_blocks(Chain(model, job.data.input_shape), job.model.name))
    return found


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
    check_model=_check_model,
)

"""A pipeline: all that the package asks of this mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.pipeline import harvest, words
from p2ptrain.modes.pipeline.commands import COMMANDS
from p2ptrain.modes.pipeline.config import NAME, OLD_NAME, PipelineConfig
from p2ptrain.modes.pipeline.plan import BODIES
from p2ptrain.modes.pipeline.role import PipelineRole

if TYPE_CHECKING:
    from torch import nn


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.pipeline.worker import StageWorker  # torch

    return StageWorker(setup)


def check_blocks(job: Job, model: nn.Module) -> Mapping[str, Any]:
    """It has to be a chain of blocks."""
    from p2ptrain.learning.blocks.chain import Chain
    from p2ptrain.learning.blocks.costs import profile_blocks
    from p2ptrain.planning.devices.blocks import check_model

    check_model(profile_blocks(Chain(model, job.data.input_shape), job.model.name))
    return {}


MODE = Mode(
    names=(NAME,),
    old_names={OLD_NAME: NAME},
    config=PipelineConfig,
    bodies=BODIES,
    role=PipelineRole,
    worker=_worker,
    commands=COMMANDS,
    harvester=harvest,
    words=words,
    majority=True,
    needs_data=False,
    validates=False,
    check_model=check_blocks,
)

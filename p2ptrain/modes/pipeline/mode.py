"""A pipeline: all that the package asks of this mode."""

from __future__ import annotations

from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.pipeline import harvest, words
from p2ptrain.modes.pipeline.commands import COMMANDS
from p2ptrain.modes.pipeline.config import NAME, OLD_NAME, PipelineConfig
from p2ptrain.modes.pipeline.plan import BODIES
from p2ptrain.modes.pipeline.role import PipelineRole
from p2ptrain.modes.stages.assembly import check_blocks


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.pipeline.worker import StageWorker  # torch

    return StageWorker(setup)


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
    check_model=check_blocks,
)

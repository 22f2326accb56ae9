"""Split training: all that the package asks of this mode."""

from __future__ import annotations

from p2ptrain.core.mode import Mode
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.modes.split import harvest, words
from p2ptrain.modes.split.commands import COMMANDS
from p2ptrain.modes.split.config import NAME, SplitConfig
from p2ptrain.modes.split.plan import BODIES
from p2ptrain.modes.split.role import SplitRole
from p2ptrain.modes.stages.assembly import check_blocks


def _worker(setup: Setup) -> Worker:
    from p2ptrain.modes.split.worker import UnitsWorker  # torch

    return UnitsWorker(setup)


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
    check_model=check_blocks,
)

"""All that the package asks of a mode."""

from __future__ import annotations

from p2ptrain.core.mode import Mode
from toy_mode import harvest, words
from toy_mode.commands import COMMANDS
from toy_mode.config import ToyConfig
from toy_mode.plan import BODIES
from toy_mode.role import ToyRole
from toy_mode.worker import ToyWorker

MODE = Mode(
    names=("toy",),
    old_names={},
    config=ToyConfig,
    bodies=BODIES,
    role=ToyRole,
    worker=ToyWorker,
    commands=COMMANDS,
    harvester=harvest,
    words=words,
    majority=False,
    needs_data=False,
    check_model=lambda job, model: {},
)

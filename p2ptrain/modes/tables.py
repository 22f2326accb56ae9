"""Names of the modes and their tables of a job, for whoever only describes them: nothing else of a mode is imported.

Invariant: as in ``registry``, in the same order.
"""

from __future__ import annotations

from p2ptrain.config import ModeTable
from p2ptrain.modes.pipeline.config import NAME as PIPELINE
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.split.config import NAME as SPLIT
from p2ptrain.modes.split.config import SplitConfig
from p2ptrain.modes.tasks.config import NAMES as TASKS
from p2ptrain.modes.tasks.config import TasksConfig

NAMES = (*TASKS, PIPELINE, SPLIT)
TABLES: dict[str, type[ModeTable]] = {each.TABLE: each for each in (TasksConfig, PipelineConfig, SplitConfig)}

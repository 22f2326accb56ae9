"""A pipeline: all that the package asks of this mode."""

from __future__ import annotations

from p2ptrain.core.mode import Mode
from p2ptrain.modes.pipeline.role import PipelineRole

MODE = Mode(majority=True, role=PipelineRole)

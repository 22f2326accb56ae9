"""Class sub-models, and replicas: all that the package asks of this mode."""

from __future__ import annotations

from p2ptrain.core.mode import Mode
from p2ptrain.modes.tasks.role import TasksRole

MODE = Mode(majority=False, role=TasksRole)

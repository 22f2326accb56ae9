"""Whether a job's model can be divided among classes, and into how many sub-models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p2ptrain.config import Job
from p2ptrain.learning.objective import why_not_some
from p2ptrain.learning.own.outputs import find_head
from p2ptrain.learning.submodels.decoupling import Decoupling, most_groups
from p2ptrain.model_config import LIGHTNING_LOSS
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.planning.assignment import SENSIBLE_GROUPS

if TYPE_CHECKING:
    from torch import nn


def check_model(job: Job, model: nn.Module) -> Mapping[str, Any]:
    """Raises ``JobError`` for a model that can't be divided, where it must be. Where the group chooses the mode it says
    what there is to choose from."""
    if job.mode == "tasks":
        half = (len(job.data.classes) + 1) // 2
        groups = [range(half), range(half, len(job.data.classes))]
        Decoupling(model, job.data.input_shape, groups, trunk=tasks_of(job).trunk)
    found: dict[str, Any] = {"max_groups": max_groups(job, model)} if job.mode == "auto" else {}
    check_head(job, model)
    if why := _why_not_some(job):
        found["model_notes"] = [why]
    return found


def check_head(job: Job, model: nn.Module) -> None:
    """Raises ``JobError`` where the last layer is to be fitted again, and there is none to fit. The model is run."""
    if tasks_of(job).fit_head == "always" and job.data.kind != "text":
        find_head(model, job.data)


def max_groups(job: Job, model: nn.Module) -> int:
    """Into how many class sub-models the group could divide the model; 1 = it will train replicas."""
    if job.data.reads_tokens or job.model.freeze or _why_not_some(job):
        return 1
    limit = min(len(job.data.classes), SENSIBLE_GROUPS)
    return most_groups(model, job.data.input_shape, limit, tasks_of(job).trunk)


def _why_not_some(job: Job) -> str:
    """Why the job's loss can't train some of the classes only; "" where it can, or is never asked to."""
    loss = job.training.loss
    plain = not loss or loss == LIGHTNING_LOSS or job.data.kind == "text"
    return "" if plain else why_not_some(loss, len(job.data.classes))

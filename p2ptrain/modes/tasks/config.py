"""What a job says of class sub-models, and what they ask of the rest of the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from p2ptrain.config import MAX_CLASSES, Job, ModeTable, check_limits
from p2ptrain.errors import JobError
from p2ptrain.model_config import OF_THE_MODEL

NAMES = ("auto", "tasks", "replicas")
"""auto: the group takes tasks or replicas, when it makes its first plan."""
Targets = Literal["auto", "all", "rest", "own"]
Combine = Literal["auto", "own", "sum"]
Outer = Literal["none", "nesterov"]
FitHead = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class TasksConfig(ModeTable):
    """Class sub-models. ``num_groups`` 0 = one group a peer, as many as are there when the first plan is made."""

    TABLE: ClassVar[str] = "tasks"
    OLD_KEYS: ClassVar[Mapping[str, str]] = {"calibrate": "fit_head", "calibration_steps": "head_fit_steps"}
    num_groups: int = 0
    trunk: int = 0
    targets: Targets = "auto"
    combine: Combine = "auto"
    own_fraction: float = 0.0
    """Share of each batch drawn from the sub-model's own classes; 0 = as the data fall."""
    fit_head: FitHead = "auto"
    head_fit_steps: int = 300
    head_fit_decay: float = 0.01
    """Weight decay of that fit. Less suits few features, and models that have not learnt their samples by heart."""
    budget: float = 0.0
    """Of the work of central training, what a device may spend in all, the fit of the last layer included. Sub-models
    are as narrow as two passes ask for, and make no more ``passes`` than that pays. 0 = what central training costs."""
    passes: float = 1.0
    """Passes of a sub-model over the samples, in place of one of the whole model: at most those that are as much work.
    0 = that many, but a round ends early when the own validation samples say more bring nothing (``round_end``)."""

    exchange_every: int = 1
    """Rounds between the exchanges that a peer takes part in: inner steps, in the words of DiLoCo."""
    outer: Outer = "none"
    """nesterov: of replicas, what the rounds between two exchanges changed is one gradient for Nesterov momentum."""
    outer_rate: float = 0.7
    outer_momentum: float = 0.5

    def check(self, job: Job, where: str) -> None:
        limits = (
            ("tasks.num_groups", self.num_groups, 0, MAX_CLASSES),
            ("tasks.trunk", self.trunk, 0, 1000),
            ("tasks.own_fraction", self.own_fraction, 0, 1),
            ("tasks.head_fit_steps", self.head_fit_steps, 1, 100_000),
            ("tasks.head_fit_decay", self.head_fit_decay, 0, 10),
            ("tasks.passes", self.passes, 0, 1000),
            ("tasks.budget", self.budget, 0, 1),
            ("tasks.exchange_every", self.exchange_every, 1, 1000),
            ("tasks.outer_rate", self.outer_rate, 0.01, 10),
            ("tasks.outer_momentum", self.outer_momentum, 0, 0.999),
        )
        check_limits(limits, where)
        if job.mode in NAMES:
            self._check_own(job, where)

    def _check_own(self, job: Job, where: str) -> None:
        """What class sub-models ask of the data, and of each other's settings."""
        data = job.data
        if data.reads_tokens and job.mode == "tasks":
            raise JobError(
                f'{where}: mode: "tasks" divides a classifier of pictures or audio, and the data are text; use '
                '"replicas" or "pipeline"'
            )
        if job.model.freeze and job.mode == "tasks":
            raise JobError(
                f'{where}: model.freeze: in mode "tasks" each device trains some channels of every layer, and frozen '
                'layers cut like that would not compute what they have learnt; use "replicas"'
            )
        if data.kind == "text" and self.fit_head == "always":
            raise JobError(
                f'{where}: tasks.fit_head: it re-fits classifiers of pictures or audio, not text; use "auto"'
            )
        if self.budget and (data.reads_tokens or job.mode == "replicas"):
            raise JobError(
                f"{where}: tasks.budget: {self.budget:g}, and the whole model is trained everywhere; set 0, or mode "
                '"tasks" for pictures and audio'
            )
        if self.outer != "none" and job.mode == "tasks":
            raise JobError(
                f'{where}: tasks.outer: "{self.outer}" is for whole models that peers average; set mode "replicas", or '
                'tasks.outer = "none"'
            )
        if job.mode != "replicas" and (
            methods := OF_THE_MODEL.intersection((job.training.loss, job.training.own_optimizer))
        ):
            raise JobError(
                f"{where}: training: {sorted(methods)[0]} trains the whole model as it is, and class sub-models are "
                'cut from its layers; set mode "replicas"'
            )
        if 0 < self.passes < 1:
            raise JobError(
                f"{where}: tasks.passes: {self.passes:g} is less than one pass; 0 = as many as bring something"
            )
        if self.num_groups > len(data.classes):
            raise JobError(f"{where}: tasks.num_groups: {self.num_groups} groups for {len(data.classes)} classes")
        if self.combine == "sum" and self.targets in ("rest", "own"):
            raise JobError(f'{where}: tasks.combine: "sum" needs tasks.targets = "all"')


def tasks_of(job: Job) -> TasksConfig:
    """The job's table of this mode."""
    return job.table(TasksConfig)

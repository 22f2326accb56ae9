"""What a job says of split training, and what split training asks of the rest of the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from p2ptrain.config import Job, ModeTable, check_limits
from p2ptrain.errors import JobError
from p2ptrain.modes.stages.job_checks import check_training
from p2ptrain.planning.split.units import Labels, Medium, Tails

NAME = "split"
OptimizerState = Literal["reset", "average"]
Strategy = Literal["planned", "alone", "mid-cut", "common-cut", "cuts-only", "shares-only", "alternating", "unsplit"]
Codings = Literal["auto", "none", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class SplitConfig(ModeTable):
    """A unit's batch passes front and tail in up to ``micro_batches`` equal parts."""

    TABLE: ClassVar[str] = NAME
    tails: Tails = "replica"
    """replica: a helper keeps a tail for each unit, and a round is one of federated averaging. shared: all units train
    one model step by step, on batches drawn from all samples together, as one process would; gradients of the fronts
    travel in every step."""
    labels: Labels = "send"
    """Of a peer that is helped. send: they go to its helper, with the activations. stay: it trains the last block and
    the loss itself, so they leave it in no message; each micro-batch goes there and back twice."""
    optimizer: OptimizerState = "reset"
    """At a round's beginning, with tails "replica": reset = it begins anew in every unit, as in federated averaging;
    average = it goes on from the mean of all units."""
    micro_batches: int = 8
    strategy: Strategy = "planned"
    """Baselines to measure against: "alone" = every owner trains the whole model; for the others see
    ``planning.split.strategies``."""
    coding: Codings = "auto"
    """Compression of activations on their way to the helper, and of gradients on their way back; auto: the plan
    compresses where a link would hold up a unit."""
    medium: Medium = "switched"
    """switched: each device has a link of its own; shared: one medium carries all, as on one Wi-Fi."""
    replan_gain: float = 0.1
    """A plan gives way to one that is predicted to be faster by more than this share, when a round begins."""

    def check(self, job: Job, where: str) -> None:
        limits = (
            ("split.micro_batches", self.micro_batches, 1, 4096),
            ("split.replan_gain", self.replan_gain, 0.01, 10),
        )
        check_limits(limits, where)
        if job.mode != NAME:
            return
        check_training(job, where)
        if self.labels == "stay" and self.tails == "shared":
            raise JobError(
                f'{where}: split.labels = "stay" takes a tail for each unit, split.tails = "replica"; with one tail '
                'for all of them, split.labels = "send"'
            )
        if job.training.own_optimizer and self.optimizer == "average" and self.tails == "replica":
            raise JobError(
                f'{where}: split.optimizer = "average": what the mean of an own optimizer\'s state would be is not '
                'known (training.own_optimizer); set "reset"'
            )
        if self.micro_batches > job.training.batch_size:
            raise JobError(
                f"{where}: split.micro_batches: {self.micro_batches} parts of a batch of {job.training.batch_size} "
                "samples; take a larger training.batch_size, or fewer micro-batches"
            )


def split_of(job: Job) -> SplitConfig:
    """The job's table of this mode."""
    return job.table(SplitConfig)

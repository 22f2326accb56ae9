"""What a job says of a pipeline, and what a pipeline asks of the rest of the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from p2ptrain.config import Coding, Job, ModeTable, Schedule, Strategy, check_limits
from p2ptrain.errors import JobError
from p2ptrain.modes.stages.job_checks import check_training

NAME = "pipeline"
Recovery = Literal["light", "heavy"]
OLD_NAME = "slices"
"""Job files from before wire version 4 say so, of the mode and of its table."""


@dataclass(frozen=True, slots=True)
class PipelineConfig(ModeTable):
    """A batch passes the stages in ``micro_batches`` equal parts."""

    TABLE: ClassVar[str] = NAME
    micro_batches: int = 8
    schedule: Schedule = "sync"
    """sync: gradients as on a single device; async: no flush between batches, older weights for a few of them."""
    strategy: Strategy = "planned"
    """Baselines: "equal" = as many blocks for every peer, in the order of their ids, but for a first one with samples;
    "data-parallel" = the whole model on every peer with samples."""
    activations: Coding = "none"
    """Compression of what goes from stage to stage, ..."""
    gradients: Coding = "none"
    """... and of what comes back."""
    replan_gain: float = 0.1
    """A running pipeline gives way to one that is predicted to be faster by more than this share."""
    snapshot_steps: int = 0
    """Batches from one snapshot to the next; 0 = chosen by what one costs, a round at most."""

    patience_s: float = 300.0
    """Peers whose disks have newer blocks than are here are waited for so long, before the group goes back further."""

    recovery: Recovery = "light"
    """Baseline: "heavy" = after a loss all blocks are collected at one peer, planned anew, and sent out."""

    def check(self, job: Job, where: str) -> None:
        limits = (
            ("pipeline.micro_batches", self.micro_batches, 1, 4096),
            ("pipeline.replan_gain", self.replan_gain, 0.01, 10),
            ("pipeline.snapshot_steps", self.snapshot_steps, 0, 1_000_000),
            ("pipeline.patience_s", self.patience_s, 0, 1_000_000),
        )
        check_limits(limits, where)
        if job.mode != NAME:
            return
        check_training(job, where)
        self._check_micro_batches(job.training.batch_size, where)

    def _check_micro_batches(self, batch_size: int, where: str) -> None:
        num = self.micro_batches
        if batch_size % num:
            below, above = batch_size // num * num, (batch_size // num + 1) * num
            raise JobError(
                f"{where}: training.batch_size: {batch_size} is not a multiple of pipeline.micro_batches = {num}; "
                f"take {f'{below} or {above}' if below else above}, or another number of micro-batches"
            )


def pipeline_of(job: Job) -> PipelineConfig:
    """The job's table of this mode."""
    return job.table(PipelineConfig)

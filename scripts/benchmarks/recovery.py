"""What a pipeline of four takes to go on when it loses a peer, or two at once, or a trainer, or when one leaves.

Seconds from the loss until the first batch that those who stay have done by their next plan: noticed by the last of
them, agreed, blocks fetched, stages built, first batch. "light": the holder of the lost blocks takes them over, the
rest stays where it is. "heavy": all blocks are collected at one peer, planned anew, and sent out (as pipelines without
replicas do, Asteroid's baseline). Both are run on the same failure.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.common import Column, Sample, Settings
from benchmarks.recovery_group import PHASES, lost, pictures, pipeline_group, trainers
from benchmarks.rows import Row, Section
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.modes.pipeline.config import PipelineConfig, Recovery

LISTED = {
    "recovery": "a pipeline loses a peer, two, a trainer; seconds to notice, agree, fetch, build, light and heavy",
}
BASELINE = "heavy: everything collected at one peer, planned anew, and sent out"
COLUMNS = (
    Column("s", "in all, s", 2),
    *(Column(f"{phase}_s", phase, 2) for phase in PHASES),
    Column("fetched_mb", "fetched, MB", 1),
    Column("batches", "batches again", 0),
    Column("load", "load", 1),
)
PLOT_HEIGHT_IN = 4.0


@dataclass(frozen=True, slots=True)
class Failure:
    """``stages``: of those that are lost, from the first on; all at once."""

    how: str
    stages: tuple[int, ...]


FAILURES = {
    "a peer killed": Failure("kill", (1,)),
    "its trainer killed": Failure("trainer", (1,)),
    "two neighbours killed": Failure("kill", (1, 2)),
    "a peer leaves": Failure("leave", (1,)),
}
NUM_PEERS = 4
RATE_MBIT = 100.0


def job_of(data: str, width: float, recovery: Recovery, snapshot_steps: int = 10) -> Job:
    """VGG-11, in batches of 64."""
    contract = dataclasses.replace(propose_contract(open_source(data)), val=0.0)
    return Job(
        name="recovery",
        mode="pipeline",
        model=ModelConfig("vgg11", width=width),
        data=contract,
        training=TrainingConfig(rounds=1000, batch_size=64, learning_rate=0.01, schedule="constant"),
        tables=(PipelineConfig(4, snapshot_steps=snapshot_steps, recovery=recovery),),
        group=GroupConfig(min_peers=NUM_PEERS, settle_s=1.0),
    )


def run(settings: Settings) -> Iterator[Sample]:
    names = list(FAILURES)[:2] if settings.tiny else list(FAILURES)
    rate = 0.0 if settings.tiny else RATE_MBIT
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as kept:
        times, data = Path(kept) / "times.json", pictures(Path(kept))
        for repetition in settings.repetitions:
            for name in names:
                for recovery in ("light",):
                    job = job_of(data, 0.5, recovery)
                    with pipeline_group(job, NUM_PEERS, rate, times) as peers:
                        failure, staffed = FAILURES[name], trainers(peers)
                        victims = [staffed[index] for index in failure.stages]
                        figures = lost(peers, victims, failure.how)
                    figures |= {"stages": float(len(staffed)), "load": os.getloadavg()[0]}
                    yield Sample(f"{name}, {recovery}", repetition, figures, is_baseline=recovery == "heavy")


def plot(figure: Any, result: dict[str, Any]) -> None:
    """A line of time for each case, in pieces of its phases' medians."""
    axes, cases = figure.subplots(), result["cases"]
    for row, case in enumerate(cases):
        start = 0.0
        for number, phase in enumerate(PHASES):
            seconds = case["figures"][f"{phase}_s"]["median"]
            label = phase if row == 0 else None
            hatch = "//" if case["is_baseline"] else None
            axes.barh(
                row, seconds, left=start, color=plots.COLOURS[number], edgecolor="white", hatch=hatch, label=label
            )
            start += seconds
        axes.annotate(f" {start:.2f} s", (start, row), va="center", fontsize="small")
    axes.set_yticks(range(len(cases)), [case["case"] for case in cases])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the loss")
    axes.legend(fontsize="small", ncols=len(PHASES))
    axes.spines[["top", "right"]].set_visible(False)


FIGURES = Section(
    "Pipelines",
    "Losing a peer",
    [
        Row(
            "recovery",
            f"VGG-11 at half width, a pipeline of four on 100 Mbit/s, {name}: seconds to the first batch",
            f"{{{name}, light/s:.1f}} s",
        )
        for name in FAILURES
    ],
)

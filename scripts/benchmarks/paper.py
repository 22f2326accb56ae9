"""Class sub-models with a twelfth of central training's work on each device, beside central training tuned alike.

The table of ``p2ptrain demo --paper``, a row a benchmark: real processes, every device's work counted by itself, all
included. Learning rate and augmentation are chosen for each way by validation samples, with a seed of their own, and
only then the test samples are looked at. What was run is kept in results/paper/paper.json: what was cut off goes on.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import REPOSITORY, Column, Sample, Settings
from benchmarks.rows import Row, Section
from p2ptrain.experiment import paper

LISTED = {
    "paper-digits": "a twelfth of central training's work on each device: spoken digits, DS-CNN (an hour)",
    "paper-speakers": "the same with 60 classes: words by speakers",
    "paper-vgg": "the same with a fifth of CIFAR-10 and VGG-11 (hours)",
    "paper-alexnet": "the same with AlexNet (hours)",
    "paper-disjoint": "the same with VGG-11 where no two devices share a class (hours)",
    "paper-cifar100": "the same with CIFAR-100, where P2PTRAIN_DATA has its binary version (a day)",
}
BASELINE = "central training of the whole model on all samples, tuned alike"
COLUMNS = (
    Column("accuracy", "accuracy, %"),
    Column("times_less", "central's work / a device's, least"),
    Column("group_times_less", "central's work / the group's"),
    Column("rate", "learning rate", 2),
)
KEPT = Path("results") / "paper"


class PaperBenchmark:
    """One row, as a benchmark. A repetition is a seed."""

    BASELINE = BASELINE
    COLUMNS = COLUMNS

    def __init__(self, row: paper.PaperRow) -> None:
        self._row = row

    def run(self, settings: Settings) -> Iterator[Sample]:
        row = self._row
        if settings.tiny:
            little = {"share": 10 * row.share, "epochs": (10,), "rates": (0.1,), "augments": ("none",)}
            row = dataclasses.replace(row, decays=(0.01,), **little)
        data = Path(os.environ.get("P2PTRAIN_DATA", REPOSITORY.parent / "shared" / "data"))
        table = paper.PaperTable(paper.Places(data, KEPT), lambda text: print(text, file=sys.stderr, flush=True))
        table.run([row], settings.repetitions.stop, paper.train)
        for run in table.final(row, settings.repetitions.stop):
            if run.seed in settings.repetitions:
                found = table.found(run)
                figures = {"accuracy": found["test"], "validation": found["val"], "rate": run.rate}
                if run.way == "group":
                    figures |= {"times_less": 1 / found["share"], "group_times_less": 1 / found["group_share"]}
                is_central = run.way == "central"
                yield Sample(f"{run.way}, {run.epochs} epochs", run.seed, figures, is_baseline=is_central)


NAMED = {row.name: PaperBenchmark(row) for row in paper.ROWS}

FIGURES = Section(
    "What comes out",
    "A twelfth of central training's work on each device",
    [
        Row(
            f"paper-{row.name}",
            f"{row.title}, 5 peers; central training: {epochs} epochs",
            f"{{group, {epochs} epochs/accuracy:.1f}} %",
            f"{{central, {epochs} epochs/accuracy:.1f}} %",
            (
                f"1/{{group, {epochs} epochs/times_less:.1f}}",
                f"1/{{group, {epochs} epochs/group_times_less:.1f}}",
            ),
        )
        for row in paper.ROWS
        for epochs in row.epochs
    ],
    header=("what", "assembled", "central, tuned alike", "a device's work of central's", "all devices'", "command"),
)

"""``tasks`` on CIFAR-10 with VGG-11: the model of real size, for a machine that has an hour or two."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import Sample, Settings
from benchmarks.tasks import BASELINE, COLUMNS, Workload, compare, data_file, plot

__all__ = ["BASELINE", "COLUMNS", "plot", "run"]


def run(settings: Settings) -> Iterator[Sample]:
    training = {"rounds": 1 if settings.tiny else 6, "batch_size": 64, "learning_rate": 0.05}
    job = {"model": {"name": "vgg11_bn"}, "training": training, "augment": True}
    subset = 500 if settings.tiny else 10
    yield from compare(Workload(f"images:{data_file('cifar10-images.zip')}", job, subset), settings)

"""``tasks`` on CIFAR-10 with VGG-11: the model of real size, for a machine that has an hour."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import Sample, Settings
from benchmarks.tasks import BASELINE, CENTRAL, COLUMNS, GOSSIP, TASKS, Workload, compare, data_file, plot

__all__ = ["BASELINE", "COLUMNS", "plot", "run"]


def run(settings: Settings) -> Iterator[Sample]:
    training = {"epochs_per_round": 0.2, "batch_size": 64, "learning_rate": 0.05, "schedule": "constant"}
    job = {"model": {"name": "vgg11_bn"}, "training": training, "augment": True}
    rounds = {CENTRAL: 20, GOSSIP: 80, TASKS: 370}
    train_s, subset = (8.0, 500) if settings.tiny else (200.0, 10)
    data = f"images:{data_file('cifar10-images.zip')}"
    yield from compare(Workload(data, job, train_s, rounds, subset), settings)

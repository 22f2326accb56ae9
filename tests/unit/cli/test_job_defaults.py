"""What a new job says that its author left open learns on the sets at hand."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import p2ptrain
from p2ptrain.cli.job import new
from p2ptrain.cli.shared.job_defaults import batch_size_for
from p2ptrain.config import Job, TrainingConfig
from p2ptrain.learning import evaluation
from p2ptrain.learning.data import load, open_source, select
from p2ptrain.learning.models import global_model
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.modes.jobs import load_job

DATA = Path(os.environ.get("P2PTRAIN_DATA", Path(p2ptrain.__file__).parents[2] / "shared" / "data"))


@pytest.mark.parametrize(
    ("kind", "num_samples", "rounds", "size"),
    [
        ("audio", 2430, 10, 16),
        ("audio", 6000, 10, 32),
        ("audio", 2430, 40, 64),
        ("audio", 50, 10, 16),
        ("image", 200, 10, 64),
        ("text", 10**6, 10, 64),
    ],
)
def test_small_batches_where_there_would_be_few_steps(kind: str, num_samples: int, rounds: int, size: int) -> None:
    assert batch_size_for(kind, num_samples, TrainingConfig(rounds=rounds)) == size


def validated(job: Job, data: str, share: int) -> float:
    """Accuracy on validation samples after all rounds, on one device with one of so many shares of the rest."""
    source = open_source(data).fitted(job.data)
    train = load(source, job.data, "train", select(source, job.data, "train", shard=f"1/{share}"))
    val = load(source, job.data, "val", select(source, job.data, "val"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = dataclasses.replace(job.training)
        steps = config.rounds * train.num_batches(config.batch_size)
        model = global_model(job, allow_user_code=False)
        trainer = LocalTrainer(model, config, num_classes=len(job.data.classes), total_steps=steps)
        rng = np.random.default_rng(0)
        for _ in range(config.rounds):
            for x, y in train.batches(rng, config.batch_size, augment=job.data.augment):
                trainer.step(x, y)
        batches = (val.tensors(slice(i, i + 256)) for i in range(0, len(val), 256))
        return evaluation.evaluate(trainer.model, batches, len(job.data.classes)).accuracy
    finally:
        torch.set_num_threads(before)


def job_of(data: str, folder: Path) -> Job:
    """All defaults."""
    new.main(["--data", data, "-o", str(folder / "job.toml")], standalone_mode=False)
    return load_job(folder / "job.toml")


def test_pictures_of_digits_are_learnt(tmp_path: Path) -> None:
    assert validated(job_of("digits", tmp_path), "digits", 2) > 0.9


@pytest.mark.slow
def test_spoken_digits_are_learnt(tmp_path: Path) -> None:
    """A third of them, in ten rounds, on one device."""
    path = DATA / "spoken-digits.zip"
    if not path.is_file():
        pytest.skip(f"no {path}; P2PTRAIN_DATA names the folder with the real data")
    accuracy = validated(job_of(f"audio:{path}", tmp_path), f"audio:{path}", 3)
    print(accuracy)
    assert accuracy > 0.7

"""How many passes a class sub-model makes in a round: equal work at most, fewer where validation samples say so."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import PeerId
from p2ptrain.learning.blocks.flops import training_flops
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.round_end import RoundEnd, equal_work
from p2ptrain.learning.training import schedule
from p2ptrain.modes.tasks import training as part_training
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.training import PartTraining

SHAPE = (1, 12, 12)
DATA = DataConfig(("a", "b", "c", "d"), SHAPE, mean=(0.4,), std=(0.3,))
NAMES = tuple(PeerId(f"peer{number:012d}") for number in range(3))
BATCHES = 5
"""Of a pass."""


def job(passes: float, epochs: float = 1.0, **training: Any) -> Job:
    config = TrainingConfig(**{"rounds": 3, "epochs_per_round": epochs, "batch_size": 8, **training})
    return Job(data=DATA, model=ModelConfig("lenet"), training=config, tables=(TasksConfig(passes=passes),))


def samples(seed: int, num: int = 8 * BATCHES, *, by_chance: bool = False) -> Dataset:
    """Each class is bright in a corner of its own; or nothing tells which one it is."""
    rng = np.random.default_rng(seed)
    y = np.arange(num) % 4
    x = rng.integers(0, 120, (num, *SHAPE), dtype=np.uint8)
    for i, label in enumerate(y):
        row, column = 6 * (label // 2), 6 * (label % 2)
        x[i, 0, row : row + 6, column : column + 6] += 0 if by_chance else 90
    return Dataset(x, y.astype(np.int64), DATA)


def training(work: Job, *, val: Dataset | None = None, data: Dataset | None = None) -> PartTraining:
    """Of one of three peers that all have all classes."""
    counts = (BATCHES * 2,) * 4
    plan = first_plan(work, [PeerSnapshot(name, 1e9, 0, counts, ()) for name in NAMES], NAMES[0])
    return PartTraining(work, Parts(work, plan), 0, data or samples(1), NAMES[0], val=val)


def steps_of_round(one: PartTraining) -> int:
    steps = 1
    while not one.step():
        steps += 1
    return steps


@pytest.mark.parametrize(
    ("losses", "ends_after"),
    [
        ([(0.9, 1.0), (0.8, 0.9), (0.7, 0.8), (0.6, 0.7), (0.1, 0.6)], None),
        ([(0.1, 1.0), (0.1, 1.1), (0.1, 1.2), (0.1, 1.3)], 3),
        ([(0.1, 1.0), (0.1, 1.1), (0.1, 0.9), (0.1, 1.0), (0.1, 0.95)], 5),
        ([(1.0, 1.0), (0.9, 1.1), (0.6, 1.2), (0.3, 1.3)], 4),
        ([(0.1, math.nan), (0.1, math.nan), (0.1, math.nan)], None),
    ],
    ids=["falls", "rises", "rises late", "not by heart yet", "no samples"],
)
def test_a_round_ends_when_the_validation_loss_has_stopped_falling(
    losses: list[tuple[float, float]], ends_after: int | None
) -> None:
    end = RoundEnd()
    near = [end.is_near(*each) for each in losses]
    assert near.index(True) + 1 == ends_after if ends_after else not any(near)


@pytest.mark.parametrize("passes", [0.0, 1000.0])
def test_no_more_passes_than_equal_work_allows(passes: float) -> None:
    one = training(job(passes))
    plan = first_plan(job(passes), [PeerSnapshot(name, 1e9, 0, (9,) * 4, ()) for name in NAMES], NAMES[0])
    parts = Parts(job(passes), plan)
    whole, part = (training_flops(model, SHAPE).total for model in (parts.model, parts.submodel(0)))
    ratio = equal_work(parts.whole_flops(), parts.flops(0))
    assert ratio == pytest.approx(whole / part) and 4 < ratio < 1 / plan.parts[0].share ** 2
    assert BATCHES * whole - part < steps_of_round(one) * part < BATCHES * whole + part


def test_a_number_of_passes_is_kept_to() -> None:
    assert steps_of_round(training(job(2.0), val=samples(2))) == 2 * BATCHES
    assert steps_of_round(training(job(1.0), val=samples(2))) == BATCHES


def test_what_was_learnt_by_heart_ends_the_round_early() -> None:
    """Nothing tells the classes of these samples: what is learnt of them is of no use for others."""
    most = steps_of_round(training(job(0.0)))
    val, data = samples(2, by_chance=True), samples(1, by_chance=True)
    one = training(job(0.0, optimizer="adamw", learning_rate=0.01), val=val, data=data)
    steps = [steps_of_round(one) for _ in range(3)]
    assert min(steps) < most and all(number % BATCHES == 0 or number == most for number in steps)
    assert one.finished and one.trainer.num_steps == one.trainer.total_steps


def test_the_learning_rate_is_that_of_the_round_however_early_the_last_one_ended(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(RoundEnd, "is_near", lambda self, training_loss, validation_loss: True)
    one = training(job(0.0), val=samples(2))
    assert steps_of_round(one) == BATCHES and one.round == 1
    expected = schedule(TrainingConfig(), one.trainer.total_steps // 3, one.trainer.total_steps)
    assert one.trainer.learning_rate == pytest.approx(one.trainer.config.learning_rate * expected, rel=0.02)


def test_a_round_has_the_passes_of_a_whole_model_at_least(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(RoundEnd, "is_near", lambda self, training_loss, validation_loss: True)
    assert steps_of_round(training(job(0.0, epochs=2.5), val=samples(2))) == 3 * BATCHES
    assert steps_of_round(training(job(0.0))) > 4 * BATCHES  # without samples to look at it never ends early


def test_who_resumes_from_a_snapshot_ends_its_rounds_alike() -> None:
    torch.set_num_threads(1)
    val, data = samples(2, by_chance=True), samples(1, by_chance=True)
    work = job(0.0, optimizer="adamw", learning_rate=0.01)
    straight = training(work, val=val, data=data)
    steps_of_round(straight)
    resumed = training(work, val=val, data=data)
    resumed.restore(*straight.snapshot(), own=True)
    assert [steps_of_round(straight) for _ in range(2)] == [steps_of_round(resumed) for _ in range(2)]
    for name, tensor in straight.trainer.model.state_dict().items():
        assert torch.equal(tensor, resumed.trainer.model.state_dict()[name])


def test_the_loss_on_validation_samples_is_of_the_classes_that_are_trained() -> None:
    work = job(0.0)
    data = samples(1)
    some = data.subset(np.flatnonzero(data.y < 2))
    one = training(dataclasses.replace(work), data=some)
    few = samples(2)
    both, half = (one.trainer.loss_on([each.tensors()]) for each in (few, few.subset(np.flatnonzero(few.y < 2))))
    assert both == pytest.approx(half, rel=1e-5) and 0 < half < 2
    assert math.isnan(one.trainer.loss_on([few.subset(np.flatnonzero(few.y > 1)).tensors()]))


def test_the_batches_of_the_looks_are_all_validation_samples(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(part_training, "VAL_BATCH", 7)
    one = training(job(0.0), val=samples(2, 20))
    assert [len(y) for _, y in one._val_batches()] == [7, 7, 6]

"""What a round says of itself: the mean of its losses, nothing where none is known, else an error."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from p2ptrain.config import DataConfig, Job, ModelConfig, ModeTable, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.learning.data import Dataset
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.training import PartTraining

DATA = DataConfig(("a", "b", "c", "d"), (1, 12, 12), mean=(0.4,), std=(0.3,))
NAMES = tuple(PeerId(f"peer{number:012d}") for number in range(2))


def training(
    num: int = 20, *, batch_size: int = 8, classes: int = 4, model: str = "lenet", tables: tuple[ModeTable, ...] = ()
) -> PartTraining:
    config = TrainingConfig(rounds=3, batch_size=batch_size, learning_rate=0.01)
    work = Job(mode="replicas", data=DATA, model=ModelConfig(model), training=config, tables=tables)
    plan = first_plan(work, [PeerSnapshot(name, 1e9, 0, (9,) * 4, ()) for name in NAMES], NAMES[0])
    x = np.random.default_rng(4).integers(0, 256, (num, 1, 12, 12), np.uint8)
    data = Dataset(x, np.arange(num) % classes, DATA)
    return PartTraining(work, Parts(work, plan), 0, data, NAMES[0])


def test_the_loss_of_a_round_is_the_mean_over_its_samples() -> None:
    one = training()
    assert math.isnan(one.last_loss)
    losses, sizes, step = [], [], one.trainer.step

    def noted(x: torch.Tensor, y: torch.Tensor) -> float | None:
        losses.append(step(x, y))
        sizes.append(len(y))
        return losses[-1]

    one.trainer.step = noted  # type: ignore[method-assign]
    for _ in range(2):
        losses.clear()
        sizes.clear()
        while not one.step():
            pass
        assert sizes == [8, 8, 4]
        assert one.last_loss == pytest.approx(np.average(losses, weights=sizes))


def test_after_a_restart_no_loss_is_known() -> None:
    one, other = training(), training()
    while not one.step():
        pass
    other.restore(*one.snapshot(), own=True)
    assert other.round == 1 and math.isnan(other.last_loss)


def test_the_last_snapshot_has_no_optimizers_state_and_can_be_gone_back_to() -> None:
    one, other = training(), training()
    while not one.step():
        pass
    assert any(name.startswith("optim.") for name in one.snapshot()[0])
    while not one.finished:
        one.step()
    tensors, metadata = one.snapshot()
    assert tensors and all(name.startswith("model.") for name in tensors)
    other.restore(tensors, metadata, own=True)
    assert other.finished and other.masses == one.masses
    for name, tensor in other.trainer.model.state_dict().items():
        assert torch.equal(tensor, tensors[f"model.{name}"])


def test_of_a_single_class_there_is_no_loss_to_tell() -> None:
    one = training(classes=1)
    while not one.step():
        pass
    assert math.isnan(one.last_loss) and one.trainer.num_samples == 20


def test_a_round_in_which_nothing_was_learnt_is_an_error() -> None:
    one = training(num=1, model="dscnn")
    with pytest.raises(UserError, match=r"round 1 of part 0: nothing was learnt: .*raise training.batch_size"):
        one.step()
    one = training(num=16)
    one._data = dataclasses.replace(one._data, contract=dataclasses.replace(DATA, mean=(math.nan,)))
    one.step()
    with pytest.raises(UserError, match=r"not a finite number in any of 2 steps; lower training.learning_rate"):
        one.step()


def test_batches_that_teach_nothing_are_counted() -> None:
    one = training(num=16)
    good = one._data
    one._data = dataclasses.replace(good, contract=dataclasses.replace(DATA, mean=(math.nan,)))
    one.step()
    one._data, one._batches = good, good.batches(np.random.default_rng(0), 8)
    assert one.step() and one.num_skipped == 1 and math.isfinite(one.last_loss)
    while not one.step():
        assert one.num_skipped == 0
    assert one.round == 2 and one.num_skipped == 0


def test_batches_of_one_are_refused_where_the_model_takes_statistics_from_them() -> None:
    with pytest.raises(UserError, match=r"training.batch_size: 1, and the model has batch normalisation"):
        training(batch_size=1, model="dscnn")
    training(num=2, batch_size=1).step()


def test_the_round_under_way_is_the_last_one_when_the_group_stops() -> None:
    one = training()
    one.step()
    one.finish_round()
    assert not one.finished
    while not one.step():
        pass
    assert one.finished and one.round == 1
    between = training()
    between.finish_round()
    assert not between.finished, "there is one round at least"
    while not between.step():
        pass
    later = training()
    later.restore(*between.snapshot(), own=True)
    assert not later.finished, "nothing of it is kept"
    later.finish_round()
    assert later.finished and later.round == 1

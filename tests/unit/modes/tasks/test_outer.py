"""Outer Nesterov momentum: the steps of torch's own, DiLoCo's mean whoever averages with whom, and none for merges."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from test_part_rounds import training
from torch import Tensor

from p2ptrain.config import Job
from p2ptrain.errors import JobError, RemoteError
from p2ptrain.learning.averaging import merge
from p2ptrain.modes.tasks.averaging.outer import PREFIX, OuterNesterov
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.training import PartTraining

RATE, MOMENTUM = 0.7, 0.9
NESTEROV = TasksConfig(outer="nesterov", outer_rate=RATE, outer_momentum=MOMENTUM, exchange_every=2)


def random_state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(5, 3, generator=generator, dtype=torch.float64)}


class Reference:
    """DiLoCo in one process: torch's SGD with Nesterov momentum, of the mean of all changes."""

    def __init__(self, start: Tensor) -> None:
        self.x = start.clone().requires_grad_()
        self._optimizer = torch.optim.SGD([self.x], lr=RATE, momentum=MOMENTUM, nesterov=True)

    def step(self, change: Tensor) -> Tensor:
        self.x.grad = -change
        self._optimizer.step()
        return self.x.detach()


def test_the_steps_are_those_of_torchs_nesterov_momentum() -> None:
    model = random_state(0)
    reference, outer = Reference(model["w"]), OuterNesterov(model, RATE, MOMENTUM)
    for seed in range(1, 7):
        change = random_state(seed)["w"]
        model["w"] += change
        outer.step()
        torch.testing.assert_close(model["w"], reference.step(change))


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_peers_that_average_by_pairs_is_dilocos_model(seed: int) -> None:
    """Whatever each learns from, whoever exchanges with whom, and at whatever time between two steps."""
    rng = random.Random(seed)
    models = [random_state(0) for _ in range(5)]
    outers = [OuterNesterov(model, RATE, MOMENTUM) for model in models]
    reference = Reference(models[0]["w"])
    for number in range(1, 9):
        before = torch.stack([model["w"] for model in models]).mean(0)
        for peer, model in enumerate(models):
            for step in range(3):
                model["w"] += random_state(100 * number + 10 * peer + step)["w"] - 0.1 * model["w"]
                if rng.random() < 0.5:
                    swap(models, outers, rng)
        change = torch.stack([model["w"] for model in models]).mean(0) - before
        for outer in outers:
            outer.step()
        for _ in range(rng.randrange(3)):
            swap(models, outers, rng)
        mean = torch.stack([model["w"] for model in models]).mean(0)
        torch.testing.assert_close(mean, reference.step(change))


def swap(models: list[dict[str, Tensor]], outers: list[OuterNesterov], rng: random.Random) -> None:
    one, other = rng.sample(range(len(models)), 2)
    copies = [{name: tensor.clone() for name, tensor in models[peer].items()} for peer in (one, other)]
    for peer, copy in ((one, copies[1]), (other, copies[0])):
        with outers[peer].merging():
            merge(models[peer], copy, 1.0, 1.0)


def test_what_a_merge_changes_is_no_training() -> None:
    model = random_state(0)
    outer = OuterNesterov(model, RATE, MOMENTUM)
    with outer.merging():
        merge(model, random_state(1), 1.0, 3.0)
    with pytest.raises(RuntimeError), outer.merging():
        raise RuntimeError("a merge that failed")
    merged = model["w"].clone()
    outer.step()
    torch.testing.assert_close(model["w"], merged)


def of_replicas(table: TasksConfig = NESTEROV) -> PartTraining:
    return training(tables=(table,))


def until_round(one: PartTraining, number: int) -> PartTraining:
    while one.round < number:
        one.step()
    return one


@pytest.mark.parametrize("saved_after", [1, 2])
def test_training_from_a_snapshot_goes_on_as_if_it_had_not_stopped(saved_after: int) -> None:
    """Between two outer steps, and right after one."""
    one, other = until_round(of_replicas(), saved_after), of_replicas()
    tensors, metadata = one.snapshot()
    assert sum(name.startswith(PREFIX) for name in tensors) == 2 * len(list(one.trainer.model.parameters()))
    other.restore(tensors, metadata, own=True)
    for name, tensor in until_round(other, 3).trainer.model.state_dict().items():
        assert torch.equal(tensor, until_round(one, 3).trainer.model.state_dict()[name])
    assert not any(name.startswith(PREFIX) for name in one.snapshot()[0]), "nothing goes on from the last one"


def test_the_outer_step_comes_every_so_many_rounds() -> None:
    plain, outer = of_replicas(TasksConfig()), of_replicas()
    same = [
        all(
            map(
                torch.equal,
                until_round(plain, n).trainer.model.parameters(),
                until_round(outer, n).trainer.model.parameters(),
            )
        )
        for n in (1, 2)
    ]
    assert same == [True, False]


def test_a_snapshot_that_does_not_fit_is_refused() -> None:
    one = until_round(of_replicas(), 1)
    tensors, metadata = one.snapshot()
    names = itertools.cycle(sorted(name for name in tensors if name.startswith(PREFIX)))
    for changed in (
        {next(names): torch.full((1,), 1.0)},
        {f"{PREFIX}else.w": torch.ones(1)},
        {name: tensors[name] * float("nan") for name in [next(names)]},
    ):
        with pytest.raises(RemoteError):
            of_replicas().restore(tensors | changed, metadata, own=False)
    other = of_replicas()
    other.restore({n: t for n, t in tensors.items() if not n.startswith(PREFIX)}, metadata, own=False)
    assert other.round == 1, "of a peer that has none: the outer steps begin anew"


def test_class_sub_models_have_no_outer_optimizer() -> None:
    job = Job(mode="tasks", tables=(NESTEROV,))
    with pytest.raises(JobError, match=r"tasks\.outer"):
        NESTEROV.check(job, "job.toml")
    NESTEROV.check(dataclasses.replace(job, mode="replicas"), "job.toml")

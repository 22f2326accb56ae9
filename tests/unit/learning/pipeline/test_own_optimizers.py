"""An own optimizer in a pipeline trains what one process would, wherever it is cut; which can't be divided is told."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from own_optimizers import DIVISIBLE
from pipeline_group import CONFIG, SEED, Cut, Group, builder, cuts, pipeline, same
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import JobError, RemoteError
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.own.divisible import check_divisible
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.snapshots import cut_anew
from p2ptrain.learning.training import schedule

RATES = {"adam": 0.005, "counted": 0.01, "factored": 0.02, "plain": 0.1}
THREE: list[Cut] = cuts("lenet", ((8,), (3, 5), (8,)))
ONE: list[Cut] = [(4, (8,))]


def config(name: str, **changes: object) -> TrainingConfig:
    rate = RATES.get(name, 0.05)
    return dataclasses.replace(CONFIG, own_optimizer=f"own_optimizers:{name}", learning_rate=rate, **changes)  # type: ignore[arg-type]


def in_plain_torch(name: str, group: Group, steps: int) -> dict[str, Tensor]:
    """The same batches in one process."""
    settings, model = config(name), builder("lenet")().train()
    optimizer = DIVISIBLE[name](list(model.parameters()), settings.learning_rate)
    stream = SampleStream(group.data["0a"], seed=SEED, peer_name="0a", augment=False)
    for step in range(steps):
        for each in optimizer.param_groups:
            each["lr"] = settings.learning_rate * schedule(settings, step, settings.rounds * 5)
        optimizer.zero_grad()
        for _ in range(group.plan.num_micro_batches):
            x, y = stream.draw(8)
            (training_loss(model(x), y) / group.plan.num_micro_batches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", DIVISIBLE)
def test_a_pipeline_with_it_trains_what_one_process_would(name: str) -> None:
    group = Group("lenet", pipeline(THREE), config(name)).run(4)
    state = group.state()
    for key, tensor in in_plain_torch(name, group, 4).items():
        torch.testing.assert_close(state[f"model.{key}"], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVISIBLE)
def test_what_it_remembers_goes_along_when_blocks_change_hands(name: str) -> None:
    """To the bit, as pieces and as pieces that are cut anew."""
    whole = Group("lenet", pipeline(ONE), config(name)).run(5)
    half = Group("lenet", pipeline([*THREE[:1], (4, (8,))]), config(name)).run(3)
    pieces = [peer.snapshot() for peer in half.peers.values()]
    anew = cut_anew(half.chain, pieces, [(0, 2), (2, 3), (3, 4)], config(name).optimizer_name, 3)
    for given in (pieces, anew):
        other = Group("lenet", pipeline([(2, (8,)), (4, (8,))]), config(name))
        for peer in other.peers.values():
            peer.restore(given, 3)
        assert same(other.run(5).state(), whole.state())


def test_state_that_it_would_not_have_made_is_refused() -> None:
    group = Group("lenet", pipeline(ONE), config("counted")).run(2)
    tensors, metadata = group.peers["0a"].snapshot()
    count, mean = "optim.count.fc1.bias", "optim.exp_avg.fc1.bias"
    assert tensors[count].dtype == torch.int64 and int(tensors[count]) == 2
    bad: list[dict[str, Tensor]] = [
        tensors | {count: torch.tensor(2.0)},
        tensors | {count: torch.tensor([2])},
        tensors | {mean: tensors[mean][:-1]},
        tensors | {mean: torch.full_like(tensors[mean], math.inf)},
        tensors | {"optim.more.fc1.bias": tensors[mean]},
        {key: tensor for key, tensor in tensors.items() if key != count},
    ]
    before = group.state()
    for odd in bad:
        with pytest.raises(RemoteError):
            group.peers["0a"].restore([(odd, metadata)], 2)
    with pytest.raises(RemoteError, match="this optimizer"):
        group.peers["0a"].restore([(tensors, metadata | {"optimizer": "own_optimizers:adam"})], 2)
    assert same(group.state(), before)
    group.peers["0a"].restore([({k: t for k, t in tensors.items() if k.startswith("model.")}, metadata)], 2)
    assert not any(key.startswith("optim.") for key in group.state()), "it begins anew"


@pytest.mark.parametrize("name", DIVISIBLE)
def test_which_can_be_divided_is_tried(name: str) -> None:
    before = torch.random.get_rng_state()
    check_divisible(config(name))
    check_divisible(CONFIG)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("together", "can't be divided among devices"),
        ("grouped", "can't be divided among devices"),
        ("by_place", "can't be divided among devices"),
        ("listing", "remembers 'all' of a parameter, a list"),
        ("growing", "as 'last' is not as it was after its first step"),
        ("lbfgs", "called without a closure"),
    ],
)
def test_which_can_not_be_divided_is_told(name: str, why: str) -> None:
    with pytest.raises(JobError, match=why):
        check_divisible(config(name))

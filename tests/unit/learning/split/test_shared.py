"""Units that train one model step by step: what one process would on all samples together, whatever the cuts."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from own_optimizers import DIVISIBLE
from pipeline_group import SEED, builder
from split_group import NUM_MICRO_BATCHES, SplitGroup, state_of
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import RemoteError
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.split.draws import Draws, micro_batches
from p2ptrain.learning.training import schedule

SGD = TrainingConfig(rounds=3, learning_rate=0.05)
ADAMW = TrainingConfig(rounds=3, optimizer="adamw", learning_rate=0.002)
COUNTS = {"anna": 24, "ben": 40, "cleo": 5, "hal": 32}
BATCH = 20
ROOMS = {
    "one helper": ({"anna": ("ida", 1), "ben": ("ida", 2), "cleo": ("ida", 3)}, "ida"),
    "a helper with samples": ({"anna": ("hal", 2), "ben": ("hal", 1), "hal": ("", 0)}, "hal"),
    "two helpers": ({"anna": ("hal", 1), "ben": ("ida", 2), "cleo": ("ida", 3), "hal": ("", 0)}, "ida"),
    "all alone": ({"anna": ("", 0), "ben": ("", 0), "cleo": ("", 0)}, "ben"),
    "an owner collects": ({"anna": ("ida", 1), "ben": ("", 0)}, "anna"),
}


def centrally(name: str, group: SplitGroup, config: TrainingConfig, rounds: int) -> dict[str, Tensor]:
    """The same steps in one process, in plain torch, on all samples together."""
    counts = {owner: COUNTS[owner] for owner in group.data}
    draws = Draws(counts, BATCH, seed=SEED)
    streams = {o: SampleStream(d, seed=SEED, peer_name=o, augment=False) for o, d in group.data.items()}
    model = builder(name)().train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if config.own_optimizer:
        optimizer = DIVISIBLE[config.own_optimizer.partition(":")[2]](list(model.parameters()), config.learning_rate)
    elif config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(config.momentum, 0.999))
    else:
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=True)
    total = config.rounds * draws.steps_per_round
    for number in range(rounds):
        for owner, stream in streams.items():
            stream.drawn = number * counts[owner]
        for at, rows in enumerate(draws.of_round(number)):
            step = number * draws.steps_per_round + at
            for settings in optimizer.param_groups:
                settings["lr"] = config.learning_rate * schedule(config, step, total)
            drawn = [
                streams[owner].draw(num)
                for owner, given in rows.items()
                for num in micro_batches(given, NUM_MICRO_BATCHES)
            ]
            x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
            assert len(x) == BATCH
            optimizer.zero_grad()
            training_loss(model(x), y, config.label_smoothing).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", ["lenet", "gpt_mini"])
def test_steps_of_all_are_central_steps(name: str, room: str, config: TrainingConfig) -> None:
    cuts, collector = ROOMS[room]
    group = SplitGroup(name, cuts, COUNTS, config, collector=collector, batch_size=BATCH)
    pieces: list[Snapshot] = []
    for number in range(2):
        pieces = group.round(number, pieces)
    expected, found = centrally(name, group, config, 2), state_of(pieces)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        # A bias on attention's keys changes no output, so its gradient is rounding only, which AdamW makes larger.
        atol = 2e-5 if key.endswith("qkv.bias") else 2e-6
        torch.testing.assert_close(found[key], tensor, rtol=2e-4, atol=atol)


@pytest.mark.parametrize("name", ["counted", "factored"])
def test_so_are_those_of_an_own_optimizer(name: str) -> None:
    cuts, collector = ROOMS["two helpers"]
    config = TrainingConfig(rounds=3, own_optimizer=f"own_optimizers:{name}", learning_rate=0.01)
    group = SplitGroup("lenet", cuts, COUNTS, config, collector=collector, batch_size=BATCH)
    found = state_of(group.round(1, group.round(0, [])))
    for key, tensor in centrally("lenet", group, config, 2).items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-4, atol=2e-6)


def test_any_order_of_arrival_gives_the_same_numbers() -> None:
    cuts, collector = ROOMS["two helpers"]
    states = []
    for order in range(3):
        group = SplitGroup("lenet", cuts, COUNTS, SGD, collector=collector, batch_size=BATCH, order=order)
        states.append(state_of(group.round(0, [])))
        assert group.most_held["anna"] <= 2 and group.most_held["ida"] <= 1
    for state in states[1:]:
        for key, tensor in states[0].items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("collector", ["", "ida"])
def test_the_loss_that_is_told_is_the_mean_of_the_round(collector: str) -> None:
    group = SplitGroup("lenet", {"anna": ("ida", 2)}, COUNTS, SGD, collector=collector, batch_size=8)
    ida = group.peers["ida"]
    for units in group.peers.values():
        units.begin(0, [])
    assert all(math.isnan(loss) for loss in ida.losses.values())
    stage, told = ida._stage if collector else ida._training["anna"]._stage, []
    apply = stage.apply
    stage.apply = lambda *args: (told.append(stage.loss), apply(*args))
    group.turn()
    assert len(told) == 3 and max(told) > min(told)
    assert ida.losses["anna"] == pytest.approx(sum(told) / 3)


def test_all_copies_of_a_block_are_equal_norms_included() -> None:
    cuts = {"anna": ("ida", 2), "ben": ("ida", 4), "cleo": ("hal", 7), "hal": ("", 0)}
    group = SplitGroup("resnet20", cuts, COUNTS, SGD, collector="ida", batch_size=BATCH)
    group.round(0, [])
    held: dict[str, Tensor] = {}
    for units in group.peers.values():
        for key, tensor in units.update()[0].items():
            if tensor.is_floating_point():
                assert torch.equal(held.setdefault(key, tensor), tensor), key
    assert len([key for key in held if key.endswith("running_var")]) > 15


def test_running_statistics_are_those_of_all_rows() -> None:
    """A step of one owner with a helper is that of the owner alone, norms and their statistics included."""
    states = []
    for cuts, collector in (({"anna": ("ida", 3)}, "ida"), ({"anna": ("", 0)}, "anna")):
        group = SplitGroup("resnet20", cuts, COUNTS, SGD, collector=collector, batch_size=BATCH)
        states.append(state_of(group.round(0, [])))
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_anywhere() -> None:
    group = SplitGroup("lenet", {"anna": ("ida", 2), "ben": ("", 0)}, COUNTS, SGD, collector="ida", batch_size=64)
    assert len(group.peers["ida"]._steps) == 0
    before = builder("lenet")().state_dict()
    ben = group.peers["ben"]
    real = ben._stage.close
    ben._stage.close = lambda share: (real(share), setattr(ben._stage, "bad", True))  # its gradient came out infinite
    for units in group.peers.values():
        units.begin(0, [])
    group.turn()
    for units in group.peers.values():
        assert units.done and units.num_samples == 0 and units.num_steps == 1
        tensors, _ = units.update()
        for key, tensor in tensors.items():
            if key.startswith("model."):
                assert torch.equal(tensor, before[key.removeprefix("model.")]), key


def test_draws_are_uniform_without_replacement_and_the_same_for_everyone() -> None:
    draws = Draws({"a": 700, "b": 200, "c": 100}, 50, seed=1)
    rounds = [draws.of_round(number) for number in range(3)]
    assert rounds == [Draws({"c": 100, "b": 200, "a": 700}, 50, seed=1).of_round(number) for number in range(3)]
    for steps in rounds:
        assert len(steps) == 20 and all(sum(rows.values()) == 50 for rows in steps)
        total: Counter[str] = Counter()
        for rows in steps:
            total.update(rows)
        assert total == {"a": 700, "b": 200, "c": 100}
    spread = [rows.get("a", 0) for rows in rounds[0]]
    assert 25 <= min(spread) < 35 < max(spread) <= 45  # about 35, hypergeometric: not always the same
    assert micro_batches(7, 3) == [3, 2, 2] and micro_batches(2, 8) == [1, 1] and micro_batches(0, 4) == []


def test_what_is_not_due_is_refused() -> None:
    cuts = {"anna": ("hal", 2), "ben": ("hal", 1), "hal": ("", 0)}
    group = SplitGroup("lenet", cuts, COUNTS, SGD, collector="hal", batch_size=BATCH)
    for units in group.peers.values():
        units.begin(0, [])
    hal, anna = group.peers["hal"], group.peers["anna"]
    (message,) = anna.advance()
    sent = message.tensors

    def give(to: object, *where: object, tensors: dict[str, Tensor] = sent) -> None:
        to.receive(StageMessage(*where, tensors))  # type: ignore[attr-defined, arg-type]

    for where, why in (
        (("ida", "forward", 0, 0, 0), "sends none here"),
        (("anna", "backward", 0, 0, 0), "sends none here"),
        (("anna", "forward", 2, 0, 0), "2 steps ahead"),
        (("anna", "forward", 0, 9, 0), "not due"),
        (("anna", "gather", 0, 0, 0), "sends none here"),
        (("hal", "reduce", 0, 0, 0), "sends none here"),
    ):
        with pytest.raises(RemoteError, match=why):
            give(hal, *where)
    with pytest.raises(RemoteError, match="rows"):
        give(hal, "anna", "forward", 0, 0, 0, tensors={name: tensor[:1] for name, tensor in sent.items()})
    give(hal, "anna", "forward", 0, 0, 0)
    with pytest.raises(RemoteError, match="forward of micro-batch 0"):
        give(hal, "anna", "forward", 0, 0, 0)
    with pytest.raises(RemoteError, match="too early"):
        give(anna, "hal", "norm", 0, 0, 0, tensors={"square": torch.ones(1, dtype=torch.float64)})
    for tensors, why in (
        ({"sum": torch.zeros(3)}, "numbers are due"),
        ({"sum": torch.full((1,), float("nan"))}, "are due|finite"),
        ({"other": torch.zeros(3)}, "is due"),
    ):
        with pytest.raises(RemoteError, match=why):
            give(hal, "anna", "reduce", 0, 0, 0, tensors=tensors)

"""Training in a pipeline: the same model as in one process, whatever the cuts, the shares and the order of arrival."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from pipeline_group import ADAMW, CONFIG, SEED, Group, builder, cuts, pipeline, same
from torch import nn

from p2ptrain.config import TrainingConfig
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.profiling.precision import bf16_supported, mixed
from p2ptrain.learning.training import schedule


def central(
    name: str,
    group: Group,
    config: TrainingConfig,
    steps: int,
    total: int,
    build: Callable[[], nn.Module] | None = None,
) -> tuple[nn.Module, float]:
    """The same batches in one process, in plain torch."""
    model = (build or builder(name))().train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(config.momentum, 0.999))
    else:
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=True)
    first = group.plan.stages[0]
    streams = [SampleStream(group.data[p], seed=SEED, peer_name=p, augment=False) for p in first.peers]
    loss = math.nan
    for step in range(steps):
        for settings in optimizer.param_groups:
            settings["lr"] = config.learning_rate * schedule(config, step, total)
        optimizer.zero_grad()
        loss = 0.0
        for _ in range(group.plan.num_micro_batches):
            drawn = [stream.draw(num) for stream, num in zip(streams, first.samples, strict=True)]
            x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
            with mixed(config, torch.device("cpu")):
                part = training_loss(model(x), y, config.label_smoothing) / group.plan.num_micro_batches
            part.backward()
            loss += part.item()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_norm)
        optimizer.step()
    return model, loss


@pytest.mark.parametrize("name", ["lenet", "gpt_mini"])
def test_in_bfloat16_it_rounds_no_more_than_one_process_would(name: str) -> None:
    """Between stages, of parameters and of losses everything is float32."""
    plan = pipeline(cuts(name, ((8,), (3, 5), (8,))))
    plain = dataclasses.replace(CONFIG, clip=1.0, warmup=0.5)
    mixed_config = dataclasses.replace(plain, precision="bf16")
    group = Group(name, plan, mixed_config).run(2)
    state = group.state()
    assert all(tensor.dtype != torch.bfloat16 for tensor in state.values())
    (exact, _), (rounded, loss) = (central(name, group, config, 2, 20) for config in (plain, mixed_config))

    def error(found: dict[str, torch.Tensor]) -> float:
        pairs = [(found[key], tensor) for key, tensor in exact.state_dict().items() if tensor.is_floating_point()]
        return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))

    own = error({key: state[f"model.{key}"] for key in exact.state_dict()})
    assert own <= 1.5 * error(rounded.state_dict()) + 1e-6
    assert (own > 1e-5) is bf16_supported(torch.device("cpu"))
    assert group.peers[group.plan.stages[-1].peers[-1]].last_loss == pytest.approx(loss, rel=0.02)


def test_in_bfloat16_without_flush() -> None:
    config = dataclasses.replace(CONFIG, precision="bf16")
    plan = pipeline(cuts("lenet", ((8,), (3, 5), (8,))))
    state = Group("lenet", plan, config, schedule="async").run(2).state()
    assert all(tensor.dtype != torch.bfloat16 and bool(tensor.isfinite().all()) for tensor in state.values())


SHARES = {
    "three": ((8,), (8,), (8,)),
    "first": ((5, 3), (8,), (8,)),
    "middle": ((8,), (3, 5), (8,)),
    "last": ((8,), (8,), (3, 5)),
    "all": ((1, 4, 3), (6, 2), (2, 6)),
}


@pytest.mark.parametrize("config", [CONFIG, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("name", ["lenet", "gpt_mini"])
def test_it_trains_what_one_process_would(
    name: str, shares: tuple[tuple[int, ...], ...], config: TrainingConfig
) -> None:
    group = Group(name, pipeline(cuts(name, shares)), config).run(20)
    model, loss = central(name, group, config, 20, 20)
    state = group.state()
    for key, tensor in model.state_dict().items():
        # A bias on attention's keys changes no output, so its gradient is rounding only, which AdamW makes larger.
        atol = 1e-5 if key.endswith("qkv.bias") else 1e-6
        torch.testing.assert_close(state[f"model.{key}"], tensor, rtol=1e-4, atol=atol)
    last = group.peers[group.plan.stages[-1].peers[-1]]
    assert last.last_loss == pytest.approx(loss, rel=1e-4) and math.isnan(group.peers["0a"].last_loss)
    assert all(peer.finished and peer.num_samples == 20 * 32 for peer in group.peers.values())


@pytest.mark.parametrize("schedule", ["sync", "async"])
@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_any_order_of_arrival_gives_the_same_bits(name: str, schedule: str) -> None:
    plan = pipeline(cuts(name, ((3, 5), (2, 2, 4), (6, 2))))
    states = [Group(name, plan, order=order, schedule=schedule).run(4).state() for order in range(3)]
    assert all(same(states[0], state) for state in states[1:])


@pytest.mark.parametrize("warm_up", [(1, 1, 1), (3, 2, 1), (5, 3, 1), (6, 6, 6)])
def test_no_more_micro_batches_are_held_than_the_warm_up_allows(warm_up: tuple[int, ...]) -> None:
    plan = pipeline(cuts("lenet", ((8,), (3, 5), (8,))), units=6, warm_up=warm_up)
    for kind in ("sync", "async"):
        group = Group("lenet", plan, schedule=kind).run(5)
        for stage, depth in zip(plan.stages, warm_up, strict=True):
            assert all(group.most_held[peer] == depth for peer in stage.peers)
        assert all(peer.num_held == 0 for peer in group.peers.values())


def test_the_depth_of_the_warm_up_changes_no_bit() -> None:
    shares = ((8,), (3, 5), (8,))
    states = [
        Group("resnet20", pipeline(cuts("resnet20", shares), warm_up=depths)).run(3).state()
        for depths in ((1, 1, 1), (4, 3, 1), (4, 4, 4))
    ]
    assert same(states[0], states[1]) and same(states[0], states[2])


def test_peers_that_share_a_stage_have_the_same_running_statistics() -> None:
    group = Group("resnet20", pipeline(cuts("resnet20", ((5, 3), (2, 6), (4, 4)))))
    before = group.state()
    after = group.run(3).state()  # which compares the copies
    changed = [name for name in after if name.endswith(("running_mean", "running_var"))]
    assert len(changed) > 20 and not any(torch.equal(before[name], after[name]) for name in changed)
    counters = [tensor.item() for name, tensor in after.items() if name.endswith("num_batches_tracked")]
    assert set(counters) == {3 * 4}


def test_running_statistics_of_a_share_count_by_its_rows() -> None:
    plan = pipeline(cuts("resnet20", ((2, 6), (8,), (8,))), units=1)
    group = Group("resnet20", plan).run(1)
    expected = torch.zeros(4)
    for peer, num in (("0a", 2), ("0b", 6)):
        x, _ = SampleStream(group.data[peer], seed=SEED, peer_name=peer, augment=False).draw(num)
        model = builder("resnet20")().train()
        model(x)
        expected = expected + model.state_dict()["bn1.running_mean"] * (num / 8)
    assert torch.allclose(group.state()["model.bn1.running_mean"], expected, atol=1e-6)


def test_what_was_computed_is_counted_and_timed() -> None:
    group = Group("lenet", pipeline(cuts("lenet", ((8,), (3, 5), (8,))), units=3)).run(2)
    for peer in group.peers.values():
        used = peer.use()
        assert (used.num_forward, used.num_backward, used.batches) == (6, 6, 2)
        assert used.forward_s > 0 and used.backward_s > 0 and used.busy_s >= used.forward_s + used.backward_s
        assert peer.use().num_forward == 0


def test_a_pass_seeds_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed formats the call stack for devices that may come into use, which takes longer than a pass."""
    group = Group("gpt_mini", pipeline(cuts("gpt_mini", ((8,), (8,), (8,)))))

    def forbidden(seed: int) -> None:
        raise AssertionError("torch.manual_seed in a pass")

    monkeypatch.setattr(torch, "manual_seed", forbidden)
    assert math.isfinite(group.run(1).peers["2a"].last_loss)

"""The asynchronous pipeline: old weights where they are due, no more of them than must be, and a model that learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline_group import CONFIG, SEED, Group, builder, cuts, pipeline, samples
from torch import Tensor, nn

from p2ptrain.learning.data import Dataset
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.training import AVERAGE_EVERY
from p2ptrain.learning.training import schedule


def delayed(data: Dataset, steps: int, units: int, depth: int, total: int) -> dict[str, Tensor]:
    """One stage in plain torch: micro-batch v is differentiated at the weights that v - depth + 1 others have made."""
    model, stale = builder("lenet")(), builder("lenet")()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": CONFIG.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, momentum=CONFIG.momentum, nesterov=True)
    stream = SampleStream(data, seed=SEED, peer_name="0a", augment=False)
    versions: list[list[Tensor]] = []

    def keep() -> None:
        versions.append([p.detach().clone() for p in parameters])

    def seen(number: int) -> int:
        return max(0, (number - depth + 1) // units)

    keep()
    for step in range(steps):
        stale.zero_grad()
        for number in range(step * units, (step + 1) * units):
            with torch.no_grad():
                for parameter, value in zip(stale.parameters(), versions[seen(number)], strict=True):
                    parameter.copy_(value)
            x, y = stream.draw(8)
            (training_loss(stale(x), y) / units).backward()
        nn.utils.clip_grad_norm_(stale.parameters(), 5.0)
        for parameter, other in zip(parameters, stale.parameters(), strict=True):
            parameter.grad = other.grad
        for settings in optimizer.param_groups:
            settings["lr"] = CONFIG.learning_rate * schedule(CONFIG, step, total)
        optimizer.step()
        keep()
        if (step + 1) % AVERAGE_EVERY == 0:
            first = (step + 1) * units
            flying = {seen(number) for number in range(first, min(first + depth - 1, steps * units))}
            with torch.no_grad():
                for index, parameter in enumerate(parameters):
                    values = [versions[version][index] for version in (step + 1, *sorted(flying))]
                    parameter.copy_(torch.stack(values).mean(0))
            versions.pop()
            keep()
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("units", "depth"), [(1, 1), (1, 2), (2, 3), (3, 1), (3, 2), (3, 3), (4, 3), (4, 5)])
def test_gradients_are_those_at_the_weights_of_the_forward_pass(units: int, depth: int) -> None:
    plan = pipeline([(4, (8,))], units=units, warm_up=[depth])
    group = Group("lenet", plan, schedule="async", steps_per_round=25).run(15)
    expected = delayed(group.data["0a"], 15, units, depth, 100)
    state = group.state()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("units", "depths"), [(3, (3, 2, 1)), (3, (4, 3, 1)), (1, (2, 2, 1))])
def test_versions_of_the_weights_are_as_few_as_micro_batches_in_flight_need(
    units: int, depths: tuple[int, ...]
) -> None:
    plan = pipeline(cuts("lenet", ((8,), (3, 5), (8,))), units=units, warm_up=depths)
    group = Group("lenet", plan, schedule="async", steps_per_round=10)
    most = dict.fromkeys(group.peers, 0)
    for peer in group.peers.values():
        peer.stop_at = 10
    while any(peer.step < 10 for peer in group.peers.values()):
        group.turn(1)
        for name, peer in group.peers.items():
            assert peer.num_versions <= peer.num_held <= plan.stages[int(name[0])].warm_up
            most[name] = max(most[name], peer.num_versions)
    assert most == {"0a": 2, "1a": 2, "1b": 2, "2a": 1}
    assert all(peer.num_versions == 0 for peer in group.peers.values())


def test_the_pipeline_runs_on_from_batch_to_batch_and_is_empty_after_a_round() -> None:
    plan = pipeline(cuts("lenet", ((8,), (8,), (8,))), units=3, warm_up=(3, 2, 1))
    group = Group("lenet", plan, schedule="async", steps_per_round=4)
    ahead: set[int] = set()
    while any(peer.step < 8 for peer in group.peers.values()):
        for peer in group.peers.values():
            peer.stop_at = 8
        group.turn(1)
        steps = [peer.step for peer in group.peers.values()]
        ahead.add(max(message.step for _, message in group.pending) - min(steps) if group.pending else 0)
        assert max(steps) // 4 - min(steps) // 4 <= 1
    assert 1 in ahead


def test_it_learns_as_the_synchronous_one_does() -> None:
    data = samples("lenet", 0, num=320)
    pixels = data.x.reshape(320, -1).astype(np.float32)
    teacher = np.random.default_rng(1).standard_normal((64, 5))
    scores = (pixels - pixels.mean(0)) @ teacher
    learnable = Dataset(data.x, scores.argmax(1), data.contract)
    plan = pipeline(cuts("lenet", ((8,), (3, 5), (8,))), units=4, warm_up=(4, 3, 1))
    losses = {}
    for kind in ("sync", "async"):
        group = Group("lenet", plan, data={"0a": learnable}, schedule=kind, steps_per_round=20)
        losses[kind] = [group.run(steps).peers["2a"].last_loss for steps in (20, 40, 60, 80)]
    assert losses["async"][-1] < 0.8 * losses["async"][0] and losses["async"][-1] < losses["sync"][-1] + 0.2


def test_a_stage_that_skips_a_batch_alone_can_be_gone_on_from() -> None:
    data = samples("lenet", 0)
    pixels = data.x.astype(np.float32)
    pixels[7] = np.nan
    plan = pipeline(cuts("lenet", ((8,), (8,), (8,))), units=2, warm_up=(2, 2, 1))
    group = Group("lenet", plan, data={"0a": Dataset(pixels, data.y, data.contract)}, schedule="async").run(5)
    done = {name: peer.num_samples for name, peer in group.peers.items()}
    assert done["0a"] < done["2a"] == 5 * 16  # the others got zeros for what was not finite
    assert all(bool(tensor.isfinite().all()) for tensor in group.state().values())
    pieces = [peer.snapshot() for peer in group.peers.values()]
    for peer in group.peers.values():
        peer.restore(pieces, 5)
        assert peer.num_samples == 5 * 16

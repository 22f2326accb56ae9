"""The group's fit of the head: the same as one peer with all samples, folded exactly, and good enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import LocalError, RemoteError, UserError
from p2ptrain.learning import head_fit
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.head_fit import (
    FitConfig,
    advance,
    begin,
    check_fit_state,
    features,
    gradient,
    join_columns,
    moments,
    plain_head,
)
from p2ptrain.learning.models import build_model
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.training import LocalTrainer

NUM_CLASSES = 4


def samples(n: int = 90, num_features: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, NUM_CLASSES, (n,), generator=generator)
    x = torch.randn(n, num_features, generator=generator) * torch.arange(1, num_features + 1) + y.unsqueeze(1) + 3
    return x, y


def random_head(num_features: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(NUM_CLASSES, num_features, generator=generator)
    return {"weight": weight, "bias": torch.randn(NUM_CLASSES, generator=generator)}


def whitened(state: dict[str, Tensor], x: Tensor) -> Tensor:
    centred = x - state["mean"]
    return centred @ state["whiten"] if state["whiten"].dim() == 2 else centred * state["whiten"]


def fit(
    head: dict[str, Tensor], peers: Sequence[tuple[Tensor, Tensor]], config: FitConfig, num_classes: int = NUM_CLASSES
) -> dict[str, Tensor]:
    state = begin(head, [moments(x, y, num_classes) for x, y in peers], config)
    for step in range(1, config.steps + 1):
        contributions = [gradient(state, x, y, step) for x, y in peers]
        state = advance(state, [(n, sums) for sums, n in contributions], step, config)
    return state


@pytest.fixture(params=["whitened", "standardised"])
def coordinates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "standardised":
        monkeypatch.setattr(head_fit, "MAX_WHITENED", 0)
    return request.param


@pytest.mark.parametrize("balanced", [False, True])
def test_three_peers_are_one_peer_with_all_samples(coordinates: str, balanced: bool) -> None:
    x, y = samples()
    config = FitConfig(steps=40, balanced=balanced)
    order = y.argsort(stable=True)  # disjoint classes, nearly
    shares = [order[:20], order[20:50], order[50:]]
    together = fit(random_head(), [(x, y)], config)
    apart = fit(random_head(), [(x[i], y[i]) for i in shares], config)
    for name in together:
        torch.testing.assert_close(apart[name], together[name], atol=2e-4, rtol=1e-3)


def test_the_folded_head_gives_the_same_logits(coordinates: str) -> None:
    x, y = samples()
    state = begin(random_head(), [moments(x, y, NUM_CLASSES)], FitConfig())
    head = random_head()
    expected = x @ head["weight"].T + head["bias"]
    in_coordinates = whitened(state, x) @ state["weight"].T + state["bias"]
    torch.testing.assert_close(in_coordinates, expected, atol=2e-3, rtol=1e-3)
    plain = plain_head(state)
    torch.testing.assert_close(x @ plain["weight"].T + plain["bias"], expected, atol=2e-3, rtol=1e-3)


def test_gradients_are_those_of_autograd(coordinates: str) -> None:
    x, y = samples()
    state = begin(random_head(), [moments(x, y, NUM_CLASSES)], FitConfig(balanced=True))
    sums, n = gradient(state, x, y, 1)
    weight, bias = state["weight"].clone().requires_grad_(), state["bias"].clone().requires_grad_()
    losses = nn.functional.cross_entropy(whitened(state, x) @ weight.T + bias, y, reduction="none")
    loss = (losses * state["class_weight"][y]).sum()
    loss.backward()
    assert n == 90
    torch.testing.assert_close(sums["weight"], weight.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sums["bias"], bias.grad, atol=1e-3, rtol=1e-3)
    assert float(sums["loss"]) == pytest.approx(loss.item(), rel=1e-4)


def test_a_class_that_nobody_can_show_takes_little_from_others(coordinates: str) -> None:
    """Its weights stay; its bias falls until it takes what two fitted classes take of others' samples. Peers add up."""
    torch.manual_seed(3)
    x, y = samples()
    head = {"weight": torch.cat([random_head()["weight"], torch.randn(1, 6)]), "bias": torch.zeros(NUM_CLASSES + 1)}
    head["bias"][-1] = 8.0  # takes everything
    config = FitConfig(steps=60)
    state = fit(head, [(x, y)], config, NUM_CLASSES + 1)
    before, after = head, plain_head(state)
    torch.testing.assert_close(after["weight"][-1], before["weight"][-1], atol=1e-3, rtol=1e-3)
    chances = (x @ after["weight"].T + after["bias"]).softmax(1)
    taken, wrong = float(chances[:, -1].mean()), float(1 - torch.exp(-state["loss"]))
    assert 1.0 < taken / (wrong / NUM_CLASSES) < 1.1 * head_fit.MAY_TAKE
    apart = fit(head, [(x[:40], y[:40]), (x[40:], y[40:])], config, NUM_CLASSES + 1)
    torch.testing.assert_close(apart["bias"], state["bias"], atol=1e-3, rtol=1e-3)


def test_a_class_that_nobody_can_show_and_that_takes_nothing_stays_as_it_is() -> None:
    x, y = samples()
    head = {"weight": torch.cat([random_head()["weight"], torch.zeros(1, 6)]), "bias": torch.zeros(NUM_CLASSES + 1)}
    head["bias"][-1] = -30.0
    state = fit(head, [(x, y)], FitConfig(steps=20), NUM_CLASSES + 1)
    assert float(plain_head(state)["bias"][-1]) == pytest.approx(-30.0, abs=1e-3)


def test_dead_and_twin_features_do_no_harm() -> None:
    x, y = samples()
    x = torch.cat([x, x[:, :1], torch.zeros(90, 1)], 1)
    state = fit(random_head(8), [(x, y)], FitConfig(steps=50))
    head = plain_head(state)
    assert all(bool(tensor.isfinite().all()) for tensor in head.values())
    assert float(state["loss"]) < 1.4


def test_a_large_peer_takes_its_samples_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples()
    state = begin(random_head(), [moments(x, y, NUM_CLASSES)], FitConfig())
    whole, _ = gradient(state, x, y, 1)
    monkeypatch.setattr(head_fit, "MAX_ROWS", 30)
    thirds = [gradient(state, x, y, step) for step in (1, 2, 3)]
    assert all(n == 90 for _, n in thirds)
    torch.testing.assert_close(sum(s["weight"] for s, _ in thirds) / 3, whole["weight"], atol=1e-3, rtol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    x, y = samples()
    config = FitConfig()
    good = moments(x, y, NUM_CLASSES)
    state = begin(random_head(), [good], config)
    check_fit_state(state, NUM_CLASSES, 6)
    sums, n = gradient(state, x, y, 1)
    bad_moments = [{**good, "sum": torch.zeros(5, dtype=torch.float64)}, {"sum": good["sum"]}]
    bad_moments.append({**good, "square": good["square"] * float("nan")})
    for bad in bad_moments:
        with pytest.raises(RemoteError):
            begin(random_head(), [good, bad], config)
    for bad in ({**sums, "bias": torch.zeros(3)}, {**sums, "weight": sums["weight"] * float("inf")}, {}):
        with pytest.raises(RemoteError):
            advance(state, [(n, sums), (n, bad)], 1, config)
    for broken in ({**state, "more": torch.zeros(1)}, {**state, "mean": torch.zeros(7)}):
        with pytest.raises(RemoteError):
            check_fit_state(broken, NUM_CLASSES, 6)
    with pytest.raises(RemoteError):
        advance(state, [], 1, config)


def test_features_are_the_heads_inputs() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).train()
    x, y = torch.randn(10, 5), torch.arange(10)
    f, labels = features(model, "3", [(x[:4], y[:4]), (x[4:], y[4:])], dtype=torch.float16)
    assert f.dtype == torch.float16 and torch.equal(labels, y) and model.training
    torch.testing.assert_close(f.float(), model.eval()[:3](x), atol=1e-2, rtol=1e-2)
    assert not model[3]._forward_pre_hooks
    assert features(model, "3", [])[0].shape == (0, 3)
    with pytest.raises(UserError):
        features(model, "1", [])


def test_columns_go_where_the_global_head_reads_them() -> None:
    a, b = torch.ones(2, 2), torch.full((2, 1), 5.0)
    joined = join_columns([(a, torch.tensor([3, 0])), (b, torch.tensor([1]))], 4)
    assert joined.tolist() == [[1, 5, 0, 1]] * 2
    assert torch.equal(join_columns([(a, None)], 2), a)
    with pytest.raises(LocalError):
        join_columns([(a, torch.tensor([0]))], 4)


def test_digits_with_disjoint_classes_reach_central_accuracy() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    x, y = (x - x.mean()) / x.std(), torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    groups = [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=10, seed=0)
    decoupling = Decoupling(model, (1, 8, 8), groups)
    mine = [train[torch.isin(y[train], torch.tensor(own))] for own in groups]
    parts, submodels = {}, []
    for g, own in enumerate(groups):
        submodel = decoupling.submodel(g, "own", rescale=True)
        config = TrainingConfig(batch_size=32)
        trainer = LocalTrainer(submodel, config, num_classes=10, total_steps=150, targets="own", own_classes=own)
        generator = torch.Generator().manual_seed(g)
        for _ in range(150):
            batch = mine[g][torch.randint(0, len(mine[g]), (32,), generator=generator)]
            trainer.step(x[batch], y[batch])
        parts[g] = submodel.state_dict()
        submodels.append(submodel)
    assembled = decoupling.assemble(parts, targets="own")
    model.load_state_dict(assembled)
    side_by_side = evaluate(model, [(x[test], y[test])], 10).accuracy
    weight, bias = f"{decoupling.head}.weight", f"{decoupling.head}.bias"
    peers = []
    for own in mine:  # each peer runs all the frozen sub-models over its own samples only
        columns = [
            (features(s, decoupling.head, [(x[own], y[own])])[0], decoupling.view(g).axes[weight][1])
            for g, s in enumerate(submodels)
        ]
        peers.append((join_columns(columns, assembled[weight].shape[1]), y[own]))
    state = fit({"weight": assembled[weight], "bias": assembled[bias]}, peers, FitConfig(steps=200), 10)
    head = plain_head(state)
    model.load_state_dict(assembled | {weight: head["weight"], bias: head["bias"]})
    fitted = evaluate(model, [(x[test], y[test])], 10).accuracy
    assert side_by_side < 0.93 and fitted > 0.96

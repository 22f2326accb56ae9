"""Local training: loss over the right outputs, exact resume, and steps that must not count."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.profiling.precision import bf16_supported, is_mixed
from p2ptrain.learning.training import MAX_BAD_STEPS, DivergedError, LocalTrainer, schedule

MIXED = TrainingConfig(learning_rate=0.02, precision="bf16")


def small_model(num_outputs: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8 * 36, num_outputs),
        )


def batches(count: int, size: int = 12, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 6, 6, generator=generator), torch.randint(0, 4, (size,), generator=generator))
        for _ in range(count)
    ]


def trainer(optimizer: str = "sgd", **kwargs: object) -> LocalTrainer:
    config = TrainingConfig(optimizer=optimizer, learning_rate=0.02)  # type: ignore[arg-type]
    return LocalTrainer(kwargs.pop("model", small_model()), config, num_classes=4, total_steps=20, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_restoring_half_way_gives_the_same_bits(optimizer: str) -> None:
    data = batches(20)
    whole = trainer(optimizer)
    for x, y in data:
        whole.step(x, y)
    first = trainer(optimizer)
    for x, y in data[:10]:
        first.step(x, y)
    tensors, metadata = first.snapshot()
    for x, y in data[10:12]:
        first.step(x, y)  # the snapshot is a copy: training on does not change it
    second = trainer(optimizer, model=small_model(seed=9))
    second.restore(tensors, metadata)
    torch.rand(17)  # whatever else draws from the global generator does not matter
    for x, y in data[10:]:
        second.step(x, y)
    assert second.num_steps == whole.num_steps == 20
    assert second.num_samples == whole.num_samples
    a, b = whole.snapshot()[0], second.snapshot()[0]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("optim.") for name in a)


def test_training_lowers_the_loss() -> None:
    t = LocalTrainer(small_model(), TrainingConfig(learning_rate=0.05), num_classes=4, total_steps=60)
    (x, y), *_ = batches(1)
    losses = [t.step(x, y) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_every_target_has_its_own_loss() -> None:
    (x, y), *_ = batches(1, size=16)
    model = small_model(3)
    model[5].p = 0.0
    with torch.no_grad():
        z = model.train()(x)
    own = torch.tensor([1, 3])
    expected_rest = F.cross_entropy(z, torch.tensor([2, 0, 2, 1])[y])
    rest = trainer(model=model, targets="rest", own_classes=[1, 3])
    assert rest.step(x, y) == pytest.approx(float(expected_rest), rel=1e-5)
    model = small_model(2)
    model[5].p = 0.0
    kept = torch.isin(y, own)
    with torch.no_grad():
        expected_own = F.cross_entropy(model.train()(x[kept]), torch.tensor([-1, 0, -1, 1])[y[kept]])
    t = trainer(model=model, targets="own", own_classes=[1, 3])
    assert t.step(x, y) == pytest.approx(float(expected_own), rel=1e-5)
    assert t.num_samples == int(kept.sum())


def test_a_batch_without_own_samples_teaches_nothing() -> None:
    t = trainer(model=small_model(2), targets="own", own_classes=[1, 3])
    before = t.snapshot()[0]
    assert t.step(torch.randn(3, 3, 6, 6), torch.tensor([0, 2, 0])) is None
    assert t.step(torch.randn(1, 3, 6, 6), torch.tensor([1])) is None  # one sample, BatchNorm
    assert t.num_steps == 2
    assert all(torch.equal(a, b) for a, b in zip(before.values(), t.snapshot()[0].values(), strict=True))


def test_own_classes_are_checked() -> None:
    with pytest.raises(LocalError):
        trainer(targets="own", own_classes=[4])
    with pytest.raises(LocalError):
        trainer(targets="rest")


def test_a_step_that_is_not_finite_changes_nothing_and_many_raise() -> None:
    t = trainer()
    (x, y), *_ = batches(1)
    t.step(x, y)
    before = t.snapshot()[0]
    bad = torch.full_like(x, float("nan"))
    for _ in range(MAX_BAD_STEPS - 1):
        assert t.step(bad, y) is None
    assert t.num_bad_steps == MAX_BAD_STEPS - 1
    after = t.snapshot()[0]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert t.step(x, y) is not None  # a good step ends the run of bad ones
    for _ in range(MAX_BAD_STEPS - 1):
        t.step(bad, y)
    with pytest.raises(DivergedError, match="learning_rate"):
        t.step(bad, y)


def test_norms_and_biases_are_not_decayed() -> None:
    t = LocalTrainer(small_model(), TrainingConfig(weight_decay=0.1), num_classes=4, total_steps=5)
    decay = {id(p): g["weight_decay"] for g in t._optimizer.param_groups for p in g["params"]}
    for p in t.model.parameters():
        assert decay[id(p)] == (0.1 if p.dim() > 1 else 0.0)


def test_schedule_rises_then_falls_to_zero() -> None:
    rates = [schedule(TrainingConfig(), step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.25) and max(rates) == rates[3] == 1.0
    assert rates[100] == pytest.approx(0.0) and rates[50] == pytest.approx(0.5, abs=0.03)
    constant = TrainingConfig(schedule="constant")
    assert schedule(constant, 90, 100) == 1.0
    assert schedule(TrainingConfig(), 0, 1) > 0
    long = dataclasses.replace(constant, warmup=0.5)
    assert [schedule(long, step, 9) for step in range(5)] == pytest.approx([n / 5.5 for n in range(1, 6)])
    assert schedule(long, 5, 9) == 1.0 and schedule(dataclasses.replace(long, warmup=0.0), 0, 9) == 1.0


def test_a_snapshot_that_does_not_fit_is_the_other_sides_fault() -> None:
    t = trainer()
    t.step(*batches(1)[0])
    tensors, metadata = t.snapshot()
    before = t.snapshot()[0]
    broken = [
        ({**tensors, "other": torch.zeros(1)}, metadata),
        ({n: v for n, v in tensors.items() if n != "model.0.weight"}, metadata),
        ({**tensors, "model.0.weight": tensors["model.0.weight"] * float("nan")}, metadata),
        ({**tensors, "optim.momentum_buffer.0.weight": torch.zeros(2)}, metadata),
        ({**tensors, "optim.junk.0.weight": tensors["model.0.weight"]}, metadata),
        (tensors, {**metadata, "steps": "-3"}),
        (tensors, {}),
    ]
    for bad_tensors, bad_metadata in broken:
        with pytest.raises(RemoteError):
            t.restore(bad_tensors, bad_metadata)
        assert all(torch.equal(before[n], v) for n, v in t.snapshot()[0].items())


def test_another_number_of_steps_keeps_the_share_of_training_done() -> None:
    t = trainer()
    for x, y in batches(10):
        t.step(x, y)
    longer = LocalTrainer(small_model(), TrainingConfig(), num_classes=4, total_steps=200)
    longer.restore(*t.snapshot())
    assert longer.num_steps == 100


def test_bf16_only_where_the_processor_has_it() -> None:
    cpu = torch.device("cpu")
    assert is_mixed(MIXED, cpu) == bf16_supported(cpu) and not is_mixed(TrainingConfig(), cpu)
    assert not bf16_supported(torch.device("meta")) and not is_mixed(MIXED, torch.device("meta"))


def test_bf16_rounds_what_is_computed_and_nothing_that_is_kept() -> None:
    def trained(config: TrainingConfig) -> dict[str, Tensor]:
        t = LocalTrainer(small_model(), config, num_classes=4, total_steps=20)
        for x, y in batches(6):
            assert t.step(x, y) is not None
        return t.snapshot()[0]

    plain, rounded = trained(TrainingConfig(learning_rate=0.02)), trained(MIXED)
    assert all(tensor.dtype == plain[name].dtype for name, tensor in rounded.items())
    weights = [name for name in plain if name.startswith("model.") and plain[name].is_floating_point()]
    assert all(torch.allclose(plain[name], rounded[name], atol=0.02) for name in weights)
    same = all(torch.equal(plain[name], rounded[name]) for name in weights)
    assert same is not bf16_supported(torch.device("cpu"))


def test_long_gradients_are_scaled_down_or_not() -> None:
    def moved(clip: float) -> float:
        config = TrainingConfig(
            learning_rate=0.01, momentum=0.0, weight_decay=0.0, clip=clip, schedule="constant", warmup=0
        )
        t = LocalTrainer(small_model(), config, num_classes=4, total_steps=20)
        before = [p.detach().clone() for p in t.model.parameters()]
        t.step(100 * batches(1)[0][0], batches(1)[0][1])
        pairs = zip(t.model.parameters(), before, strict=True)
        return float(torch.stack([(p.detach() - b).square().sum() for p, b in pairs]).sum().sqrt())

    assert moved(1.0) == pytest.approx(0.01, rel=1e-3) and moved(0.5) == pytest.approx(0.005, rel=1e-3)
    assert moved(0) > 0.015 and moved(0) == pytest.approx(moved(1e6), rel=1e-6)


# --- classes that there are no samples of -----------------------------------------------------------------------------


def test_outputs_of_absent_classes_are_left_alone() -> None:
    """The loss is over the present ones; the rows of the others only shrink by weight decay, as all do."""
    data = [(x, y % 2 * 2) for x, y in batches(4)]  # classes 0 and 2 of 4
    config = TrainingConfig(weight_decay=0.0, learning_rate=0.02)
    local = LocalTrainer(small_model(), config, num_classes=4, total_steps=20, present=[0, 2])
    before = {name: tensor.clone() for name, tensor in local.model.state_dict().items()}
    expected_model = small_model().train()
    torch.default_generator.manual_seed(0)
    x, y = data[0]
    expected = F.cross_entropy(expected_model(x)[:, [0, 2]], y // 2)
    assert local.step(x, y) == pytest.approx(expected.item(), rel=1e-5)
    for x, y in data[1:]:
        local.step(x, y)
    after = local.model.state_dict()
    for name in ("6.weight", "6.bias"):
        assert torch.equal(after[name][[1, 3]], before[name][[1, 3]])
        assert not torch.equal(after[name][[0, 2]], before[name][[0, 2]])


@pytest.mark.parametrize(
    ("targets", "own", "present", "outputs", "in_play"),
    [
        ("all", (), [0, 1, 2, 3], 4, None),
        ("own", (1, 3), [1, 3], 2, None),
        ("own", (1, 3), [3], 2, [1]),
        ("rest", (1, 3), [1, 3], 3, [0, 1]),
        ("rest", (1, 3), [0, 1], 3, [0, 2]),
        ("rest", (1, 3), [0, 1, 3], 3, None),
    ],
)
def test_what_is_in_play(
    targets: str, own: tuple[int, ...], present: list[int], outputs: int, in_play: list[int] | None
) -> None:
    local = trainer(model=small_model(outputs), targets=targets, own_classes=own, present=present)
    assert (local._in_play.tolist() if local._in_play is not None else None) == in_play
    x, _ = batches(1)[0]
    loss = local.step(x, torch.tensor(present * 12)[:12])
    assert loss is not None and loss >= 0


def test_smoothing_counts_present_classes_only() -> None:
    config = TrainingConfig(label_smoothing=0.1, learning_rate=0.02)
    local = LocalTrainer(small_model(), config, num_classes=4, total_steps=20, present=[0, 2])
    x, y = batches(1)[0]
    loss = local.step(x, y % 2 * 2)
    assert loss is not None and 0 < loss < 5

"""Loss, schedule, optimizer and transform that are a person's own functions."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.models import global_model
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.own import parts
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.learning.training import LocalTrainer, schedule
from p2ptrain.model_config import refused_code
from p2ptrain.modes.jobs import check_job, job_from_json
from p2ptrain.modes.split.config import SplitConfig
from p2ptrain.modes.tasks.division import check_model

CODE = """
import torch
from torch.nn import functional as F

WEIGHT = torch.tensor([1.0, 2.0, 4.0, 8.0])

def weighed(logits, y): return F.cross_entropy(logits, y, weight=WEIGHT)
def smoothed(logits, y): return F.cross_entropy(logits, y, label_smoothing=0.2)
def by_class(logits, y): return (WEIGHT[y] * F.binary_cross_entropy_with_logits(
    logits, F.one_hot(y, 4).to(logits.dtype), reduction="none").sum(1)).mean()
def squared(logits, y): return F.mse_loss(logits, F.one_hot(y, 4).to(logits.dtype))
def normed(logits, y): return F.cross_entropy(logits / (0.04 * logits.norm(dim=1, keepdim=True)), y)
def noised(logits, y): return F.cross_entropy(logits + torch.randn_like(logits), y)
def logged(logits, y): return -(0.9 * F.one_hot(y, 4) + 0.025).mul(F.softmax(logits, 1).log()).sum(1).mean()
class Unturned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits): return logits.mean()
    @staticmethod
    def backward(ctx, slope): return ctx.no_such_thing
def unturned(logits, y): return Unturned.apply(logits)
def rooted(logits, y): return F.cross_entropy(logits, y) + (logits + 9).sqrt().mean()
def half(logits, y): return 0.5 * F.cross_entropy(logits, y)
def each(logits, y): return F.cross_entropy(logits, y, reduction="none")
def number(logits, y): return 1.0
def stopped(logits, y): return F.cross_entropy(logits, y).detach()
def broken(logits, y):
    return logits[99]
def steps(step, total): return 0.5 ** step
def below(step, total): return -1.0
def plain(parameters, learning_rate): return torch.optim.Adam(parameters, lr=learning_rate)
class Stuck(torch.optim.SGD):
    def step(self): return self.defaults["no such thing"]
def stuck(parameters, learning_rate): return Stuck(parameters, lr=learning_rate)
def nothing(parameters, learning_rate): return None
def noisy(x): return (x + torch.rand(())).clamp(0, 1)
def flat(x): return x.flatten(1)
"""
DATA = DataConfig(("a", "b"), (1, 4, 4), "image", (0.0,), (1.0,))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "parts_of_mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "parts_of_mine", raising=False)
    parts._function.cache_clear()
    return "parts_of_mine"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_steps_by_own_parts_are_those_of_plain_torch(own: str) -> None:
    config = TrainingConfig(
        loss=f"{own}:half", own_schedule=f"{own}:steps", own_optimizer=f"{own}:plain", learning_rate=0.1, clip=0.0
    )
    trainer = LocalTrainer(net(), config, num_classes=2, total_steps=3)
    plain = net()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.1)
    x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5**step
        optimizer.zero_grad()
        (0.5 * F.cross_entropy(plain(x), y)).backward()
        optimizer.step()
        trainer.step(x, y)
    for ours, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_own_optimizer_begins_anew_from_a_snapshot(own: str) -> None:
    config = TrainingConfig(own_optimizer=f"{own}:plain")
    trainer = LocalTrainer(net(), config, num_classes=2, total_steps=9)
    trainer.step(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)
    tensors, metadata = trainer.snapshot()
    assert not any(name.startswith("optim.") for name in tensors)
    again = LocalTrainer(net(), config, num_classes=2, total_steps=9)
    again.restore(tensors, metadata)
    assert again.num_steps == 1 and again.step(torch.randn(8, 1, 4, 4), torch.arange(8) % 2) is not None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("each", r"float32 of shape \[4\]; expected one number"),
        ("number", "returns float"),
        ("stopped", "has no gradient"),
        ("broken", r"parts_of_mine\.py, line \d+ .*IndexError"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_loss_that_can_not_be_used_is_named(own: str, name: str, why: str) -> None:
    logits = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(JobError, match=why):
        training_loss(logits, torch.zeros(4, dtype=torch.int64), own=f"{own}:{name}")


def test_a_schedule_and_an_optimizer_are_checked(own: str) -> None:
    with pytest.raises(JobError, match=r"returns -1\.0 at step 2 of 5"):
        schedule(TrainingConfig(own_schedule=f"{own}:below"), 2, 5)
    with pytest.raises(JobError, match="returns NoneType"):
        LocalTrainer(net(), TrainingConfig(own_optimizer=f"{own}:nothing"), num_classes=2, total_steps=1)


def test_a_step_that_fails_is_told_with_its_line(own: str) -> None:
    config = TrainingConfig(own_optimizer=f"{own}:stuck")
    x, y = torch.randn(4, 1, 4, 4), torch.arange(4) % 2
    why = r"optimizer 'parts_of_mine:stuck' fails in a step: .*parts_of_mine\.py, line \d+ .*KeyError"
    with pytest.raises(JobError, match=why):
        LocalTrainer(net(), config, num_classes=2, total_steps=1).step(x, y)
    stage = StageModel(net(), ["1.weight", "1.bias"], config, total_steps=1, device=torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(JobError, match=why):
        stage.apply(0, 1.0, 1.0)


def test_a_transform_changes_what_is_trained_on(own: str) -> None:
    import dataclasses

    contract = dataclasses.replace(DATA, transform=f"{own}:noisy")
    data = Dataset(np.full((4, 1, 4, 4), 51, np.uint8), np.zeros(4, np.int64), contract)
    (x, _), (again, _), (other, _) = (
        next(data.batches(np.random.default_rng(seed), 4, augment=True)) for seed in (0, 0, 1)
    )
    assert torch.equal(x, again) and not torch.equal(x, other) and bool((x >= 0.2).all())
    assert torch.allclose(data.tensors()[0], torch.tensor(0.2))
    wrong = Dataset(data.x, data.y, dataclasses.replace(DATA, transform=f"{own}:flat"))
    with pytest.raises(JobError, match=r"returns \[4, 16\] for samples \[4, 1, 4, 4\]"):
        next(wrong.batches(np.random.default_rng(0), 4, augment=True))


def test_a_mean_of_states_of_an_own_optimizer_is_refused() -> None:
    job = Job(mode="split", data=DATA, training=TrainingConfig(own_optimizer="my:make"))
    check_job(job)
    with pytest.raises(JobError, match=r'split\.optimizer = "average".*set "reset"'):
        check_job(job.with_table(SplitConfig(optimizer="average")))
    check_job(job.with_table(SplitConfig(optimizer="average", tails="shared")))


def test_each_device_allows_all_of_a_jobs_code() -> None:
    job = Job(
        mode="replicas",
        model=ModelConfig("my.net:build"),
        data=DATA,
        training=TrainingConfig(loss="my.loss:mean", own_schedule="my.pace:fall"),
    )
    assert job_from_json(job.to_json()) == job
    assert job.own_code == ("my.net:build", "my.loss:mean", "my.pace:fall")
    assert refused_code(job.own_code, "my.net:build") == ["my.loss:mean", "my.pace:fall"]
    assert not refused_code(job.own_code, "my.net:build,my.pace:fall,my.loss:mean")
    assert Job(data=DATA).own_code == ()


@pytest.mark.parametrize(
    ("mode", "training", "why"),
    [
        ("replicas", {"loss": "timm:resnet18"}, r"training\.loss.*package"),
        ("replicas", {"loss": "my:loss", "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_what_does_not_go_together(mode: str, training: dict[str, object], why: str) -> None:
    with pytest.raises(JobError, match=why):
        check_job(Job(mode=mode, data=DATA, training=TrainingConfig(**training)))  # type: ignore[arg-type]


def of_four(own_loss: str, num_outputs: int, **keywords: Any) -> tuple[LocalTrainer, Tensor]:
    """A trainer, and its logits on X as they were."""
    torch.manual_seed(0)
    model = nn.Linear(6, num_outputs)
    config = TrainingConfig(loss=own_loss, optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=0.0)
    config = dataclasses.replace(config, schedule="constant", warmup=0.0)
    trainer = LocalTrainer(model, config, num_classes=4, total_steps=1000, **keywords)
    return trainer, model(X)


X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.tensor([1.0, 2.0, 4.0, 8.0])


def stepped(trainer: LocalTrainer, y: Tensor) -> Tensor:
    before = trainer.model.weight.detach().clone()
    trainer.step(X, y)
    return before - trainer.model.weight.detach()


@pytest.mark.parametrize("targets", ["all", "own", "rest"])
def test_a_loss_with_a_weight_for_each_class_has_them_where_classes_are_missing(own: str, targets: Any) -> None:
    y = torch.tensor([0, 2, 3] * 4) if targets != "own" else torch.tensor([0, 3] * 6)
    outputs = {"all": 4, "own": 2, "rest": 3}[targets]
    classes = {"all": (), "own": (3, 0), "rest": (3, 0)}[targets]
    trainer, logits = of_four(f"{own}:weighed", outputs, targets=targets, own_classes=classes, present=[0, 2, 3])
    if targets == "all":
        logits = logits[:, [0, 2, 3]]
    among = torch.tensor({"all": [0, -1, 1, 2], "own": [1, -1, -1, 0], "rest": [1, -1, 2, 0]}[targets])[y]
    wanted = (WEIGHT[y] * F.cross_entropy(logits, among, reduction="none")).sum() / WEIGHT[y].sum()
    wanted.backward()  # type: ignore[no-untyped-call]
    slope = trainer.model.weight.grad.clone()
    torch.testing.assert_close(stepped(trainer, y), slope)
    assert trainer.loss_on([(X, y)]) < wanted.item() + (0.7 if targets == "rest" else 0.0)  # log 2: two share an output


def test_a_loss_by_class_and_one_that_smooths_labels_see_nothing_of_missing_classes(own: str) -> None:
    y = torch.tensor([0, 2, 3] * 4)
    there, among = [0, 2, 3], torch.tensor([0, -1, 1, 2])[y]
    trainer, logits = of_four(f"{own}:smoothed", 4, present=there)
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits[:, there], among, label_smoothing=0.2), trainer.model.weight)
    torch.testing.assert_close(stepped(trainer, y), wanted)
    trainer, logits = of_four(f"{own}:by_class", 4, present=there)
    each = F.binary_cross_entropy_with_logits(logits[:, there], F.one_hot(among, 3).float(), reduction="none")
    (wanted,) = torch.autograd.grad((WEIGHT[y] * each.sum(1)).mean(), trainer.model.weight)
    torch.testing.assert_close(stepped(trainer, y), wanted)


@pytest.mark.parametrize("name", ["noised", "logged"])
def test_a_loss_of_a_softmax_does_where_classes_are_missing(own: str, name: str) -> None:
    trainer, _ = of_four(f"{own}:{name}", 4, present=[0, 1, 2])
    assert trainer.step(X, torch.tensor([0, 1, 2] * 4)) is not None


def test_the_place_is_named_where_a_loss_fails_in_its_gradient(own: str) -> None:
    with pytest.raises(JobError, match=rf"unturned' fails: .*{own}\.py, line \d+ .*no_such_thing"):
        of_four(f"{own}:unturned", 4, present=[0, 1, 2])


@pytest.mark.parametrize(
    ("name", "why"), [("squared", "how far below"), ("normed", "how far below"), ("rooted", "not finite")]
)
def test_a_loss_that_sees_missing_classes_is_refused_where_some_are(own: str, name: str, why: str) -> None:
    of_four(f"{own}:{name}", 4)  # all are there
    with pytest.raises(JobError, match=f"{name}' does not do where a device trains some.*{why}"):
        of_four(f"{own}:{name}", 4, present=[0, 1, 2])
    data = DataConfig(tuple("abcd"), (1, 8, 8), "image", (0.0,), (1.0,))
    job = Job(mode="auto", data=data, training=TrainingConfig(loss=f"{own}:{name}"))
    found = check_model(job, global_model(job, allow_user_code=False))
    assert found["max_groups"] == 1 and why in found["model_notes"][0]
    assert "model_notes" not in check_model(
        dataclasses.replace(job, training=TrainingConfig()), global_model(job, allow_user_code=False)
    )

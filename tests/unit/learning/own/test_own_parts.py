"""Loss, schedule, optimizer and transform that are a person's own functions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.own import parts
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.learning.training import LocalTrainer, schedule
from p2ptrain.model_config import refused_code
from p2ptrain.modes.jobs import check_job, job_from_json
from p2ptrain.modes.split.config import SplitConfig

CODE = """
import torch
from torch.nn import functional as F

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

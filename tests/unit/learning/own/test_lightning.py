"""LightningModules, by a stand-in for the package: what of them trains, and what is told of the rest."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.models import global_model
from p2ptrain.learning.own.lightning import LIGHTNING_LOSS, LIGHTNING_OPTIMIZER
from p2ptrain.learning.own.trial import Trial
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.modes.jobs import check_job, job_from_json

PACKAGE = """
from torch import nn
class LightningModule(nn.Module):
    automatic_optimization = True
    current_epoch = global_step = 0
    def log(self, *args, **kwargs): pass
    def configure_optimizers(self): pass
    def on_train_epoch_end(self): pass
    def optimizer_step(self, *args): pass
    def on_validation_epoch_end(self): pass
    def validation_step(self, *args): pass
    @property
    def trainer(self): raise RuntimeError("not attached to a `Trainer`")
"""
MINE = """
import lightning, torch
from torch import nn
from torch.nn import functional as F

class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    def forward(self, x): return {"logits": self.net(x), "scale": 2.0}
    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        loss = out["scale"] * F.cross_entropy(out["logits"], y) + 0.01 * self.net[1].weight.square().sum()
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}
    def configure_optimizers(self):
        groups = [{"params": [self.net[1].weight], "lr": 0.02}, {"params": [self.net[1].bias], "lr": 0.1}]
        return torch.optim.Adam(groups)

class Falling(Lit):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

class Rising(Lit):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.02)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

class OneCycle(Lit):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=100)]

class OneCycleOfBetas(Lit):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=100)]

class Cyclic(Lit):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.5)
        rates = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=1e-5, max_lr=0.02, base_momentum=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

class InTurn(Lit):
    def configure_optimizers(self):
        rates = torch.optim.lr_scheduler
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.5)
        cycles = rates.CyclicLR(optimizer, base_lr=1e-5, max_lr=0.02, cycle_momentum=False)
        turns = rates.SequentialLR(optimizer, [rates.LinearLR(optimizer), cycles], milestones=[5])
        return [optimizer], [turns]

class WithoutNumber(Lit):
    def training_step(self, batch): return super().training_step(batch, 0)

class Hooked(Lit):
    def training_step(self, batch, batch_idx): return super().training_step(batch, batch_idx)["loss"] * self.weight()
    def weight(self): return min(1.0, 0.1 * self.current_epoch) if self.current_epoch else 1.0
    def on_train_epoch_end(self): print(self.global_step)
    def optimizer_step(self, *args): super().optimizer_step(*args)
    def on_validation_epoch_end(self): print(self.current_epoch)
    def validation_step(self, batch, batch_idx): print(self.current_epoch)

class Heavier(Hooked):
    def weight(self): return 2.0 * super().weight() if self.current_epoch else 2.0

class Attached(Lit):
    def training_step(self, batch, batch_idx): return self.trainer.world_size

class Table(Lit):
    def training_step(self, batch, batch_idx): return self(batch["image"])

class Two(Lit):
    def configure_optimizers(self): return [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]

class ByHand(Lit):
    automatic_optimization = False

class Lossless(Lit):
    def training_step(self, batch, batch_idx): return None

class Broken(Lit):
    def training_step(self, batch, batch_idx): return batch[2]
"""
DATA = DataConfig(("a", "b"), (1, 4, 4), "image", (0.0,), (1.0,))
BOTH = TrainingConfig(loss=LIGHTNING_LOSS, own_optimizer=LIGHTNING_OPTIMIZER, warmup=0.0, clip=0.0, schedule="constant")


@pytest.fixture(autouse=True)
def lit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "lightning.py").write_text(PACKAGE)
    (tmp_path / "lit_of_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    there = {name: sys.modules.pop(name) for name in ("lightning", "lit_of_mine") if name in sys.modules}
    yield
    for name in ("lightning", "lit_of_mine"):
        sys.modules.pop(name, None)
    sys.modules.update(there)


def job(kind: str = "Lit", training: TrainingConfig = BOTH, mode: str = "replicas") -> Job:
    return Job(mode=mode, model=ModelConfig(f"lit_of_mine:{kind}"), data=DATA, training=training)


def test_its_training_step_and_its_optimizer_train_as_in_plain_torch() -> None:
    model, plain = (global_model(job(), allow_user_code=True) for _ in range(2))
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
    net: Any = plain.net
    optimizer = torch.optim.Adam([{"params": [net[1].weight], "lr": 0.02}, {"params": [net[1].bias], "lr": 0.1}])
    trainer = LocalTrainer(model, BOTH, num_classes=2, total_steps=9)
    for _ in range(3):
        optimizer.zero_grad()
        loss = 2 * F.cross_entropy(net(x), y) + 0.01 * net[1].weight.square().sum()
        loss.backward()
        optimizer.step()
        assert trainer.step(x, y) == pytest.approx(loss.item())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor)
    assert isinstance(model(x), torch.Tensor), "elsewhere it returns its logits alone"
    assert trainer.loss_on([(x, y)]) == pytest.approx(F.cross_entropy(net(x), y).item()), "told is cross-entropy"


def test_its_training_step_gets_the_jobs_class_numbers_where_a_device_lacks_classes() -> None:
    seen: list[torch.Tensor] = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            seen.append(batch[1])
            return F.cross_entropy(self(batch[0]), batch[1])

    model, y = Wide(), torch.tensor([1, 3, 3, 1])
    config = dataclasses.replace(BOTH, own_optimizer="")
    trainer = LocalTrainer(model, config, num_classes=4, total_steps=2, present=[1, 3])
    x = torch.randn(4, 1, 4, 4)
    plain = F.cross_entropy(model(x), y).item()
    assert trainer.step(x, y) == pytest.approx(plain) and seen[0].tolist() == y.tolist()
    assert trainer.num_outputs == 4
    among = F.cross_entropy(model(x)[:, [1, 3]], y // 2).item()
    assert trainer.loss_on([(x, y)]) == pytest.approx(among), "told is the loss among the classes that are here"


def test_the_jobs_schedule_scales_its_own_rates() -> None:
    config = dataclasses.replace(BOTH, schedule="cosine")
    trainer = LocalTrainer(global_model(job(), allow_user_code=True), config, num_classes=2, total_steps=4)
    trainer.num_steps = 2
    trainer.step(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)
    assert [group["lr"] for group in trainer._optimizer.param_groups] == pytest.approx([0.01, 0.05])


@pytest.mark.parametrize(
    ("kind", "momentum"),
    [("Rising", 0.9), ("OneCycle", 0.85), ("OneCycleOfBetas", 0.85), ("Cyclic", 0.7), ("InTurn", 0.5)],
)
def test_what_a_scheduler_made_of_its_rates_is_not_taken_for_them(kind: str, momentum: float) -> None:
    trainer = LocalTrainer(global_model(job(kind), allow_user_code=True), BOTH, num_classes=2, total_steps=4)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.step(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)
    (group,) = trainer._optimizer.param_groups
    assert group["lr"] == 0.02 and (group["betas"][0] if "betas" in group else group["momentum"]) == momentum
    assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_its_training_step_need_not_ask_for_the_batchs_number() -> None:
    trainer = LocalTrainer(global_model(job("WithoutNumber"), allow_user_code=True), BOTH, num_classes=2, total_steps=4)
    assert trainer.step(torch.randn(8, 1, 4, 4), torch.arange(8) % 2) is not None


@pytest.mark.parametrize("kind", ["Hooked", "Heavier"])
def test_what_a_trainer_would_do_for_it_is_told(kind: str) -> None:
    hooks, epoch = Trial(job(kind)).notes
    assert hooks == "on_train_epoch_end, optimizer_step of it are not called: there is no Trainer here"
    assert epoch == "current_epoch stays 0, which weight of it reads: there is no Trainer here"


def test_what_of_it_is_used_is_told() -> None:
    (note,) = Trial(job(training=TrainingConfig())).notes
    assert "training_step and configure_optimizers of it are not called" in note
    assert f"--loss {LIGHTNING_LOSS} and --own-optimizer {LIGHTNING_OPTIMIZER} call them in mode replicas" in note
    (half,) = Trial(job(training=dataclasses.replace(BOTH, own_optimizer=""))).notes
    assert "configure_optimizers of it are not called" in half and "--loss" not in half
    assert not Trial(job()).notes
    (scheduler,) = Trial(job("Falling")).notes
    assert "scheduler is not used" in scheduler


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("Two", "returns 2 optimizers; expected a torch.optim.Optimizer"),
        ("ByHand", "optimizes by hand"),
        ("Lossless", "training_step returns NoneType; expected the loss"),
        ("Broken", r"lit_of_mine\.py, line \d+ .*IndexError"),
        ("Table", r"lit_of_mine\.py, line \d+ .*TypeError.* a batch is \(x, y\)"),
        ("Attached", r"not attached .*there is no Trainer here"),
    ],
)
def test_what_it_can_not_do_here_is_refused(kind: str, why: str) -> None:
    with pytest.raises(JobError, match=why):
        Trial(job(kind))


def test_another_model_has_no_such_methods() -> None:
    with pytest.raises(JobError, match=r"has no method .*; is it a LightningModule"):
        Trial(
            dataclasses.replace(
                job(), model=ModelConfig("lenet"), data=dataclasses.replace(DATA, input_shape=(1, 8, 8))
            )
        )


@pytest.mark.parametrize("mode", ["auto", "tasks", "pipeline", "split"])
def test_only_where_a_device_has_the_whole_model(mode: str) -> None:
    with pytest.raises(JobError, match=r'lightning:configure_optimizers.*"replicas"'):
        check_job(job(mode=mode))
    check_job(job())


def test_it_is_allowed_with_the_model() -> None:
    assert job().own_code == ("lit_of_mine:Lit",)
    assert job_from_json(job().to_json()) == job()
    other = dataclasses.replace(BOTH, loss="lightning:other")
    assert job(training=other).own_code == ("lit_of_mine:Lit", "lightning:other")


def test_a_module_that_is_none_of_that_class_may_have_them_too() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    trainer = LocalTrainer(Plain(), dataclasses.replace(BOTH, own_optimizer=""), num_classes=2, total_steps=2)
    assert trainer.step(torch.randn(8, 1, 4, 4), torch.arange(8) % 2) is not None

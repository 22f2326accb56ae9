"""Frozen layers: nothing changes them, nobody sends them, and every mode trains the others or says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.models import global_model
from p2ptrain.learning.models.freezing import freeze, frozen_names
from p2ptrain.learning.own.trial import Trial
from p2ptrain.learning.pipeline.stage import StageModel
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.modes.jobs import check_job, job_from_json

DATA = DataConfig(("a", "b"), (1, 8, 8), "image", (0.0,), (1.0,))
FROZEN = ("layer1", "conv1", "bn1")


def job(mode: str = "replicas", freeze: tuple[str, ...] = FROZEN, name: str = "resnet20") -> Job:
    return Job(mode=mode, model=ModelConfig(name, width=0.25, freeze=freeze), data=DATA)


def test_what_is_frozen_stays_and_the_rest_is_trained() -> None:
    """Batch norm's running statistics stay, too; plain torch with the same layers in eval mode does the same step."""
    model = global_model(job(), allow_user_code=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = LocalTrainer(model, TrainingConfig(weight_decay=0.1), num_classes=2, total_steps=4)
    for _ in range(2):
        assert trainer.step(torch.randn(8, 1, 8, 8), torch.arange(8) % 2) is not None
    frozen = frozen_names(model, FROZEN)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & frozen and changed | frozen == set(before)
    assert {name.partition(".")[0] for name in frozen} == set(FROZEN)
    assert {"bn1.running_mean", "bn1.num_batches_tracked"} <= frozen


def test_wildcards() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(model, ["*.bias", "0"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["1.weight"]


@pytest.mark.parametrize(
    ("patterns", "why"), [(("layer9",), "'layer9' names no parameter.*layer1"), (("*",), "nothing is left to train")]
)
def test_patterns_that_can_not_be_meant(patterns: tuple[str, ...], why: str) -> None:
    with pytest.raises(JobError, match=why):
        global_model(job(freeze=patterns), allow_user_code=False)


def test_frozen_tensors_do_not_travel() -> None:
    from p2ptrain.modes.tasks.parts import Parts

    class Body:
        parts = ()

    class Plan:
        mode = "replicas"
        body = Body()

    whole, some = (Parts.__new__(Parts) for _ in range(2))
    for parts, patterns in ((whole, ()), (some, FROZEN)):
        parts.model = global_model(job(freeze=patterns), allow_user_code=False)
        parts._frozen = frozen_names(parts.model, patterns)
        parts.decoupling = None
        parts.body = type("Body", (), {"parts": [type("Part", (), {"shards": ("whole",)})()]})()
    names = whole.shard_names(0, "whole")
    assert names == frozenset(whole.model.state_dict())
    assert some.shard_names(0, "whole") == names - frozen_names(some.model, FROZEN)


def test_a_stage_of_frozen_blocks_alone_passes_on_and_is_not_trained() -> None:
    """All of a pipeline's first stage frozen: its next one trains, on gradients that end there."""
    frozen = job("pipeline", name="vgg11", freeze=("features",))
    with torch.device("meta"):
        chain = Chain(global_model(frozen, allow_user_code=False), DATA.input_shape)
    stop = next(i for i, block in enumerate(chain.blocks) if not block.name.startswith("features"))
    device, config = torch.device("cpu"), TrainingConfig()
    stages = [
        StageModel(
            chain.build_slice(lambda: global_model(frozen, allow_user_code=False), first, last),
            chain.tensor_names(first, last),
            config,
            total_steps=3,
            device=device,
        )
        for first, last in ((0, stop), (stop, len(chain.blocks)))
    ]
    (activations,) = stages[0].forward(0, (torch.randn(4, *DATA.input_shape),), 0, first=True)
    stages[1].forward_to_loss(0, (activations,), torch.arange(4) % 2, 1.0, 0, first=False)
    (gradient,) = stages[1].backward(0, ())
    assert stages[0].backward(0, (gradient,)) == ()
    assert not stages[0].parameters and stages[0].optimizer is None and stages[0].squares() == []
    assert stages[1].squares()


def test_a_class_sub_model_can_not_be_frozen() -> None:
    with pytest.raises(JobError, match="would not compute what they have learnt"):
        check_job(job("tasks"))
    for mode in ("auto", "replicas", "pipeline", "split"):
        check_job(job(mode))


def test_a_job_says_what_is_frozen() -> None:
    assert job_from_json(job().to_json()) == job()
    assert '"freeze"' not in job(freeze=()).to_json()
    (note,) = Trial(job()).notes
    assert "parameters are frozen, and stay as they were drawn: --init takes others" in note

"""The language models: sizes, causality, blocks, what they learn from a text, and where they are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import p2ptrain
from p2ptrain.config import Job, ModelConfig, TrainingConfig
from p2ptrain.errors import JobError, LocalError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.checkpoint import load_model, save_model
from p2ptrain.learning.data import Dataset, load, open_source, propose_contract
from p2ptrain.learning.evaluation import evaluate, own_class_accuracy
from p2ptrain.learning.models import TEXT_MODELS, build_model, global_model
from p2ptrain.learning.models.bert import BERT
from p2ptrain.learning.models.gpt import GPT
from p2ptrain.learning.objective import matched, training_loss
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.training import LocalTrainer

CONTEXT = 32
TEXT = Path(p2ptrain.__file__).parent.parent / "LICENSE"
SHAPE = (1, 1, CONTEXT)


@pytest.fixture(scope="module")
def text() -> Dataset:
    source = open_source(f"text:{TEXT}")
    return load(source, propose_contract(source, SHAPE), "train")


def tokens(size: int, num_classes: int = 256, context: int = CONTEXT) -> torch.Tensor:
    return torch.randint(0, num_classes, (size, 1, 1, context), generator=torch.Generator().manual_seed(size))


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes() -> None:
    with torch.device("meta"):
        bert = BERT((1, 1, 511), 30522, vocabulary=30521)
        gpt = GPT((1, 1, 128), 256)
        gpt2_small = GPT((1, 1, 1024), 50257, depth=12, dim=768, heads=12)
        wide = build_model("gpt_mini", input_shape=SHAPE, num_classes=256, width=0.3)
    without_output = num_parameters(bert) - bert.head.weight.numel()
    assert without_output == pytest.approx(28.8e6, rel=0.01)  # as BERT-small, whose output is tied
    assert num_parameters(gpt) == 2_792_448
    tied = num_parameters(gpt2_small) - gpt2_small.head.weight.numel()
    assert tied == 124_439_808  # as GPT-2 small, whose output is tied
    assert wide.token_embedding.weight.shape == (256, 6 * 10)


def test_names_and_blocks() -> None:
    for name, num_blocks in (("gpt_mini", 2 + 2 * 6), ("bert_small", 3 + 2 * 4)):
        with torch.device("meta"):
            model = build_model(name, input_shape=SHAPE, num_classes=256, width=0.1)
        names = [block.name for block in Chain(model, SHAPE).blocks]
        assert len(names) == num_blocks
        assert names[:3] == ["token_embedding", "layers.0.attention", "layers.0.mlp"] and names[-1] == "head"
        assert {"token_embedding.weight", "layers.3.mlp.expand.bias", "head.weight"} <= model.state_dict().keys()


def test_the_decoder_is_causal() -> None:
    model = build_model("gpt_mini", input_shape=SHAPE, num_classes=256, width=0.2, seed=0).eval()
    x = tokens(2)
    logits = model(x)
    assert logits.shape == (2, CONTEXT, 256)
    for at in (0, 7, CONTEXT - 1):
        changed = x.clone()
        changed[..., at] = (x[..., at] + 1) % 256
        other = model(changed)
        assert torch.equal(other[:, :at], logits[:, :at])
        assert not torch.allclose(other[:, at], logits[:, at])
    assert torch.allclose(model(x[..., :5]), logits[:, :5], atol=1e-5)  # a shorter text


def test_the_encoder_looks_at_everything_and_answers_once() -> None:
    model = build_model("bert_small", input_shape=SHAPE, num_classes=3, width=0.1, seed=0).eval()
    x = tokens(2)
    logits = model(x)
    assert logits.shape == (2, 3)
    for at in (0, 7, CONTEXT - 1):
        changed = x.clone()
        changed[..., at] = (x[..., at] + 1) % 256
        assert not torch.equal(model(changed), logits)


@pytest.mark.parametrize(("name", "width", "steps"), [("gpt_mini", 0.15, 60), ("bert_small", 0.1, 120)])
def test_they_learn_more_than_how_often_each_byte_comes(text: Dataset, name: str, width: float, steps: int) -> None:
    asked = text.tensors()[1].numpy() if name == "gpt_mini" else text.y
    frequencies = np.unique(asked, return_counts=True)[1] / asked.size
    unigram_entropy = -float((frequencies * np.log(frequencies)).sum())
    model = build_model(name, input_shape=SHAPE, num_classes=256, width=width, seed=0)
    config = TrainingConfig(optimizer="adamw", learning_rate=2e-3, schedule="constant", batch_size=32)
    trainer = LocalTrainer(model, config, num_classes=256, total_steps=steps, seed=0)
    before = evaluate(model, [text.tensors()], 256)
    rng = np.random.default_rng(0)
    while trainer.num_steps < steps:
        for x, y in text.batches(rng, config.batch_size):
            trainer.step(x, y)
    after = evaluate(model, [text.tensors()], 256)
    assert before.loss > 5 and after.loss < unigram_entropy - 0.1
    assert after.samples == asked.size
    assert trainer.num_samples <= trainer.num_steps * config.batch_size  # of samples, not of positions
    assert 0 < own_class_accuracy(model, [text.tensors()], range(32, 127)) < 1


def test_answers_and_labels() -> None:
    logits, y = torch.randn(4, 3, 7), torch.randint(0, 7, (4, 3))
    flat, labels = matched(logits, y)
    assert flat.shape == (12, 7) and torch.equal(labels, y.flatten())
    once, last = matched(logits[:, 0], y)
    assert torch.equal(once, logits[:, 0]) and torch.equal(last, y[:, 2])
    plain, same = matched(logits[:, 0], y[:, 0])
    assert torch.equal(plain, logits[:, 0]) and torch.equal(same, y[:, 0])
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), y, label_smoothing=0.1)
    assert torch.allclose(training_loss(logits, y, 0.1), expected)
    with pytest.raises(LocalError):
        matched(logits, y[:, :2])


def job_of(text: Dataset, name: str, **changes: object) -> Job:
    job = Job(mode="replicas", model=ModelConfig(name, width=0.1), data=text.contract)
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def test_a_harvested_language_model_comes_back(text: Dataset, tmp_path: Path) -> None:
    job = job_of(text, "gpt_mini")
    model = global_model(job, allow_user_code=False).eval()
    save_model(tmp_path / "m.safetensors", model.state_dict(), job)
    again, card = load_model(tmp_path / "m.safetensors")
    assert card.data == dataclasses.replace(job.data, val=0.0)
    assert torch.equal(again(tokens(2)), model(tokens(2)))


def test_text_and_models_that_dont_fit(text: Dataset) -> None:
    with pytest.raises(JobError, match="lenet can't read text data; take one of bert_small, gpt_mini"):
        global_model(job_of(text, "lenet"), allow_user_code=False)
    image = dataclasses.replace(text.contract, kind="image")
    with pytest.raises(JobError, match="gpt_mini can't read image data; take one of lenet"):
        global_model(job_of(text, "gpt_mini", data=image), allow_user_code=False)
    for name in TEXT_MODELS:
        with pytest.raises(JobError, match=rf"model {name} reads text, so its input shape is \[1, 1, context\]"):
            build_model(name, input_shape=(3, 32, 32), num_classes=256)


@pytest.mark.parametrize("name", sorted(TEXT_MODELS))
def test_class_submodels_of_language_models_are_refused(name: str) -> None:
    model = build_model(name, input_shape=SHAPE, num_classes=4, width=0.1)
    with pytest.raises(JobError, match=r"can't be divided into class sub-models.*\"replicas\""):
        Decoupling(model, SHAPE, [[0, 1], [2, 3]])

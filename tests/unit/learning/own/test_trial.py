"""Models of strangers: what trains in plain PyTorch trains here, and what can't is said before anything starts."""

from __future__ import annotations

import dataclasses
import weakref

import odd_models
import pytest
import strangers
import torch

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.averaging import check_state, merge, weighted_mean
from p2ptrain.learning.blocks.chain import Chain, chain_of
from p2ptrain.learning.blocks.flops import memory_bytes, training_flops
from p2ptrain.learning.compression import Compressor, decompress
from p2ptrain.learning.models import global_model
from p2ptrain.learning.own import trial as trial_of_models
from p2ptrain.learning.own.layout import order_of
from p2ptrain.learning.own.outputs import find_head, flat_logits, logits_of
from p2ptrain.learning.own.trial import Trial
from p2ptrain.learning.pipeline.stage import StageModel, as_trained
from p2ptrain.learning.profiling.block_times import measure_blocks
from p2ptrain.learning.snapshots import MAX_DIMENSIONS, MAX_NAME, read_snapshot, write
from p2ptrain.learning.submodels.analysis import analyse
from p2ptrain.learning.training import LocalTrainer, check_batch_size
from p2ptrain.modes.tasks.division import check_model

SHAPE = (1, 8, 8)
CLASSES = tuple("abcdefghij")
DATA = DataConfig(CLASSES, SHAPE, mean=(0.5,), std=(0.25,))
TRAINED = (*strangers.TRAINED, *odd_models.TRAINED)
REFUSED = {**strangers.REFUSED, **odd_models.REFUSED}


def job_of(build: object, **training: object) -> Job:
    name = f"{build.__module__}:{build.__name__}"  # type: ignore[attr-defined]
    config = TrainingConfig(**{"learning_rate": 0.05, "batch_size": 16} | training)  # type: ignore[arg-type]
    return Job(mode="auto", model=ModelConfig(name), data=DATA, training=config)


def samples(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 10
    x = torch.randn(count, *SHAPE, generator=generator) * 0.1
    x[torch.arange(count), 0, y % 8, y // 2] += 3.0
    return x, y


@pytest.mark.parametrize("build", TRAINED, ids=lambda build: build.__name__)
def test_what_trains_in_plain_pytorch_trains_here(build: object, capsys: pytest.CaptureFixture[str]) -> None:
    job, (x, y) = job_of(build), samples()
    trial = Trial(job, x, y)
    assert training_flops(trial.model, SHAPE).forward > 0 and memory_bytes(trial.model, SHAPE, 16, "sgd") > 0
    assert check_model(job, global_model(job, allow_user_code=True))["max_groups"] >= 1
    model = global_model(job, allow_user_code=True)
    assert not any("_orig_mod" in name or name.startswith("module.") for name in model.state_dict())
    trainer = LocalTrainer(model, job.training, num_classes=10, total_steps=40, samples=x[:2])
    losses = [trainer.step(x.clone(), y) for _ in range(25)]
    assert trainer.num_bad_steps == 0 and None not in losses
    assert losses[-1] < 0.9 * losses[0]  # type: ignore[operator]
    assert trainer.loss_on([(x.clone(), y)]) > 0
    assert trainer.step(x.clone(), y) is not None  # nothing that judging left behind is in the way
    tensors, metadata = trainer.snapshot()
    again = LocalTrainer(global_model(job, allow_user_code=True), job.training, num_classes=10, total_steps=40)
    again.restore(tensors, metadata)
    assert all(torch.equal(tensor, tensors[f"model.{name}"]) for name, tensor in again.model.state_dict().items())
    assert not capsys.readouterr().out  # what a model prints is no part of the output


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_what_can_not_be_trained_is_said_with_its_place(build: object) -> None:
    with pytest.raises(JobError, match=REFUSED[build]) as caught:  # type: ignore[index]
        Trial(job_of(build), *samples())
    assert "\n" not in str(caught.value) and build.__module__ in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        odd_models.LongNamed,
        odd_models.ManyAxes,
        odd_models.on_meta,
        odd_models.moved_to_meta,
        odd_models.HalfOnMeta,
    ],
    ids=lambda build: build.__name__,
)
def test_a_stage_refuses_as_the_check_does(build: object) -> None:
    with pytest.raises(JobError, match=REFUSED[build]):  # type: ignore[index]
        chain_of(lambda: global_model(job_of(build), allow_user_code=True), SHAPE)


def test_a_model_that_does_not_name_the_meta_device_is_never_built_in_full() -> None:
    devices = []

    def build() -> torch.nn.Module:
        model = global_model(job_of(odd_models.Beside), allow_user_code=True)
        devices.append(model.conv.weight.device.type)
        return model

    chain = chain_of(build, SHAPE)
    chain.build_slice(build, 0, 1)
    assert devices == ["meta", "meta", "cpu"]


def test_a_model_that_was_filled_after_the_meta_device_is_cut_and_has_its_numbers() -> None:
    job, (x, y) = job_of(odd_models.filled), samples()
    Trial(job, x, y)
    whole, value = global_model(job, allow_user_code=True), x
    chain = chain_of(lambda: global_model(job, allow_user_code=True), SHAPE)
    for block in range(len(chain.blocks)):
        value = chain.build_slice(lambda: global_model(job, allow_user_code=True), block, block + 1)(value)
    assert len(chain.blocks) == 2 and torch.allclose(value, whole(x), rtol=1e-5, atol=1e-6)


def test_the_longest_name_that_is_let_pass_can_be_read_from_a_snapshot() -> None:
    name = "n" * MAX_NAME
    tensors = {f"model.{name}": torch.ones(1), f"optim.momentum_buffer.{name}": torch.ones([1] * MAX_DIMENSIONS)}
    assert read_snapshot(write(tensors, {}, None))[0] == tensors  # type: ignore[arg-type]


@pytest.mark.parametrize("build", odd_models.NO_BLOCKS, ids=lambda build: build.__name__)
def test_what_a_traced_model_would_lack_is_no_block_and_no_sub_model(build: object) -> None:
    job = job_of(build)
    for find in (lambda: chain_of(lambda: global_model(job, allow_user_code=True), SHAPE), lambda: analyse(
        global_model(job, allow_user_code=True), SHAPE
    )):  # fmt: skip
        with pytest.raises(JobError, match=odd_models.NO_BLOCKS[build]) as caught:  # type: ignore[index]
            find()
        assert "replicas" in str(caught.value) or "pipeline_blocks" in str(caught.value)


@pytest.mark.parametrize("build", odd_models.ODD_LAYOUTS, ids=lambda build: build.__name__)
def test_a_model_that_keeps_tensors_of_odd_layouts_trains_whole_and_is_counted(build: object) -> None:
    job, (x, y) = job_of(build), samples()
    model = Trial(job, x, y).model
    assert training_flops(model, SHAPE).total > 0 and memory_bytes(model, SHAPE, 8, "sgd") > 0
    trainer = LocalTrainer(model, TrainingConfig(), num_classes=len(job.data.classes), total_steps=3, samples=x[:2])
    assert trainer.step(x, y) is not None
    trainer.restore(*trainer.snapshot())


@pytest.mark.parametrize("build", odd_models.CUT, ids=lambda build: build.__name__)
def test_code_that_looks_at_its_numbers_is_cut_and_gets_the_weights_of_the_whole(build: object) -> None:
    job, (x, _) = job_of(build), samples()
    whole = global_model(job, allow_user_code=True).eval()
    chain = chain_of(lambda: global_model(job, allow_user_code=True), SHAPE)
    assert chain.model.conv.weight.is_meta and len(chain.blocks) >= 2
    measure_blocks(chain, "odd", batch_sizes=(2,), budget_s=0.01)
    value, order = x, []
    for block in range(len(chain.blocks)):
        part = chain.build_slice(lambda: global_model(job, allow_user_code=True), block, block + 1).eval()
        order.append(order_of(part))
        value = part.to(memory_format=order[-1])(
            value.contiguous(memory_format=order[-1]) if value.dim() == 4 else value
        )
    assert torch.allclose(value, flat_logits(logits_of(whole(x))), rtol=1e-5, atol=1e-6)
    assert (torch.contiguous_format in order) == (build is odd_models.Waves)


def test_tensors_of_five_dimensions_pass_through_a_stage_in_their_own_order() -> None:
    job, (x, _) = job_of(odd_models.deep), samples()
    whole = global_model(job, allow_user_code=True)
    chain = chain_of(lambda: global_model(job, allow_user_code=True), SHAPE)
    measure_blocks(chain, "deep", batch_sizes=(2,), budget_s=0.01)
    x_here = x
    for block in range(len(chain.blocks)):
        part = chain.build_slice(lambda: global_model(job, allow_user_code=True), block, block + 1)
        stage = StageModel(
            part, chain.tensor_names(block, block + 1), job.training, total_steps=2, device=torch.device("cpu")
        )
        assert order_of(stage.module) == torch.channels_last
        x_here = stage.module(as_trained(x_here, stage.device, torch.channels_last))
    assert len(chain.blocks) == 4 and torch.allclose(x_here, whole(x), rtol=1e-5, atol=1e-6)


def test_what_never_trains_stays_so_in_a_block() -> None:
    model = global_model(job_of(odd_models.Frozen), allow_user_code=True)
    block = Chain(model, SHAPE).slice(0, 1).train()
    before = model.norm.running_mean.clone()
    block(samples()[0])
    assert torch.equal(model.norm.running_mean, before) and not block.norm.training and block.conv.training
    assert block.norm.weight is model.norm.weight and "train" not in vars(model.norm), "the model is as it was"
    check_batch_size(model, 1)  # no statistics of a batch
    job = job_of(strangers.Lazy, batch_size=1)
    with pytest.raises(JobError, match=r"batch normalisation.*--batch-size"):
        check_batch_size(global_model(job, allow_user_code=True), 1)


class Around(torch.nn.Module):
    """What is around its layers stays in eval mode, they don't."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.head = torch.nn.Linear(4, 2)

    def train(self, mode: bool = True) -> Around:
        super().train(mode)
        self.body.training = False
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_the_mode_reaches_what_is_in_a_layer_that_never_trains() -> None:
    block = Chain(Around(), (4,)).slice(0, 1)
    for mode in (False, True):
        block.train(mode)
        assert block.body.get_submodule("1").training == mode and not block.body.training


class StillWithin(torch.nn.Module):
    """A parametrized layer, which refuses to be copied, stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.still = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
        self.head = torch.nn.Linear(4, 2)

    def train(self, mode: bool = True) -> StillWithin:
        super().train(mode)
        self.still.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.still(self.first(x)))


def test_a_parametrized_layer_that_never_trains_is_cut_as_others() -> None:
    model, x = StillWithin().train(), torch.randn(3, 4)
    chain = Chain(model, (4,))
    part = x
    for block in range(len(chain.blocks)):
        part = chain.slice(block, block + 1).train()(part)
    assert len(chain.blocks) == 3 and torch.equal(part, model(x))


def by_the_seed(num_classes: int) -> torch.nn.Module:
    hidden = int(torch.randint(8, 10**6, ()) % 1000) + 8
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.Linear(hidden, num_classes))


def never_by_another_seed(num_classes: int) -> torch.nn.Module:
    if float(torch.rand(())) != BY_THE_SEED:
        raise ValueError("no such seed")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))


BY_THE_SEED = float(torch.rand((), generator=torch.Generator().manual_seed(Job().seed)))


@pytest.mark.parametrize("build", [by_the_seed, never_by_another_seed])
def test_a_model_whose_form_hangs_on_the_seed_is_tried_as_others(build: object) -> None:
    """Which the group shares: nothing is wrong with it."""
    assert Trial(job_of(build), *samples()).notes == []


def test_no_more_than_two_models_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's gradients are as large as another one."""
    before: list[int] = []
    made: list[weakref.ref[torch.nn.Module]] = []

    def counted(*arguments: object, **options: object) -> torch.nn.Module:
        there = [model for each in made if (model := each()) is not None]
        before.append(len(there) + sum(any(p.grad is not None for p in model.parameters()) for model in there))
        model = global_model(*arguments, **options)  # type: ignore[arg-type]
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(trial_of_models, "global_model", counted)
    Trial(job_of(strangers.Net), *samples())
    assert before == [0, 1, 1]


def test_two_devices_build_the_same_weights() -> None:
    for build in (strangers.Noisy, strangers.Lazy):
        one, two = (global_model(job_of(build), allow_user_code=True).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_that_views_gets_the_usual_order_of_memory() -> None:
    x, y = samples()
    viewed, plain = (
        LocalTrainer(global_model(job_of(b), allow_user_code=True), TrainingConfig(), num_classes=10, total_steps=9,
                     samples=x[:2])
        for b in (strangers.Viewed, strangers.Net)
    )  # fmt: skip
    assert viewed.model.conv.weight.is_contiguous()
    for _ in range(3):
        assert viewed.step(x, y) == pytest.approx(plain.step(x, y), rel=1e-4)  # type: ignore[arg-type]


def test_view_is_divided_like_reshape() -> None:
    job = job_of(strangers.Viewed)
    found = check_model(job, global_model(job, allow_user_code=True))
    assert found == check_model(job, global_model(job_of(strangers.Net), allow_user_code=True)) == {"max_groups": 2}


@pytest.mark.parametrize("build", [strangers.Answering, strangers.Optional, strangers.Named, strangers.Table])
def test_what_returns_a_record_or_takes_options_is_cut_and_divided(build: object) -> None:
    """Its blocks, one after the other, give the logits that it gives by itself; class sub-models can be made of it."""
    job, (x, _) = job_of(build), samples()
    model = global_model(job, allow_user_code=True).eval()
    chain = Chain(model, SHAPE)
    assert len(chain.blocks) == 2
    value = x
    for block in range(2):
        value = chain.slice(block, block + 1).eval()(value)
    assert torch.equal(value, logits_of(model(x)))
    assert check_model(job, model)["max_groups"] > 1


def test_what_is_computed_when_a_layer_is_built_is_no_block() -> None:
    model = global_model(job_of(strangers.OldNormed), allow_user_code=True)
    with pytest.raises(JobError, match=r"layer 'conv' .* holds 'weight', .* take torch.nn.utils.parametrizations"):
        Chain(model, SHAPE)
    Chain(global_model(job_of(strangers.Normed), allow_user_code=True), SHAPE)


def test_a_head_for_one_column_a_row() -> None:
    model = global_model(job_of(strangers.HeadFirst), allow_user_code=True)
    assert find_head(model, DATA) == "classifier"
    with pytest.raises(JobError, match=r'tasks\.fit_head = "never"'):
        find_head(global_model(job_of(strangers.LogSoftmax), allow_user_code=True), DATA)


def test_two_classes_and_one_output() -> None:
    data = dataclasses.replace(DATA, classes=("cat", "dog"))
    with pytest.raises(JobError, match=r"returns \[3, 1\]: .*an output for each of the two classes"):
        Trial(dataclasses.replace(job_of(strangers.one_output), data=data))


def test_probabilities_and_idle_tensors_are_noted() -> None:
    job = job_of(strangers.Pair)
    assert Trial(job).notes == []
    (note,) = Trial(job_of(strangers.Probable)).notes
    assert "without the softmax" in note
    (note,) = Trial(job_of(strangers.Auxiliary)).notes
    assert note.startswith("2 of 6 trained tensors") and "aux.weight" in note
    with pytest.raises(JobError, match=r"batch normalisation.*--batch-size"):
        Trial(job_of(strangers.Lazy, batch_size=1))


# --- averaging what strangers keep in their models --------------------------------------------------------------------


def test_tied_tensors_are_averaged_once() -> None:
    job = job_of(strangers.Tied)
    ours, theirs = (global_model(dataclasses.replace(job, seed=s), allow_user_code=True) for s in (1, 2))
    expected = (ours.one.weight + theirs.one.weight) / 2
    merge(ours.state_dict(), {n: t.clone() for n, t in theirs.state_dict().items()}, 1.0, 1.0)
    assert torch.allclose(ours.one.weight, expected, atol=1e-7) and ours.two.weight is ours.one.weight


def test_constants_that_are_not_finite_or_below_zero_do_no_harm() -> None:
    state = global_model(job_of(strangers.Masked), allow_user_code=True).state_dict()
    theirs = {name: tensor.clone() for name, tensor in state.items()}
    check_state(theirs, state)
    merge(state, theirs, 1.0, 1.0)
    assert torch.equal(state["mask"], theirs["mask"]) and torch.equal(state["offsets"], theirs["offsets"])


@pytest.mark.parametrize("kind", ["fp16", "int8", "topk"])
def test_masks_are_not_compressed(kind: str) -> None:
    mask = torch.full((64, 64), -torch.inf).triu(1)
    payload = Compressor(kind, 0.1, {"mask": mask}).compress({"mask": mask})  # type: ignore[arg-type]
    tensors, _ = decompress(payload, {"mask": mask})
    assert torch.equal(tensors["mask"], mask)


def test_means_of_copies_keep_constants_and_precision() -> None:
    mask = torch.full((4, 4), -torch.inf).triu(1)
    weight = torch.tensor([1.0 + 2**-40], dtype=torch.float64)
    mean = weighted_mean([(0.0, {"mask": mask, "weight": weight}), (2.0, {"mask": mask, "weight": weight})])
    assert torch.equal(mean["mask"], mask) and torch.equal(mean["weight"], weight)


@pytest.mark.parametrize("build", [strangers.Bytes, strangers.OneByte], ids=lambda build: build.__name__)
def test_a_text_model_of_ones_own(build: object) -> None:
    data = DataConfig(tuple(map(str, range(256))), (1, 1, 12), "text", mean=(0.0,), std=(1.0,))
    job = dataclasses.replace(job_of(build, learning_rate=0.5), data=data)
    text = torch.tensor([list(b"abcabcabcabca")] * 4)
    x, y = text[:, :-1].view(4, 1, 1, 12), text[:, 1:]
    trial = Trial(job, x, y)
    assert training_flops(trial.model, data.input_shape).forward > 0
    assert check_model(job, global_model(job, allow_user_code=True)) == {"max_groups": 1}
    chain = Chain(global_model(job, allow_user_code=True), data.input_shape)
    assert chain.input.dtype == torch.int64 and chain.slice(0, 2)(x).shape[-1] == 256
    trainer = LocalTrainer(global_model(job, allow_user_code=True), job.training, num_classes=256, total_steps=40)
    losses = [trainer.step(x, y) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]  # type: ignore[operator]


def test_what_text_looks_like_is_said_to_whom_it_surprises() -> None:
    data = DataConfig(tuple(map(str, range(256))), (1, 1, 12), "text", mean=(0.0,), std=(1.0,))
    with pytest.raises(
        JobError, match=r"int64 of shape \[batch, 1, 1, length\]: begin forward with x = x\.flatten\(1\)"
    ):
        Trial(dataclasses.replace(job_of(strangers.NoBytes), data=data))

"""What training a model costs: floating-point operations per sample, and bytes of memory.

Operations of a large model are counted on the meta device, memory with torch's fake tensors, which know what kernels
the CPU would use: nothing is computed, and no memory of the model's size is used.

Invariant: the model that is asked about is not changed; a multiply-add counts as two operations.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.building import READS_TOKENS, refuse_odd
from p2ptrain.learning.own.copying import copied, tensors_in

COUNTED_BATCH = 2  # BatchNorm refuses to train on one value per channel
COMPUTED_BYTES = 64 << 20
"""Smaller models are counted while they compute: without numbers torch loads sympy, which takes longer, and 60 MB."""

# State tensors per parameter, as torch.optim keeps them.
OPTIMIZER_COPIES = {"sgd": 0, "sgd_momentum": 1, "adam": 2, "adamw": 2}
NEEDS_NUMBERS = (RuntimeError, TypeError, ValueError, AttributeError, JobError)
"""What a model raises that can't be run without numbers."""
COPIED = 'keep out of it what has no copy (locks, open files, generators), or train with mode = "replicas"'
OptimizerName = Literal["sgd", "sgd_momentum", "adam", "adamw"]


@dataclass(frozen=True, slots=True)
class Flops:
    """Per sample. Convolutions and matrix products only, which is nearly all; elementwise work is not counted."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def training_flops(model: nn.Module, input_shape: Sequence[int]) -> Flops:
    """Operations of one training step per sample. The backward pass stops at the first layer's weights."""
    if all(p.device.type == "cpu" for p in model.parameters()) and _held(model) <= COMPUTED_BYTES:
        with contextlib.suppress(*NEEDS_NUMBERS), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            return _count(copied(model).train(), input_shape, "cpu")
    try:
        return _count(meta_twin(model), input_shape, "meta")
    except NEEDS_NUMBERS:
        with _real_twin(model) as twin:
            return _count(twin, input_shape, "cpu")


def _count(twin: nn.Module, input_shape: Sequence[int], device: str) -> Flops:
    with contextlib.redirect_stdout(sys.stderr), flop_counter() as counter:
        logits = twin(_batch(twin, input_shape, COUNTED_BATCH, device))
        forward = counter.get_total_flops()
        if logits.requires_grad:
            logits.sum().backward()
    return Flops(forward // COUNTED_BATCH, (counter.get_total_flops() - forward) // COUNTED_BATCH)


def memory_bytes(model: nn.Module, input_shape: Sequence[int], batch: int, optimizer: OptimizerName) -> int:
    """Parameters, buffers, gradients, optimizer state, and what the forward pass saves for the backward pass.

    An estimate from below: scratch space of the kernels, the allocator's slack and the interpreter itself (some
    hundred megabytes with torch) come on top. The two largest saved tensors are counted once more, for the
    gradients that flow between layers.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _memory(fake_twin(model), input_shape, batch, max(batch, COUNTED_BATCH), optimizer)
    except NEEDS_NUMBERS:
        with _real_twin(model) as twin:
            return _memory(twin, input_shape, batch, COUNTED_BATCH, optimizer)


def _memory(twin: nn.Module, input_shape: Sequence[int], batch: int, counted: int, optimizer: OptimizerName) -> int:
    trained = sum(_size(p) for p in twin.parameters() if p.requires_grad)
    held = _held(twin)
    samples = _batch(twin, input_shape, counted, "cpu")
    tensors = (*twin.parameters(), *twin.buffers())
    with contextlib.redirect_stdout(sys.stderr), saved_for_backward(tensors) as saved:
        logits = twin(samples)
    storages = saved | {s._cdata: s for s in (samples.untyped_storage(), logits.untyped_storage())}
    sizes = sorted((storage.nbytes() for storage in storages.values()), reverse=True)
    activations = (sum(sizes) + sum(sizes[:2])) * batch // counted
    return held + trained * (1 + OPTIMIZER_COPIES[optimizer]) + activations


def flop_counter() -> FlopCounterMode:
    """torch's counter, which counts the backward pass of a convolution as if it had one group, with that put right.

    Such a mode has itself disabled for ``torch._dynamo`` at its first call, which loads that: 70 MB with sympy, a
    second of a fast core. Nothing is compiled here, so it is marked as disabled already.
    """
    for mode in TorchDispatchMode.__subclasses__():
        dispatch = inspect.unwrap(mode.__torch_dispatch__)
        setattr(dispatch, "__dynamo_disable", dispatch)
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    output: list[int],
    x: list[int],
    weight: list[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """The gradient of the input and that of the weights each cost what the forward pass does."""
    return int(conv_flop_count(x, weight, output, transposed)) * (wanted[0] + wanted[1])


@contextlib.contextmanager
def saved_for_backward(excluded: Iterable[Tensor]) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Fills with the storages that forward passes keep for the backward pass, but for those of some tensors, and for
    tensors that have none of their own, as sparse ones have not."""
    own = {storage._cdata for tensor in excluded if (storage := _storage(tensor)) is not None}
    saved: dict[int, torch.UntypedStorage] = {}  # keeps storages alive, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage is not None and storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except NotImplementedError:
        return None


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of the model in training mode that has shapes but no numbers. Raises ``JobError``."""
    refuse_odd(model, "can't be cut into blocks")
    return _twin(model, lambda tensor: tensor.detach().to("meta"))


def fake_twin(model: nn.Module) -> nn.Module:
    """The same, which takes itself for one on the CPU. Needs an active ``FakeTensorMode``."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")

    plain: dict[int, object] = {}
    """Tensors that are plain attributes: such a mode refuses to copy them, and torch tells of it at length."""
    for module in model.modules():
        for value in vars(module).values():
            dense = (t for t in tensors_in(value) if t.layout == torch.strided and not (t.is_nested or t.is_quantized))
            plain |= {id(tensor): like(tensor) for tensor in dense}
    return _twin(model, like, plain)


def _twin(model: nn.Module, like: Callable[[Tensor], Tensor], memo: dict[int, object] | None = None) -> nn.Module:
    memo = memo or {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(like(parameter), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = like(buffer)
    with own_code(f"the model {type(model).__name__} can't be copied", model, COPIED):
        twin = copied(model, memo)
    twin.train()
    return twin


@contextlib.contextmanager
def _real_twin(model: nn.Module) -> Iterator[nn.Module]:
    """A copy with numbers, for a model that looks at them: control flow on data, TorchScript. What can't be copied is
    lent, and is afterwards as it was."""
    try:
        twin = copied(model)
    except (*NEEDS_NUMBERS, NotImplementedError):  # locks, open files
        twin = model
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    was_training = model.training
    twin.train()
    try:
        yield twin
    finally:
        for buffer, before in buffers if twin is model else ():
            buffer.data.copy_(before)
        if twin is model:
            model.zero_grad(set_to_none=True)
            model.train(was_training)


def _batch(model: nn.Module, input_shape: Sequence[int], size: int, device: str) -> Tensor:
    return torch.zeros(size, *input_shape, dtype=sample_dtype(model), device=device)


def sample_dtype(model: nn.Module) -> torch.dtype:
    """Of the samples that a model takes: that of its first parameter; token numbers of a user's own for text."""
    if getattr(model, READS_TOKENS, False):
        return torch.int64
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _held(model: nn.Module) -> int:
    return sum(_size(tensor) for tensor in (*model.parameters(), *model.buffers()))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

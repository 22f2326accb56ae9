"""What each block of a chain costs: operations and bytes per sample, counted without computing.

Invariant: the blocks' operations add up to ``training_flops`` of the whole model, their parameters and buffers to its
state. A model that only runs with real numbers (``Chain.on_meta``) is copied and run on the CPU instead.
"""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.flops import COUNTED_BATCH, fake_twin, flop_counter, meta_twin, saved_for_backward
from p2ptrain.learning.training import has_batch_norm
from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile

Tensors = tuple[Tensor, ...]


def profile_blocks(chain: Chain, name: str) -> ModelProfile:
    """Operations and bytes of every block. ``name`` is the model's."""
    operations = [_operations(chain, index) for index in range(len(chain.blocks))]
    saved = [_saved(chain, index) for index in range(len(chain.blocks))]
    blocks: list[BlockProfile] = []
    for index, block in enumerate(chain.blocks):
        is_last = index == len(chain.blocks) - 1
        inner_bytes, _, keeps_output = saved[index]
        next_keeps = [True] if is_last else saved[index + 1][1]  # of the logits the loss keeps as much
        kept = [mine or its for mine, its in zip(keeps_output, next_keeps, strict=True)]
        part = chain.slice(index, index + 1)
        trained = {id(p): p.nbytes for p in part.parameters() if p.requires_grad}
        held = {id(tensor): tensor.nbytes for tensor in (*part.parameters(), *part.buffers())}
        blocks.append(
            BlockProfile(
                name=block.name,
                forward_flops=operations[index][0],
                backward_flops=operations[index][1],
                parameter_bytes=sum(trained.values()),
                activation_bytes=sum(output.num_bytes for output in block.outputs),
                stored_activation_bytes=inner_bytes
                + sum(output.num_bytes for output, is_kept in zip(block.outputs, kept, strict=True) if is_kept),
                cut_after=not is_last,
                buffer_bytes=sum(held.values()) - sum(trained.values()),
                least_samples=2 if _takes_statistics(part) else 1,
            )
        )
    return ModelProfile(name, chain.input.num_bytes, tuple(blocks))


def block_inputs(chain: Chain, index: int, batch: int, device: torch.device | str) -> Tensors:
    """What a block takes, of zeros; with gradients, but for the input batch."""
    return tuple(
        torch.zeros(batch, *crossing.shape, dtype=crossing.dtype, device=device).requires_grad_(index > 0)
        for crossing in chain.inputs(index)
    )


def run_forward(part: nn.Module, inputs: Tensors) -> Tensors:
    output = part(*inputs)
    return output if isinstance(output, tuple) else (output,)


def run_backward(outputs: Tensors) -> None:
    trained = [output for output in outputs if output.requires_grad]
    if trained:
        torch.autograd.backward(trained, [torch.ones_like(output) for output in trained])


def _operations(chain: Chain, index: int) -> tuple[int, int]:
    """Forward and backward, per sample. The backward pass stops at the first block's weights."""
    device = "meta" if chain.on_meta else "cpu"
    part = (meta_twin if chain.on_meta else _cpu_twin)(chain.slice(index, index + 1))
    with flop_counter() as counter:
        outputs = run_forward(part, block_inputs(chain, index, COUNTED_BATCH, device))
        forward = counter.get_total_flops()
        run_backward(outputs)
    return forward // COUNTED_BATCH, (counter.get_total_flops() - forward) // COUNTED_BATCH


def _saved(chain: Chain, index: int) -> tuple[int, list[bool], list[bool]]:
    """Bytes per sample kept for backward beside inputs and outputs; whether each input and each output is kept."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if chain.on_meta else contextlib.nullcontext()
    with mode:
        part = (fake_twin if chain.on_meta else _cpu_twin)(chain.slice(index, index + 1))
        inputs = block_inputs(chain, index, COUNTED_BATCH, "cpu")
        with saved_for_backward((*part.parameters(), *part.buffers())) as saved:
            outputs = run_forward(part, inputs)
        ends = [[tensor.untyped_storage()._cdata for tensor in tensors] for tensors in (inputs, outputs)]
        inner = sum(storage.nbytes() for key, storage in saved.items() if key not in ends[0] and key not in ends[1])
        keeps = [[key in saved for key in keys] for keys in ends]
    return inner // COUNTED_BATCH, keeps[0], keeps[1]


def _takes_statistics(part: nn.Module) -> bool:
    """In training, whatever mode its layers are in, which they share with the chain's model and stay in."""
    modes = [(module, module.training) for module in part.modules()]
    try:
        return has_batch_norm(part.train())
    finally:
        for module, mode in modes:
            module.training = mode


def _cpu_twin(part: nn.Module) -> nn.Module:
    return copy.deepcopy(part).cpu().train()

"""How long each block of a chain takes on this device: measured within a stated time, and remembered (``times_cache``).

Invariant: blocks are run as a stage runs them (``Stage``: channels last). One block's tensors are held at a time,
of made-up numbers, so that the model need not exist.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from p2ptrain.config import Coding, TrainingConfig
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import block_inputs, profile_blocks, run_backward, run_forward
from p2ptrain.learning.own.layout import order_of, put_in_order
from p2ptrain.learning.pipeline.stage import as_trained
from p2ptrain.learning.profiling import cache as times_cache
from p2ptrain.learning.profiling.coding_times import time_codings
from p2ptrain.learning.profiling.precision import is_mixed, mixed
from p2ptrain.learning.profiling.stopwatch import LEAST_RUNS, NUM_RUNS, Clock, Run, Stopwatch
from p2ptrain.learning.training import make_optimizer
from p2ptrain.planning.devices.blocks import BlockTimes

HEAP_COPIES = 2
"""Of what a block stores for its backward pass: with its gradients about what a run allocates."""
WEIGHT = 0.01
NOISE_LENGTH = 1 << 16
"""Made-up numbers come again after so many."""


def measure_blocks(
    chain: Chain,
    name: str,
    *,
    batch_sizes: Sequence[int] = (2, 8, 32),
    training: TrainingConfig | None = None,
    device: torch.device | str = "cpu",
    budget_s: float = 20.0,
    heap_bytes: int = 0,
    codings: tuple[Coding, Coding] | None = None,
    cache: Path | None = None,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> BlockTimes:
    """Seconds of each block's forward and backward pass: medians of a few runs. ``name`` is the model's.

    And of the optimizer that ``training`` names, on the blocks' parameters, one block after the other.

    How they are timed, and stretched to what all of it took by the clock: ``stopwatch``.

    The smallest batch is always measured, larger ones as long as ``budget_s`` is likely to do. At batch size 1, on
    which BatchNorm can't be trained, blocks run in eval mode. ``heap_bytes``: so much memory may be touched before, as
    far as blocks need it, so that what is timed is not its first use. ``codings``: of activations and of gradients that
    cross a cut; without them making stage messages is not timed. ``cache``: a file of ours, made if there is none.
    """
    sizes = sorted(set(batch_sizes))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"batch sizes {list(batch_sizes)}")
    device = torch.device(device)
    remembered = times_cache.read(cache) if cache is not None else {}
    training = training or TrainingConfig()
    words = training.optimizer_name + (", bf16" if is_mixed(training, device) else "")
    key = times_cache.key_of(chain, name, sizes, device, words)
    known = times_cache.times_of(remembered.get(key), len(chain.blocks), codings)
    if known is not None:
        return known
    watch = Stopwatch(device, clock, cpu_clock if device.type == "cpu" else clock)
    with mixed(training, device):
        times = _measure(chain, sizes, watch, budget_s, training, heap_bytes if device.type == "cpu" else 0)
    entry = dataclasses.asdict(times)
    if codings is not None:
        found = time_codings(chain, watch)
        # All are kept: a job with another coding need not measure its blocks again.
        coded = {coding: [watch.stretch * seconds for seconds in both] for coding, both in found.items()}
        entry[times_cache.CODED] = coded
        activation_s, gradient_s = (coded[coding][way] for way, coding in enumerate(codings))
        times = dataclasses.replace(times, activation_s_per_byte=activation_s, gradient_s_per_byte=gradient_s)
    if cache is not None:
        times_cache.write(cache, {**remembered, key: entry})
    return times


def slowdown_now(
    chain: Chain,
    known: BlockTimes,
    training: TrainingConfig,
    *,
    device: torch.device | str = "cpu",
    budget_s: float = 2.0,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> float:
    """How many times as long as ``known`` says this device takes for its blocks now, at the smallest batch; above zero.

    Of the blocks that take longest as many as ``budget_s`` is enough for, by the clock; at least one.
    """
    device = torch.device(device)
    watch = Stopwatch(device, clock, cpu_clock if device.type == "cpu" else clock)
    size, end = known.batch_sizes[0], clock() + budget_s
    expected = [sum(both) for both in zip(known.forward_s[0], known.backward_s[0], strict=True)]
    took_s = expected_s = 0.0
    for index in sorted(range(len(expected)), key=lambda index: -expected[index]):
        passes = _Passes([], [])
        with mixed(training, device):
            _Block(chain, index, watch).run({size: passes}, times=1 + LEAST_RUNS)  # the first makes kernels ready
        took_s += watch.typical(passes.forward) + watch.typical(passes.backward)
        expected_s += expected[index]
        if clock() >= end:
            break
    return watch.stretch * took_s / expected_s if took_s > 0 and expected_s > 0 else 1.0


class _Passes(NamedTuple):
    """Runs of one block at one batch size."""

    forward: list[Run]
    backward: list[Run]

    def wanted(self, watch: Stopwatch, end: float) -> bool:
        return watch.wants(self.forward, end) or watch.wants(self.backward, end)


def _measure(
    chain: Chain, sizes: Sequence[int], watch: Stopwatch, budget_s: float, training: TrainingConfig, heap_bytes: int
) -> BlockTimes:
    """All sizes of all blocks once, then again and again: so a slow moment of the machine does not make one batch size
    look slow, or a fast one fast, which a plan would fall for."""
    clock = watch.clock
    end = clock() + budget_s
    blocks = [_Block(chain, index, watch) for index in range(len(chain.blocks))]
    profiles = profile_blocks(chain, "").blocks if heap_bytes else ()
    rows: list[list[_Passes]] = []
    took: list[float] = []
    """Seconds by the clock of a run of all blocks, at each size."""
    for index, size in enumerate(sizes):
        if rows:
            once = took[-1] * size / sizes[index - 1]
            if clock() + 2 * once + (LEAST_RUNS - 1) * (sum(took) + once) > end:
                break
        if heap_bytes:
            needed = max(HEAP_COPIES * size * b.stored_activation_bytes + 2 * b.parameter_bytes for b in profiles)
            torch.empty(min(needed, heap_bytes), dtype=torch.uint8).fill_(1)  # as training soon will have done
        row = [_Passes([], []) for _ in blocks]
        for block, passes in zip(blocks, row, strict=True):
            block.run({size: passes}, times=2)  # the first makes kernels ready, which may take long
        rows.append(row)
        took.append(watch.delay * sum(forward[-1].seconds + backward[-1].seconds for forward, backward in row))
    for turn in range(NUM_RUNS - 1):
        for block in blocks[:: 1 if turn % 2 else -1]:  # what drifts, drifts for all alike
            measured = {size: row[block.index] for size, row in zip(sizes, rows, strict=False)}
            wanted = {size: passes for size, passes in measured.items() if passes.wanted(watch, end)}
            if wanted:
                block.run(wanted)
    typical = [[(watch.typical(passes.forward), watch.typical(passes.backward)) for passes in row] for row in rows]
    update_s_per_byte = _time_update([block.part for block in blocks], watch, training, end)
    return BlockTimes(
        batch_sizes=tuple(sizes[: len(rows)]),
        forward_s=tuple(tuple(watch.stretch * forward for forward, _ in row) for row in typical),
        backward_s=tuple(tuple(watch.stretch * backward for _, backward in row) for row in typical),
        update_s_per_byte=watch.stretch * update_s_per_byte,
    )


class _Block:
    """One block, which has numbers only while it is run."""

    def __init__(self, chain: Chain, index: int, watch: Stopwatch) -> None:
        self.index = index
        self.part: nn.Module = copy.deepcopy(chain.slice(index, index + 1))
        self._order = order_of(self.part)
        self._chain = chain
        self._watch = watch

    def run(self, wanted: Mapping[int, _Passes], times: int = 1) -> None:
        """One more pass, or some, at each of these batch sizes."""
        part = _fill(self.part, self._watch.device)
        for parameter in part.parameters():  # gradients add up, as those of a batch's micro-batches do
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        for size, passes in wanted.items():
            made = block_inputs(self._chain, self.index, size, self._watch.device)
            for _ in range(times):
                self._run(part.train(size > 1), made if self.index == 0 else tuple(map(_noisy, made)), passes)
        _empty(part)

    def _run(self, part: nn.Module, made: Sequence[Tensor], passes: _Passes) -> None:
        watch = self._watch
        inputs = tuple(as_trained(t.detach(), watch.device, self._order).requires_grad_(t.requires_grad) for t in made)
        run, outputs = watch.time(lambda: run_forward(part, inputs))
        passes.forward.append(run)
        passes.backward.append(watch.time(lambda: run_backward(outputs))[0])


def _time_update(parts: Sequence[nn.Module], watch: Stopwatch, training: TrainingConfig, end: float) -> float:
    """Seconds for each byte of parameters: of the optimizer's step, and of emptying the gradient."""
    seconds, num_bytes = 0.0, 0
    for part in parts:
        if not any(parameter.requires_grad for parameter in part.parameters()):
            continue
        parameters = {n: p for n, p in _fill(part, watch.device).named_parameters() if p.requires_grad}
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, WEIGHT)
        optimizer = make_optimizer(parameters, training)
        runs: list[Run] = []  # the first one makes the optimizer's state
        while watch.wants(runs, end):
            step, _ = watch.time(optimizer.step)
            emptied, _ = watch.time(partial(optimizer.zero_grad, set_to_none=False))
            runs.append(Run(step.seconds + emptied.seconds, step.faults + emptied.faults))
        seconds += watch.typical(runs)
        num_bytes += sum(parameter.nbytes for parameter in parameters.values())
        del parameters, optimizer, step, emptied
        _empty(part)
    return seconds / num_bytes if num_bytes else 0.0


def _fill(part: nn.Module, device: torch.device) -> nn.Module:
    """Give tensors that have no numbers some, on the device: time hardly hangs on which."""
    for module in part.modules():
        for short, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                made = torch.full_like(parameter, 1.0, device=device)
                if parameter.dim() > 1 and parameter.is_floating_point():
                    _noisy(made).mul_(WEIGHT)
                setattr(module, short, nn.Parameter(made, requires_grad=parameter.requires_grad))
        for short, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, short, torch.full_like(buffer, float(buffer.is_floating_point()), device=device))
    part.to(device)
    put_in_order(part, order_of(part))
    return part


def _empty(part: nn.Module) -> None:
    """Hold none of them any more: to make the part anew would take a small device longer than to run it."""
    for module in part.modules():
        for short, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device="meta")
            setattr(module, short, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for short, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, short, torch.empty_like(buffer, device="meta"))


def _noisy(tensor: Tensor) -> Tensor:
    """The tensor, filled with numbers as they come in training: of nothing but zeros a device may make shorter work."""
    if tensor.is_floating_point():
        noise = torch.randn(NOISE_LENGTH, generator=torch.Generator().manual_seed(0)).to(tensor)
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))  # as it lies in memory: it is new, and has no gaps
        for start in range(0, len(flat), NOISE_LENGTH):
            flat[start : start + NOISE_LENGTH] = noise[: len(flat) - start]
    return tensor

"""How long each block of a chain takes on this device: measured within a stated time, and remembered in a file.

Invariant: blocks are run as a stage runs them (``slice_stage``: channels last). One block's tensors are held at a time,
of made-up numbers, so that the model need not exist; and what was remembered is only believed for the same device,
model, batch sizes and version of torch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import UserError
from p2ptrain.learning.block_costs import block_inputs, profile_blocks, run_backward, run_forward
from p2ptrain.learning.blocks import Chain
from p2ptrain.learning.slice_stage import as_trained
from p2ptrain.learning.training import make_optimizer
from p2ptrain.planning.blocks import BlockTimes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CACHE_FORMAT = "p2ptrain-block-times-5"
NUM_RUNS, LEAST_RUNS = 5, 2
"""Of each block at each batch size, after one to warm up; fewer where time is short, but at least so many steady ones.
Of an even number the lower median counts."""
FEW_FAULTS = 64
OUTLIER = 2.0
"""A run that took so many times as long as the median counts as just that."""
HEAP_COPIES = 2
"""Of what a block stores for its backward pass: with its gradients about what a run allocates."""
WEIGHT = 0.01

Clock = Callable[[], float]


def measure_blocks(
    chain: Chain,
    name: str,
    *,
    batch_sizes: Sequence[int] = (2, 8, 32),
    training: TrainingConfig | None = None,
    device: torch.device | str = "cpu",
    budget_s: float = 20.0,
    heap_bytes: int = 0,
    cache: Path | None = None,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> BlockTimes:
    """Seconds of each block's forward and backward pass: medians of a few runs. ``name`` is the model's.

    And of the optimizer that ``training`` names, on the blocks' parameters, one block after the other.

    On a CPU the runs are timed by CPU time, and all blocks alike stretched to what the whole took by the clock: a
    process that gets its share of a core in turns is held up now and then, which no single short run shows. And to the
    runs' mean: a machine that others use, too, is slow now and then, and training takes the mean.

    The smallest batch is always measured, larger ones as long as ``budget_s`` is likely to do. At batch size 1, on
    which BatchNorm can't be trained, blocks run in eval mode. ``heap_bytes``: so much memory may be touched before, as
    far as blocks need it, so that what is timed is not its first use. ``cache``: a file of ours, made if there is none.
    """
    sizes = sorted(set(batch_sizes))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"batch sizes {list(batch_sizes)}")
    device = torch.device(device)
    remembered = _read(cache) if cache is not None else {}
    training = training or TrainingConfig()
    key = _key(chain, name, sizes, device, training.optimizer)
    found = _times_of(remembered.get(key), len(chain.blocks))
    if found is not None:
        return found
    watch = Stopwatch(device, clock, cpu_clock if device.type == "cpu" else clock)
    with _little_to_collect():
        times = _measure(chain, sizes, watch, budget_s, training, heap_bytes if device.type == "cpu" else 0)
    if cache is not None:
        _write(cache, {**remembered, key: dataclasses.asdict(times)})
    return times


@contextlib.contextmanager
def _little_to_collect() -> Iterator[None]:
    """Garbage is collected block by block (a traced module refers to itself), without a look at what was there before:
    a device with little memory can't hold many blocks, and looking through all of torch each time takes seconds."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Run(NamedTuple):
    """Seconds of work, and the page faults that it took."""

    seconds: float
    faults: int


def _steady(runs: Sequence[_Run]) -> list[float]:
    """Those after the first, which warms up, in which the heap did not grow: in training it soon has its size.

    Where large blocks go back to the kernel at once, as they do on small devices, all runs have many faults.
    """
    least = min((run.faults for run in runs[1:]), default=0)
    return [run.seconds for run in runs[1:] if run.faults <= 2 * least + FEW_FAULTS]


def _num_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource is not None else 0


class Stopwatch:
    """Times runs by their work, and knows by how much the clock went faster."""

    def __init__(self, device: torch.device, clock: Clock, work_clock: Clock) -> None:
        self.device = device
        self.clock = clock
        self._work_clock = work_clock
        self._clocked = self._worked = self._typical = self._counted = 0.0

    def time(self, work: Callable[[], Any]) -> tuple[_Run, Any]:
        """How it went, and what came of it."""
        faults, start, work_start = _num_faults(), self.clock(), self._work_clock()
        result = work()
        _wait_for(self.device)
        worked = self._work_clock() - work_start
        self._clocked += self.clock() - start
        self._worked += worked
        return _Run(worked, _num_faults() - faults), result

    def typical(self, runs: Sequence[_Run]) -> float:
        """The lower median of a work's steady runs."""
        steady = _steady(runs)
        median = statistics.median_low(steady)
        self._typical += len(steady) * median
        self._counted += sum(min(seconds, OUTLIER * median) for seconds in steady)
        return median

    def seconds(self, work: Callable[[], Any], end: float) -> float:
        """Of a work that is run a few times, until ``end`` by the clock; not stretched."""
        runs: list[_Run] = []
        while self.wants(runs, end):
            runs.append(self.time(work)[0])
        return self.typical(runs)

    def wants(self, runs: Sequence[_Run], end: float) -> bool:
        """Whether to time the work once more: always, as long as there is time until ``end`` or too few are steady."""
        return len(runs) <= NUM_RUNS and (len(_steady(runs)) < LEAST_RUNS or self.clock() < end)

    @property
    def stretch(self) -> float:
        """How many times as long as its typical runs say all of the work took by the clock."""
        if self._worked <= 0 or self._typical <= 0:
            return 1.0
        return self._clocked / self._worked * self._counted / self._typical


def _measure(
    chain: Chain, sizes: Sequence[int], watch: Stopwatch, budget_s: float, training: TrainingConfig, heap_bytes: int
) -> BlockTimes:
    clock = watch.clock
    end = clock() + budget_s
    blocks = profile_blocks(chain, "").blocks if heap_bytes else ()
    rows: list[list[tuple[float, float]]] = []
    for index, size in enumerate(sizes):
        if rows:
            once = watch.stretch * sum(map(sum, rows[-1])) * size / sizes[index - 1]
            if clock() + (1 + LEAST_RUNS) * once > end:
                break
        if heap_bytes:
            needed = max(HEAP_COPIES * size * b.stored_activation_bytes + 2 * b.parameter_bytes for b in blocks)
            torch.empty(min(needed, heap_bytes), dtype=torch.uint8).fill_(1)  # as training soon will have done
        row: list[tuple[float, float]] = []
        for block in range(len(chain.blocks)):
            # What is left, evenly over the samples that are still to be run.
            left = size * (len(chain.blocks) - block) + sum(sizes[index + 1 :]) * len(chain.blocks)
            row.append(_time_block(chain, block, size, watch, clock() + (end - clock()) * size / left))
            gc.collect()
        rows.append(row)
    update_s_per_byte = _time_update(chain, watch, training, end)
    return BlockTimes(
        batch_sizes=tuple(sizes[: len(rows)]),
        forward_s=tuple(tuple(watch.stretch * forward for forward, _ in row) for row in rows),
        backward_s=tuple(tuple(watch.stretch * backward for _, backward in row) for row in rows),
        update_s_per_byte=watch.stretch * update_s_per_byte,
    )


def _time_block(chain: Chain, index: int, size: int, watch: Stopwatch, end: float) -> tuple[float, float]:
    part = _made_up(chain.slice(index, index + 1), watch.device).train(size > 1)
    made = block_inputs(chain, index, size, watch.device)
    inputs = tuple(as_trained(t.detach(), watch.device).requires_grad_(t.requires_grad) for t in made)
    forward: list[_Run] = []
    backward: list[_Run] = []
    while watch.wants(forward, end) or watch.wants(backward, end):
        for tensor in inputs:  # gradients of parameters add up, as those of a batch's micro-batches do
            tensor.grad = None
        run, outputs = watch.time(lambda: run_forward(part, inputs))
        forward.append(run)
        backward.append(watch.time(lambda: run_backward(outputs))[0])  # noqa: B023 - called at once
    return watch.typical(forward), watch.typical(backward)


def _time_update(chain: Chain, watch: Stopwatch, training: TrainingConfig, end: float) -> float:
    """Seconds for each byte of parameters: of the optimizer's step, and of emptying the gradient."""
    seconds, num_bytes = 0.0, 0
    for index in range(len(chain.blocks)):
        parameters = dict(_made_up(chain.slice(index, index + 1), watch.device).named_parameters())
        if not parameters:
            continue
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, WEIGHT)
        optimizer = make_optimizer(parameters, training)
        runs: list[_Run] = []  # the first one makes the optimizer's state
        while watch.wants(runs, end):
            step, _ = watch.time(optimizer.step)
            emptied, _ = watch.time(partial(optimizer.zero_grad, set_to_none=False))
            runs.append(_Run(step.seconds + emptied.seconds, step.faults + emptied.faults))
        seconds += watch.typical(runs)
        num_bytes += sum(parameter.nbytes for parameter in parameters.values())
        del parameters, optimizer, step, emptied
        gc.collect()
    return seconds / num_bytes if num_bytes else 0.0


def _made_up(part: nn.Module, device: torch.device) -> nn.Module:
    """A copy on the device, with numbers for tensors that have none: time hardly hangs on which."""
    part = copy.deepcopy(part)
    for module in part.modules():
        for short, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                made = torch.full_like(parameter, WEIGHT if parameter.dim() > 1 else 1.0, device=device)
                setattr(module, short, nn.Parameter(made, requires_grad=parameter.requires_grad))
        for short, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, short, torch.full_like(buffer, float(buffer.is_floating_point()), device=device))
    return part.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# What was measured before


def _key(chain: Chain, name: str, sizes: Sequence[int], device: torch.device, optimizer: str) -> str:
    """Device, model and versions, in words; the model's blocks by a hash of what they hold and pass on."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.node()} {platform.machine()} {device.type}, {torch.get_num_threads()} threads"
    shapes = [
        [(n, tuple(t.shape)) for n, t in chain.slice(i, i + 1).state_dict().items()] for i in range(len(chain.blocks))
    ]
    text = repr((chain.input, chain.blocks, shapes))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    batches = f"batches {', '.join(map(str, sizes))}, {optimizer}"
    return f"{where} | {name} {digest} | {batches} | torch {torch.__version__}"


def _times_of(entry: Any, num_blocks: int) -> BlockTimes | None:
    """What an entry of the file says, if it makes sense."""
    try:
        sizes = tuple(int(size) for size in entry["batch_sizes"])
        rows = [[tuple(float(s) for s in row) for row in entry[key]] for key in ("forward_s", "backward_s")]
        update = float(entry["update_s_per_byte"])
    except (KeyError, TypeError, ValueError):
        return None
    numbers = [update, *(second for side in rows for row in side for second in row)]
    if not sizes or any(len(side) != len(sizes) or any(len(row) != num_blocks for row in side) for side in rows):
        return None
    if not all(math.isfinite(second) and second >= 0 for second in numbers):
        return None
    return BlockTimes(sizes, tuple(rows[0]), tuple(rows[1]), update)


def _read(path: Path) -> dict[str, Any]:
    """The file's entries; none if it is not there or not ours, because it can be made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("format") != CACHE_FORMAT:
        return {}
    times = content.get("times")
    return times if isinstance(times, dict) else {}


def _write(path: Path, entries: Mapping[str, Any]) -> None:
    text = json.dumps({"format": CACHE_FORMAT, "times": entries}, indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text + "\n")
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(
            f"{path}: can't be written ({error.strerror}); measured times need a file to be kept in"
        ) from None

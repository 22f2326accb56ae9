"""What a model costs, block by block, and how long a peer takes for it: the input of every pipeline plan.

A model is a chain of blocks. Each block's figures are per sample, so that they hold for any batch size. Seconds follow
either from a peer's FLOP/s, or from times measured block by block at a few batch sizes (``BlockTimes``).

Invariant: ``check_model`` and ``check_times`` let through only what a plan can be computed from: numbers that are
finite and not negative, work in every model, times above zero. Whoever plans calls them first.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from p2ptrain.errors import UserError
from p2ptrain.wire.schema import Bound

MAX_BLOCKS = 4096
MAX_MEASURED = 16
"""Batch sizes at which a peer's blocks are measured."""

Seconds = Annotated[float, Bound(0, 1e6)]
BlockRow = Annotated[tuple[Seconds, ...], Bound(1, MAX_BLOCKS)]
BlockRows = Annotated[tuple[BlockRow, ...], Bound(0, MAX_MEASURED)]
"""Seconds by [batch size, block]."""
BatchSizes = Annotated[tuple[Annotated[int, Bound(1, 1 << 20)], ...], Bound(0, MAX_MEASURED)]


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """One block of the chain. All figures but the parameters' and buffers' are per sample."""

    name: str
    forward_flops: int
    backward_flops: int
    parameter_bytes: int
    """Trained parameters: what an all-reduce inside a stage sends, and what gradients and optimizer state double."""
    activation_bytes: int
    """The block's output: what crosses a cut after it, and as much again comes back as its gradient."""
    stored_activation_bytes: int
    """What forward keeps for backward: the output if it is kept, the block's input not (the block before counts it)."""
    cut_after: bool
    """Whether a stage may end here; the last block's value means nothing."""
    buffer_bytes: int = 0
    """BatchNorm statistics and the like: held, not trained."""
    least_samples: int = 1
    """Of a micro-batch that a peer trains; 2 with BatchNorm, which takes its statistics from them."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A chain of blocks, first to last. ``input_bytes`` is one sample."""

    name: str
    input_bytes: int
    blocks: Annotated[tuple[BlockProfile, ...], Bound(1, MAX_BLOCKS)]

    @property
    def num_cuts(self) -> int:
        """Places where the chain may be cut."""
        return sum(block.cut_after for block in self.blocks[:-1])

    @property
    def training_flops(self) -> int:
        """Per sample, forward and backward."""
        return self.training_flops_of(0, len(self.blocks))

    def training_flops_of(self, start: int, stop: int) -> int:
        """As ``training_flops``, of these blocks alone."""
        return sum(block.forward_flops + block.backward_flops for block in self.blocks[start:stop])

    @property
    def least_samples(self) -> int:
        """Of a micro-batch, for every peer, whichever its blocks."""
        return max(1, *(block.least_samples for block in self.blocks))

    @property
    def parameter_bytes(self) -> int:
        return sum(block.parameter_bytes for block in self.blocks)


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds that one peer took for each block at some batch sizes: ``forward_s[i][l]`` is block l at the i-th."""

    batch_sizes: tuple[int, ...]
    """The batch sizes that were timed, rising."""
    forward_s: tuple[tuple[float, ...], ...]
    backward_s: tuple[tuple[float, ...], ...]
    update_s_per_byte: float = 0.0
    """Of the optimizer's step, once a batch, for each byte of parameters; 0 = not measured."""
    activation_s_per_byte: float = 0.0
    """Of a trainer that hands activations on, or takes them in, for each byte before it is coded as the job says ..."""
    gradient_s_per_byte: float = 0.0
    """... and likewise of their gradients; 0 = not measured."""

    @classmethod
    def of(cls, profile: object) -> BlockTimes:
        """What a profile holds under the same names."""
        return cls(**{field.name: getattr(profile, field.name) for field in fields(cls)})

    def by_name(self) -> dict[str, Any]:
        """For a profile that holds them under the same names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def forward(self, samples: int) -> list[float]:
        """Seconds of each block for so many samples, on straight lines between what was measured."""
        return _interpolated(self.batch_sizes, self.forward_s, samples)

    def backward(self, samples: int) -> list[float]:
        return _interpolated(self.batch_sizes, self.backward_s, samples)


def extrapolated(times: BlockTimes, others: Sequence[BlockTimes]) -> BlockTimes:
    """With the larger batch sizes that others measured, and this peer had no time for.

    A block's pass is taken to grow as it did for them from this peer's largest batch on, by the median: not at all at
    least, in proportion at most. In proportion alone a weak device, which measures small batches only, would be taken
    for slower than it is, by all that larger ones gain.
    """
    largest = times.batch_sizes[-1]
    others = [other for other in others if largest in other.batch_sizes]
    sizes = sorted({size for other in others for size in other.batch_sizes if size > largest})
    forward_s, backward_s = list(times.forward_s), list(times.backward_s)
    for size in sizes:
        known = [other for other in others if size in other.batch_sizes]
        for rows, passes in ((forward_s, BlockTimes.forward), (backward_s, BlockTimes.backward)):
            before = [passes(other, largest) for other in known]
            after = [passes(other, size) for other in known]
            own = rows[len(times.batch_sizes) - 1]
            each = zip(own, zip(*before, strict=True), zip(*after, strict=True), strict=True)
            rows.append(tuple(_grown(seconds, size / largest, *theirs) for seconds, *theirs in each))
    return replace(
        times, batch_sizes=(*times.batch_sizes, *sizes), forward_s=tuple(forward_s), backward_s=tuple(backward_s)
    )


def check_model(model: ModelProfile) -> None:
    """Raises ``UserError`` for a profile that no plan can be computed from, or that has no legal cut."""
    if not 1 <= len(model.blocks) <= MAX_BLOCKS:
        raise UserError(f"model {model.name}: {len(model.blocks)} blocks; profile it with 1 to {MAX_BLOCKS}")
    for index, block in enumerate(model.blocks):
        for key in COUNTS:
            value = getattr(block, key)
            if not math.isfinite(value) or value < 0:
                raise UserError(
                    f"model {model.name}, block {index} ({block.name}): {key} is {value}; profile the model again"
                )
    if model.input_bytes < 0 or not model.training_flops:
        raise UserError(f"model {model.name}: its blocks have no work to share; profile it again")
    if not model.num_cuts:
        raise UserError(
            f"model {model.name}: no legal cut between its {len(model.blocks)} blocks, so no two peers can share "
            "its blocks; train it with mode tasks or replicas, or name its blocks where one tensor passes between them"
        )


def check_times(times: BlockTimes, model: ModelProfile, peer: str) -> None:
    """Raises ``UserError`` for measured times that don't belong to the model or are no times."""
    sizes = times.batch_sizes
    again = f"measure {peer}'s blocks again"
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise UserError(f"peer {peer}: times measured at batch sizes {list(sizes)}; they must rise from 1; {again}")
    if not 0 <= times.update_s_per_byte < math.inf:
        raise UserError(f"peer {peer}: the optimizer takes {times.update_s_per_byte} s for a byte; {again}")
    for seconds in (times.activation_s_per_byte, times.gradient_s_per_byte):
        if not 0 <= seconds < math.inf:
            raise UserError(f"peer {peer}: making stage messages takes {seconds} s for a byte; {again}")
    for name, rows in (("forward", times.forward_s), ("backward", times.backward_s)):
        if len(rows) != len(sizes) or any(len(row) != len(model.blocks) for row in rows):
            raise UserError(
                f"peer {peer}: {name} times are not one for each of {model.name}'s {len(model.blocks)} blocks "
                f"and {len(sizes)} batch sizes; {again}"
            )
        for size, row in zip(sizes, rows, strict=True):
            wrong = next((i for i, value in enumerate(row) if not math.isfinite(value) or value < 0), None)
            if wrong is not None or not any(row):
                where = "" if wrong is None else f" of block {wrong} ({model.blocks[wrong].name})"
                value = "zero" if wrong is None else f"{row[wrong]}"
                raise UserError(f"peer {peer}: {name} time{where} at batch size {size} is {value}; {again}")


COUNTS = (
    "forward_flops",
    "backward_flops",
    "parameter_bytes",
    "activation_bytes",
    "stored_activation_bytes",
    "buffer_bytes",
    "least_samples",
)


def _grown(seconds: float, most: float, before: Sequence[float], after: Sequence[float]) -> float:
    """``most`` times ``seconds`` at most, for what took others so long before and after."""
    ratios = [late / early for early, late in zip(before, after, strict=True) if early > 0]
    return seconds * (min(most, max(1.0, statistics.median(ratios))) if ratios else most)


def _interpolated(sizes: Sequence[int], rows: Sequence[Sequence[float]], samples: int) -> list[float]:
    """Between two sizes on a line; beyond the largest in proportion; below the smallest on the first line, but no
    less than in proportion and no more than the smallest took. Noise can't make fewer samples take longer."""
    at = bisect_left(sizes, samples)
    if at == len(sizes):
        return [value * samples / sizes[-1] for value in rows[-1]]
    if samples == sizes[at]:
        return list(rows[at])
    if at == 0:
        share = samples / sizes[0]
        if len(sizes) == 1:
            return [value * share for value in rows[0]]
        slope = (samples - sizes[0]) / (sizes[1] - sizes[0])
        lines = (low + slope * (high - low) for low, high in zip(rows[0], rows[1], strict=True))
        return [min(low, max(low * share, line)) for low, line in zip(rows[0], lines, strict=True)]
    share = (samples - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
    return [low + share * (high - low) for low, high in zip(rows[at - 1], rows[at], strict=True)]

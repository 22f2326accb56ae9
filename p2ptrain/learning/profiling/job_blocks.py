"""The blocks of a job's model, and how long this device takes for each at the sizes that micro-batches may have."""

from __future__ import annotations

import math
from pathlib import Path

from p2ptrain.config import Coding, Job
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.learning.profiling.allocator import kept_block_bytes
from p2ptrain.learning.profiling.block_times import measure_blocks
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile, check_model
from p2ptrain.planning.pipeline.fleet import micro_batch_choices

MEASURE_S = 20.0


def measure_job(
    chain: Chain,
    job: Job,
    *,
    micro_batches: int,
    codings: tuple[Coding, Coding],
    device: str,
    cache: Path | None,
) -> tuple[ModelProfile, BlockTimes]:
    """``micro_batches``: the most that a batch is cut into; ``codings``: of activations and gradients.

    ``cache``: a file that remembers the times. Raises ``UserError`` for a model that can't be cut.
    """
    model = profile_blocks(chain, job.model.name)
    check_model(model)
    rows = [max(1, job.training.batch_size // num) for num in micro_batch_choices(micro_batches)]
    sizes = sorted({math.ceil(min(rows) / 4), math.ceil(min(rows) / 2), *rows})
    times = measure_blocks(
        chain,
        job.model.name,
        batch_sizes=sizes,
        training=job.training,
        device=device,
        budget_s=MEASURE_S,
        heap_bytes=kept_block_bytes() // 2,
        codings=codings,
        cache=cache,
    )
    return model, times

"""How long this device takes to make stage messages of what crosses a cut, and tensors of stage messages again.

That is a trainer's part of passing them on; what its node does with their bytes is planned for apart
(``planning.pipeline.fleet``).
"""

from __future__ import annotations

import time

import torch
from safetensors.torch import load, save

from p2ptrain.config import CODINGS, Coding
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pipeline.codec import Encoder, decode
from p2ptrain.learning.pipeline.rows import MESSAGE_BYTES, Spec
from p2ptrain.learning.profiling.stopwatch import Stopwatch

MOST_ROWS = 64
BUDGET_S = 2.0


def measure_codings(chain: Chain) -> dict[Coding, tuple[float, float]]:
    """As ``time_codings``, stretched to what all of it took by the clock."""
    watch = Stopwatch(torch.device("cpu"), time.perf_counter, time.process_time)
    found = time_codings(chain, watch)
    return {coding: (watch.stretch * one, watch.stretch * other) for coding, (one, other) in found.items()}


def time_codings(chain: Chain, watch: Stopwatch) -> dict[Coding, tuple[float, float]]:
    """Seconds for each byte that crosses a cut, before it is coded, of handing it on or of taking it in: their mean;
    of activations, and of gradients. By the watch, not stretched, of a stage message of what crosses the middle of the
    chain.
    """
    crossing = chain.blocks[(len(chain.blocks) - 1) // 2].outputs[0]
    if not crossing.dtype.is_floating_point:
        return {coding: (0.0, 0.0) for coding in CODINGS}
    one = torch.empty((1, *crossing.shape), dtype=crossing.dtype)
    specs = {"0": Spec((crossing.shape,), crossing.dtype)}
    end = watch.clock() + BUDGET_S

    def seconds_per_byte(coding: Coding, *, feedback: bool) -> float:
        encoder = Encoder(coding, feedback=feedback)
        num_rows = max(1, min(MOST_ROWS, MESSAGE_BYTES // encoder.row_bytes({"0": one})))
        rows = torch.randn((num_rows, *crossing.shape)).to(crossing.dtype)

        def there_and_back() -> object:
            return decode(coding, load(save(encoder.encode({"0": rows}))), specs)

        return watch.seconds(there_and_back, end) / 2 / rows.nbytes

    return {
        coding: (seconds_per_byte(coding, feedback=False), seconds_per_byte(coding, feedback=True))
        for coding in CODINGS
    }

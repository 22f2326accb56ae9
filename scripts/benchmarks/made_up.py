"""Made-up rooms to plan pipelines for."""

from __future__ import annotations

import random

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask


def mixed_task(generator: random.Random, num_blocks: int, num_peers: int) -> PipelineTask:
    """No two blocks and no two peers are alike: speeds a hundred times apart, memory twenty, links six."""
    blocks = tuple(
        BlockProfile(
            f"b{i}",
            generator.randint(3 * 10**8, 10**9),
            generator.randint(6 * 10**8, 2 * 10**9),
            generator.randint(10**4, 4 * 10**6),
            generator.randint(10**4, 2 * 10**5),
            generator.randint(10**4, 6 * 10**5),
            True,
        )
        for i in range(num_blocks)
    )
    peers = tuple(
        PipelinePeer(
            f"p{i:02}",
            10 ** generator.uniform(9.5, 11.5),
            generator.uniform(2e8, 4e9),
            generator.uniform(4e6, 2.5e7),
        )
        for i in range(num_peers)
    )
    return PipelineTask(ModelProfile("mixed", 12_288, blocks), peers, 16, 8, 1e-3)

"""Made-up rooms to plan pipelines and split training for."""

from __future__ import annotations

import random

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask
from p2ptrain.planning.split.task import SplitPeer, SplitTask


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


def mixed_room(generator: random.Random, num_owners: int, num_helpers: int, num_blocks: int) -> SplitTask:
    """Owners of 0.3 to 5 GFLOP/s on 5 to 80 Mbit/s, helpers without samples of 10 to 100 on 50 to 250."""
    blocks = tuple(
        BlockProfile(
            f"b{i}",
            generator.randint(10**7, 10**8),
            generator.randint(2 * 10**7, 2 * 10**8),
            generator.randint(10**4, 10**6),
            generator.randint(10**4, 10**5),
            generator.randint(10**4, 2 * 10**5),
            True,
        )
        for i in range(num_blocks)
    )
    owners = [
        SplitPeer(
            PipelinePeer(f"o{i:02}", 10 ** generator.uniform(8.5, 9.7), 2e9, 10 ** generator.uniform(5.8, 7)),
            generator.randint(100, 2000),
        )
        for i in range(num_owners)
    ]
    helpers = [
        SplitPeer(PipelinePeer(f"h{i:02}", 10 ** generator.uniform(10, 11), 8e9, 10 ** generator.uniform(6.8, 7.5)))
        for i in range(num_helpers)
    ]
    return SplitTask(ModelProfile("mixed", 12_288, blocks), (*owners, *helpers), 64, latency_s=1e-3)

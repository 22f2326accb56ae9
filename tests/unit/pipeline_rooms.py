"""Made-up models and rooms of peers to plan pipelines for."""

from __future__ import annotations

import dataclasses
import random

from p2ptrain.planning.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline_task import PipelinePeer, PipelineTask


def even_model(num_blocks: int, activation_bytes: int = 0, parameter_bytes: int = 0) -> ModelProfile:
    block = BlockProfile("b", 10**6, 2 * 10**6, parameter_bytes, activation_bytes, activation_bytes, True)
    return ModelProfile("even", 0, tuple(dataclasses.replace(block, name=f"b{i}") for i in range(num_blocks)))


def room(*speeds: float, memory_bytes: float = 1e12, link_bytes_per_s: float = 1e12) -> tuple[PipelinePeer, ...]:
    return tuple(PipelinePeer(f"p{i}", 1e6 * s, memory_bytes, link_bytes_per_s) for i, s in enumerate(speeds))


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

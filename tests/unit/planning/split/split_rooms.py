"""Made-up rooms to plan split training for."""

from __future__ import annotations

import dataclasses
import random

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.task import PipelinePeer
from p2ptrain.planning.split.task import SplitPeer, SplitTask


def some_model(generator: random.Random, num_blocks: int) -> ModelProfile:
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
    return ModelProfile("net", 12_000, blocks)


def some_task(
    generator: random.Random, num_owners: int, num_helpers: int, num_blocks: int, batch: int = 64
) -> SplitTask:
    """Weak owners on slow links, stronger helpers without samples; nobody is short of memory."""
    owners = [
        SplitPeer(
            PipelinePeer(f"o{i:02}", 10 ** generator.uniform(8.5, 9.7), 2e9, 10 ** generator.uniform(5.8, 7)),
            batch * generator.randint(2, 30),
        )
        for i in range(num_owners)
    ]
    helpers = [
        SplitPeer(PipelinePeer(f"h{i:02}", 10 ** generator.uniform(10, 11), 8e9, 10 ** generator.uniform(6.8, 7.5)))
        for i in range(num_helpers)
    ]
    model = some_model(generator, num_blocks)
    return SplitTask(model, (*owners, *helpers), batch, latency_s=0.001)


def with_device(peer: SplitPeer, **changes: float) -> SplitPeer:
    return dataclasses.replace(peer, device=dataclasses.replace(peer.device, **changes))

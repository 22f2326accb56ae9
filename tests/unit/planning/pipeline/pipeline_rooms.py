"""Models of like blocks, and rooms of peers, to plan pipelines for."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.task import PipelinePeer

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "scripts"))

from benchmarks.made_up import mixed_task as mixed_task


def even_model(num_blocks: int, activation_bytes: int = 0, parameter_bytes: int = 0) -> ModelProfile:
    block = BlockProfile("b", 10**6, 2 * 10**6, parameter_bytes, activation_bytes, activation_bytes, True)
    return ModelProfile("even", 0, tuple(dataclasses.replace(block, name=f"b{i}") for i in range(num_blocks)))


def room(*speeds: float, memory_bytes: float = 1e12, link_bytes_per_s: float = 1e12) -> tuple[PipelinePeer, ...]:
    return tuple(PipelinePeer(f"p{i}", 1e6 * s, memory_bytes, link_bytes_per_s) for i, s in enumerate(speeds))

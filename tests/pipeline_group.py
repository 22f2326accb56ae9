"""A pipeline in one process: every peer a ``StageTraining``, every stage message through bytes, in seeded order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from p2ptrain.config import DataConfig, TrainingConfig
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.models import TEXT_MODELS, build_model
from p2ptrain.learning.pipeline.training import StageMessage, StageTraining
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage, check_pipeline_plan

NUM_CLASSES = 5
NUM_SAMPLES = 48
SEED = 3
CONFIG = TrainingConfig(rounds=4, learning_rate=0.05)
ADAMW = TrainingConfig(rounds=4, optimizer="adamw", learning_rate=0.002)
Cut = tuple[int, tuple[int, ...]]
"""A stage: where it stops, and the samples of each of its peers."""

STOPS = {"lenet": (1, 2, 4), "gpt_mini": (4, 9, 14), "resnet20": (3, 7, 11), "alexnet": (3, 6, 8)}
"""Where three stages end."""


def cuts(name: str, shares: Sequence[tuple[int, ...]]) -> list[Cut]:
    """Three stages with these shares."""
    return list(zip(STOPS[name], shares, strict=True))


def shape_of(name: str) -> tuple[int, int, int]:
    return (
        (1, 1, 12)
        if name in TEXT_MODELS
        else (1, 8, 8)
        if name == "lenet"
        else (1, 12, 20)
        if name == "dscnn"
        else (3, 16, 16)
    )


def builder(name: str, seed: int = 0) -> Callable[[], nn.Module]:
    width = 0.25 if name in ("lenet", "resnet20") else 0.1
    return partial(build_model, name, input_shape=shape_of(name), num_classes=NUM_CLASSES, width=width, seed=seed)


def samples(name: str, seed: int, num: int = NUM_SAMPLES) -> Dataset:
    rng = np.random.default_rng(seed)
    shape, text = shape_of(name), name in TEXT_MODELS
    channels = shape[0]
    contract = DataConfig(
        tuple("abcde"), shape, "text" if text else "image", mean=(0.4,) * channels, std=(0.3,) * channels
    )
    x = rng.integers(0, NUM_CLASSES if text else 256, (num, *shape)).astype(np.uint8)
    return Dataset(x, rng.integers(0, NUM_CLASSES, num), contract)


def pipeline(cuts: Sequence[Cut], units: int = 4, warm_up: Sequence[int] | None = None) -> PipelinePlan:
    """Peers are named after stage and place: ``0a``, ``0b``, ``1a``, ..."""
    stages, start = [], 0
    depths = warm_up or [min(units, 2 * (len(cuts) - index) - 1) for index in range(len(cuts))]
    for index, (stop, shares) in enumerate(cuts):
        peers = tuple(f"{index}{'abcd'[place]}" for place in range(len(shares)))
        stages.append(Stage(start, stop, peers, shares, depths[index]))
        start = stop
    plan = PipelinePlan("model", start, sum(cuts[0][1]), units, tuple(stages), ())
    check_pipeline_plan(plan)
    return plan


class Group:
    def __init__(
        self,
        name: str,
        plan: PipelinePlan,
        config: TrainingConfig = CONFIG,
        *,
        order: int = 0,
        steps_per_round: int = 5,
        data: dict[str, Dataset] | None = None,
        build: Callable[[], nn.Module] | None = None,
        names: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.plan = plan
        build = build or builder(name)
        with torch.device("meta"):  # as peers do, none of which could hold the whole model
            chain = self.chain = Chain(build(), shape_of(name))
        self.data = data or {peer: samples(name, place) for place, peer in enumerate(plan.stages[0].peers)}
        self.peers = {
            peer: StageTraining(
                config,
                chain,
                plan,
                peer,
                build=build,
                data=self.data.get(peer),
                peer_name=(names or {}).get(peer, peer),
                seed=SEED,
                steps_per_round=steps_per_round,
                num_classes=NUM_CLASSES,
                **options,
            )
            for stage in plan.stages
            for peer in stage.peers
        }
        self.rng = random.Random(order)
        self.pending: list[tuple[str, StageMessage]] = []
        """(sender, stage message) on their way, in no order."""
        self.num_sent = 0
        self.most_held = dict.fromkeys(self.peers, 0)

    def run(self, steps: int) -> Group:
        """Until all have done so many steps."""
        for peer in self.peers.values():
            peer.stop_at = steps
        self.turn()
        assert {peer.step for peer in self.peers.values()} == {steps}, "the pipeline stands still"
        return self

    def turn(self, most: int = -1) -> None:
        """Until nothing can be done, or so many things have been."""
        while most:
            ready = [name for name, peer in self.peers.items() if peer.ready()]
            if not ready and not self.pending:
                return
            most -= 1
            if self.pending and (not ready or self.rng.random() < 0.5):
                self.deliver(self.pending.pop(self.rng.randrange(len(self.pending))))
            else:
                self.advance(self.rng.choice(ready))

    def advance(self, name: str) -> list[StageMessage]:
        messages = self.peers[name].advance()
        self.pending += [(name, message) for message in messages]
        self.num_sent += len(messages)
        self.most_held[name] = max(self.most_held[name], self.peers[name].num_held)
        return messages

    def advance_all(self) -> None:
        """Until everyone waits for something to come."""
        while ready := [name for name, peer in self.peers.items() if peer.ready()]:
            self.advance(ready[0])

    def deliver(self, sent: tuple[str, StageMessage]) -> None:
        sender, message = sent
        assert all(t.is_contiguous() and not t.requires_grad for t in message.tensors.values())
        arrived = StageMessage(
            sender, message.work, message.step, message.unit, message.row, load(save(message.tensors))
        )
        self.peers[message.peer].receive(arrived)

    def state(self) -> dict[str, Tensor]:
        """The whole model's; copies of a stage must be equal to the bit."""
        found: dict[str, Tensor] = {}
        for peer in self.peers.values():
            tensors, _ = peer.snapshot()
            for name, tensor in tensors.items():
                assert torch.equal(found.setdefault(name, tensor), tensor), name
        return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

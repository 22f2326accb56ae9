"""What every neighbour trains, and how its process reports: one model, one loop, one event a line.

Invariant: nothing here or in the workers beside it imports p2ptrain, and with equal batches each step is the step that
a peer of p2ptrain takes (a test compares them). A worker dies when its standard input closes, however its parent ends,
and so does every process that it started.

Events are named like the notes of a peer's journal, so that one reader serves both: ``note:training``, ``note:round``
(local steps and averaging are over), ``note:averaged`` (the averaging of a round took place), ``note:done``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import RawIOBase
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

WEIGHT = "weight/"
"""Before the names of the initial weights in a data file."""
GO_TIMEOUT_S = 180.0
_out: TextIO = sys.stdout
_go = threading.Event()


@dataclass(frozen=True, slots=True)
class Setting:
    """What a worker is told. ``options`` are its framework's own."""

    name: str
    number: int
    data: str
    """An npz file: ``x``, ``y`` (own samples, normalised), ``x_test``, ``y_test``, and the initial weights."""
    rounds: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    warmup: float
    """Share of all steps over which the learning rate rises."""
    max_norm: float
    """Longer gradients are scaled down to this."""
    seed: int
    options: dict[str, Any] = field(default_factory=dict)


def start() -> Setting:
    """Read the setting. From now on standard output is for ``report`` alone, and a closed input is the end."""
    global _out
    if os.getpgid(0) != os.getpid():
        os.setpgrp()
    source = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  a buffer's lock would hang forked processes
    setting = Setting(**json.loads(source.readline()))
    _out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_watch_parent, args=(source,), name="parent", daemon=True).start()
    torch.set_num_threads(1)
    return setting


def _watch_parent(source: RawIOBase) -> None:
    while source.readline():
        _go.set()
    os.killpg(0, signal.SIGKILL)


def report(kind: str, **fields: object) -> None:
    print(json.dumps({"at": time.monotonic(), "kind": kind, **fields}), file=_out, flush=True)


def wait_for_go() -> None:
    """Until all are ready, so that nobody starts alone."""
    report("ready")
    if not _go.wait(GO_TIMEOUT_S):
        raise TimeoutError(f"nobody said go within {GO_TIMEOUT_S:g} s")
    report("note:training")


def stay() -> None:
    """Be looked at until the parent has had enough."""
    while True:
        time.sleep(60)


class LeNet(nn.Module):
    """p2ptrain's ``lenet``, as wide as the weights say."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        self.conv1 = nn.Conv2d(shapes["conv1.weight"][1], shapes["conv1.weight"][0], 5, padding=2)
        self.conv2 = nn.Conv2d(shapes["conv2.weight"][1], shapes["conv2.weight"][0], 5, padding=2)
        self.fc1 = nn.Linear(shapes["fc1.weight"][1], shapes["fc1.weight"][0])
        self.fc2 = nn.Linear(shapes["fc2.weight"][1], shapes["fc2.weight"][0])
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 8, 8] -> [N, 10]
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


class LocalTraining:
    """A round is one pass over the own samples, in an order that follows from seed, number and round."""

    def __init__(self, setting: Setting, layout: torch.memory_format = torch.channels_last) -> None:
        with np.load(setting.data) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.setting = setting
        self.layout = layout
        self.x, self.y, self.x_test, self.y_test = (arrays[n] for n in ("x", "y", "x_test", "y_test"))
        weights = {n.removeprefix(WEIGHT): t for n, t in arrays.items() if n.startswith(WEIGHT)}
        self.model = LeNet(weights).to(memory_format=layout)
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        plain = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": setting.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=setting.learning_rate,
            momentum=setting.momentum,
            nesterov=True,
            fused=True,
        )
        self.round = 0
        self.num_steps = 0
        self.last_loss = 0.0

    @property
    def num_samples(self) -> int:
        return len(self.y)

    @property
    def steps_per_round(self) -> int:
        full, rest = divmod(self.num_samples, self.setting.batch_size)
        return full + (rest > 1)

    @property
    def total_steps(self) -> int:
        return self.setting.rounds * self.steps_per_round

    def train_round(self) -> None:
        for x, y in self._batches():
            self.step(x, y)
        self.round += 1

    def step(self, x: Tensor, y: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.setting.learning_rate * self._schedule()
        self.num_steps += 1
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.model(x.contiguous(memory_format=self.layout)), y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.max_norm)
        self.last_loss = loss.item()
        self.optimizer.step()

    def _schedule(self) -> float:
        """A linear rise, then a cosine down to zero."""
        warmup = self.setting.warmup * self.total_steps
        if self.num_steps < warmup:
            return (self.num_steps + 1) / (warmup + 1)
        progress = min(1.0, (self.num_steps - warmup) / max(1.0, self.total_steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self.setting.seed, self.setting.number, self.round])
        order = torch.from_numpy(rng.permutation(self.num_samples))
        for chosen in order.split(self.setting.batch_size)[: self.steps_per_round]:
            yield self.x[chosen], self.y[chosen]

    def report_round(self, num_averaged: int) -> None:
        """``num_averaged``: how many models the average was made of; 0 = there was none."""
        if num_averaged > 1:
            report("note:averaged", models=num_averaged)
        report("note:round", round=self.round, loss=self.last_loss)

    def report_done(self) -> None:
        """With this process's own model as it is now, on the test samples."""
        self.model.eval()
        with torch.inference_mode():
            hits = (self.model(self.x_test).argmax(1) == self.y_test).float()
        report("note:done", accuracy=hits.mean().item(), steps=self.num_steps)

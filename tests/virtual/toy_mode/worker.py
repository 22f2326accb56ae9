"""The trainer's side: it counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2ptrain.core import commands as c
from p2ptrain.core.worker import Setup
from p2ptrain.wire import tensorfile
from toy_mode.commands import Count
from toy_mode.config import ToyConfig


class ToyWorker:
    def __init__(self, setup: Setup) -> None:
        self.handlers = {Count: self._begin}
        self.part = -1
        self.round = self.goal = 0
        self.by = setup.job.table(ToyConfig).by
        self._say = setup.say

    @property
    def busy(self) -> bool:
        return self.round < self.goal

    def prepare(self) -> Sequence[object]:
        return ()

    def max_groups(self) -> int:
        return 0

    def _begin(self, command: Count) -> None:
        self.part, self.goal = command.part, command.goal
        self.round = read(command.copy) // self.by if command.copy else 0
        self._say(c.Following(self.part, self.round, self.goal))
        if not self.busy:
            self.snapshot()

    def work(self) -> None:
        self.round += 1
        self.snapshot()

    def snapshot(self) -> None:
        data = tensorfile.pack({"number": np.array([self.round * self.by])}, {"part": str(self.part)})
        self._say(c.SnapshotTaken(self.part, self.round, self.round, 0, 0.0, True, not self.busy, data))


def read(data: bytes) -> int:
    tensorfile.read_untrusted(data)
    return int(tensorfile.read(data).arrays()["number"][0])

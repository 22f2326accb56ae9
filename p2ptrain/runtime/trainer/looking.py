"""The trainer's side of a look at the group's whole model: puts the copies together, as a harvest would, and counts
what that gets right of the own validation samples.

Invariant: training is as it was before, but for the time: nothing of it is touched, no random number is drawn. Where
memory is short it is not looked at, and that is said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import torch
from torch import Tensor

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.harvest import Collected, Snapshot
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.models import global_model
from p2ptrain.learning.snapshots import put_state
from p2ptrain.modes.registry import mode_of, read_plan
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import from_plain
from p2ptrain.words import scaled

MOST_SAMPLES = 512
"""Of each device: with more a look costs more than it tells. The same ones every time."""
BATCH = 64
ROOM = 4
"""Of memory: so many times what the copies take, for them, their mean and the model."""


class ModelLooks:
    """Of one trainer, in one job. ``say``: an event, to the node."""

    def __init__(
        self, job: Job, val: Dataset | None, configuration: c.Configure, say: Callable[[object], None]
    ) -> None:
        self._job = job
        self._val = val
        self._configuration = configuration
        self._say = say
        self._state = self._why = ""
        self._plan = ""
        self._copies: dict[int, list[Snapshot]] = {}

    def copy_came(self, command: c.LookAtModel) -> None:
        """With the last one it is looked at."""
        if command.plan:
            self._state, self._plan, self._copies, self._why = command.state, command.plan, {}, ""
            free, needed = psutil.virtual_memory().available, ROOM * command.num_bytes
            if free < needed:
                self._why = f"that takes {scaled(needed, 'B')} of memory, and {scaled(free, 'B')} are free"
        if command.state != self._state:
            return
        if not self._why:
            ref = from_plain(SnapshotRef, json.loads(command.holding))
            self._copies.setdefault(ref.part, []).append(Snapshot(ref, bytes(command.snapshot)))
        num_here = sum(map(len, self._copies.values()))
        if command.is_last and not self._why and num_here != command.num_copies:
            self._why = f"{command.num_copies - num_here} of {command.num_copies} copies were not here any more"
        if command.is_last:
            self._say(self._look())
            self._state, self._copies = "", {}

    def _look(self) -> c.ModelLooked:
        if self._why:
            return c.ModelLooked(self._state, why=self._why)
        began = time.perf_counter()
        allow = self._configuration.allow_user_code
        try:
            collected = Collected(self._job, read_plan(self._plan), self._copies, None, {})
            with torch.random.fork_rng(devices=[]):
                whole = mode_of(self._job).harvester.assemble(collected, allow_user_code=allow)
                model = global_model(self._job, allow_user_code=allow)
            if whole.missing:
                raise UserError(f"there is no sound copy of part {whole.missing[0]}")
            put_state(model, whole.state)
            device = self._configuration.device
            found = evaluate(model.to(device), self._batches(), len(self._job.data.classes), device=device)
        except (UserError, RemoteError, MemoryError, torch.OutOfMemoryError) as error:
            return c.ModelLooked(self._state, why=(str(error) or "memory is short")[:300])
        correct = sum(row[i] for i, row in enumerate(found.confusion))
        loss = found.loss * found.samples if np.isfinite(found.loss) else 1e18
        seconds = time.perf_counter() - began
        return c.ModelLooked(self._state, found.samples, correct, max(0.0, min(loss, 1e18)), seconds)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._val is None or not len(self._val):
            return
        chosen = np.unique(np.linspace(0, len(self._val) - 1, min(len(self._val), MOST_SAMPLES)).astype(np.int64))
        for start in range(0, len(chosen), BATCH):
            yield self._val.tensors(chosen[start : start + BATCH])

"""The trainer process: torch, data and parameters live here, and nothing else does.

Invariant: it does one thing at a time, a command or one training step, and looks for commands between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2ptrain.config import Job, TrainingConfig
from p2ptrain.core import commands as c
from p2ptrain.core.looks.patience import patience_note
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.errors import LocalError, UserError
from p2ptrain.learning.data import Dataset, Split, check_learnable, load, open_source, select
from p2ptrain.learning.initial import read_start
from p2ptrain.learning.models import build_model
from p2ptrain.learning.profiling.allocator import keep_for_training, settle
from p2ptrain.learning.profiling.precision import NO_BF16, is_mixed
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.training import DivergedError, LocalTrainer
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.modes.registry import mode_of
from p2ptrain.runtime.trainer.beats import BEAT_S, Beats
from p2ptrain.runtime.trainer.looking import ModelLooks
from p2ptrain.runtime.trainer.process import NodeGone, NodeLink, die_with_node


class Trainer:
    """Commands in, events out through ``say``. ``work`` does one training step if there is training to do."""

    def __init__(self, say: Callable[[object], None]) -> None:
        self._say = say
        self._worker: Worker | None = None
        """From when the job is known."""
        self._looking: ModelLooks | None = None
        self.stopped = False

    @property
    def busy(self) -> bool:
        return self._worker is not None and self._worker.busy

    def handle(self, command: object) -> None:
        """Carry out one command."""
        if isinstance(command, c.Configure):
            self._configure(command)
        elif isinstance(command, c.Stop):
            self.stopped = True
        elif self._worker is None:
            raise LocalError(f"{type(command).__name__} before the job")
        elif isinstance(command, c.TakeSnapshot):
            self._worker.snapshot()
        elif isinstance(command, c.LookAtModel):
            assert self._looking is not None
            self._looking.copy_came(command)
        else:
            self._worker.handlers[type(command)](command)

    def work(self) -> None:
        """One training step, or one unit of work."""
        if self._worker is not None:
            self._worker.work()

    def _configure(self, command: c.Configure) -> None:
        torch.set_num_threads(command.num_threads)
        job = job_from_json(command.job, where="job")
        mode = mode_of(job)
        if not command.data and mode.needs_data:
            raise UserError(f'a job of mode "{job.mode}" is trained on own samples: start this peer with --data')
        data = self._load_data(job, command, "train")
        val = self._load_data(job, command, "val")
        init: dict[str, Tensor] | None = None
        scores: dict[str, Tensor] | None = None
        classes = ""
        if command.init:
            start = read_start(Path(command.init), job, allow_user_code=command.allow_user_code)
            init, scores, classes = start.tensors, start.scores, start.sentence()
        worker = self._worker = mode.worker(Setup(job, command, data, val, init, scores, self._say))
        for event in worker.prepare():
            self._say(event)
        counts: Any = data.counts() if data is not None else [0] * len(job.data.classes)
        notes = tuple(note for each in (data, val) if each is not None for note in each.notes)
        remarks, num_val = _remarks(job, command, classes), len(val) if val is not None else 0
        self._looking = ModelLooks(job, val, command, self._say)
        self._say(c.Ready(tuple(int(n) for n in counts), worker.max_groups(), notes, remarks, num_val))
        warm_up()
        settle()

    @staticmethod
    def _load_data(job: Job, command: c.Configure, split: Split) -> Dataset | None:
        """The own samples of a split; None without any."""
        if not command.data:
            return None
        source = open_source(command.data)
        indices = select(
            source,
            job.data,
            split,
            shard=command.shard or None,
            dirichlet=command.dirichlet or None,
            classes=command.classes or None,
            seed=job.seed,
        )
        found = load(source, job.data, split, indices, strict=command.strict)
        if split == "train":
            check_learnable(found.y, job.data, command.data)
        return found


def _remarks(job: Job, command: c.Configure, classes: str) -> tuple[str, ...]:
    """What becomes of the classes of what the job starts from, and what this device can't do of what the job wants."""
    found = [f"of the model that the job starts from, {classes}"] if classes else []
    if job.training.precision == "bf16" and not is_mixed(job.training, torch.device(command.device)):
        found.append(NO_BF16)
    if note := patience_note(job):
        found.append(note)
    return tuple(found)


def warm_up() -> None:
    """Let torch import what it imports late (seconds on a small device) while the group still forms."""
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=2, seed=0)
    submodel = Decoupling(model, (1, 8, 8), [(0,), (1,)]).submodel(0, "all")
    LocalTrainer(submodel, TrainingConfig(), num_classes=2, total_steps=1).step(
        torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    )


def main(fd: int) -> None:
    """Entry point of the process. Whatever goes wrong is said to the node before the process ends."""
    die_with_node()
    keep_for_training()
    np.seterr(all="ignore")
    link = NodeLink(fd)
    trainer, beats = Trainer(link.send), Beats(link.send)
    with suppress(NodeGone):
        try:
            while not trainer.stopped:
                if not trainer.busy and not link.waits_for_one(BEAT_S):
                    beats.waits()
                command = link.receive(block=not trainer.busy)
                beats.begins(command)
                if command is not None:
                    trainer.handle(command)
                else:
                    trainer.work()
        except NodeGone:
            raise
        except (UserError, DivergedError) as error:
            link.send(c.TrainerFailed(str(error), user_error=True))
        except Exception as error:
            link.send(c.TrainerFailed(f"{type(error).__name__}: {error}", user_error=False))
            raise

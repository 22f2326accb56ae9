"""The trainer process: torch, data and parameters live here, and nothing else does.

Invariant: it does one thing at a time, a command or one training step, and looks for commands between any two steps.
Bytes that came from other peers are checked here before they touch a parameter; what does not fit is answered with
``SnapshotRefused`` or ``Merged(error=...)`` and changes nothing.

    python -m p2ptrain.runtime.trainer.trainer FD        (started by the node, never by hand)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from p2ptrain.config import Job, TrainingConfig, job_from_json
from p2ptrain.core import commands as c
from p2ptrain.core.plan import Plan, plan_from_json
from p2ptrain.errors import LocalError, RemoteError, UserError
from p2ptrain.learning.data import Dataset, Split, load, open_source, select
from p2ptrain.learning.models import build_model
from p2ptrain.learning.profiling.allocator import give_back, keep_for_training
from p2ptrain.learning.snapshots import model_state, read_init, read_snapshot, write
from p2ptrain.learning.submodels.decoupling import Decoupling, most_groups
from p2ptrain.learning.training import DivergedError, LocalTrainer
from p2ptrain.modes.pipeline.worker import StageWorker
from p2ptrain.modes.tasks.assignment import SENSIBLE_GROUPS
from p2ptrain.modes.tasks.head_fitting import HeadFitting
from p2ptrain.modes.tasks.parts import Parts, global_model
from p2ptrain.modes.tasks.training import PartTraining
from p2ptrain.runtime.trainer.process import NodeLink, die_with_node

PROGRESS_INTERVAL_S = 0.5


class Trainer:
    """Commands in, events out through ``say``. ``work`` does one training step if there is training to do."""

    def __init__(self, say: Callable[[object], None]) -> None:
        self._say = say
        self._configuration: c.Configure | None = None
        self._job: Job | None = None
        self._data: Dataset | None = None
        self._val: Dataset | None = None
        self._parts: Parts | None = None
        self._init: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._training: PartTraining | None = None
        self._stage: StageWorker | None = None
        """Of a job of mode "slices"."""
        self._fitting: HeadFitting | None = None
        self._progress_at = 0.0
        self._progress_samples = 0
        self.stopped = False

    @property
    def busy(self) -> bool:
        if self._stage is not None:
            return self._stage.busy
        return self._training is not None and not self._training.finished

    def handle(self, command: object) -> None:
        """Carry out one command."""
        handlers: dict[type, Callable[[Any], None]] = {
            c.Configure: self._configure,
            c.Follow: self._follow,
            c.Retain: self._retain,
            c.MakePayload: self._make_payload,
            c.Merge: self._merge,
            c.Reclaim: self._reclaim,
            c.ExtractFeatures: self._extract_features,
            c.Contribute: self._contribute,
            c.Combine: self._combine,
            c.TakeSnapshot: lambda _: self._say_snapshot(round_finished=False),
            c.Stop: self._stop,
        }
        if self._stage is not None:
            stage = self._stage
            handlers |= {
                c.FollowStage: stage.follow,
                c.GivePiece: stage.give,
                c.StopAt: stage.stop_at,
                c.Deliver: stage.deliver,
                c.ParcelsSent: stage.parcels_sent,
                c.LookAgain: stage.look_again,
            }
        handlers[type(command)](command)

    def work(self) -> None:
        """One training step, or one unit of work of a stage."""
        if self._stage is not None:
            self._stage.work()
            return
        training = self._training
        if training is None or training.finished:
            return
        round_finished = training.step()
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_INTERVAL_S or round_finished:
            done = training.trainer.num_samples
            rate = (done - self._progress_samples) / max(now - self._progress_at, 1e-6)
            self._say(c.Progress(training.round, training.trainer.num_steps, done, training.last_loss, rate))
            self._progress_at, self._progress_samples = now, done
        if round_finished:
            self._say_snapshot(round_finished=True)
        if training.finished:
            give_back()

    # --- job, data, plan ---

    def _configure(self, command: c.Configure) -> None:
        torch.set_num_threads(command.num_threads)
        self._configuration = command
        self._job = job = job_from_json(command.job, where="job")
        self._data = self._load_data(job, command, "train")
        self._val = self._load_data(job, command, "val") if job.mode != "slices" else None
        if command.init:
            self._init = read_init(Path(command.init))
        if job.mode == "slices":
            self._stage = StageWorker(job, command, self._data, self._init[0] if self._init else None, self._say)
            self._say(self._stage.profile())
        counts = self._data.counts() if self._data is not None else [0] * len(job.data.classes)
        self._say(c.Ready(tuple(int(n) for n in counts), self._max_groups(job, command)))
        warm_up()

    def _max_groups(self, job: Job, command: c.Configure) -> int:
        """Into how many class sub-models the model can be divided; only asked where the group chooses the mode."""
        if job.mode != "auto" or job.data.kind == "text":
            return 0
        model = global_model(job, allow_user_code=command.allow_user_code)
        limit = min(len(job.data.classes), SENSIBLE_GROUPS)
        return most_groups(model, job.data.input_shape, limit, job.tasks.trunk)

    @staticmethod
    def _load_data(job: Job, command: c.Configure, split: Split) -> Dataset | None:
        """The own samples of a split. Without any a peer can only help others: with a stage that is not the first."""
        if not command.data:
            if job.mode != "slices":
                raise UserError(f'a job of mode "{job.mode}" is trained on own samples: start this peer with --data')
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
        return load(source, job.data, split, indices)

    def _build(self, plan: Plan) -> Parts:
        if self._job is None or self._configuration is None:
            raise LocalError("a plan before the job")
        init, scores = self._init or (None, None)
        return Parts(
            self._job, plan, allow_user_code=self._configuration.allow_user_code, init=init, scores=scores or None
        )

    def _follow(self, command: c.Follow) -> None:
        if self._job is None or self._data is None or self._configuration is None:
            raise LocalError("a plan before the job")
        plan = plan_from_json(command.plan)
        self._parts = self._build(plan)
        self._fitting = None
        training = PartTraining(
            self._job,
            self._parts,
            command.part,
            self._data,
            self._configuration.name,
            self._configuration.device,
            self._val,
        )
        if command.snapshot:
            try:
                tensors, metadata = read_snapshot(command.snapshot)
                training.restore(tensors, metadata, own=command.own)
            except RemoteError as error:
                self._say(c.SnapshotRefused(str(error)))
                return
        self._training = training
        self._progress_at, self._progress_samples = time.monotonic(), training.trainer.num_samples
        rounds = self._job.training.rounds
        self._say(c.Following(command.part, training.round, rounds))
        if training.finished:  # resumed after its last round: say so, and what it holds
            self._say_snapshot(round_finished=True)

    def _retain(self, command: c.Retain) -> None:
        if self._parts is not None:
            self._parts.plan = plan_from_json(command.plan)

    def _stop(self, _: c.Stop) -> None:
        self.stopped = True

    def _say_snapshot(self, *, round_finished: bool) -> None:
        training = self._training
        if training is None or self._configuration is None:
            return
        spool = self._configuration.spool
        snapshot = write(*training.snapshot(), Path(spool) if spool else None)
        self._say(
            c.SnapshotTaken(
                part=training.part,
                round=training.round,
                step=training.trainer.num_steps,
                samples=training.trainer.num_samples,
                loss=training.last_loss,
                round_finished=round_finished,
                training_finished=training.finished,
                snapshot=snapshot,
                accuracy=training.accuracy() if round_finished else -1.0,
            )
        )

    # --- gossip ---

    def _make_payload(self, command: c.MakePayload) -> None:
        if self._training is None:
            self._say(c.PayloadMade(command.exchange, (), b""))
            return
        masses, tensors = self._training.make_payload(command.shards, command.partner)
        which = {
            "exchange": str(command.exchange),
            "to": command.partner,
        }  # parameters may be those of the last payload
        payload = save_tensors(tensors, which) if masses else b""
        self._say(c.PayloadMade(command.exchange, tuple(masses.items()), payload))

    def _merge(self, command: c.Merge) -> None:
        error = ""
        try:
            if self._training is None:
                raise RemoteError("gossip", "nothing is being trained here")
            tensors, _ = read_snapshot(command.payload)
            self._training.merge(dict(command.masses), tensors, command.sender, reply=command.reply)
        except RemoteError as problem:
            error = str(problem)
        self._say(c.Merged(command.exchange, command.sender, error))

    def _reclaim(self, command: c.Reclaim) -> None:
        if self._training is not None:
            self._training.reclaim(dict(command.masses))

    # --- calibration ---

    def _extract_features(self, command: c.ExtractFeatures) -> None:
        if self._data is None or self._job is None:
            raise LocalError("features before the job")
        if command.plan:  # a peer that stands by has built no parts so far
            plan = plan_from_json(command.plan)
            if self._parts is None or self._parts.plan.partition != plan.partition:
                self._parts = self._build(plan)
            self._parts.plan = plan
        if self._parts is None:
            raise LocalError("features before a plan")
        if self._fitting is None or self._fitting.session != command.session:
            device = self._configuration.device if self._configuration else "cpu"
            self._fitting = HeadFitting(self._job, self._parts, command.session, self._data, self._val, device)
        try:
            tensors, _ = read_snapshot(command.snapshot)
            state = model_state(tensors)
            self._fitting.add_copy(command.part, command.trainer, state, command.weight, last=command.last_copy)
        except (RemoteError, UserError) as error:  # a copy that does not fit, or a model without a head to fit
            self._fitting = None
            self._say(c.SnapshotRefused(str(error)))
            return
        if command.last:
            self._say(c.FeaturesExtracted(command.session, self._fitting.num_samples))

    def _contribute(self, command: c.Contribute) -> None:
        if self._fitting is None or self._fitting.session != command.session:
            return
        try:
            samples, sums = self._fitting.contribute(command.step, self._fitting_tensors(command.state))
        except RemoteError as error:
            self._say(c.SnapshotRefused(str(error)))
            return
        self._say(c.Contributed(command.session, command.step, samples, save_tensors(sums)))

    def _combine(self, command: c.Combine) -> None:
        if self._fitting is None or self._fitting.session != command.session:
            return
        contributions = []
        for samples, data in command.contributions:
            try:
                contributions.append((samples, self._fitting_tensors(data)))
            except RemoteError as error:
                self._say(c.SnapshotRefused(str(error)))
        try:
            state = self._fitting.combine_sound(command.step, self._fitting_tensors(command.state), contributions)
        except RemoteError as error:
            self._say(c.SnapshotRefused(str(error)))
            return
        self._say(c.Combined(command.session, command.step + 1, save_tensors(state)))

    @staticmethod
    def _fitting_tensors(data: bytes) -> dict[str, Tensor]:
        return read_snapshot(data)[0] if data else {}


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
    trainer = Trainer(link.send)
    try:
        while not trainer.stopped:
            command = link.receive(block=not trainer.busy)
            if command is not None:
                trainer.handle(command)
            else:
                trainer.work()
    except (EOFError, BrokenPipeError, ConnectionError):
        return
    except (UserError, DivergedError) as error:
        link.send(c.TrainerFailed(str(error), user_error=True))
    except Exception as error:
        link.send(c.TrainerFailed(f"{type(error).__name__}: {error}", user_error=False))
        raise


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to save, and torch takes seconds to take itself apart on a busy device

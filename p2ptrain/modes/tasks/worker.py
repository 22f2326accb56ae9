"""The trainer's side of class sub-models: trains the own part, merges what others push, and fits the last layer.

Invariant: bytes that came from other peers are checked here before they touch a parameter; what does not fit is
answered with ``SnapshotRefused`` or ``Merged(error=...)`` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from p2ptrain.core import commands as c
from p2ptrain.core.plan import Plan
from p2ptrain.core.worker import Setup
from p2ptrain.errors import LocalError, RemoteError, UserError
from p2ptrain.learning.models import global_model
from p2ptrain.learning.own.trial import Trial
from p2ptrain.learning.pace import Pace
from p2ptrain.learning.profiling.allocator import give_back
from p2ptrain.learning.snapshots import bytes_to_share, model_state, read_payload, read_snapshot, write
from p2ptrain.learning.work import Work
from p2ptrain.modes.tasks.commands import (
    Combine,
    Combined,
    Contribute,
    Contributed,
    ExtractFeatures,
    FeaturesExtracted,
    FinishRound,
    Follow,
    MakePayload,
    Merge,
    Merged,
    PayloadMade,
    Reclaim,
    Retain,
)
from p2ptrain.modes.tasks.division import check_head, max_groups
from p2ptrain.modes.tasks.head.fitting import HeadFitting
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.plan import read_plan
from p2ptrain.modes.tasks.training import PartTraining

MOST_TRIED = 64
"""Samples, before the first plan."""


class TasksWorker:
    """One peer's part. Commands in, events out through ``Setup.say``."""

    def __init__(self, setup: Setup) -> None:
        self._job = setup.job
        self._configuration = setup.configuration
        self._data = setup.data
        self._val = setup.val
        self._init = setup.init
        self._scores = setup.scores
        self._say = setup.say
        self._parts: Parts | None = None
        self._training: PartTraining | None = None
        self._fitting: HeadFitting | None = None
        self._pace = Pace()
        self._work = Work()
        self.handlers: Mapping[type, Callable[[Any], None]] = {
            Follow: self._follow,
            Retain: self._retain,
            FinishRound: self._finish_round,
            MakePayload: self._make_payload,
            Merge: self._merge,
            Reclaim: self._reclaim,
            ExtractFeatures: self._extract_features,
            Contribute: self._contribute,
            Combine: self._combine,
        }

    @property
    def busy(self) -> bool:
        return self._training is not None and not self._training.finished

    def prepare(self) -> Sequence[object]:
        """Try what this device has not seen so far: a model of somebody's own, a checkpoint. Raises ``UserError``."""
        job = self._job
        if ":" in job.model.name or job.own_code or job.model.freeze or self._init is not None:  # all but built-in ones
            allow = self._configuration.allow_user_code
            x, y = self._data.tried(min(job.training.batch_size, MOST_TRIED))
            Trial(job, x, y, self._init, allow_user_code=allow)
            check_head(job, global_model(job, allow_user_code=allow))
        return ()

    def max_groups(self) -> int:
        """Only asked where the group chooses the mode."""
        job = self._job
        if job.mode != "auto" or job.data.reads_tokens or job.model.freeze:
            return 0
        return max_groups(job, global_model(job, allow_user_code=self._configuration.allow_user_code))

    def work(self) -> None:
        training = self._training
        if training is None or training.finished:
            return
        round_finished = training.step()
        done = training.trainer.num_samples
        if round_finished or self._pace.is_due:
            rate = self._pace.round_ended(done) if round_finished else self._pace.progress(done)
            self._say(c.Progress(training.round, training.trainer.num_steps, done, training.last_loss, rate))
        if round_finished:
            self._say_snapshot(round_finished=True)
        if training.finished:
            give_back()

    def snapshot(self) -> None:
        self._say_snapshot(round_finished=False)

    # --- plan ---

    def _build(self, plan: Plan) -> Parts:
        allow = self._configuration.allow_user_code
        return Parts(self._job, plan, allow_user_code=allow, init=self._init, scores=self._scores or None)

    def _follow(self, command: Follow) -> None:
        plan = read_plan(command.plan)
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
            self._work,
        )
        if command.snapshot:
            try:
                tensors, metadata = read_snapshot(command.snapshot)
                training.restore(tensors, metadata, own=command.own)
            except RemoteError as error:
                self._say(c.SnapshotRefused(str(error)))
                return
        self._training = training
        self._pace.begin(training.trainer.num_samples)
        rounds = self._job.training.rounds
        self._say(c.Following(command.part, training.round, rounds))
        if training.finished:  # resumed after its last round: say so, and what it holds
            self._say_snapshot(round_finished=True)

    def _retain(self, command: Retain) -> None:
        if self._parts is not None:
            self._parts.plan = read_plan(command.plan)

    def _finish_round(self, command: FinishRound) -> None:
        training = self._training
        if training is None or training.finished:
            return
        training.finish_round()
        if training.finished:
            self._say_snapshot(round_finished=False)
            give_back()

    def _say_snapshot(self, *, round_finished: bool) -> None:
        training = self._training
        if training is None:
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
                num_skipped=training.num_skipped if round_finished else 0,
                work_flops=float(training.work_flops()),
                central_flops=float(training.central_flops()),
            )
        )

    # --- gossip ---

    def _make_payload(self, command: MakePayload) -> None:
        if self._training is None:
            self._say(PayloadMade(command.exchange, (), b""))
            return
        masses, tensors = self._training.make_payload(command.shards, command.partner)
        which = {
            "exchange": str(command.exchange),
            "to": command.partner,
        }  # parameters may be those of the last payload
        payload = bytes_to_share(tensors, which) if masses else b""
        self._say(PayloadMade(command.exchange, tuple(masses.items()), payload))

    def _merge(self, command: Merge) -> None:
        error = ""
        try:
            if self._training is None:
                raise RemoteError("gossip", "nothing is being trained here")
            tensors = read_payload(command.payload)
            self._training.merge(dict(command.masses), tensors, command.sender, reply=command.reply)
        except RemoteError as problem:
            error = str(problem)
        self._say(Merged(command.exchange, command.sender, error))

    def _reclaim(self, command: Reclaim) -> None:
        if self._training is not None:
            self._training.reclaim(dict(command.masses))

    # --- head fit ---

    def _extract_features(self, command: ExtractFeatures) -> None:
        if command.plan:  # a peer that stands by has built no parts so far
            plan = read_plan(command.plan)
            if self._parts is None or self._parts.plan.partition != plan.partition:
                self._parts = self._build(plan)
            self._parts.plan = plan
        if self._parts is None:
            raise LocalError("features before a plan")
        if self._fitting is None or self._fitting.session != command.session:
            device = self._configuration.device
            self._fitting = HeadFitting(
                self._job, self._parts, command.session, self._data, self._val, device, self._work
            )
        try:
            tensors, _ = read_snapshot(command.snapshot)
            state = model_state(tensors)
            self._fitting.add_copy(command.part, command.trainer, state, command.weight, last=command.last_copy)
        except (RemoteError, UserError) as error:  # a copy that does not fit, or a model without a head to fit
            self._fitting = None
            self._say(c.SnapshotRefused(str(error)))
            self._say(FeaturesExtracted(command.session, 0))  # the group need not wait for what it would contribute
            return
        if command.last:
            self._say(FeaturesExtracted(command.session, self._fitting.num_samples))

    def _contribute(self, command: Contribute) -> None:
        if self._fitting is None or self._fitting.session != command.session:
            self._say(FeaturesExtracted(command.session, 0))
            return
        try:
            samples, sums = self._fitting.contribute(command.step, self._fitting_tensors(command.state))
        except RemoteError as error:
            self._say(c.SnapshotRefused(str(error)))
            return
        is_last = self._fitting.kind(command.step) == "validation"
        work = float(self._work.flops) if is_last else 0.0
        self._say(Contributed(command.session, command.step, samples, save_tensors(sums), work))

    def _combine(self, command: Combine) -> None:
        if self._fitting is None or self._fitting.session != command.session:
            return
        contributions, peers = [], []
        named = command.peers or ("",) * len(command.contributions)
        for peer, (samples, data) in zip(named, command.contributions, strict=True):
            try:
                contributions.append((samples, self._fitting_tensors(data)))
                peers.append(peer)
            except RemoteError as error:
                self._say(c.SnapshotRefused(str(error)))
        try:
            before = self._fitting_tensors(command.state)
            names = peers if command.peers else ()
            state = self._fitting.combine_sound(command.step, before, contributions, names)
        except RemoteError as error:
            self._say(c.SnapshotRefused(str(error)))
            return
        self._say(Combined(command.session, command.step + 1, save_tensors(state), self._fitting.caught))

    @staticmethod
    def _fitting_tensors(data: bytes) -> dict[str, Tensor]:
        return read_snapshot(data)[0] if data else {}

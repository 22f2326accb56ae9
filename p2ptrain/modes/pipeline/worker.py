"""The trainer's side of a pipeline: builds the own stage, feeds it what comes, says what goes out.

Invariant: one unit of work, or one stage message, between two commands (see ``StageTraining.advance``); a stage is only
built from pieces of exactly the step that its plan begins with, and whatever does not fit is said and changes nothing.
What others send is taken in at any time; what goes out waits here while too much of it waits at the node.

    idle --FollowStage, its pieces--> training --StopAt, its step--> halted --FollowStage--> ...
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import Deliver, GivePiece, LookAgain, Profiled, StageMessagesSent, StageUsed, Taken
from p2ptrain.core.stages.figures import planned_times
from p2ptrain.core.stages.slowdown import FIRST_LOOK, PASS_S, SECOND_LOOK, WARM_UP, differs, slowdown_of
from p2ptrain.core.worker import Setup
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pace import Pace
from p2ptrain.learning.pipeline.snapshots import Snapshot, cut_anew
from p2ptrain.learning.pipeline.training import StageTraining
from p2ptrain.learning.profiling.allocator import give_back
from p2ptrain.learning.profiling.job_blocks import measure_job
from p2ptrain.learning.snapshots import read_snapshot, write
from p2ptrain.modes.pipeline.commands import CollectBlocks, FollowStage, Halted, PieceTaken, SaveEvery, StopAt
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.figures import fleet_of
from p2ptrain.modes.pipeline.plan import body_of, read_plan
from p2ptrain.modes.stages.messages import Outbox, read_message
from p2ptrain.modes.stages.own_blocks import OwnBlocks
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile


def profile_job(chain: Chain, job: Job, device: str, cache: Path | None) -> tuple[ModelProfile, BlockTimes]:
    """As ``measure_job``, with what the job says of pipelines."""
    settings = pipeline_of(job)
    codings = (settings.activations, settings.gradients)
    return measure_job(chain, job, micro_batches=settings.micro_batches, codings=codings, device=device, cache=cache)


class StageWorker:
    """One peer's stage. Commands in, events out through ``Setup.say``."""

    def __init__(self, setup: Setup) -> None:
        job, configuration = setup.job, setup.configuration
        self._job = job
        self._configuration = configuration
        self._data = setup.data
        self._val = setup.val
        self._accuracy = -1.0
        """Of the whole model after its last round, where that is trained here."""
        self._init = setup.init
        self._say = setup.say
        self._spool = Path(configuration.spool) if configuration.spool else None
        self._blocks = OwnBlocks(setup)
        self._outbox = Outbox(setup.say)
        self.handlers: Mapping[type, Callable[[Any], None]] = {
            FollowStage: self.follow,
            CollectBlocks: self.collect,
            GivePiece: self.give,
            StopAt: self.stop_at,
            SaveEvery: self.save_every,
            Deliver: self.deliver,
            StageMessagesSent: self._outbox.sent,
            LookAgain: self.look_again,
        }
        self._plan: Plan | None = None
        self._training: StageTraining | None = None
        self._pieces: list[Snapshot] = []
        self._num_missing = 0
        self._halt: StopAt | None = None
        self._said_step = 0
        self._pace = Pace()
        self._looked_at: tuple[int, float] = (0, 0.0)
        """Step and time at which the stage's use was last told."""
        self._collects: CollectBlocks | None = None
        """All blocks are on their way here, to be sent out."""
        self._began_at = 0
        self._warm_at = WARM_UP
        self._look_after = FIRST_LOOK
        self._slowdown = 1.0
        """What the last look showed."""
        self._own = ""
        self._num_rows = 0
        self._passing_s = (0.0, 0.0)
        """What the node takes of this device for the stage messages of a pass, forward and backward, while that is
        timed."""
        self._steps_per_round = 1
        self._save_every = pipeline_of(setup.job).snapshot_steps

    # --- before the plan ---

    def prepare(self) -> Sequence[Profiled]:
        """Raises ``UserError`` for a model that can't be a pipeline."""
        return [self._blocks.profiled(profile_job)]

    def max_groups(self) -> int:
        return 0

    def snapshot(self) -> None:
        """A stage alone is of no use: what was saved last will do."""

    # --- plan ---

    @property
    def busy(self) -> bool:
        training = self._training
        if training is None or self._num_missing or not self._outbox.has_room:
            return False
        return bool(self._outbox) or (not self._is_halted and training.ready())

    @property
    def _is_halted(self) -> bool:
        return self._halt is not None and self._training is not None and self._training.step >= self._halt.step

    def follow(self, command: FollowStage) -> None:
        plan = read_plan(command.plan)
        body = body_of(plan)
        stage = body.pipeline.stages[body.pipeline.stage_of(command.own) or 0]
        self._own, self._steps_per_round = command.own, body.steps_per_round
        self._num_rows = stage.samples[stage.peers.index(command.own)]
        self._blocks.times = planned_times(body.figures).get(PeerId(command.own))
        if self._blocks.model is not None:
            fleet = fleet_of(self._job, self._blocks.model, plan.peers, body.figures)
            self._passing_s = fleet.passing_s(body.pipeline, command.own)
        old, self._training = self._training, None
        self._pieces = []
        if command.keep and old is not None:
            # All of it: how far the own samples are drawn is in there, too.
            self._pieces.append(old.snapshot(copy=False))
        del old  # two stages at once may be more than this device holds
        give_back()
        job, configuration, settings = self._job, self._configuration, pipeline_of(self._job)
        self._training = StageTraining(
            job.training,
            self._blocks.chain,
            body.pipeline,
            command.own,
            build=self._blocks.build,
            data=self._data,
            peer_name=configuration.name,
            seed=job.seed,
            steps_per_round=body.steps_per_round,
            num_classes=len(job.data.classes),
            augment=job.data.changes_samples,
            schedule=settings.schedule,
            activations=settings.activations,
            gradients=settings.gradients,
            device=configuration.device,
            init=self._init,
            is_restored=body.from_step > 0,
        )
        self._accuracy = -1.0
        self._outbox.begin(plan.epoch)
        self._plan, self._halt, self._num_missing, self._collects = plan, None, command.pieces, None
        if not command.pieces:
            self._begin()

    def give(self, command: GivePiece) -> None:
        if self._num_missing == 0:
            return
        try:
            self._pieces.append(read_snapshot(command.piece))
        except RemoteError as error:
            self._refuse(error)
            return
        self._num_missing -= 1
        if self._num_missing == 0:
            self._begin()

    def collect(self, command: CollectBlocks) -> None:
        self._training, self._pieces = None, []
        self._collects, self._num_missing = command, command.pieces

    def _send_out(self, command: CollectBlocks) -> None:
        """Cut what was collected as others need it."""
        pieces, self._pieces, self._collects = self._pieces, [], None
        optimizer = self._job.training.optimizer_name
        try:
            cut = cut_anew(self._blocks.chain, pieces, command.runs, optimizer, command.step)
        except RemoteError as error:
            self._refuse(error)
            return
        for (first, stop), (tensors, metadata) in zip(command.runs, cut, strict=True):
            where = (first, stop - first, command.step // self._steps_per_round, command.step)
            self._say(PieceTaken(*where, int(metadata["samples"]), write(tensors, metadata, self._spool)))

    def _begin(self) -> None:
        if self._collects is not None:
            self._send_out(self._collects)
            return
        plan, training = self._plan, self._training
        if plan is None or training is None:
            return
        if body_of(plan).from_step > 0:
            try:
                training.restore(self._pieces, body_of(plan).from_step)
            except RemoteError as error:
                self._refuse(error)
                return
        self._pieces = []
        self._said_step = training.step
        self._pace.begin(training.num_samples)
        self._began_at = training.step
        self._warm_at = training.step + WARM_UP
        self._look_away(training)
        part = body_of(plan).pipeline.stage_of(self._own) or 0
        self._say(c.Following(part, training.round, self._job.training.rounds))
        if training.finished or body_of(plan).from_step > 0:
            self._say_snapshot(is_new=False)  # others get a copy of the blocks as they lie now

    def _refuse(self, error: RemoteError) -> None:
        self._training, self._pieces, self._num_missing = None, [], 0
        self._say(c.SnapshotRefused(str(error)))

    def stop_at(self, command: StopAt) -> None:
        self._halt = command
        training = self._training
        if training is None or self._num_missing:
            self._training, self._num_missing = None, 0
            self._say(Halted(command.epoch, -1))
            return
        training.stop_at = command.step
        if command.now or training.step >= command.step:
            training.abandon_batch()
            # Others may need the last stage messages of a batch that is done here to end it, too.
            self._outbox.drop(0 if command.now else training.step)
            self._hand_over()

    def save_every(self, command: SaveEvery) -> None:
        self._save_every = pipeline_of(self._job).snapshot_steps or command.steps

    def _hand_over(self) -> None:
        training, halt = self._training, self._halt
        if training is None or halt is None:
            return
        for first, stop in halt.pieces if training.step == halt.step else ():
            piece = write(*training.snapshot(first, stop, copy=False), self._spool)
            self._say(PieceTaken(first, stop - first, training.round, training.step, training.num_samples, piece))
        self._halt = dataclasses.replace(halt, step=training.step, pieces=())
        self._say(Halted(halt.epoch, training.step))

    # --- training ---

    def deliver(self, command: Deliver) -> None:
        """Always says ``Taken``: what is refused must not be sent again for ever."""
        error = ""
        training = self._training if self._plan is not None and command.epoch == self._plan.epoch else None
        if training is not None and self._num_missing == 0 and not self._is_halted:
            try:
                training.receive(read_message(command))
            except RemoteError as refused:
                error = str(refused)
        self._say(Taken(command.epoch, command.sender, 1, error))

    def work(self) -> None:
        """One unit, or a stage message of the last one, if there is room for it."""
        training = self._training
        if training is None or self._plan is None or not self.busy:
            return
        if not self._outbox:
            self._outbox.add(training.advance())
        self._outbox.hand_over()
        if training.step != self._said_step:
            self._batch_done(training)
        if self._pace.is_due:
            self._say_progress(training)

    def _batch_done(self, training: StageTraining) -> None:
        self._said_step = training.step
        every = self._save_every or self._steps_per_round
        if training.step % every == 0 or training.step % self._steps_per_round == 0 or training.finished:
            round_ended = training.step % self._steps_per_round == 0
            if round_ended and (accuracy := training.accuracy(self._val)) >= 0:
                self._accuracy = accuracy
                self._look_away(training)
            self._say_progress(training, round_ended=round_ended)
            self._say_snapshot()
        elif training.step == self._began_at + 1:
            self._say_progress(training)  # the others want to know that the group goes on
        if training.step == self._warm_at:
            self._look_away(training)
        elif training.step - self._looked_at[0] >= self._look_after:
            self._say_use(training)
        if training.finished:
            give_back()
        if self._halt is not None and training.step >= self._halt.step:
            self._hand_over()

    def _say_progress(self, training: StageTraining, *, round_ended: bool = False) -> None:
        done = training.num_samples
        rate = self._pace.round_ended(done) if round_ended else self._pace.progress(done)
        self._say(c.Progress(training.round, training.step, done, training.round_loss, rate, self._accuracy))

    def _look_away(self, training: StageTraining) -> None:
        """What it used until now does not count."""
        training.use()
        self._looked_at = (training.step, time.monotonic())

    def _say_use(self, training: StageTraining) -> None:
        use, now = training.use(), time.monotonic()
        wall_s = max(now - self._looked_at[1], 1e-6)
        self._looked_at = (training.step, now)
        if (times := self._blocks.times) is None:
            return
        mine = slice(training.start, training.stop)
        expected = use.num_forward * sum(times.forward(self._num_rows)[mine])
        expected += use.num_backward * sum(times.backward(self._num_rows)[mine])
        passing = use.num_forward * self._passing_s[0] + use.num_backward * self._passing_s[1]
        overhead = PASS_S * (use.num_forward + use.num_backward)
        busy = min(1.0, use.busy_s / wall_s)
        slowdown = slowdown_of(use.forward_s + use.backward_s + overhead, expected + overhead, passing, busy)
        self._look_after = SECOND_LOOK if differs(slowdown, self._slowdown) else FIRST_LOOK
        self._slowdown = slowdown
        self._say(StageUsed(training.step, busy, slowdown))

    def look_again(self, command: LookAgain) -> None:
        """Not while it trains: that says more."""
        if self._training is None or self._is_halted:
            self._blocks.look_again()

    def _say_snapshot(self, *, is_new: bool = True) -> None:
        """``is_new``: of a batch that was done here just now."""
        training = self._training
        if training is None:
            return
        began = time.monotonic()
        snapshot = write(*training.snapshot(copy=False), self._spool)
        self._say(
            c.SnapshotTaken(
                part=training.start,
                round=training.round,
                step=training.step,
                samples=training.num_samples,
                loss=training.round_loss,
                round_finished=is_new and training.step % self._steps_per_round == 0,
                training_finished=training.finished,
                snapshot=snapshot,
                span=training.stop - training.start,
                seconds=time.monotonic() - began,
            )
        )

"""The trainer's side of split training: builds the own units, feeds them what comes, says what goes out, and averages.

Invariant: one unit of work, or one stage message, between two commands (see ``learning.split.units``); a round is only
begun from pieces of exactly the state that it begins with, and whatever does not fit is said and changes nothing. What
comes for the next round while this one is over waits, and is said to be taken only then.

    idle --FollowUnits, its pieces--> a round --UpdateMade--> over --BeginRound, its pieces--> a round --...
    any --StopUnits--> idle
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from p2ptrain.config import Coding, Job
from p2ptrain.core import commands as c
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import Deliver, GivePiece, LookAgain, Profiled, StageMessagesSent, Taken
from p2ptrain.core.stages.figures import planned_times
from p2ptrain.core.worker import Setup
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pace import Pace
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.profiling.allocator import give_back
from p2ptrain.learning.profiling.job_blocks import measure_job
from p2ptrain.learning.snapshots import read_snapshot, write
from p2ptrain.learning.split.shared import SharedUnits
from p2ptrain.learning.split.units import UnitDivergedError, Units
from p2ptrain.modes.split.averages import Averages
from p2ptrain.modes.split.choice import choice_of
from p2ptrain.modes.split.commands import (
    BeginAverage,
    BeginRound,
    FollowUnits,
    GiveUpdate,
    StopUnits,
    UnitRefused,
    UnitsHalted,
    UpdateMade,
)
from p2ptrain.modes.split.config import split_of
from p2ptrain.modes.split.plan import body_of, read_plan, samples_of
from p2ptrain.modes.split.use import UnitsUse
from p2ptrain.modes.stages.messages import Outbox, read_message
from p2ptrain.modes.stages.own_blocks import OwnBlocks
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile
from p2ptrain.planning.split.rounds.simulation import Played


def profile_job(chain: Chain, job: Job, device: str, cache: Path | None) -> tuple[ModelProfile, BlockTimes]:
    """As ``measure_job``, with what the job says of split training."""
    settings = split_of(job)
    coding: Coding = "int8" if settings.coding == "auto" else settings.coding
    codings = (coding, coding)
    return measure_job(chain, job, micro_batches=settings.micro_batches, codings=codings, device=device, cache=cache)


class UnitsWorker:
    """One peer's units. Commands in, events out through ``Setup.say``."""

    def __init__(self, setup: Setup) -> None:
        job, configuration = setup.job, setup.configuration
        self._job = job
        self._configuration = configuration
        self._data = setup.data
        self._val = setup.val
        self._accuracy = -1.0
        """Of the own copy of the model after its last round, where all of it is trained here."""
        self._init = setup.init
        self._say = setup.say
        self._spool = Path(configuration.spool) if configuration.spool else None
        self._blocks = OwnBlocks(setup)
        self._outbox = Outbox(setup.say)
        self.handlers: Mapping[type, Callable[[Any], None]] = {
            FollowUnits: self.follow,
            BeginRound: self.begin_round,
            GivePiece: self.give,
            StopUnits: self.stop,
            BeginAverage: self.begin_average,
            GiveUpdate: self.give_update,
            Deliver: self.deliver,
            StageMessagesSent: self._outbox.sent,
            LookAgain: self.look_again,
        }
        self._plan: Plan | None = None
        self._own = ""
        self._units: Units | SharedUnits | None = None
        self._is_over = False
        """The own round, and the update is made."""
        self._begin: tuple[int, int] | None = None
        """The round to begin, and how many pieces of its state are still to come."""
        self._pieces: list[Snapshot] = []
        self._early: deque[Deliver] = deque()
        """Of the next round."""
        self._averages = Averages(self._blocks.chain, job, self._blocks.build, setup.init, self._spool, setup.say)
        self._samples = self._batches = 0
        """Trained on in the rounds before, since this trainer started."""
        self._pace = Pace()
        self._steps = 0
        """Batches done in the rounds before, under this plan."""
        self._ended_at = 0.0
        self._use: UnitsUse | None = None

    # --- before the plan ---

    def prepare(self) -> Sequence[Profiled]:
        """Raises ``UserError`` for a model that can't be cut."""
        return [self._blocks.profiled(profile_job)]

    def max_groups(self) -> int:
        return 0

    def snapshot(self) -> None:
        """Half a round is of no use: what was saved last will do."""

    # --- a plan, a round ---

    @property
    def busy(self) -> bool:
        units = self._units
        if units is None or self._begin is not None or self._is_over or not self._outbox.has_room:
            return False
        return bool(self._outbox or units.ready() or units.done)

    def follow(self, command: FollowUnits) -> None:
        self._drop()
        plan = self._plan = read_plan(command.plan)
        self._own = command.own
        job, configuration, body = self._job, self._configuration, body_of(plan)
        times = self._blocks.times = planned_times(body.figures).get(PeerId(command.own), self._blocks.times)
        played = self._planned(plan)
        self._use, self._steps = UnitsUse(plan, command.own, times, played), 0
        self._outbox.begin(plan.epoch)
        give_back()
        make: Callable[..., Units | SharedUnits]
        if body.split.tails == "shared":
            make = partial(SharedUnits, collector=body.averager)
        else:
            averages = split_of(job).optimizer == "average"
            make = partial(Units, averages_optimizer=averages, robust=job.group.robust)
        self._units = make(
            command.own,
            body.split,
            samples_of(plan),
            self._blocks.chain,
            training=job.training,
            data=self._data,
            peer_name=configuration.name,
            after_s={owner: each.steps.down_s + each.steps.backward_s for owner, each in played.items()},
            build=self._blocks.build,
            seed=job.seed,
            num_classes=len(job.data.classes),
            augment=job.data.changes_samples,
            device=configuration.device,
            init=self._init,
        )
        self._expect(command.round, command.pieces)

    def _planned(self, plan: Plan) -> dict[str, Played]:
        """What the plan counts with, of each unit."""
        if self._blocks.model is None:
            return {}
        body = body_of(plan)
        choice = choice_of(self._job, self._blocks.model, plan.peers, body.figures)
        return {each.owner: each for each in choice.played(body.split)}

    def begin_round(self, command: BeginRound) -> None:
        if self._units is not None and self._plan is not None and command.epoch == self._plan.epoch:
            self._expect(command.round, command.pieces)

    def _expect(self, round: int, pieces: int) -> None:
        self._begin, self._pieces = (round, pieces), []
        if not pieces:
            self._begin_now(round)

    def give(self, command: GivePiece) -> None:
        if self._begin is None:
            return
        try:
            self._pieces.append(read_snapshot(command.piece))
        except RemoteError as error:
            self._refuse(error)
            return
        if len(self._pieces) == self._begin[1]:
            self._begin_now(self._begin[0])

    def _begin_now(self, round: int) -> None:
        units, plan = self._units, self._plan
        if units is None or plan is None:
            return
        try:
            units.begin(round, self._pieces)
        except RemoteError as error:
            self._refuse(error)
            return
        self._averages.begun_from(self._pieces)
        self._begin, self._pieces, self._is_over = None, [], False
        now = time.monotonic()
        if self._use is not None:
            self._use.begun(now - self._ended_at, now)
        self._pace.begin(self._samples)
        part = plan.part_of(PeerId(self._own))
        self._say(c.Following(part.index if part else -1, round, self._job.training.rounds))
        early, self._early = self._early, deque()
        for message in early:
            self.deliver(message)

    def _refuse(self, error: RemoteError) -> None:
        self._drop()
        self._say(c.SnapshotRefused(str(error)))

    def stop(self, command: StopUnits) -> None:
        batches = self._units.num_steps if self._units is not None and not self._is_over else 0
        self._drop()
        give_back()
        self._say(UnitsHalted(command.epoch, batches))

    def _drop(self) -> None:
        """All that is held: two plans' units at once may be more than this device holds."""
        self._plan, self._units, self._begin = None, None, None
        self._averages.drop()
        self._pieces, self._is_over = [], False
        self._early.clear()
        self._outbox.begin(0)
        self._accuracy = -1.0

    # --- training ---

    def deliver(self, command: Deliver) -> None:
        """Says ``Taken`` also of what is refused: it must not be sent again for ever."""
        error, units, plan = "", self._units, self._plan
        if units is not None and plan is not None and command.epoch == plan.epoch:
            if self._begin is not None or self._is_over:
                self._early.append(command)  # no more than the streams' window
                return
            try:
                units.receive(read_message(command))
            except RemoteError as refused:
                error = str(refused)
        self._say(Taken(command.epoch, command.sender, 1, error))

    def work(self) -> None:
        """One unit of work, or a stage message of the last one, if there is room for it."""
        units = self._units
        if units is None or self._plan is None or not self.busy:
            return
        if not self._outbox and units.ready():
            try:
                self._outbox.add(units.advance())
            except UnitDivergedError as error:
                self._say(UnitRefused(self._plan.epoch, error.owner, units.round, error.detail))
        self._outbox.hand_over()
        self._look(units)
        if units.done and not self._outbox:
            self._end_round(units, self._plan)
        elif self._pace.is_due:
            self._say_progress(units, self._pace.progress(self._samples + units.num_samples))

    def _end_round(self, units: Units | SharedUnits, plan: Plan) -> None:
        self._is_over = True
        self._accuracy = units.accuracy(self._val) if isinstance(units, Units) else -1.0
        self._say_progress(units, self._pace.round_ended(self._samples + units.num_samples))
        update = write(*units.update(), self._spool)
        self._samples += units.num_samples
        self._steps += units.num_steps
        self._batches += units.num_steps
        self._ended_at = time.monotonic()
        where = (plan.epoch, units.first, units.stop - units.first, units.round + 1)
        self._say(UpdateMade(*where, self._batches, units.num_samples, _mean(units.losses), update))

    def _say_progress(self, units: Units | SharedUnits, samples_per_s: float) -> None:
        done, batches = self._samples + units.num_samples, self._batches + units.num_steps
        self._say(c.Progress(units.round, batches, done, _mean(units.losses), samples_per_s, self._accuracy))

    def _look(self, units: Units | SharedUnits) -> None:
        """How the time goes, now and then."""
        steps = self._steps + units.num_steps
        if self._use is not None and self._use.is_due(steps, now := time.monotonic()):
            said = self._use.look(steps, now, units.use())
            if said is not None:
                self._say(said)

    def look_again(self, command: LookAgain) -> None:
        """Not while it trains: that says more."""
        if self._units is None:
            self._blocks.look_again()

    # --- the average ---

    def begin_average(self, command: BeginAverage) -> None:
        if self._plan is not None and command.epoch == self._plan.epoch:
            self._averages.begin(command, self._plan)

    def give_update(self, command: GiveUpdate) -> None:
        units, is_own = self._units, command.peer == self._own
        apart = units.copies() if is_own and isinstance(units, Units) and units.done else ()
        self._averages.give(command, units.samples_before if units is not None else 0, apart)


def _mean(losses: Mapping[str, float]) -> float:
    """Of those that are known; not a number where none is."""
    known = [loss for loss in losses.values() if math.isfinite(loss)]
    return sum(known) / len(known) if known else math.nan

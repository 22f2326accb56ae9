"""What this peer does about a plan of split training: gets its blocks, has its units trained, gives its update to the
round's average, and goes on with what comes of it.

    Idle --plan with work for us--> Stopping (the trainer drops what it does) --halted--> Gathering
    Gathering --all own blocks of the round's state here--> Starting --the trainer has them--> Training
    Training --the own update is made--> Ended --the averager has made the next state--> Gathering, or Finished
    any --next plan--> Stopping
    any --the trainer dies, or the process did--> Lost: another plan, from a saved state on, brings it back

Invariant: a round begins with blocks of exactly one state, by name the one that the plan starts from, or the one that
the plan's averager has made under it; and stage messages are only exchanged with peers of the same plan, in its epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2ptrain.core import commands as c
from p2ptrain.core.effects import (
    Effects,
    Handler,
    KeepPlan,
    KeepSnapshot,
    MessageHandler,
    Reconsider,
    ReleaseBlob,
    ToTrainer,
)
from p2ptrain.core.mode import Given
from p2ptrain.core.plan import Plan
from p2ptrain.core.restarts import Restarts
from p2ptrain.core.stages.commands import GivePiece, SendStageMessage, Taken
from p2ptrain.core.stages.links import StageLinks
from p2ptrain.core.stages.missing_blocks import MissingBlocks
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.split.commands import (
    BeginRound,
    FollowUnits,
    PieceMade,
    StopUnits,
    UnitRefused,
    UnitsHalted,
    UpdateDrawnIn,
    UpdateMade,
    UpdateRefused,
)
from p2ptrain.modes.split.plan import body_of, needs_of, rates_of
from p2ptrain.modes.split.rounds import states as at
from p2ptrain.modes.split.rounds.blames import HARMLESS, NOT_GIVEN, Blames
from p2ptrain.modes.split.rounds.end import RoundEnd
from p2ptrain.modes.split.rounds.paces import Paces
from p2ptrain.modes.split.rounds.progress import Progress
from p2ptrain.modes.split.rounds.saved import SavedStates
from p2ptrain.modes.split.rules import SplitRules
from p2ptrain.modes.split.words import NO_SENSE, waiting_words
from p2ptrain.protocol.machine import NEVER, Machine, Note
from p2ptrain.wire import messages as m

LOOK_S = 0.1
"""At the end of a round, between two looks at what the others have."""


class SplitRole:
    """One peer's fronts, tails and whole units, in one job."""

    loading = "own data and the speed of the blocks"
    ending = None
    hands_over = False
    """Half a round is of no use to others: what was saved last will do."""

    def __init__(self, given: Given) -> None:
        group, job, resume = given.group, given.job, given.resume
        self.plan: Plan | None = None
        self.plan_hash, self.part = "", m.NO_PART
        self._group, self._downloads = group, given.downloads
        self.replicas = SavedStates(group, given.downloads, resume.kept, job.group.replicas, job.training.rounds)
        self.replicas.piece_kept = self._piece_kept
        self._links = StageLinks(group, given.rng)
        self._traffic, self._reports = self._links.traffic, self._links.reports
        self._missing = MissingBlocks(group, given.downloads, "rounds")
        self._end = RoundEnd(group, given.downloads, self.replicas)
        self._blames, self._restarts = Blames(group), Restarts(group)
        self.progress = Progress(group, self.replicas, job.training.rounds)
        self.is_complete, self.ends_round = self.progress.is_complete, self.progress.ends_round
        self._paces = self._traffic.watch = Paces(group, lambda: self._links.model, self._links.measure_again)
        self._machines: tuple[Machine, ...] = (self.replicas, self._links, self._paces)
        self._state: at.State = at.Idle()
        self._trained: Plan | None = None
        """The plan whose units the trainer holds."""
        self._ended: UpdateMade | None = None
        """What the own units came to, of a round that is not finished yet."""
        self._restored = resume.plan.hash if resume.plan else ""
        self._look_at = NEVER
        self.rules = SplitRules(
            group.own_id,
            job,
            model=lambda: self._links.model,
            profile_of=self._links.profile_of,
            newest=self.replicas.newest,
            round_s=self.progress.round_s,
            is_between_rounds=self.progress.is_between_rounds,
            is_lost=lambda record: self.progress.is_lost(record) or record.peer in self._blames.counted(),
            blames=self._blames.counted,
            paces=self._paces.counted,
            elapsed_s=self.progress.elapsed_s,
            current=lambda: self.plan,
        )
        self.handlers: Mapping[type, Handler] = self._links.handlers
        self._trainer_events: Mapping[type, Handler] = {
            **self._links.trainer_events,
            SendStageMessage: self._traffic.send,
            Taken: self._taken,
            c.Progress: self._progressed,
            c.Following: self._following,
            UnitsHalted: self._halted,
            UpdateDrawnIn: self._end.drawn_in,
            UpdateRefused: self._update_refused,
            UnitRefused: self._blames.unit_refused,
            c.SnapshotRefused: self._refused,
            c.TrainerFailed: self._failed,
        }
        self.messages: Mapping[type[m.Message], MessageHandler] = self._links.messages

    # --- what is known ---

    @property
    def data_epoch(self) -> int:
        """Of the plan whose units are trained."""
        return self._traffic.epoch

    @property
    def is_free_to_leave(self) -> bool:
        return True

    @property
    def seeking(self) -> bool:
        return isinstance(self._state, at.Gathering) and self.part != m.NO_PART

    def holdings(self) -> tuple[m.SnapshotRef, ...]:
        return (*self._end.holdings(), *self.replicas.kept())

    def end_after(self, rounds: int, now: float) -> Effects:
        return [*self.progress.end.ask(rounds, now), *self.replicas.look(now), *self._next_round(now)]

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        return True

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """Nothing hangs on it."""

    # --- the plan ---

    def plan_adopted(self, plan: Plan, now: float) -> Effects:
        """Do what the plan says, once the blocks are profiled."""
        group, name = self._group, plan.hash
        is_lost = isinstance(self._state, at.Lost)
        if name == self.plan_hash and not isinstance(self._state, at.Idle | at.Lost):
            return []  # a trainer that was started again is at it already
        if name != self.plan_hash:
            is_lost = name == self._restored  # the process ended under this plan, and its trainer with it
        self.plan, self.plan_hash, self._ended = plan, name, None
        self._state = at.Lost() if is_lost else at.Idle()
        self.replicas.begin(plan)
        self.progress.begin(plan, name, now)
        self._paces.begin(plan, name)
        blames = self._blames.begin(plan, now)
        part = plan.part_of(group.own_id)
        self.part = part.index if part is not None and not is_lost else m.NO_PART
        effects: Effects = [KeepPlan(plan), *blames, *self._end.stop(now)]
        effects += group.say(now, epoch=plan.epoch, plan=name, part=self.part, helper_s=0.0)
        effects += self._links.plan_adopted(has_work=part is not None, now=now)
        effects += self.members_changed(now)
        if not group.own.profile or is_lost or isinstance(self._state, at.Finished):
            return effects
        self._missing.stop(forget_failures=True)
        self._state = at.Stopping()
        return [*effects, ToTrainer(StopUnits(plan.epoch))]

    def members_changed(self, now: float) -> Effects:
        effects = [*self.replicas.members_changed(now), *self._end.averaging.look(now)]
        if self.progress.look(now) | self._blames.look():
            effects.append(Reconsider())
        effects += [*self._paces.look(now), *self._next_round(now), *self._gather(now)]
        return effects + self._links.members_changed(now)

    def peer_admitted(self, peer: PeerId, now: float) -> Effects:
        return self._traffic.reconnected(peer, now)

    def _pieces(self, plan: Plan, round: int) -> list[m.SnapshotRef]:
        """Of the state after ``round`` rounds, those with own blocks; [] as long as there are none."""
        return self.replicas.with_blocks(round, needs_of(body_of(plan).split, self._group.own_id))

    def _gather(self, now: float) -> Effects:
        """Get the blocks of the round's state, and have the trainer begin when all are here."""
        plan, state = self.plan, self._state
        if not isinstance(state, at.Gathering) or plan is None or self.part == m.NO_PART:
            self._missing.stop()
            return []
        if state.round == 0:
            return self._give(plan, 0, [])
        pieces = self._pieces(plan, state.round)
        lacking = [ref for ref in pieces if not self._downloads.is_local(ref.blob)]
        if pieces and not lacking:
            self._missing.stop()
            kept = [effect for ref in pieces for effect in self.replicas.keep(ref)]
            goes_on = state.round == body_of(plan).from_round or self.replicas.is_finished(state.round)
            return [*kept, *self._round_over(), *self._give(plan, state.round, pieces)] if goes_on else kept
        if not pieces or not all(ref.blob in self._missing or self._group.holders(ref.blob) for ref in lacking):
            self._missing.pause()
            return self._lose(now) if self._missing.is_given_up(now) else []
        self._missing.begin(now)
        return self._missing.ask(lacking, state.round, now)

    def _give(self, plan: Plan, round: int, pieces: list[m.SnapshotRef]) -> Effects:
        self._state = at.Starting(round)
        self._missing.stop()
        command: object = BeginRound(plan.epoch, round, len(pieces))
        if self._trained is not plan:
            command = FollowUnits(plan.to_json(), self._group.own_id, round, len(pieces))
        return [ToTrainer(command), *(ToTrainer(GivePiece(b""), ref.blob, "piece") for ref in pieces)]

    def _next_round(self, now: float) -> Effects:
        """The averager has made what the own trainer waits for; or all rounds are over, whoever trained the last."""
        plan, state = self.plan, self._state
        if plan is not None and not isinstance(state, at.Finished) and self.progress.is_complete():
            return self._finish(plan, now)
        if plan is None or not isinstance(state, at.Ended) or not self.replicas.of_plan(state.round):
            return []
        self._state = at.Gathering(state.round)
        self._missing.begin(now)
        return self._end.stop(now)

    def _finish(self, plan: Plan, now: float) -> Effects:
        if plan.part_of(self._group.own_id) is None:
            return []
        self._state, self._trained = at.Finished(), None
        self._missing.stop()
        said = self._group.say(now, phase="trained", round=self.progress.done, samples_per_s=0.0)
        return [*self._end.stop(now), *self._round_over(), *said, ToTrainer(StopUnits(plan.epoch))]

    def _round_over(self) -> Effects:
        """The round that the own units ended last is finished: that is told once."""
        ended, self._ended = self._ended, None
        if ended is None:
            return []
        loss = self._reports.loss(ended.loss, self._helper())
        fields = (("part", self.part), ("round", ended.round), *((("loss", round(loss, 4)),) if loss else ()))
        alone = [Note("kept-once", (("round", ended.round),))] if self.replicas.alone_with(ended.round) else []
        return [Note("round", fields), *alone]

    # --- the trainer ---

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if isinstance(event, UpdateMade):
            return self._update_made(event, blob, num_bytes, now)
        if isinstance(event, PieceMade):
            return self._piece_made(event, blob, num_bytes, now)
        handler = self._trainer_events.get(type(event))
        return handler(event, now) if handler is not None else []

    def _progressed(self, event: c.Progress, now: float) -> Effects:
        return self._reports.progress(event, self._helper(), now)

    def _helper(self) -> list[str]:
        """Who knows the loss of the own unit, as it has its tail."""
        split = body_of(self._trained).split if self._trained is not None else None
        unit = split.unit_of(self._group.own_id) if split is not None and not split.kept_from else None
        return [unit.helper] if unit is not None and unit.helper is not None else []

    def _refused(self, event: c.SnapshotRefused, now: float) -> Effects:
        """What others saved did not fit: these blobs are not tried again."""
        if self.plan is not None and isinstance(self._state, at.Starting) and self._state.round:
            self.replicas.refused |= set(self._pieces(self.plan, self._state.round))
        return [Note("snapshot-refused", (("detail", event.detail[:200]),)), *self._lose(now)]

    def _failed(self, event: c.TrainerFailed, now: float) -> Effects:
        return [*self._lose(now), *self._restarts.after(event, now)]

    def _following(self, event: c.Following, now: float) -> Effects:
        plan, group, state = self.plan, self._group, self._state
        if not isinstance(state, at.Starting) or plan is None:
            return []  # a newer plan waits for the trainer to halt
        self._state = at.Training(event.round)
        effects: Effects = []
        if self._trained is not plan:
            self._trained = plan
            self._reports.slowdown.train()
            rates = rates_of(body_of(plan).split, group.own_id)
            fields = (("part", event.part), ("round", event.round), ("rounds", event.rounds), ("epoch", plan.epoch))
            effects += [Note("training", fields), *self._traffic.begin(plan, self.plan_hash, now, rates)]
        effects += [ReleaseBlob(h.blob) for h in self._missing.given() if not self.replicas.is_kept(h.blob)]
        effects += self._end.begin(plan, event.round + 1, now)
        self._traffic.used(now)
        self._paces.round_begun(now)
        return effects + list(group.say(now, phase="training", round=event.round))

    def _halted(self, event: UnitsHalted, now: float) -> Effects:
        plan = self.plan
        if isinstance(self._state, at.Finished) and event.batches:  # of a round after the one that the group stopped at
            return [Note("batches-dropped", (("batches", event.batches),))]
        if plan is None or event.epoch != plan.epoch or not isinstance(self._state, at.Stopping):
            return []
        self._trained = None
        self._state = at.Idle()
        fields = (("batches", event.batches), ("round", body_of(plan).from_round), ("epoch", plan.epoch))
        effects: Effects = [Note("round-dropped" if event.batches else "halted", fields)]
        if self.part == m.NO_PART:
            return effects
        self._state = at.Gathering(body_of(plan).from_round)
        self._missing.begin(now)
        return effects + self._gather(now)

    def _lose(self, now: float) -> Effects:
        """The trainer holds no units any more, and the others can't go on without it: say so."""
        self._trained, self._state, self.part = None, at.Lost(), m.NO_PART
        self._missing.stop()
        return [*self._end.stop(now), *self._group.say(now, part=m.NO_PART)]

    def _update_made(self, event: UpdateMade, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        plan, group = self.plan, self._group
        if plan is None or self._trained is not plan or not isinstance(self._state, at.Training):
            return [ReleaseBlob(blob)] if blob is not None else []
        if blob is None:  # without it there is no average
            return [Note("update-not-saved", (("round", event.round),)), *self._lose(now)]
        self._state = at.Ended(event.round)
        self._restarts.round_finished()
        self._ended = event
        loss = self._reports.loss(event.loss, self._helper())
        sent = tuple(m.StreamRate(peer, rate) for peer, rate in list(self._traffic.used(now).items())[: m.MAX_LINKS])
        said = group.say(now, step=event.step, loss=loss, sent=sent)
        if self.progress.is_late():
            said += self._links.measure_again(rates_of(body_of(plan).split, group.own_id), now)
        return [*said, *self._paces.round_over(now), *self._end.update_made(plan, event, blob, num_bytes, now)]

    def _piece_made(self, event: PieceMade, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        effects = self._end.piece_made(self.plan, event, blob, num_bytes) if self.plan is not None and blob else []
        if blob is None or (ReleaseBlob(blob) in effects and event.epoch == self.data_epoch):
            return [*effects, Note("average-not-saved", (("round", event.round),)), *self._lose(now)]
        return effects

    def _piece_kept(self, piece: m.SnapshotRef, now: float) -> Effects:
        plan = self.plan
        return [*self._end.piece_kept(plan, piece), *self._next_round(now), *self._gather(now)] if plan else []

    def _update_refused(self, event: UpdateRefused, now: float) -> Effects:
        if self.plan is None or event.epoch != self.plan.epoch:
            return []
        fields = (("peer", event.peer or "all together"), ("round", event.round), ("detail", event.detail[:200]))
        blame = self._blames.say(event.peer, event.round, event.detail, now) if event.peer else self._lose(now)
        return [Note("update-refused", fields), *blame]

    def _taken(self, event: Taken, now: float) -> Effects:
        """What is refused is not sent again, so its unit can't end the round."""
        effects = self._traffic.taken(event, now)
        if not event.error or event.epoch != self._traffic.epoch or HARMLESS in event.error:
            return effects
        return [*effects, *self._blames.say(event.sender, self._group.own.round + 1, event.error, now)]

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        return []

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effects = self.replicas.blob_arrived(blob, now)
        effects += self._end.averaging.blob_arrived(blob, now)
        if self._missing.arrived(blob):
            effects += self._gather(now)
        return effects

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effects = [*self.replicas.blob_lost(blob, now), *self._end.averaging.blob_lost(blob, now)]
        if (holding := self._missing.lost(blob, now)) is not None:
            self.replicas.refused.add(holding)
        return effects

    def tick(self, now: float) -> Effects:
        self._look_at = now + LOOK_S
        late: Effects = [Reconsider()] if self.progress.look(now) else []
        late += [*self._end.averaging.look(now), *self._next_round(now), *self._gather(now)]
        if self._end.averaging.hopeless:
            late += self._blames.say(self._end.averaging.hopeless, self._group.own.round + 1, NOT_GIVEN, now)
        return [*(effect for machine in self._machines for effect in machine.tick(now)), *late]

    def next_deadline(self) -> float:
        gathering = self._missing.deadline() if isinstance(self._state, at.Gathering) else NEVER
        deadlines = (machine.next_deadline() for machine in self._machines)
        looking = self._look_at if isinstance(self._state, at.Ended | at.Gathering) else NEVER
        return min(*deadlines, gathering, looking, self._end.averaging.next_deadline())

    def waiting_for(self, now: float) -> str:
        """In words: blocks, other peers' updates, an average, or a plan."""
        if (plan := self.plan) is None:
            return ""
        state, own, missing = self._state, self._group.own_id, self._end.missing(plan)
        if self.rules.is_senseless(self._group.own, plan):
            return f"work: {NO_SENSE}"
        has_all = isinstance(state, at.Gathering) and self.replicas.has(plan, state.round, own)
        words = waiting_words(plan, own, state, missing, has_all=has_all)
        return words or self._traffic.waiting_for(now)

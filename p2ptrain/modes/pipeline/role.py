"""What this peer does about a plan of a pipeline: gets its blocks, has its stage trained, passes stage messages on.

    Idle --plan with a stage for us--> Stopping (the trainer goes on to the plan's step) --halted--> Gathering
    Gathering --all blocks of the plan's step here--> Starting --the trainer has them--> Training
    Training --next plan--> Stopping
    Stopping --no batch done for long: the others have halted before us--> told to halt where it is
    any --the trainer dies, or the process did--> Lost: a plan that begins at a saved step brings it back

Invariant: a stage begins with blocks of exactly the step that its plan says, each from the trainer's own memory, the
own store, or a member that has it; and stage messages are only exchanged with peers of the same plan, in its epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2ptrain.core import commands as c
from p2ptrain.core.effects import Effects, Handler, KeepPlan, MessageHandler, Reconsider, ToTrainer
from p2ptrain.core.mode import Given
from p2ptrain.core.plan import Plan
from p2ptrain.core.replicas import Replicas
from p2ptrain.core.restarts import Restarts
from p2ptrain.core.stages.commands import GivePiece, SendStageMessage
from p2ptrain.core.stages.links import StageLinks
from p2ptrain.core.stages.missing_blocks import MissingBlocks
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.pipeline.commands import FollowStage, Halted, PieceTaken, StopAt
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.rules import PipelineRules
from p2ptrain.modes.pipeline.stage.checkpoints import Checkpoints
from p2ptrain.modes.pipeline.stage.collection import Collection
from p2ptrain.modes.pipeline.stage.halting import halt
from p2ptrain.modes.pipeline.stage.handed_over import HandedOver
from p2ptrain.modes.pipeline.stage.interval import Interval
from p2ptrain.modes.pipeline.stage.progress import Progress
from p2ptrain.modes.pipeline.stage.recovery import Recovery
from p2ptrain.modes.pipeline.stage.saving import Saving, holders
from p2ptrain.modes.pipeline.stage.states import Gathering, Idle, Lost, Starting, State, Stopping, Training
from p2ptrain.modes.pipeline.stage.way_back import WayBack
from p2ptrain.modes.pipeline.words import waiting_words
from p2ptrain.planning.pipeline.coverage import NO_STATE, Run
from p2ptrain.protocol.machine import NEVER, Machine, Note
from p2ptrain.protocol.replication.replication import Replication
from p2ptrain.protocol.replication.rules import ReplicationConfig
from p2ptrain.wire import messages as m


class PipelineRole:
    """One peer's stage, in one job."""

    loading = "own data and the speed of the blocks"
    ending = None
    hands_over = False
    """A stage alone, a batch ahead of what is saved of the others, is of no use: what was saved last will do."""

    def __init__(self, given: Given) -> None:
        group, job, resume = given.group, given.job, given.resume
        self.plan: Plan | None = None
        self.plan_hash, self.part = "", m.NO_PART
        num_holders, settings = job.group.replicas, pipeline_of(job)
        kept = ReplicationConfig(num_holders=num_holders, past_epochs=True)
        replication = Replication(group.own_id, kept, resume.kept)
        self.replicas = Replicas(
            group, given.downloads, replication, resume.own, lambda blob: blob in self._missing, self._surplus
        )
        self._group, self._job, self._downloads = group, job, given.downloads
        self._links = StageLinks(group, given.rng)
        self._traffic, self._reports = self._links.traffic, self._links.reports
        self._missing = MissingBlocks(group, given.downloads)
        self._checkpoints = Checkpoints(group, self.replicas.kept, given.downloads.hands_out_nothing)
        self.progress = Progress(group, self._checkpoints, job.training.rounds)
        self.is_complete, self.ends_round = self.progress.is_complete, self.progress.ends_round
        self.snapshot_kept = self.replicas.snapshot_kept
        self._restarts, self._recovery = Restarts(group), Recovery(group, self._checkpoints)
        self._state: State = Idle()
        self._trained: Plan | None = None
        """The plan whose stage the trainer holds."""
        self._given: list[m.SnapshotRef] = []
        """What the trainer's stage was made of last."""
        self._restored = resume.plan.hash if resume.plan else ""
        self._handed_over = HandedOver(group)
        self._collection = Collection(group, settings, self._handed_over)
        interval = Interval(group, settings, num_holders)
        self._saving = Saving(group, self.replicas, self._handed_over, self._reports, self.progress, interval)
        self._machines: tuple[Machine, ...] = (self.replicas, self._links, self._saving)
        self._way_back = WayBack(group, self._checkpoints, self.progress, settings, interval)
        holder = replication.holder
        holder.surplus, holder.is_stale = self._checkpoints.surplus, self._checkpoints.is_stale
        replication.owner.rank = lambda own, members: holders(own, members, self.plan)
        self.rules = PipelineRules(
            group.own_id,
            job,
            model=lambda: self._links.model,
            profile_of=self._links.profile_of,
            standing=self._way_back.standing,
            lead=self.progress.lead,
            margin=self.progress.margin,
            batch_s=self.progress.batch_s,
            is_under_way=self.progress.is_under_way,
            is_lost=self.progress.is_lost,
            held=self._checkpoints.by_peer,
            is_finished=self.progress.is_finished,
            may_improve=lambda: self.progress.calm.is_over,
        )
        self.handlers: Mapping[type, Handler] = {**self.replicas.handlers, **self._links.handlers}
        self._trainer_events: Mapping[type, Handler] = {
            **self._links.trainer_events,
            SendStageMessage: self._send,
            c.Progress: self._progressed,
            c.Following: self._following,
            Halted: self._halted,
            c.SnapshotRefused: self._refused,
            c.TrainerFailed: self._failed,
        }
        self.messages: Mapping[type[m.Message], MessageHandler] = {**self._links.messages, **self.replicas.messages}

    # --- what is known ---

    @property
    def data_epoch(self) -> int:
        """Of the plan whose stage is trained."""
        return self._traffic.epoch

    @property
    def is_free_to_leave(self) -> bool:
        """Others train its blocks, from just where it stopped; or nobody can."""
        plan = self.plan
        if plan is None or self._trained is None or self._group.own.phase in ("trained", "done"):
            return True
        is_over = plan.part_of(self._group.own_id) is None and self.progress.newest() > body_of(plan).from_step
        return is_over and not self._handed_over

    @property
    def seeking(self) -> bool:
        return isinstance(self._state, Gathering) and self.part != m.NO_PART

    def _surplus(self, older: Sequence[m.SnapshotRef]) -> list[m.SnapshotRef]:
        """Also the newest that could be gone back to stay. Something may have been saved here since others said what
        they have."""
        if self.plan is not None:
            self._checkpoints.look(self.plan)
        return self._checkpoints.surplus(older)

    def holdings(self) -> tuple[m.SnapshotRef, ...]:
        """All own snapshots: stages are up to a batch apart, so the newest may not be saved everywhere yet."""
        first = (*self._handed_over.holdings(), *reversed(self.replicas.own))
        all_of_it = (*first, *(h for h in self.replicas.replication.holdings() if h not in first))
        return tuple(holding for holding in all_of_it if not self._checkpoints.is_refused(holding))

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        return blob not in self._checkpoints.damaged

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """Nothing hangs on it."""

    def end_after(self, rounds: int, now: float) -> Effects:
        return [*self.progress.end.ask(rounds, now), *self._end(now)]

    # --- the plan ---

    def plan_adopted(self, plan: Plan, now: float) -> Effects:
        """Do what the plan says, once the blocks are profiled."""
        group = self._group
        name, body = plan.hash, body_of(plan)
        is_lost, told = isinstance(self._state, Lost), []
        if name != self.plan_hash:
            if not self.progress.is_saved():  # else nothing is lost: what was trained to its end stays
                told = self._recovery.take(self.progress.begun())
                self._recovery.begin(plan, self.plan, self._way_back.done(), now)
            self._saving.begin(plan)
            is_lost = name == self._restored  # the process ended under this plan, and its trainer with it
        self.plan, self.plan_hash = plan, name
        has_halted = isinstance(self._state, Gathering)
        self.progress.begin(plan, name, now)
        self._way_back.begin(plan)
        part = plan.part_of(group.own_id)
        # Others have done batches by it, which takes all of its peers: this one did, too, and has lost all since.
        is_lost |= self._trained is None and part is not None and self.progress.begun() is not None
        self._state = Lost() if is_lost else Idle()
        self.part = part.index if part is not None and not is_lost else m.NO_PART
        effects: Effects = [KeepPlan(plan), *told, *self.replicas.epoch_changed(plan.epoch, now)]
        gone_back = {} if self.progress.leads_on else {"step": body.from_step}
        effects += group.say(now, epoch=plan.epoch, plan=name, part=self.part, **gone_back)
        effects += self._links.plan_adopted(has_work=part is not None, now=now)
        effects += self.members_changed(now)
        if not group.own.profile or is_lost:
            return effects
        self._missing.stop(forget_failures=True)
        self._state = Stopping(now + self.progress.patience_s())
        stop = halt(self._trained, plan, group.own_id, has_halted=has_halted)
        return [*effects, *self._handed_over.release(now), ToTrainer(stop)]

    def members_changed(self, now: float) -> Effects:
        if self.plan is not None:
            self._checkpoints.look(self.plan)
        effects: Effects = [*self.replicas.members_changed(now), *self._gather(now)]
        effects += self._recovery.take(self.progress.begun())
        self._recovery.look(self.progress.is_torn(), now)
        if self._way_back.look(now):
            effects.append(Reconsider())
        effects += self._end(now)
        effects += [*self._recovery.waits(self._way_back.words(now)), *self._recovery.met(self.progress.models())]
        return effects + self._links.members_changed(now)

    def peer_admitted(self, peer: PeerId, now: float) -> Effects:
        return self._traffic.reconnected(peer, now)

    # --- getting the own stage ---

    def _gather(self, now: float) -> Effects:
        """Get the blocks that the trainer lacks, and give it the stage when all are here."""
        plan = self.plan
        if not isinstance(self._state, Gathering) or plan is None or self.part == m.NO_PART:
            self._missing.stop()
            return []
        stage, state = body_of(plan).pipeline.stages[self.part], body_of(plan).begins_with
        if state == NO_STATE:
            return self._give(plan, [], keep=False)
        held = self._trained if self._state == Gathering(state[0]) else None
        run = stage.start, stage.stop
        if self._collection.applies(plan):
            return self._gather_heavily(plan, run, now)
        have, chosen = self._checkpoints.choose(run, state, held, self._is_here)
        if chosen is None:
            self._missing.pause()
            return self._lose(now) if self._missing.is_given_up(now) else []
        self._missing.begin(now)
        lacking = [holding for holding in chosen if not self._is_here(holding.blob)]
        if not lacking:
            return self._give(plan, chosen, keep=have is not None)
        return self._missing.ask(lacking, state[0], now)

    def _gather_heavily(self, plan: Plan, run: Run, now: float) -> Effects:
        """The blocks as the proposer sends them out; it needs all of them first."""
        state, sent = body_of(plan).begins_with, self._collection.sent(plan, run)
        chosen: list[m.SnapshotRef] | None = [sent] if sent is not None else None
        if chosen is None and plan.proposer == self._group.own_id:
            everything = 0, body_of(plan).pipeline.num_blocks
            chosen = self._checkpoints.choose(everything, state, None, self._is_here)[1]
        if chosen is None:
            self._missing.pause()
            return self._lose(now) if self._missing.is_given_up(now) else []
        self._missing.begin(now)
        lacking = [holding for holding in chosen if not self._is_here(holding.blob)]
        if lacking:
            return self._missing.ask(lacking, state[0], now)
        return self._give(plan, chosen, keep=False) if sent is not None else self._collection.send_out(plan, chosen)

    def _is_here(self, blob: BlobId) -> bool:
        return blob not in self._checkpoints.damaged and self._downloads.is_local(blob)

    def _give(self, plan: Plan, pieces: list[m.SnapshotRef], *, keep: bool) -> Effects:
        self._state, self._given = Starting(plan), pieces
        self._missing.stop()
        follow = FollowStage(plan.to_json(), self._group.own_id, len(pieces), keep)
        note = Note("blocks-here", (("pieces", len(pieces)), ("fetched_bytes", self._missing.fetched_bytes)))
        return [note, ToTrainer(follow), *(ToTrainer(GivePiece(b""), holding.blob, "piece") for holding in pieces)]

    # --- the trainer ---

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if isinstance(event, c.SnapshotTaken):
            return self._snapshot_taken(event, blob, num_bytes, now)
        if isinstance(event, PieceTaken):
            return self._piece_taken(event, blob, num_bytes, now)
        handler = self._trainer_events.get(type(event))
        return handler(event, now) if handler is not None else []

    def _send(self, event: SendStageMessage, now: float) -> Effects:
        if event.epoch != self._traffic.epoch:
            return []
        is_ahead = event.work == "forward" and pipeline_of(self._job).schedule == "async"
        self._seen_step(event.step - is_ahead, now)  # its batch may be begun before the one before is done
        return self._traffic.send(event, now)

    def _progressed(self, event: c.Progress, now: float) -> Effects:
        self._seen_step(event.step, now)
        told = self._recovery.step_done(event.step, now) if isinstance(self._state, Training) else []
        know_loss = body_of(self._trained).pipeline.stages[-1].peers if self._trained is not None else ()
        return [*told, *self._reports.progress(event, know_loss, now)]

    def _refused(self, event: c.SnapshotRefused, now: float) -> Effects:
        fetched = self._missing.given()
        self._checkpoints.refuse(self._given, {holding.blob for holding in fetched})
        blobs = ", ".join(f"{h.blob[:12]} of {self._group.name_of(h.trainer)}" for h in self._given[:3])
        fields = (("detail", event.detail[:200]), ("blobs", blobs))
        released = self._saving.fetched(fetched, keep=False)
        return [Note("snapshot-refused", fields), *released, *self._group.say_holdings(now), *self._lose(now)]

    def _failed(self, event: c.TrainerFailed, now: float) -> Effects:
        """Nobody waits for the next trainer, which takes seconds: without a profile no plan has this peer."""
        return [*self._lose(now), *self._group.say(now, profile=""), *self._restarts.after(event, now)]

    def _seen_step(self, step: int, now: float) -> None:
        """The trainer is that far, by the plan in force or on the way to it."""
        if step > self.progress.own and self.progress.leads_on:
            self.progress.own = step
            if isinstance(self._state, Stopping) and self._state.by != NEVER:
                self._state.by = now + self.progress.patience_s()

    def _following(self, event: c.Following, now: float) -> Effects:
        if not isinstance(self._state, Starting):
            return []  # a newer plan waits for the trainer to halt
        plan, group = self._state.plan, self._group
        self._trained, self._state = plan, Training()
        self._reports.slowdown.train()
        effects = self._saving.fetched(
            self._missing.given(), keep=body_of(plan).goes_back and not self._collection.applies(plan)
        )
        self.progress.train(plan)
        fields = (("part", event.part), ("round", event.round), ("rounds", event.rounds), ("epoch", plan.epoch))
        begins = zip(("step", "from_epoch"), body_of(plan).begins_with, strict=True)
        effects += [*self._recovery.take(plan), Note("training", (*fields, *begins))]
        effects += self._traffic.begin(plan, self.plan_hash, now)
        return effects + list(group.say(now, phase="training", round=event.round, step=self.progress.own))

    def _halted(self, event: Halted, now: float) -> Effects:
        if self.plan is None or event.epoch != self.plan.epoch or not isinstance(self._state, (Stopping, Gathering)):
            return []
        self._state = Gathering(event.step)
        self._missing.begin(now)
        self._recovery.halted(self._trained, event.step)
        if event.step < 0:
            self._trained = None
        return [Note("halted", (("step", event.step), ("epoch", event.epoch))), *self._gather(now)]

    def _lose(self, now: float) -> Effects:
        """The trainer holds no stage any more, and the others can't go on without it: say so, unless it has ended."""
        self._trained, self._state = None, Lost()
        self.part = self.part if self.progress.is_stopped() else m.NO_PART  # nobody need take it over
        self._missing.stop()
        return self._group.say(now, part=self.part)

    def _end(self, now: float) -> Effects:
        """Nothing is left to do where the trained model is saved whole, be it by others who went on apart."""
        plan, is_own, own = self.plan, self.progress.is_finished(), self._group.own
        if plan is None or plan.part_of(own.peer) is None or not self.progress.is_saved():
            return []
        ends_by_itself = is_own and not self.progress.end.is_early and isinstance(self._state, Training)
        if own.phase not in ("waiting", "training") or ends_by_itself:
            return []
        told = self._recovery.over(plan, self.progress.own, self.progress.last_step(plan), is_own=is_own)
        stop = ToTrainer(StopAt(plan.epoch, self.progress.own, (), now=True))
        return [*told, stop, *self._lose(now), *self._group.say(now, phase="trained", samples_per_s=0.0)]

    def _snapshot_taken(self, event: c.SnapshotTaken, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if event.round_finished:
            self._restarts.round_finished()
        return self._saving.snapshot(event, self._trained, blob, num_bytes, now) if self._trained is not None else []

    def _piece_taken(self, event: PieceTaken, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if self.plan is not None and self._collection.sends(self.plan):
            return [*self._saving.piece(event, self.plan, blob, num_bytes, now), *self._gather(now)]
        return self._saving.piece(event, self._trained, blob, num_bytes, now) if self._trained is not None else []

    # --- blobs ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effects = self.replicas.blob_arrived(blob, now)
        if (holding := self._missing.arrived(blob)) is not None:
            self._checkpoints.arrived(holding)
            effects += self._gather(now)
        return effects

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effects = self.replicas.blob_lost(blob, now)
        if (holding := self._missing.lost(blob, now)) is not None:
            effects.append(self._checkpoints.not_had(holding))
        return effects

    # --- time ---

    def tick(self, now: float) -> Effects:
        newest, plan = self.progress.newest(), self.plan
        late = self._gather(now) if self._missing.is_due(now) else []
        if self.progress.look(now) or (now >= self._way_back.deadline() and self._way_back.look(now)):
            late.append(Reconsider())
        if isinstance(self._state, Stopping) and now >= self._state.by and plan is not None:
            self._state.by = NEVER
            late.append(ToTrainer(StopAt(plan.epoch, self.progress.own, (), now=True)))
        if self._handed_over and plan is not None and newest > body_of(plan).from_step:
            late += self._handed_over.release(now)  # a batch is done, so everyone has its stage
        return [*(effect for machine in self._machines for effect in machine.tick(now)), *late]

    def next_deadline(self) -> float:
        gathering = self._missing.deadline() if isinstance(self._state, Gathering) else NEVER
        stopping = self._state.by if isinstance(self._state, Stopping) else NEVER
        return min(*(each.next_deadline() for each in self._machines), gathering, stopping, self._way_back.deadline())

    def waiting_for(self, now: float) -> str:
        """In words: blocks, other stages, or a plan."""
        if self.plan is None:
            return ""
        strategy = pipeline_of(self._job).strategy
        words = self._way_back.words(now) or waiting_words(self.plan, self._group.own, self._state, strategy)
        return words or self._traffic.waiting_for(now)

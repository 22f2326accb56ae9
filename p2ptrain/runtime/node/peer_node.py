"""A peer as a process: the node around ``Peer``, with its store and its trainer.

Invariant: tensors pass through this process as bytes; it never imports torch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.effects import JobDone, JobReceived, RestartTrainer, StartTrainer, Stopping, ToTrainer, TrainerLost
from p2ptrain.core.peer_config import PeerConfig
from p2ptrain.core.plan import Plan
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.ids import BlobId, JobId
from p2ptrain.net.keys import IDENTITY_FILE, Group, Identity
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.consensus.rules import PlanWork
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session.effects import IdentityTaken, Knocked, NoticeTold
from p2ptrain.runtime.model_writer import keep_model, request_of
from p2ptrain.runtime.node.device_figures import DeviceFigures
from p2ptrain.runtime.node.disk_work import DiskWork
from p2ptrain.runtime.node.group_codes import GroupCodes
from p2ptrain.runtime.node.group_job import JOB_WAIT_S, superseded, wait_for_kept
from p2ptrain.runtime.node.handover import Handover, let_go
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.lingering import Lingering
from p2ptrain.runtime.node.node import NetworkConfig, Node
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.kept import MODEL
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.runtime.trainer.process import TrainerProcess
from p2ptrain.runtime.trainer.watch import LOOK_S, TrainerWatch
from p2ptrain.version import SOFTWARE
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.shared_bytes import SharedBytes

GOODBYE_S = 0.3
HANDOVER_S = 10.0
TRAFFIC_S = 1.0
TRAINER_AGAIN_S = 5.0
"""After the system had no process for a new trainer, until that counts as one more failure."""
BLOCK_TIMES = "block-times.json"
"""In the state directory: what the blocks of models took on this device."""


class PeerNode(Node):
    """Run with ``start``, ``wait_finished``, ``close``."""

    def __init__(
        self,
        identity: Identity,
        group: Group,
        network: NetworkConfig,
        options: PeerOptions,
        state: StateDir,
        journal: Journal,
        *,
        job_wait_s: float = JOB_WAIT_S,
    ) -> None:
        """``job_wait_s``: so long the group may tell its job before the one that is kept here is taken."""
        super().__init__(identity, group, network, journal)
        self.options = options
        self.state = state
        self.trainer: TrainerProcess | None = None
        self.superseded_by: JobId | None = None
        """The group's job, for which this peer has left its own: it is to be started again."""
        self.codes = GroupCodes(self, state, self._failed)
        self.former, self._job_wait_s = self.codes.courier.by_tag(), job_wait_s
        self._peer: Peer | None = None
        self._configuration: c.Configure | None = None
        self._disk_work: DiskWork | None = None
        """From when the job is known."""
        self._handover: Handover | None = None
        self._watch: TrainerWatch | None = None
        """Over the trainer, while it should move."""
        self._is_twin = False
        """Another device goes on under this one's identity: nothing may be said under it."""
        self._lingering = Lingering(self._spawn, self.now, options.linger_s, self._has_others, self._go_if_done)
        self._device = DeviceFigures(options.num_threads)
        self._lost: P2PTrainError | None = None
        """Why the trainer was given up."""
        self._handlers: dict[type, Callable[[Any], object]] = {
            ToTrainer: self._to_trainer,
            JobReceived: lambda effect: self._open_job(effect.job),
            IdentityTaken: self._identity_taken,
            NoticeTold: self._of_codes,
            Knocked: self._of_codes,
            StartTrainer: self._first_start,
            RestartTrainer: lambda effect: self._spawn(self._start_trainer()),
            TrainerLost: self._trainer_lost,
            Stopping: self._stopping,
            JobDone: lambda effect: self._lingering.start(self._write_model if self.options.keep_model else None),
            PlanWork: self._work_out,
            ReadChunk: lambda effect: self.answer_read(effect, None),  # nothing is stored without a job
        }
        """By the kind of effect; the store's come with the job."""

    def note(self, note: Note) -> None:
        super().note(note)
        self._device.heard(note)

    def make_core(self) -> Peer:
        options = self.options
        config = PeerConfig(
            own_key=self.identity.public,
            proof_key=self.group.proof_key,
            addresses=self.addresses(),
            bulk_port=self.transport.bulk_port,
            name=options.name,
            software=SOFTWARE,
            signing=signing_of(self.identity),
            door=self.codes.door(options.name),
            flops_per_s=options.flops_per_s or 0.0,
            memory_bytes=options.memory_bytes,
            link_bytes_per_s=options.link_bytes_per_s,
            wishes=options.classes,
            allow_user_code=options.allow_user_code,
            remote_stop=options.remote_stop,
        )
        self._peer = Peer(config, self.rng, self.now(), int(time.time() * 1000))
        return self._peer

    async def start(self) -> None:
        await super().start()
        for peer, addresses in self.state.load_addresses().items():
            for address in addresses if peer != self.identity.peer else ():
                self._proposed(address, "remembered")
        for note in self.state.take_notes():
            self.note(note)
        if self._peer is not None:
            self._spawn(self.codes.run(self._peer, self.options.name))
        if self.options.job is not None:
            self._open_job(self.options.job)
        elif self._peer is not None:
            self._spawn(self._take_kept_job())
            self._spawn(self._follow_group(self._peer))
        self._spawn(self._report_traffic())
        self._spawn(self._watch_trainer())

    async def leave(self) -> None:
        """Hand over what is held, say goodbye. Call before ``close``."""
        peer = self._peer
        if peer is None or self._is_twin:
            return
        if self._lingering.is_writing:
            self.note(Note("model-awaited"))
            await self._lingering.written()
        if self.trainer is not None and peer.role is not None and peer.membership.alive():
            go_on = not peer.role.hands_over and await let_go(self.feed, peer, peer.role)
            handover = self._handover = Handover()
            if not peer.role.hands_over:
                handover.settle(None if go_on else peer.role.replicas.newest_own())
            elif peer.records.own.phase == "training":
                self.trainer.send(c.TakeSnapshot())
            else:
                handover.settle(None)
            try:
                await asyncio.wait_for(handover.done(peer.role.replicas.replication.owner), HANDOVER_S)
            except TimeoutError:
                self.note(Note("handover-incomplete", (("waited_s", HANDOVER_S),)))
        self.failure = self.failure or self._lost
        self.feed(peer.leave)
        self._says_goodbye = True
        await asyncio.gather(asyncio.sleep(GOODBYE_S), self._stop_trainer())

    async def close(self) -> None:
        await self._stop_trainer()
        await super().close()
        if self._disk_work is not None:
            self._disk_work.close()

    # --- job ---

    async def _take_kept_job(self) -> None:
        """Nobody tells the job: then it is the one that this group had here last."""
        kept = await wait_for_kept(self.state.path, self.group.tag, self._job_wait_s, self.options.allow_user_code)
        if kept is not None and self._disk_work is None:
            self.note(Note("job-kept", (("job", kept.job.id), ("name", kept.job.name), ("round", kept.round))))
            self._open_job(kept.job)

    async def _follow_group(self, peer: Peer) -> None:
        theirs = await superseded(peer, self.now)
        self.note(Note("job-left", (("ours", peer.job_id), ("theirs", theirs))))
        self.superseded_by = theirs
        self.finish()

    def _open_job(self, job: Job) -> None:
        peer = self._peer
        if peer is None or self._disk_work is not None:
            return
        store = self.state.open_job(job.id)
        disk = self._disk_work = DiskWork(self, peer, store, self.state, self._snapshot_saved)
        self._handlers |= disk.handlers
        store.set_job(job.to_json())
        self.state.save_job(self.group.tag, job.id)
        if self.options.init is not None:
            try:
                store.put(Path(self.options.init).read_bytes())
            except OSError as error:
                raise UserError(
                    f"{self.options.init}: can't be read ({error.strerror or error}); the job file names it"
                ) from None
        resume = disk.resume()
        options = self.options
        self._configuration = c.Configure(
            job=job.to_json(),
            data=options.data,
            name=options.name,
            shard=options.shard,
            dirichlet=options.dirichlet,
            classes=options.classes,
            num_threads=options.num_threads,
            device=options.device,
            strict=options.strict,
            allow_user_code=bool(options.allow_user_code) or options.job is not None,
            cache=str(self.state.path / BLOCK_TIMES),
            spool=str(store.blobs.spool),
        )
        self.feed(lambda now: peer.job_opened(job, resume, now))

    def _first_start(self, effect: StartTrainer) -> None:
        if self._disk_work is not None and self._configuration is not None:
            path = self._disk_work.path(effect.init) if effect.init is not None else ""
            self._configuration = dataclasses.replace(self._configuration, init=str(path))
            self._spawn(self._start_trainer())

    async def _stop_trainer(self) -> None:
        self._watch = None
        if self.trainer is not None:
            await self.trainer.stop()

    async def _start_trainer(self) -> None:
        """Without a first one this node is of no use: ``UserError``. One that can't be replaced is a trainer lost."""
        is_first = self.trainer is None
        await self._stop_trainer()
        if self._says_goodbye:
            return
        self.trainer = TrainerProcess(self._trainer_said, self.options.num_threads)
        try:
            await self.trainer.start()
        except UserError as error:
            if is_first:
                raise
            await asyncio.sleep(TRAINER_AGAIN_S)
            self._trainer_said(c.TrainerFailed(str(error), user_error=False))
            return
        self._watch = TrainerWatch(self.now())
        self.trainer.send(self._configuration)

    async def _watch_trainer(self) -> None:
        """One that hangs is ended, and is a trainer lost like any other."""
        while True:
            await asyncio.sleep(LOOK_S)
            peer, watch, trainer = self._peer, self._watch, self.trainer
            if peer is None or watch is None or trainer is None:
                continue
            silence = watch.look(trainer.cpu_s(), self.now())
            told = silence if silence is not None and silence.silent_s >= silence.limit_s / 2 else None
            peer.trainer_waits = f"{told}; it is ended after {told.limit_s:.0f} s" if told else ""
            if silence is not None and silence.hangs:
                self.note(Note("trainer-hangs", (("what", str(silence)),)))
                peer.trainer_waits = ""
                await self._stop_trainer()
                self._trainer_said(c.TrainerFailed(f"{silence}: it hangs, and was ended", user_error=False))

    # --- effects ---

    def carry_out_other(self, effect: object) -> None:
        if isinstance(effect, ReadChunk):
            self._lingering.served()
        self._handlers[type(effect)](effect)

    def _work_out(self, effect: PlanWork[Plan]) -> None:
        peer = self._peer
        if peer is not None:
            self.in_thought(effect.work, lambda answer: self.feed(lambda now: peer.plan_worked_out(answer, now)))

    def _to_trainer(self, effect: ToTrainer) -> None:
        if effect.blob is None or self._disk_work is None:
            self._command(effect.command)
        else:
            self._disk_work.fill_in(effect, effect.blob, self._command)

    def _command(self, command: object) -> None:
        if self.trainer is not None:
            self.trainer.send(command)

    def _trainer_said(self, event: object) -> None:
        if self._watch is not None:
            self._watch.heard(event.doing if isinstance(event, c.Beat) else None)
        if isinstance(event, c.Beat):
            return
        if isinstance(event, c.TrainerFailed):
            if self._says_goodbye:  # it was to end anyway, and nobody needs another one
                self.note(Note("trainer-failed-at-the-end", (("detail", event.detail),)))
                return
            self._watch = None
        peer, disk, handover = self._peer, self._disk_work, self._handover
        if peer is None or disk is None:
            return
        if handover is not None:
            if isinstance(event, c.SnapshotTaken) and not handover.admits(event):
                return
            if isinstance(event, c.TrainerFailed):
                handover.settle(None)
        said, data = _apart(event)
        if not data:
            self.feed(lambda now: peer.trainer_said(said, None, 0, now))
            return

        def stored(blob: BlobId | None, num_bytes: int) -> None:
            if isinstance(said, c.SnapshotTaken) and self._handover is not None:
                self._handover.stored(said, blob)
            self.feed(lambda now: peer.trainer_said(said, blob, num_bytes, now))

        disk.put(data, ephemeral=getattr(type(said), "IS_PASSING", False), then=stored)

    def _snapshot_saved(self, holding: SnapshotRef, error: BaseException | None) -> None:
        if self._handover is not None:
            self._handover.saved(holding, error)

    # --- the end ---

    def _identity_taken(self, effect: IdentityTaken) -> None:
        self._is_twin = True
        where = effect.address.removeprefix("tcp://")
        self._failed(
            UserError(
                f"another device, at {where}, runs a peer with the same identity and was started first (was the state "
                f"directory copied?): delete {self.state.path / IDENTITY_FILE} on this device, and start again"
            )
        )

    def _trainer_lost(self, effect: TrainerLost) -> None:
        if effect.user_error:
            self._failed(UserError(effect.detail))
        else:  # the node lives on, keeps what it has of others, says in its status what happened, and when it ends
            self._lost = P2PTrainError(f"nothing more could be trained on this device: {effect.detail}")

    def _stopping(self, effect: Stopping) -> None:
        """A member has asked for it. Who is done writes its model first, if that is under way."""
        self._lingering.hurry()
        if effect.at_once and not self._lingering.is_awaited:
            self.finish()

    def _has_others(self) -> bool:
        return self._peer is not None and bool(self._peer.group.alive())

    def _go_if_done(self) -> None:
        if self._peer is not None and self._peer.records.own.phase == "done":
            self.finish()

    async def _write_model(self) -> None:
        peer, options = self._peer, self.options
        if peer is None or not peer.job_id:
            return
        kept, own = self.state.path / peer.job_id / MODEL, (peer.group.name_of(peer.own_id), peer.own_id)
        request = request_of(options, self.group, peer.job_id, kept, self.addresses(), self.network.interfaces, *own)
        made = await keep_model(request, options.num_threads or 1, self.note)
        if made is not None and made.samples:
            self.feed(lambda now: peer.tell(now, accuracy=made.accuracy, model_samples=made.samples))

    async def _report_traffic(self) -> None:
        peer, planned = self._peer, ("", dict[str, float]())
        while peer is not None:
            await asyncio.sleep(TRAFFIC_S)
            if (role := peer.role) is not None and role.plan is not None and role.plan_hash != planned[0]:
                name = role.plan_hash  # another may be in force when that is worked out
                found = await asyncio.to_thread(role.rules.predicted, role.plan)
                planned = (name if found else "", dict(found))
            used_s = self.trainer.cpu_s() if self.trainer is not None else None
            peer.figures = await asyncio.to_thread(self._device.read, used_s, self.now()) | planned[1]
            peer.refused |= self.transport.refused
            self.feed(lambda now: peer.tell(now, bytes_sent=self.transport.bytes_sent))

    def _of_codes(self, effect: NoticeTold | Knocked) -> None:
        if self._peer is not None and not self._is_twin:
            self.codes.told(effect, self._peer)

    def addresses_changed(self, addresses: tuple[str, ...]) -> None:
        peer = self._peer
        if peer is not None:
            self.feed(lambda now: peer.readdressed(addresses, now))


def _apart(event: Any) -> tuple[Any, bytes | SharedBytes | str]:
    """An event without what goes to the store, and that."""
    name = getattr(type(event), "STORED", "")
    return (dataclasses.replace(event, **{name: b""}), getattr(event, name)) if name else (event, b"")

"""A peer as a process: the node around ``Peer``, with its store and its trainer.

Invariant: tensors pass through this process as bytes; it never imports torch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.effects import JobDone, JobReceived, RestartTrainer, StartTrainer, ToTrainer, TrainerLost, Unusable
from p2ptrain.core.peer_config import PeerConfig, Resume
from p2ptrain.core.plan import Plan
from p2ptrain.errors import P2PTrainError, RemoteError, UserError
from p2ptrain.ids import BlobId
from p2ptrain.modes.registry import read_plan
from p2ptrain.net.keys import Group, Identity
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.consensus.rules import PlanWork
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.disk_work import DiskWork
from p2ptrain.runtime.node.handover import Handover
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig, Node
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.runtime.trainer.process import TrainerProcess
from p2ptrain.version import SOFTWARE
from p2ptrain.wire.messages import SnapshotRef

GOODBYE_S = 0.3
HANDOVER_S = 10.0
TRAFFIC_S = 1.0
TRAINER_AGAIN_S = 5.0
"""After the system had no process for a new trainer, until that counts as one more failure."""
BLOCK_TIMES = "block-times.json"
"""In the state directory: what the blocks of models took on this device."""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What the person at this device asked for."""

    data: str
    name: str
    job: Job | None = None
    init: Path | None = None
    """The checkpoint that the job names by its hash."""
    shard: str = ""
    dirichlet: float = 0.0
    classes: tuple[str, ...] = ()
    """Train only on samples of these classes, and wish for them."""
    flops_per_s: float = 0.0
    memory_bytes: int = 0
    link_bytes_per_s: float = 0.0
    """What this device can send and receive; 0 = not known."""
    num_threads: int = 1
    device: str = "cpu"
    allow_user_code: str = ""
    linger_s: float = 600.0
    """How long to go on serving after the job is done."""


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
    ) -> None:
        super().__init__(identity, group, network, journal)
        self.options = options
        self.state = state
        self.trainer: TrainerProcess | None = None
        self._peer: Peer | None = None
        self._configuration: c.Configure | None = None
        self._disk_work: DiskWork | None = None
        """From when the job is known."""
        self._handover: Handover | None = None
        self._lingering: asyncio.Future[Any] | None = None
        self._lost: P2PTrainError | None = None
        """Why the trainer was given up."""
        self._handlers: dict[type, Callable[[Any], object]] = {
            ToTrainer: self._to_trainer,
            JobReceived: lambda effect: self._open_job(effect.job),
            Unusable: lambda effect: self._failed(UserError(effect.reason)),
            StartTrainer: self._first_start,
            RestartTrainer: lambda effect: self._spawn(self._start_trainer()),
            TrainerLost: self._trainer_lost,
            JobDone: lambda effect: self._start_lingering(),
            PlanWork: self._work_out,
            ReadChunk: lambda effect: self.answer_read(effect, None),  # nothing is stored without a job
        }
        """By the kind of effect; the store's come with the job."""

    def make_core(self) -> Peer:
        options = self.options
        config = PeerConfig(
            own_key=self.identity.public,
            proof_key=self.group.proof_key,
            addresses=self.addresses(),
            bulk_port=self.transport.bulk_port,
            name=options.name,
            software=SOFTWARE,
            flops_per_s=options.flops_per_s,
            memory_bytes=options.memory_bytes,
            link_bytes_per_s=options.link_bytes_per_s,
            wishes=options.classes,
            allow_user_code=options.allow_user_code,
        )
        self._peer = Peer(config, self.rng, self.now(), int(time.time() * 1000))
        return self._peer

    async def start(self) -> None:
        await super().start()
        for peer, addresses in self.state.load_addresses().items():
            for address in addresses:
                if peer != self.identity.peer:
                    self._proposed(address)
        for note in self.state.take_notes():
            self.note(note)
        if self.options.job is not None:
            self._open_job(self.options.job)
        self._spawn(self._report_traffic())

    async def leave(self) -> None:
        """Hand over what is held, say goodbye. Call before ``close``."""
        peer = self._peer
        if peer is None:
            return
        if self.trainer is not None and peer.role is not None and peer.membership.alive():
            handover = self._handover = Handover()
            if not peer.role.hands_over:
                handover.settle(peer.role.replicas.newest_own())
            elif peer.records.own.phase == "training":
                self.trainer.send(c.TakeSnapshot())
            else:
                handover.settle(None)
            try:
                await asyncio.wait_for(handover.done(peer.role.replicas.replication), HANDOVER_S)
            except TimeoutError:
                self.note(Note("handover-incomplete", (("waited_s", HANDOVER_S),)))
        self.failure = self.failure or self._lost
        self.feed(peer.leave)
        await asyncio.gather(asyncio.sleep(GOODBYE_S), self._stop_trainer())

    async def close(self) -> None:
        await self._stop_trainer()
        await super().close()
        if self._disk_work is not None:
            self._disk_work.close()

    # --- job ---

    def _open_job(self, job: Job) -> None:
        peer = self._peer
        if peer is None or self._disk_work is not None:
            return
        store = self.state.open_job(job.id)
        disk = self._disk_work = DiskWork(self, peer, store, self.state, self._snapshot_saved)
        self._handlers |= disk.handlers
        store.set_job(job.to_json())
        if self.options.init is not None:
            try:
                store.put(self.options.init.read_bytes())
            except OSError as error:
                raise UserError(
                    f"{self.options.init}: can't be read ({error.strerror or error}); the job file names it"
                ) from None
        if job.model.init:
            store.protect("init", [BlobId(job.model.init)])
        manifest = store.manifest
        plan: Plan | None = None
        if manifest.plan:
            try:
                plan = read_plan(manifest.plan)
            except RemoteError as error:
                self.note(Note("stored-plan-damaged", (("why", str(error)),)))
        resume = Resume(
            plan=plan,
            own=manifest.snapshots,
            kept=tuple(h for h in manifest.replicas if h.kind == "part"),
            result=next((h for h in reversed(manifest.replicas) if h.kind == "head"), None),
            has_blob=store.blobs.__contains__,
        )
        disk.take_notes()
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
        if self.trainer is not None:
            await self.trainer.stop()

    async def _start_trainer(self) -> None:
        """Without a first one this node is of no use: ``UserError``. One that can't be replaced is a trainer lost."""
        is_first = self.trainer is None
        await self._stop_trainer()
        self.trainer = TrainerProcess(self._trainer_said, self.options.num_threads)
        try:
            await self.trainer.start()
        except UserError as error:
            if is_first:
                raise
            await asyncio.sleep(TRAINER_AGAIN_S)
            self._trainer_said(c.TrainerFailed(str(error), user_error=False))
            return
        self.trainer.send(self._configuration)

    # --- effects ---

    def carry_out_other(self, effect: object) -> None:
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

    def _trainer_lost(self, effect: TrainerLost) -> None:
        if effect.user_error:
            self._failed(UserError(effect.detail))
        else:  # the node lives on, keeps what it has of others, says in its status what happened, and when it ends
            self._lost = P2PTrainError(f"nothing more could be trained on this device: {effect.detail}")

    def _start_lingering(self) -> None:
        """A peer may be done more than once: a later plan can give it work again."""
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = self._spawn(self._linger())

    async def _linger(self) -> None:
        await asyncio.sleep(self.options.linger_s)
        if self._peer is not None and self._peer.records.own.phase == "done":
            self.finish()

    async def _report_traffic(self) -> None:
        peer = self._peer
        while peer is not None:
            await asyncio.sleep(TRAFFIC_S)
            peer.refused["unread"] = self.transport.num_refused  # of the banned, or of too many frames
            self.feed(lambda now: peer.traffic(self.transport.bytes_sent, now))

    def addresses_changed(self, addresses: tuple[str, ...]) -> None:
        peer = self._peer
        if peer is not None:
            self.feed(lambda now: peer.readdressed(addresses, now))


def _apart(event: Any) -> tuple[Any, bytes | str]:
    """An event without what goes to the store, and that."""
    name = getattr(type(event), "STORED", "")
    return (dataclasses.replace(event, **{name: b""}), getattr(event, name)) if name else (event, b"")

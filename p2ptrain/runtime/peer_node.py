"""A peer as a process: the node around ``Peer``, with its store and its trainer.

Invariant: a snapshot is announced only when it is safe on disk; what the disk refuses is said and survived. Tensors
pass through this process as bytes: it never imports torch.
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
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import BlobId
from p2ptrain.net.keys import Group, Identity
from p2ptrain.planning.plan import Plan, plan_from_json
from p2ptrain.protocol.agreement import Question
from p2ptrain.protocol.custody import freshness
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.messages import HEAD_PART, Holding
from p2ptrain.protocol.serving import ReadChunk
from p2ptrain.protocol.transfer import WriteChunk
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.blobs import StorageError
from p2ptrain.runtime.completion import JobDone, KeepHead
from p2ptrain.runtime.core import AbandonBlob, ToTrainer, VerifyBlob
from p2ptrain.runtime.head import pack_head
from p2ptrain.runtime.journal import Journal
from p2ptrain.runtime.keeping import (
    BeginBlob,
    KeepCustody,
    KeepPlan,
    KeepSnapshot,
    ReleaseBlob,
    RestartTrainer,
    TrainerLost,
)
from p2ptrain.runtime.node import SOFTWARE, NetworkConfig, Node
from p2ptrain.runtime.peer import Peer
from p2ptrain.runtime.peer_io import JobReceived, PeerConfig, Resume, StartTrainer, Unusable
from p2ptrain.runtime.store import StateDir, Store
from p2ptrain.runtime.trainer_process import TrainerProcess

GOODBYE_S = 0.3
HANDOVER_S = 10.0
TRAFFIC_S = 1.0
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
        self.store: Store | None = None
        self.trainer: TrainerProcess | None = None
        self._peer: Peer | None = None
        self._configuration: c.Configure | None = None
        self._handover: asyncio.Future[Holding | None] | None = None
        self._lingering: asyncio.Future[Any] | None = None
        self._has_parted = False
        """The snapshot that ``leave`` asked the trainer for has come."""
        self._parting: BlobId | None = None
        """The blob of the snapshot that ``leave`` asked for."""

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
        if self.trainer is not None and peer.duty is not None and peer.membership.alive():
            self._handover = asyncio.get_running_loop().create_future()
            if not peer.duty.hands_over:
                self._handover.set_result(peer.duty.newest_own())
            elif peer.records.own.phase == "training":
                self.trainer.send(c.TakeSnapshot())
            else:
                self._handover.set_result(None)
            try:
                await asyncio.wait_for(self._handed_over(self._handover), HANDOVER_S)
            except TimeoutError:
                self.note(Note("handover-incomplete", (("waited_s", HANDOVER_S),)))
        self.feed(peer.leave)
        await asyncio.gather(asyncio.sleep(GOODBYE_S), self._stop_trainer())

    async def _handed_over(self, handover: asyncio.Future[Holding | None]) -> None:
        """Until a custodian has acknowledged the snapshot, or a newer one."""
        taken = await handover
        while taken is not None and self._peer is not None and self._peer.duty is not None:
            custodians = self._peer.duty.custody.custodians()
            if not custodians or any(a is not None and freshness(a) >= freshness(taken) for a in custodians.values()):
                return
            await asyncio.sleep(0.02)

    def _saved_to_part(self, holding: Holding | None) -> None:
        """The snapshot that ``leave`` asked for is safe here; ``None``: there will be none."""
        if self._handover is not None and not self._handover.done():
            self._handover.set_result(holding)

    async def close(self) -> None:
        await self._stop_trainer()
        await super().close()
        if self.store is not None:
            self.store.close()

    # --- job ---

    def _open_job(self, job: Job) -> None:
        peer = self._peer
        if peer is None or self.store is not None:
            return
        store = self.store = self.state.open_job(job.id)
        store.set_job(job.to_json())
        if self.options.init is not None:
            store.put(self.options.init.read_bytes())
        if job.model.init:
            store.protect("init", [BlobId(job.model.init)])
        manifest = store.manifest
        plan: Plan | None = None
        if manifest.plan:
            try:
                plan = plan_from_json(manifest.plan)
            except RemoteError as error:
                self.note(Note("stored-plan-damaged", (("why", str(error)),)))
        resume = Resume(
            plan=plan,
            own=manifest.snapshots,
            kept=tuple(h for h in manifest.custody if h.part != HEAD_PART),
            head=next((h for h in reversed(manifest.custody) if h.part == HEAD_PART), None),
            has_blob=store.blobs.__contains__,
        )
        for note in store.take_notes():
            self.note(note)
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
        path = self.store.blobs.path(effect.init) if self.store is not None and effect.init is not None else None
        if self._configuration is not None:
            self._configuration = dataclasses.replace(self._configuration, init=str(path or ""))
            self._spawn(self._start_trainer())

    async def _stop_trainer(self) -> None:
        if self.trainer is not None:
            await self.trainer.stop()

    async def _start_trainer(self) -> None:
        await self._stop_trainer()
        self.trainer = TrainerProcess(self._trainer_said, self.options.num_threads)
        await self.trainer.start()
        self.trainer.send(self._configuration)

    # --- effects ---

    def carry_out_other(self, effect: object) -> None:
        handlers: dict[type, Callable[[Any], object]] = {
            ToTrainer: self._to_trainer,
            JobReceived: lambda e: self._open_job(e.job),
            Unusable: lambda e: self._failed(UserError(e.reason)),
            BeginBlob: self._begin_blob,
            WriteChunk: self._write_chunk,
            VerifyBlob: self._verify_blob,
            AbandonBlob: self._abandon_blob,
            ReadChunk: self._read_chunk,
            KeepSnapshot: self._keep_snapshot,
            KeepCustody: self._keep_custody,
            KeepPlan: self._keep_plan,
            ReleaseBlob: self._release_blob,
            KeepHead: self._keep_head,
            StartTrainer: self._first_start,
            RestartTrainer: lambda e: self._spawn(self._start_trainer()),
            TrainerLost: self._trainer_lost,
            JobDone: lambda e: self._start_lingering(),
            Question: self._work_out,
        }
        handlers[type(effect)](effect)

    def _work_out(self, effect: Question[Plan]) -> None:
        peer = self._peer
        if peer is not None:
            self.in_thought(effect.work, lambda answer: self.feed(lambda now: peer.plan_worked_out(answer, now)))

    def _to_trainer(self, effect: ToTrainer) -> None:
        store = self.store
        if effect.blob is None or store is None:
            if self.trainer is not None:
                self.trainer.send(effect.command)
            return
        blob = effect.blob

        def send(data: Any, error: BaseException | None) -> None:
            if data is None:
                self.note(Note("blob-missing", (("blob", blob[:12]),)))
            elif self.trainer is not None:
                command: Any = effect.command
                self.trainer.send(dataclasses.replace(command, **{effect.into: data}))

        self.on_disk(lambda: store.blobs.map(blob), send)

    def _trainer_said(self, event: object) -> None:
        peer, store = self._peer, self.store
        if peer is None or store is None:
            return
        if isinstance(event, c.SnapshotTaken) and self._handover is not None:
            if self._has_parted or self._handover.done():
                return  # too late: what is handed over shall be the newest that there is
            self._has_parted = not event.round_finished
        data: bytes | str = b""
        if isinstance(event, c.SnapshotTaken):
            data, event = event.snapshot, dataclasses.replace(event, snapshot=b"")
        elif isinstance(event, c.PieceTaken):
            data, event = event.piece, dataclasses.replace(event, piece=b"")
        elif isinstance(event, c.PayloadMade):
            data, event = event.payload, dataclasses.replace(event, payload=b"")
        if isinstance(event, c.TrainerFailed):
            self._saved_to_part(None)
        if not data:
            self.feed(lambda now: peer.trainer_said(event, None, 0, now))
            return
        said = event

        def put() -> BlobId:
            if isinstance(data, bytes) and isinstance(said, c.PayloadMade):
                return store.blobs.put_ephemeral(data)
            return store.put(Path(data) if isinstance(data, str) else data)

        def stored(blob: BlobId | None, error: BaseException | None) -> None:
            self._take_store_notes()
            if isinstance(said, c.SnapshotTaken) and not said.round_finished and self._handover is not None:
                self._parting = blob
                if blob is None:
                    self._saved_to_part(None)
            num_bytes = store.blobs.num_bytes(blob) or 0 if blob is not None else 0
            self.feed(lambda now: peer.trainer_said(said, blob, num_bytes, now))

        self.on_disk(put, stored)

    def _begin_blob(self, effect: BeginBlob) -> None:
        self._on_store(
            lambda store: store.begin(effect.blob, effect.num_bytes, ephemeral=effect.ephemeral), effect.blob
        )

    def _write_chunk(self, effect: WriteChunk) -> None:
        self._on_store(lambda store: store.write(effect.blob, effect.offset, effect.data), effect.blob)

    def _abandon_blob(self, effect: AbandonBlob) -> None:
        store = self.store
        if store is not None:
            self.on_disk(lambda: store.abandon(effect.blob), lambda _, error: None)

    def _on_store(self, work: Callable[[Store], None], blob: BlobId) -> None:
        """Work on an incoming blob; a disk that refuses ends its transfer."""
        peer, store = self._peer, self.store
        if peer is None or store is None:
            return

        def done(_: Any, error: BaseException | None) -> None:
            if error is not None:
                self._take_store_notes()
                self.feed(lambda now: peer.blob_refused(blob, str(error), now))

        self.on_disk(lambda: work(store), done)

    def _verify_blob(self, effect: VerifyBlob) -> None:
        peer, store = self._peer, self.store
        if peer is not None and store is not None:
            self.on_disk(
                lambda: store.finish(effect.blob),
                lambda sound, error: self.feed(lambda now: peer.blob_checked(effect.blob, bool(sound), now)),
            )

    def _read_chunk(self, effect: ReadChunk) -> None:
        store = self.store
        if store is None:
            self.answer_read(effect, None)
            return
        self.on_disk(
            lambda: store.blobs.read(effect.blob, effect.offset, effect.length),
            lambda data, error: self.answer_read(effect, data),
        )

    def _keep_snapshot(self, effect: KeepSnapshot) -> None:
        peer = self._peer

        def kept(error: BaseException | None) -> None:
            if error is None and peer is not None:
                self.feed(lambda now: peer.snapshot_kept(effect, now))
            if effect.holding.blob == self._parting:
                self._saved_to_part(effect.holding if error is None else None)

        self._save(lambda store: store.add_snapshot(effect.holding, effect.drop), kept)

    def _keep_custody(self, effect: KeepCustody) -> None:
        peer = self._peer

        def kept(error: BaseException | None) -> None:
            if error is not None and effect.keep and self.store is not None:
                self.store.release(effect.holding.blob)
            if effect.keep and peer is not None:
                self.feed(lambda now: peer.custody_kept(effect.holding, error is None, now))

        work = Store.add_custody if effect.keep else Store.remove_custody
        self._save(lambda store: work(store, effect.holding), kept)

    def _keep_plan(self, effect: KeepPlan) -> None:
        plan = effect.plan
        self._save(
            lambda store: store.set_plan(plan.to_json(), plan.epoch, f"plan {plan.hash[:16]} epoch {plan.epoch}")
        )
        self._remember_addresses()

    def _release_blob(self, effect: ReleaseBlob) -> None:
        store = self.store
        if store is None:
            return

        def release() -> None:
            store.release(effect.blob)
            store.collect()

        self.on_disk(release, lambda _, error: None)

    def _keep_head(self, effect: KeepHead) -> None:
        peer, store = self._peer, self.store
        if peer is None or store is None:
            return
        data = pack_head(effect.state, effect.holdings)

        def save() -> Holding:
            blob = store.put(data)
            holding = Holding(
                part=HEAD_PART,
                trainer=self.identity.peer,
                epoch=max(h.epoch for h in effect.holdings),
                round=0,
                step=effect.step,
                samples=effect.samples,
                blob=blob,
                num_bytes=len(data),
            )
            store.add_custody(holding)
            return holding

        def saved(holding: Holding | None, error: BaseException | None) -> None:
            self._take_store_notes()
            if holding is not None:
                self.feed(lambda now: peer.head_kept(holding, now))

        self.on_disk(save, saved)

    def _save(
        self, work: Callable[[Store], None], then: Callable[[BaseException | None], None] = lambda error: None
    ) -> None:
        """A change of the manifest. Raising ``StorageError`` is the disk's way of saying no; anything else is a bug."""
        store, peer = self.store, self._peer
        if store is None or peer is None:
            return
        pinned = peer.duty.custody.pinned() if peer.duty else frozenset()

        def change() -> None:
            store.protect("custody", pinned)
            work(store)

        def done(_: Any, error: BaseException | None) -> None:
            self._take_store_notes()
            if error is not None and not isinstance(error, StorageError):
                raise error
            then(error)

        self.on_disk(change, done)

    def _take_store_notes(self) -> None:
        if self.store is not None:
            for note in self.store.take_notes():
                self.note(note)

    # --- the end ---

    def _trainer_lost(self, effect: TrainerLost) -> None:
        if effect.user_error:
            self._failed(UserError(effect.detail))
        # else: the node lives on, keeps what it has in custody, and says in its status what happened

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

    def _remember_addresses(self) -> None:
        peer = self._peer
        if peer is not None:
            known = {p: (a,) for p in peer.sessions.peers() if (a := peer.sessions.address_of(p)) is not None}
            self.on_disk(lambda: self.state.save_addresses(known), lambda _, error: None)

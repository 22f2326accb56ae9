"""What a mode gives: how plans are made for it, what a peer does about one, and how a model comes of what was trained.

A mode is a folder of ``modes``, and one line in ``modes.registry`` names it. Nothing else branches on a mode's name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from p2ptrain.config import Job, ModeTable
from p2ptrain.core.coverage import Coverage, Flow
from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects, Handler, KeepSnapshot, MessageHandler
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.harvest import Harvest, Harvester
from p2ptrain.core.peer_config import Resume
from p2ptrain.core.plan import Body, Plan
from p2ptrain.core.replicas import Replicas
from p2ptrain.core.worker import Setup, Worker
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.consensus.rules import Rules
from p2ptrain.wire.messages import Message, Record, SnapshotRef

if TYPE_CHECKING:
    from torch import nn

ENDED = ("trained", "fitting", "done")
"""Phases of a peer that trains no more."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a mode's role is given when a job is opened."""

    job: Job
    group: GroupView
    downloads: Downloads
    resume: Resume
    rng: random.Random


class Ending(Protocol):
    """What a group of this mode does when all are trained, before it is done."""

    def holdings(self) -> Sequence[SnapshotRef]:
        """What came of it, for the own record."""
        ...

    def is_awaited(self, record: Record, plan: Plan) -> bool:
        """Whether a peer that has not ended, and trains nothing, is waited for."""
        ...

    def takes_part(self, plan: Plan) -> bool:
        """Whether this peer, which stands by, takes part now that all who train have ended."""
        ...

    def is_busy(self, plan: Plan, now: float) -> bool:
        """Whether it is under way: then nothing is to be decided."""
        ...

    def look(self, plan: Plan, now: float) -> Effects | None:
        """Everyone who is waited for has ended: the next step, or None when nothing is left to do."""
        ...

    def found(self) -> list[str]:
        """What came of it, a line each, for the person at the device."""
        ...

    def members_changed(self, now: float) -> Effects: ...

    def kept(self, holding: SnapshotRef, data: bytes | None, now: float) -> Effects:
        """The node's answer to ``KeepResult`` and ``ReadResult``."""
        ...

    def others_kept(self, holding: SnapshotRef, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepReplica`` of a result that others made."""
        ...

    def blob_arrived(self, blob: BlobId, now: float) -> Effects: ...
    def blob_lost(self, blob: BlobId, now: float) -> Effects: ...
    def waiting_for(self, now: float) -> str: ...
    def tick(self, now: float) -> Effects: ...
    def next_deadline(self) -> float: ...


class ModeRules(Rules[Plan], Protocol):
    """What agreement asks, and what people do."""

    def predicted(self, plan: Plan) -> Mapping[str, float]:
        """Of this peer, what the plan was made by: the figures that it measures of itself (``group_map.FIGURES``), with
        ``planned_`` before their names; none where the mode does not plan them."""
        ...


class Role(Protocol):
    """What this peer does about the plan. One of each job, from the moment that its store is open."""

    @property
    def plan(self) -> Plan | None:
        """In force."""
        ...

    @property
    def plan_hash(self) -> str:
        """Names it."""
        ...

    @property
    def part(self) -> int:
        """Of the plan, or ``NO_PART``."""
        ...

    @property
    def rules(self) -> ModeRules:
        """How plans are made and checked."""
        ...

    @property
    def replicas(self) -> Replicas:
        """What this peer keeps."""
        ...

    @property
    def handlers(self) -> Mapping[type, Handler]:
        """Effects of its own machines, and who handles them."""
        ...

    @property
    def messages(self) -> Mapping[type[Message], MessageHandler]:
        """Messages that are this mode's own."""
        ...

    @property
    def ending(self) -> Ending | None:
        """What is done when all are trained; None: nothing."""
        ...

    @property
    def loading(self) -> str:
        """What a peer waits for before plans can have it, in words."""
        ...

    @property
    def data_epoch(self) -> int:
        """Data messages of an older epoch are dropped."""
        ...

    @property
    def hands_over(self) -> bool:
        """Whether what the trainer holds at any moment is worth handing over when this peer leaves."""
        ...

    @property
    def is_free_to_leave(self) -> bool:
        """Of a role that hands nothing over by itself: whether the others have all that they need of this peer."""
        ...

    @property
    def seeking(self) -> bool:
        """A copy of what this peer is to train is being fetched or tried."""
        ...

    def holdings(self) -> Sequence[SnapshotRef]:
        """For the own record."""
        ...

    def plan_adopted(self, plan: Plan, now: float) -> Effects: ...
    def members_changed(self, now: float) -> Effects: ...
    def peer_admitted(self, peer: PeerId, now: float) -> Effects: ...
    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects: ...

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepSnapshot``: it is safe on disk, or could not be saved."""
        ...

    def is_complete(self) -> bool:
        """Whether nothing more is to be trained, once all that are here have ended."""
        ...

    def ends_round(self, ref: SnapshotRef) -> bool:
        """Whether a copy of a part is as it was just after its round, and fits the others by the plan in force."""
        ...

    def end_after(self, rounds: int, now: float) -> Effects:
        """The group stops: train no more than so many rounds, or than the own one that is under way. Say so. Of several
        times the fewest rounds count."""
        ...

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        """Whether a peer may have a blob that is here."""
        ...

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """A peer was sent the bytes of a blob up to ``end``."""
        ...

    def blob_arrived(self, blob: BlobId, now: float) -> Effects: ...
    def blob_lost(self, blob: BlobId, now: float) -> Effects: ...
    def waiting_for(self, now: float) -> str: ...
    def tick(self, now: float) -> Effects: ...
    def next_deadline(self) -> float: ...


class Words(Protocol):
    """What people and programs are told."""

    @property
    def REPORT_TITLES(self) -> tuple[str, str]:
        """Of a harvest's report: what ``PartReport.part`` counts, and what its ``share`` is of."""
        ...

    def job_lines(self, job: Job) -> list[str]:
        """What ``job check`` tells beside what all jobs have."""
        ...

    def choice_lines(self, job: Job) -> list[str]:
        """What whoever chooses this mode for a new job should know."""
        ...

    def plan_lines(self, plan: Plan, job: Job) -> list[str]:
        """What ``status`` tells of the plan beside who trains which part."""
        ...

    def plan_plain(self, plan: Plan) -> Mapping[str, Any]:
        """What ``status --json`` prints of the plan in this mode alone."""
        ...

    def granted(self, plan: Plan, peer: PeerId) -> Mapping[PeerId, float]:
        """Bytes/s that it may send to others for its training, where the plan says that."""
        ...

    def plan_sentence(self, plan: Plan, job: Job, own: PeerId) -> str:
        """What the plan gives this peer."""
        ...

    def mode_sentence(self, plan: Plan, job: Job) -> str | None:
        """What was chosen, and why, where the job leaves a choice."""
        ...

    def plan_notes(self, plan: Plan, job: Job, own: PeerId) -> list[str]:
        """What the person at this device should know about the plan."""
        ...

    def part_text(self, plan: Plan, job: Job, index: int) -> str:
        """A part, for the status."""
        ...

    def part_name(self, plan: Plan, job: Job, index: int) -> str:
        """What is missing where nobody has a part, in short."""
        ...

    def part_classes(self, plan: Plan, job: Job | None, index: int) -> list[str]:
        """Of a part, by name; as numbers while the job is not known."""
        ...

    def coverage(self, plan: Plan, job: Job, here: Sequence[Record]) -> Coverage:
        """Who trains and who keeps which parts or blocks, by the records of those who are here."""
        ...

    def flows(self, plan: Plan) -> Sequence[Flow]:
        """Who sends to whom for its training."""
        ...

    def kept_lines(self, plan: Plan, job: Job, here: Sequence[Record]) -> list[str]:
        """Who has copies of what, and what would be lost with whom, by the records of those who are here."""
        ...

    def kept_plain(self, plan: Plan, here: Sequence[Record]) -> Mapping[str, Any] | None:
        """The same for programs; None: a mode that does not tell."""
        ...

    def look_note(self, plan: Plan) -> str:
        """What the whole model lacks as long as it is trained, behind a comma; "" = nothing."""
        ...

    def harvest_head_line(self, harvest: Harvest) -> list[str]:
        """What became of the last layer, a line at most."""
        ...

    def harvest_lines(self, harvest: Harvest) -> list[str]:
        """What the group found of its model."""
        ...

    def harvest_plain(self, harvest: Harvest) -> Mapping[str, Any]:
        """What ``harvest --json`` prints of this mode alone."""
        ...


@dataclass(frozen=True, slots=True)
class Mode:
    """All that the package asks of a mode."""

    names: tuple[str, ...]
    """That a job may say."""
    old_names: Mapping[str, str]
    """Names, and titles of its table, that older job files say, and what they are called now."""
    config: type[ModeTable]
    """The job's table of this mode."""
    bodies: Mapping[str, type[Body]]
    """Of plans, by the mode that they say they are of."""
    role: Callable[[Given], Role]
    worker: Callable[[Setup], Worker]
    """In the trainer process; torch is imported when it is called."""
    commands: tuple[type, ...]
    """What node and trainer say to each other in this mode alone."""
    harvester: Harvester
    words: Words
    majority: bool
    """Whether a plan needs the votes of most of its peers: where a group that is cut in two must not go on twice."""
    needs_data: bool
    """Whether who has no samples is of no use."""
    check_model: Callable[[Job, nn.Module], Mapping[str, Any]]
    """What ``job check`` says of the model in this mode, for programs too. torch is imported when it is called.

    Raises ``JobError`` for a model that can't be trained so: better now than by every peer.
    """

"""The states that the group has saved: which there are, and which pieces of them this peer keeps for the group.

A state is the model after so many rounds, in pieces (runs of blocks), all made by the averager of one plan. So a state
is named by its round, the epoch of that plan, and who averaged.

Whoever needs a piece to train keeps it, which is most of what the group needs to survive the averager. Of a piece that
too few have, the others take more copies: by the records everyone sees who has it, and whose turn it is.

A round is *finished* when two peers have each piece of its state. Nobody trains on before that, so the death of one
peer never takes a finished round away. Where nobody else takes a copy for ``ALONE_S``, one that has it is enough.

Further copies, as many as the job asks for, are made of a state every ``FULL_S`` or so, as far as rounds are shorter:
they would take every round's time. Where they take longer, that state is kept for them while rounds go on, for ``HELD``
times as long. So of several deaths at once the group may lose what it trained since then.

Invariant: a piece of the newest state that is whole, of the newest that is whole without one member, and of the newest
that has all of its copies or gets them, is given up by nobody who has it; nor is one that the plan in force needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects, KeepReplica
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.replicas import Replicas
from p2ptrain.core.stages.figures import LEAST_BYTES_PER_S
from p2ptrain.ids import BlobId, PeerId, lot
from p2ptrain.modes.split.plan import Run, StartPiece, body_of, needs_of, runs_of
from p2ptrain.modes.split.rounds.pieces import State, state_of, whole_states
from p2ptrain.planning.split.rounds.handing import taken_s
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.replication.replication import Replication
from p2ptrain.wire.messages import Record, SnapshotRef

TURN_S = 30.0
"""A piece that too few have for so long is one that those whose turn it is can't take: the next one does."""
ALONE_S = 60.0
"""So long a round waits for a second peer to have its state: all other disks may be full."""
FULL_S = 30.0
"""From one state that gets all of its copies to the next one, by the plan's figures."""
HELD = 4
"""Times that; a state that has not all of its copies then makes room for the next one."""
MAX_KEPT = 96
"""Pieces; the record has room for no more, beside others."""


class SavedStates(Replicas):
    """Of one peer, in one job. ``num_replicas``: so many others have each piece, at least."""

    def __init__(
        self, group: GroupView, downloads: Downloads, kept: Iterable[SnapshotRef], num_replicas: int, rounds: int
    ) -> None:
        super().__init__(group, downloads, Replication(group.own_id), (), lambda blob: False)
        self.handlers, self.messages = {}, {}
        self.piece_kept: Callable[[SnapshotRef, float], Effects] = lambda piece, now: []
        """What is done when one more piece is safe here."""
        self.is_last: Callable[[int], bool] = lambda round: round >= rounds
        """Whether nothing is trained after that round: sooner than the job says where the group ends early."""
        self.refused: set[SnapshotRef] = set()
        """What nobody hands out as what it is told of, or what is something else."""
        self._num_others = num_replicas
        self._rounds = rounds
        self._kept = {ref.blob: ref for ref in kept if ref.kind == "part"}
        self._saving: set[BlobId] = set()
        self._plan: Plan | None = None
        self._wanted_since: dict[BlobId, float] = {}
        """Pieces that too few have."""
        self._turn_at = NEVER
        """When it is the next one's turn to take one."""
        self._copying: dict[BlobId, SnapshotRef] = {}
        self._not_saved: set[BlobId] = set()
        """Pieces that the disk refused, or that there was no room for; they are tried again at the next turn."""
        self._spare: set[State] = set()
        """What the group can do without as long as no two die at once."""
        self._finished: set[State] = set()
        self._unfinished_since: dict[State, float] = {}

    # --- what there is ---

    def kept(self) -> tuple[SnapshotRef, ...]:
        """The newest first."""
        return tuple(sorted(self._kept.values(), key=lambda ref: (-ref.step, -ref.epoch, ref.part)))

    def holders(self) -> dict[SnapshotRef, set[PeerId]]:
        """The members that have each saved piece, this one included. By all that is said of it: a liar may tell of an
        honest blob as of something else."""
        group = self._group
        found: dict[SnapshotRef, set[PeerId]] = {}
        for member in group.members():
            record = group.record(member)
            held: Iterable[SnapshotRef] = record.holdings if record is not None else ()
            for ref in self._kept.values() if member == group.own_id else held:
                if ref.kind == "part" and 0 < ref.step == ref.round <= self._rounds and ref not in self.refused:
                    found.setdefault(ref, set()).add(member)
        return found

    def newest(self) -> tuple[int, tuple[StartPiece, ...]]:
        """The newest state that is whole, and its pieces in order; (0, none): the initial weights."""
        states = whole_states(self._num_blocks, self.holders())
        if not states:
            return 0, ()
        state, refs = next(iter(states.items()))
        return state[0], tuple(StartPiece(r.part, r.part + r.span, r.blob, r.num_bytes) for r in refs)

    def of_plan(self, round: int) -> list[SnapshotRef]:
        """The pieces of a state that the plan's averager made under the plan in force; [] while some are missing."""
        plan = self._plan
        if plan is None:
            return []
        state = (round, plan.epoch, body_of(plan).averager)
        return whole_states(self._num_blocks, [ref for ref in self.holders() if state_of(ref) == state]).get(state, [])

    def is_finished(self, round: int) -> bool:
        """Whether the plan's averager has made that state, and enough peers have it."""
        plan = self._plan
        return plan is not None and (round, plan.epoch, body_of(plan).averager) in self._finished

    def finished_round(self) -> int:
        """The newest round of any plan that is finished; 0 = none."""
        return max((state[0] for state in self._finished), default=0)

    def alone_with(self, round: int) -> bool:
        """Whether that round counts as finished though nobody but its averager has all of it."""
        return self.is_finished(round) and not self._have_enough(self.of_plan(round), self.holders())

    def is_safe(self, piece: SnapshotRef) -> bool:
        """Whether so many others have it that a round need not wait for it."""
        return len(self.holders().get(piece, set()) - {self._group.own_id}) >= self._enough(min(self._num_others, 1))

    def _have_enough(self, pieces: Sequence[SnapshotRef], holders: Mapping[SnapshotRef, set[PeerId]]) -> bool:
        enough = self._enough(min(self._num_others, 1))
        return all(len(holders[ref]) >= enough for ref in pieces)

    def _enough(self, others: int) -> int:
        """Members that a piece should be with: who has it first, and so many others, as far as there are any."""
        return min(len(self._group.members()), 1 + others)

    def _look_for_finished(self, now: float) -> None:
        """Of the states that are whole; what is gone is forgotten."""
        holders = self.holders()
        whole = whole_states(self._num_blocks, holders)
        self._finished &= whole.keys()
        self._unfinished_since = {s: self._unfinished_since.get(s, now) for s in whole if s not in self._finished}
        for state, since in list(self._unfinished_since.items()):
            if now >= since + ALONE_S or self._have_enough(whole[state], holders):
                self._finished.add(state)
                del self._unfinished_since[state]

    def with_blocks(self, round: int, needs: Sequence[Run]) -> list[SnapshotRef]:
        """The pieces with blocks of these runs, of the state that a round of the plan in force begins with."""
        plan = self._plan
        if plan is None:
            return []
        body = body_of(plan)
        found = self.of_plan(round) if round > body.from_round else self._start_of(plan)
        return [ref for ref in found if any(ref.part < stop and first < ref.part + ref.span for first, stop in needs)]

    def has(self, plan: Plan, round: int, own: PeerId) -> bool:
        """Whether all is here that this peer needs for the round after that."""
        pieces = self.with_blocks(round, needs_of(body_of(plan).split, own))
        return bool(pieces) and all(self._downloads.is_local(ref.blob) for ref in pieces)

    def _start_of(self, plan: Plan) -> list[SnapshotRef]:
        """The pieces that the plan names, as most tell of them."""
        body, holders = body_of(plan), self.holders()
        of_round = sorted((ref for ref in holders if ref.round == body.from_round), key=lambda ref: len(holders[ref]))
        known = {_piece(ref): ref for ref in of_round}
        named = [
            SnapshotRef(
                part=piece.first,
                trainer=body.averager,
                epoch=plan.epoch,
                round=body.from_round,
                step=body.from_round,
                samples=0,
                blob=piece.blob,
                num_bytes=piece.num_bytes,
                span=piece.stop - piece.first,
            )
            for piece in body.start
        ]
        return [known.get(_piece(ref), ref) for ref in named]

    def newest_round(self) -> int:
        """The newest round that is finished under the plan in force; the plan's first one while there is none."""
        plan = self._plan
        if plan is None:
            return 0
        of_plan = [state[0] for state in self._finished if state[1:] == (plan.epoch, body_of(plan).averager)]
        return max(of_plan, default=body_of(plan).from_round)

    @property
    def _num_blocks(self) -> int:
        return body_of(self._plan).split.num_blocks if self._plan is not None else 0

    # --- what is kept here ---

    def begin(self, plan: Plan) -> None:
        """This plan holds."""
        self._plan = plan

    def is_kept(self, blob: BlobId) -> bool:
        return blob in self._kept or blob in self._saving

    def keep(self, ref: SnapshotRef) -> Effects:
        """A piece whose blob is in the store."""
        if self.is_kept(ref.blob) or ref.blob in self._not_saved:
            return []
        if not self._group.is_trainers(ref):
            return []  # a plan names it, and nobody says who made it
        is_spare = state_of(ref) in self._spare
        given_up = [] if is_spare else self._make_room()
        if len(self._kept) + len(self._saving) >= MAX_KEPT:
            self._not_saved.add(ref.blob)
            return (
                [] if is_spare else [*given_up, Note("no-room-for-piece", (("round", ref.round), ("pieces", MAX_KEPT)))]
            )
        self._saving.add(ref.blob)
        return [*given_up, KeepReplica(ref)]

    def _make_room(self) -> Effects:
        """Where there is none, what is kept for the case of several deaths at once goes first."""
        if len(self._kept) + len(self._saving) < MAX_KEPT:
            return []
        spare = [ref for ref in self._kept.values() if state_of(ref) in self._spare]
        for ref in spare:
            del self._kept[ref.blob]
        return [KeepReplica(ref, keep=False) for ref in spare]

    def replica_kept(self, holding: SnapshotRef, saved: bool, now: float) -> Effects:
        self._saving.discard(holding.blob)
        if not saved:
            self._not_saved.add(holding.blob)
            return self._group.say_holdings(now)  # of what had to make room for it, too
        self._kept[holding.blob] = holding
        effects = [*self._group.say_holdings(now), *self.piece_kept(holding, now)]
        self._look_for_finished(now)
        return effects

    def look(self, now: float) -> Effects:
        """Somebody came or went, or has saved something: take what is due here, let go of what nobody needs."""
        if self._plan is None:
            return []
        self._look_for_finished(now)
        holders = self.holders()
        keep = set()
        for lost in (None, *self._group.members()):
            left = [ref for ref, peers in holders.items() if peers != {lost}]
            keep.update(list(whole_states(self._num_blocks, left))[:1])
        full = self._full(holders)
        copied = self._copied(full)
        self._spare = {*full, *copied} - keep
        whole = sorted({*keep, *full, *copied}, reverse=True)
        return [*self._let_go(whole, now), *self._copy(holders, whole[:1], copied, now)]

    def _full(self, holders: Mapping[SnapshotRef, set[PeerId]]) -> list[State]:
        """The newest state each piece of which has all of its copies; [] if there is none."""
        enough = self._enough(self._num_others)
        refs = [ref for ref, peers in holders.items() if len(peers) >= enough]
        return list(whole_states(self._num_blocks, refs))[:1]

    def _copied(self, full: Sequence[State]) -> list[State]:
        """The state that is to get all of its copies; [] while there is none, or it has them. All peers choose the same
        one, by the number of its round: the oldest that is due, for it is under way."""
        there = sorted(state for state in self._finished if not full or state > full[0])
        if not there or self._plan is None:
            return []
        newest = there[-1]
        if self.is_last(newest[0]):
            return [newest]
        every = max(1, math.ceil(FULL_S / max(body_of(self._plan).split.round_s, 1e-3)))
        due = [state for state in there if state[0] % every == 1 % every and state[0] > newest[0] - HELD * every]
        return due[:1] or ([] if full else [newest])

    def _let_go(self, whole: Sequence[State], now: float) -> Effects:
        plan = self._plan
        if plan is None or not whole:
            return []
        start = {piece.blob for piece in body_of(plan).start}
        at = self.newest_round()
        effects: Effects = []
        for ref in list(self._kept.values()):
            needed = (ref.epoch == plan.epoch and ref.round >= at) or (
                ref.blob in start and at == body_of(plan).from_round
            )
            if needed or state_of(ref) in whole or state_of(ref) > whole[0]:
                continue
            del self._kept[ref.blob]
            effects.append(KeepReplica(ref, keep=False))
        return [*effects, *self._group.say_holdings(now)] if effects else []

    def _copy(
        self,
        holders: Mapping[SnapshotRef, set[PeerId]],
        newest: Sequence[State],
        copied: Sequence[State],
        now: float,
    ) -> Effects:
        """Pieces that too few have: of the newest state, and of the one that is to get all of its copies."""
        effects: Effects = []
        lacking, members = {}, self._group.members()
        for ref, peers in holders.items():
            if state_of(ref) not in (*newest, *copied):
                continue
            wanted = self._num_others if state_of(ref) in copied else min(self._num_others, 1)
            missing = self._enough(wanted) - len(peers)
            if missing <= 0:
                continue
            others = [peer for peer in members if peer not in peers]
            since = lacking[ref.blob] = self._wanted_since.get(ref.blob, now)
            turns = missing + int((now - since) // TURN_S)
            if self._group.own_id in self._ranked(ref, others)[:turns]:
                effects += self._take(ref, now)
        self._wanted_since = lacking
        turns_at = [since + TURN_S * (1 + (now - since) // TURN_S) for since in lacking.values()]
        self._turn_at = min(turns_at, default=NEVER)
        return effects

    def _ranked(self, ref: SnapshotRef, peers: Iterable[str]) -> list[str]:
        """Who needs it anyway goes first, then who has it soonest; of equals, each piece has its own order."""

        def rank(peer: str) -> tuple[bool, float, int]:
            taken_s = _taken_s(self._group.record(PeerId(peer)), ref.num_bytes)
            return not self._trains(peer, ref), taken_s, lot(f"{ref.part}/{peer}")

        return sorted(peers, key=rank)

    def _trains(self, peer: str, ref: SnapshotRef) -> bool:
        """Whether a peer trains some of these blocks by the plan in force."""
        split = body_of(self._plan).split if self._plan is not None else None
        runs = [run for _, run in runs_of(split, peer)] if split is not None else []
        return any(ref.part < stop and first < ref.part + ref.span for first, stop in runs)

    def _take(self, ref: SnapshotRef, now: float) -> Effects:
        if self.is_kept(ref.blob) or ref.blob in self._copying:
            return []
        if self._downloads.is_local(ref.blob):
            return self.keep(ref)
        sources = self._group.holders(ref.blob)
        if not sources:
            return []
        self._copying[ref.blob] = ref
        return self._downloads.fetch(ref.blob, ref.num_bytes, sources, now)

    # --- blobs and time ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        ref = self._copying.pop(blob, None)
        return self.keep(ref) if ref is not None else []

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        self._copying.pop(blob, None)
        return []

    def members_changed(self, now: float) -> Effects:
        return self.look(now)

    def epoch_changed(self, epoch: int, now: float) -> Effects:
        return []

    def next_deadline(self) -> float:
        return min(self._turn_at, min(self._unfinished_since.values(), default=NEVER) + ALONE_S)

    def tick(self, now: float) -> Effects:
        if now < self.next_deadline():
            return []
        self._not_saved.clear()
        return self.look(now)


def _piece(ref: SnapshotRef) -> tuple[BlobId, int, int, int]:
    """What a plan says of it."""
    return ref.blob, ref.part, ref.span, ref.num_bytes


def _taken_s(record: Record | None, num_bytes: int) -> float:
    """How long it takes a peer to take so many bytes and keep them, as far as that is known."""
    if record is None:
        return math.inf
    rate = record.link_bytes_per_s or max((link.bytes_per_s for link in record.links), default=0.0)
    return taken_s(record.flops_per_s, num_bytes, rate) if rate >= LEAST_BYTES_PER_S else math.inf

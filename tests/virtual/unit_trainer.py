"""A trainer of split training's units that only keeps books: it passes stage messages on as the real one does.

A block is a ledger: for each round and owner whose samples are in it, how many and under which plan's epoch. A front
sends a stage message a batch, its tail answers. An update has the ledger of every copy; an average puts them together,
and says when what it is given is not one round of all the plan's units.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from blocks_trainer import MODEL, NUM_BLOCKS, At, BlocksTrainer, BlocksTraits, where_of

from p2ptrain.core import commands as c
from p2ptrain.core.stages.commands import Deliver, GivePiece, StageUsed, Taken
from p2ptrain.errors import RemoteError
from p2ptrain.modes.registry import read_plan
from p2ptrain.modes.split.commands import (
    BeginAverage,
    BeginRound,
    FollowUnits,
    GiveUpdate,
    PieceMade,
    StopUnits,
    UnitsHalted,
    UpdateMade,
    UpdateRefused,
)
from p2ptrain.modes.split.plan import (
    SplitBody,
    bounds_of,
    needs_of,
    runs_of,
    samples_of,
)
from p2ptrain.planning.pipeline.task import WIRE
from p2ptrain.planning.split.rounds import handing
from p2ptrain.wire import tensorfile

Ledger = dict[tuple[int, str], tuple[int, int]]
"""(round, owner) to (samples, epoch)."""
AVERAGE_S = 0.05


@dataclasses.dataclass(frozen=True)
class UnitTraits(BlocksTraits):
    """What a test makes of one trainer of units."""

    ballast_bytes: int = 0
    """In every piece and update."""
    handing_flops_per_s: float = 0.0
    """What handing on blocks and stage messages, and taking them in, is paid from; 0: it is free."""

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> UnitTrainer:
        return UnitTrainer(name, self, at, say)


@dataclasses.dataclass
class Half:
    """Of one unit, in one round."""

    owner: str
    partner: str
    first: int
    stop: int
    samples: int
    steps: int
    is_front: bool
    done: int = 0
    sent: int = 0
    came: set[int] = dataclasses.field(default_factory=set)
    kept: range = range(0)

    @property
    def is_over(self) -> bool:
        return self.done >= self.steps

    def is_ready(self) -> bool:
        """Whether it can do something now."""
        if self.is_over:
            return False
        if not self.partner:
            return True
        if self.is_front:
            return self.sent == self.done or self.done in self.came
        return self.done in self.came


class UnitTrainer(BlocksTrainer):
    expects_lies = False
    """Else a stage message that can't be used is a bug."""

    def __init__(self, name: str, traits: UnitTraits, at: At, say: Callable[[object], None]) -> None:
        super().__init__(name, traits, at, say)
        self.round = -1
        """Rounds that are over here; -1: there are no units here."""
        self.begun: list[tuple[int, int]] = []
        """(epoch, round) of every round begun."""
        self.averaged: list[tuple[int, int, tuple[str, ...]]] = []
        """(epoch, round, whose updates) of every average made."""
        self.lost_batches = 0
        self._halves: dict[str, Half] = {}
        self._blocks: dict[int, Ledger] = {}
        self._begin: tuple[int, int] | None = None
        """Round and number of pieces that are still to come."""
        self._pieces: list[bytes] = []
        self._average: BeginAverage | None = None
        self._updates: list[tuple[str, bytes]] = []
        self._early: list[Deliver] = []
        self._ended = False

    @property
    def stands_by(self) -> bool:
        return not self._halves

    @property
    def body(self) -> SplitBody:
        assert self._plan is not None and isinstance(self._plan.body, SplitBody)
        return self._plan.body

    def _carry_out(self, command: object) -> None:
        match command:
            case FollowUnits():
                self._plan, self._own = read_plan(command.plan), command.own
                self._expect(command.round, command.pieces)
            case BeginRound():
                assert self._plan is not None and self._plan.epoch == command.epoch
                assert self._ended and command.round == self.round
                self._expect(command.round, command.pieces)
            case GivePiece():
                if self._begin is None:
                    return  # read for a round that was stopped meanwhile
                self._pieces.append(command.piece)
                if len(self._pieces) == self._begin[1]:
                    run, round = self._run, self._begin[0]
                    flops_per_s, num_bytes = self.traits.handing_flops_per_s, self._num_bytes(self._own)
                    taken_s = self._carried_s(num_bytes) + handing.kept_s(flops_per_s, num_bytes)
                    taken_s += handing.spent_s(flops_per_s, handing.ROUND_FLOPS)
                    self._later(taken_s, lambda: self._begin_round(round) if run == self._run else None)
            case StopUnits():
                self._stop(command)
            case BeginAverage():
                self._average, self._updates = command, []
            case GiveUpdate():
                self._updates.append((command.peer, command.update))
                if self._average is not None and len(self._updates) == self._average.updates:
                    sizes = {peer: self._num_bytes(peer) for peer, _ in self._updates}
                    handed = [self._carried_s(each) for peer, each in sizes.items() if peer != self._own]
                    handed_s = 2 * (sum(handed) - max(handed, default=0.0))  # of one while its peer hands it on
                    whole = sum(block.parameter_bytes for block in MODEL.blocks)
                    made_s = handing.averaged_s(self.traits.handing_flops_per_s, sum(sizes.values()), whole)
                    self._later(AVERAGE_S + handed_s + made_s, self._make_average)  # taken in, and handed on
            case Deliver():
                self._deliver(command)
            case _:
                super()._carry_out(command)

    # --- what its node takes of the device ---

    def _carried_s(self, num_bytes: float) -> float:
        """To hand on so many bytes of blocks, or to take them in."""
        return float(handing.carried_s(self.traits.handing_flops_per_s, np.array(num_bytes), math.inf))

    def _num_bytes(self, peer: str) -> float:
        """Of the blocks that it trains."""
        blocks = {block for first, stop in needs_of(self.body.split, peer) for block in range(first, stop)}
        return float(sum(MODEL.blocks[block].parameter_bytes for block in blocks))

    def _batch_s(self, half: Half) -> float:
        """Of a batch's stage messages, one way."""
        unit = self.body.split.unit_of(half.owner)
        if unit is None or not half.partner:
            return 0.0
        rows = min(self.body.split.batch_size, half.samples) // unit.micro_batches
        sent = MODEL.blocks[unit.cut - 1].activation_bytes * rows * WIRE[unit.activations]
        one = float(handing.message_s(self.traits.handing_flops_per_s, np.array(sent)))
        norm = float(handing.message_s(self.traits.handing_flops_per_s, np.zeros(())))
        return unit.micro_batches * one + norm

    # --- a round ---

    def _expect(self, round: int, pieces: int) -> None:
        self._run += 1
        self._halves, self._pieces, self._begin = {}, [], (round, pieces)
        if not pieces:
            self._begin_round(round)

    def _begin_round(self, round: int) -> None:
        assert self._plan is not None and self._job is not None
        body, split = self.body, self.body.split
        assert round or not self._pieces
        blocks: dict[int, Ledger] = {}
        try:
            for piece in self._pieces:
                blocks |= read_books(piece, round)
        except RemoteError as error:
            self._plan, self._begin, self._pieces = None, None, []
            self._say(c.SnapshotRefused(str(error)))
            return
        needed = {block for first, stop in needs_of(split, self._own) for block in range(first, stop)}
        if not round:
            blocks = {block: {} for block in needed}
        assert needed <= blocks.keys(), "the pieces have not all own blocks"
        assert all(ledger == blocks[min(needed)] for ledger in blocks.values()), "pieces of different states"
        for unit, (begin, end) in runs_of(split, self._own):
            samples = samples_of(self._plan)[unit.owner]
            partner = unit.helper or "" if unit.owner == self._own else unit.owner
            steps = samples // min(split.batch_size, samples)
            if unit.owner in self._halves:  # the last blocks, which an owner keeps with its labels
                self._halves[unit.owner].kept = range(begin, end)
                continue
            self._halves[unit.owner] = Half(unit.owner, partner, begin, end, samples, steps, begin == 0)
        self._blocks, self._begin, self._pieces, self.round, self._ended = blocks, None, [], round, False
        self.begun.append((self._plan.epoch, round))
        part = self._plan.part_of(self._own)  # type: ignore[arg-type]
        self._say(c.Following(part.index if part else -1, round, self._job.training.rounds))
        assert body.from_round <= round < self._job.training.rounds
        early, self._early = self._early, []
        for message in early:
            self._deliver(message)
        self._work()

    def _stop(self, command: StopUnits) -> None:
        self._run += 1
        self._computing = False
        batches = sum(half.done for half in self._halves.values()) if not self._ended else 0
        self.lost_batches += batches
        self._plan, self._halves, self._begin, self.round = None, {}, None, -1
        self._average, self._pieces, self._early = None, [], []
        self._say(UnitsHalted(command.epoch, batches))

    def _deliver(self, command: Deliver) -> None:
        plan = self._plan
        if plan is None or plan.epoch != command.epoch:
            self._say(Taken(command.epoch, command.sender, 1, ""))
            return
        if self._begin is not None or self._ended:
            self._early.append(command)  # of the next round: it is taken when that begins
            return
        error = ""
        halves = [half for half in self._halves.values() if half.partner == command.sender]
        try:
            where = where_of(command.message)
        except RemoteError as refused:
            where, error = [], str(refused)
        if error or not halves or where != [command.epoch, self.round, command.step] or command.step in halves[0].came:
            error = error or f"{command.work} {where} of {command.sender} in round {self.round}"
        else:
            halves[0].came.add(command.step)
        self._say(Taken(command.epoch, command.sender, 1, error))
        assert not error or self.expects_lies, error
        self._work()

    def _work(self) -> None:
        """The next pass, if one can be done, one at a time."""
        if self._computing or self._begin is not None or self._plan is None or self._ended:
            return
        run = self._run
        for half in sorted(self._halves.values(), key=lambda half: (half.owner == self._own, half.owner)):
            if half.is_ready():
                self._computing = True
                rows = min(self.body.split.batch_size, half.samples)
                passes = 3 if not half.partner or not half.is_front else 1 if half.sent == half.done else 2
                pass_s = passes * self.traits.block_s * rows * (half.stop - half.first) * self.slowdown
                pass_s += self._batch_s(half) * (1 if half.is_front else 2)
                self._at(pass_s, lambda half=half: self._passed(half, run))  # type: ignore[misc]
                return
        if self._halves and all(half.is_over for half in self._halves.values()):
            self._end_round()

    def _passed(self, half: Half, run: int) -> None:
        if self.dead or run != self._run:
            return
        self._computing = False
        if half.partner and half.is_front and half.sent == half.done:
            self._send("forward", half)
            half.sent += 1
        else:
            if half.partner and not half.is_front:
                self._send("backward", half)
            half.done += 1
        self._work()

    def _send(self, work: str, half: Half) -> None:
        unit = self.body.split.unit_of(half.owner)
        assert unit is not None
        self._say_message(work, half.done, unit.micro_batches - 1, (half.partner,), self.round, half.done)

    def _end_round(self) -> None:
        assert self._plan is not None
        self._ended = True
        self.round += 1
        own = self._own if any(not h.partner or not h.is_front for h in self._halves.values()) else ""
        loss = 1 / self.round if own else float("nan")
        samples = sum(half.samples for half in self._halves.values())
        self._say(c.Progress(self.round - 1, self.round, samples, loss, 100.0))
        self._say(StageUsed(self.round, 0.5, self.slowdown))
        copies: dict[int, dict[str, Ledger]] = {}
        for half in self._halves.values():
            for block in (*range(half.first, half.stop), *half.kept):
                new = {(self.round, half.owner): (half.samples, self._plan.epoch)}
                copies.setdefault(block, {})[half.owner] = self._blocks[block] | new
        merged = {block: merge(list(ledgers.values())) for block, ledgers in copies.items()}
        update = write_books(merged, "update", self.round, self._ballast("update"))
        first, stop = min(copies), max(copies) + 1
        where = (self._plan.epoch, first, stop - first, self.round, self.round, samples, loss)
        run, num_bytes = self._run, self._num_bytes(self._own)
        made_s = handing.made_s(self.traits.handing_flops_per_s, num_bytes)
        self._later(
            made_s + self._carried_s(num_bytes),
            lambda: self._say(UpdateMade(*where, update)) if run == self._run else None,
        )

    def _ballast(self, what: str) -> np.ndarray:
        rng = np.random.default_rng(list(f"{self.name}{what}{self.round}".encode()))
        return np.frombuffer(rng.bytes(self.traits.ballast_bytes), np.uint8)

    def _make_average(self) -> None:
        average, plan = self._average, self._plan
        if average is None or plan is None or plan.epoch != average.epoch:
            return
        split = self.body.split
        self._average = None
        blocks: dict[int, list[Ledger]] = {}
        whose = ""
        try:
            for whose, update in self._updates:  # noqa: B007
                for block, ledger in read_books(update, average.round).items():
                    blocks.setdefault(block, []).append(ledger)
        except RemoteError as error:
            self._say(UpdateRefused(average.epoch, average.round, whose, str(error)))
            return
        merged = {block: merge(ledgers) for block, ledgers in blocks.items()}
        owners = {unit.owner for unit in split.units}
        assert sorted(merged) == list(range(NUM_BLOCKS))
        for ledger in merged.values():
            assert {owner for round, owner in ledger if round == average.round} == owners, "not all units"
            assert ledger == merged[0], "blocks of different samples"
        self.averaged.append((average.epoch, average.round, tuple(sorted(peer for peer, _ in self._updates))))
        bounds = bounds_of(split)
        for first, stop in itertools.pairwise(bounds):
            books = {block: merged[block] for block in range(first, stop)}
            piece = write_books(books, "piece", average.round, self._ballast(f"piece{first}"))
            self._say(PieceMade(average.epoch, first, stop - first, average.round, 0, piece))


def merge(ledgers: list[Ledger]) -> Ledger:
    """What copies of a block come to: no round of an owner is in two of them with other numbers, and what went before
    is the same."""
    newest = max((round for ledger in ledgers for round, _ in ledger), default=0)
    before = [{key: value for key, value in ledger.items() if key[0] < newest} for ledger in ledgers]
    assert all(each == before[0] for each in before), "copies that began at different states"
    merged: Ledger = {}
    for ledger in ledgers:
        for key, value in ledger.items():
            assert key[0] < newest or key not in merged, "samples counted twice"
            merged[key] = value
    return merged


def write_books(blocks: dict[int, Ledger], kind: str, round: int, ballast: np.ndarray) -> bytes:
    arrays: dict[str, Any] = {"ballast": ballast} if len(ballast) else {}
    names = sorted({owner for ledger in blocks.values() for _, owner in ledger})
    for block, ledger in blocks.items():
        rows = [(r, names.index(owner), *value) for (r, owner), value in sorted(ledger.items())]
        arrays[f"block.{block}"] = np.array(rows, np.int64).reshape(-1, 4)
    return tensorfile.pack(arrays, {"kind": kind, "round": str(round), "owners": " ".join(names)})


def read_books(data: bytes, round: int) -> dict[int, Ledger]:
    """Raises ``RemoteError`` for what is no piece or update of that round."""
    metadata = tensorfile.read_untrusted(data).metadata
    if metadata.get("round") != str(round):
        raise RemoteError("snapshot", f"of round {metadata.get('round')}, expected {round}")
    names = metadata["owners"].split()
    found = {}
    for name, array in tensorfile.read(data).arrays().items():
        kind, _, block = name.partition(".")
        if kind == "block":
            rows = np.asarray(array).tolist()
            found[int(block)] = {(int(r), names[int(o)]): (int(n), int(e)) for r, o, n, e in rows}
    return found

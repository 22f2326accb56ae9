"""A trainer of a pipeline's stage that only keeps books: it passes stage messages on as the real one does,
and counts batches.

A block is a ledger: how often each batch was applied to it, and under which plan's epoch. A batch goes forward and
backward through all stages; then everyone tells everyone that it is through, and applies it once all have said so. So,
as with the real one, no two peers are more than a batch apart. Pieces and snapshots are safetensors bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from blocks_trainer import NUM_BLOCKS, At, BlocksTrainer, BlocksTraits, where_of

from p2ptrain.core import commands as c
from p2ptrain.core.stages.commands import Deliver, GivePiece, StageUsed, Taken
from p2ptrain.errors import RemoteError
from p2ptrain.modes.pipeline.commands import FollowStage, Halted, PieceTaken, SaveEvery, StopAt
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.registry import read_plan
from p2ptrain.planning.pipeline.stages import Stage
from p2ptrain.wire import tensorfile

USE_EVERY, USE_AGAIN = 10, 4


@dataclasses.dataclass(frozen=True)
class StageTraits(BlocksTraits):
    """What a test makes of one trainer of a stage."""

    snapshot_bytes: int = 0
    """Ballast in every snapshot and piece."""
    saves_s: float = 0.0
    """For so long a snapshot holds it up, as it says."""
    user_error_at: int = -1
    """At this step the trainer fails, for a reason that the person at the device can mend."""

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> StageTrainer:
        return StageTrainer(name, self, at, say)


@dataclasses.dataclass
class Books:
    """One block: by batch, how often it was applied, and in which epoch."""

    count: np.ndarray
    epoch: np.ndarray


class StageTrainer(BlocksTrainer):
    def __init__(self, name: str, traits: StageTraits, at: At, say: Callable[[object], None]) -> None:
        super().__init__(name, traits, at, say)
        self.unseen = 1.0
        """Times as long as its passes take, which it does not notice."""
        self.step = -1
        """Batches done; -1: there is no stage here."""
        self.blocks: dict[int, Books] = {}
        self.follows: list[tuple[int, int, int, bool]] = []
        """(epoch, step it begins at, pieces that travelled, own blocks kept) of every stage begun."""
        self.halts: list[tuple[int, int]] = []
        """(epoch of the next plan, step) of every halt."""
        self.given: list[tuple[int, int, int]] = []
        """(epoch, first block, stop) of every piece that was given."""
        self.given_up: list[tuple[int, int]] = []
        """(epoch, batches done here that it does not go on from) of every stage begun after another."""
        self.taken: list[tuple[int, int]] = []
        """(epoch, step) of every stage message taken in."""
        self.dropped = 0
        """Stage messages of another epoch, or for no stage."""
        self._halt: StopAt | None = None
        self._slowdown_seen, self._look_after = 1.0, USE_EVERY
        self._missing = self._every = 0
        self._pieces: list[bytes] = []
        self._keep: dict[int, Books] = {}
        self._before: np.ndarray | None = None
        """In which epoch each batch was done, of the stage before."""
        self._looked_at = 0
        self._reset_batch()

    @property
    def stage(self) -> Stage:
        return self._body.pipeline.stages[self._index]

    @property
    def total_steps(self) -> int:
        assert self._job is not None
        return self._job.training.rounds * self._body.steps_per_round

    @property
    def _body(self) -> PipelineBody:
        assert self._plan is not None and isinstance(self._plan.body, PipelineBody)
        return self._plan.body

    @property
    def _index(self) -> int:
        index = self._body.pipeline.stage_of(self._own)
        assert index is not None
        return index

    @property
    def halted(self) -> bool:
        return self._halt is not None and self.step >= self._halt.step

    @property
    def stands_by(self) -> bool:
        return self._plan is None or self.halted

    def _carry_out(self, command: object) -> None:
        match command:
            case FollowStage():
                self._follow(command)
            case GivePiece():
                self._give(command)
            case StopAt():
                self._stop_at(command)
            case SaveEvery():
                self._every = command.steps
            case Deliver():
                self._deliver(command)
            case _:
                super()._carry_out(command)

    # --- the plan ---

    def _follow(self, command: FollowStage) -> None:
        kept = self.blocks if command.keep else {}
        self._plan, self._own, self._missing = read_plan(command.plan), command.own, command.pieces
        assert not command.keep or self.step == self._body.from_step, "what is kept is of another step"
        if self.step >= 0:
            self._before = next(iter(self.blocks.values())).epoch[: self.step].copy()
        self._halt, self._pieces, self._keep, self.blocks, self.step = None, [], kept, {}, -1
        self._run += 1
        self._reset_batch()
        if not command.pieces:
            self._begin(command.keep)
        self._kept = command.keep

    def _give(self, command: GivePiece) -> None:
        if self._missing == 0:
            return
        self._pieces.append(command.piece)
        self._missing -= 1
        if self._missing == 0:
            self._begin(self._kept)

    def _begin(self, keep: bool) -> None:
        plan, body, stage = self._plan, self._body, self.stage
        assert plan is not None
        books = dict(self._keep)
        try:
            for piece in self._pieces:
                first, found = read_piece(piece, body.from_step, self.total_steps)
                self.given.append((plan.epoch, first, first + len(found)))
                books |= {first + i: each for i, each in enumerate(found) if first + i not in self._keep}
            if body.from_step and not set(range(stage.start, stage.stop)) <= books.keys():
                raise RemoteError("snapshot", f"no piece has all of {stage.start}-{stage.stop - 1}")
        except RemoteError as error:
            self._plan, self._pieces, self._keep = None, [], {}
            self._say(c.SnapshotRefused(str(error)))
            return
        fresh = np.zeros(self.total_steps, np.int64)
        self.blocks = {i: books.get(i) or Books(fresh.copy(), fresh.copy()) for i in range(stage.start, stage.stop)}
        self.follows.append((plan.epoch, body.from_step, len(self._pieces), keep))
        if self._before is not None:
            before, goes_on_from = self._before, self.blocks[stage.start].epoch[: body.from_step]
            common = min(len(before), body.from_step)
            differ = np.flatnonzero(before[:common] != goes_on_from[:common])
            self.given_up.append((plan.epoch, len(before) - int(min([common, *differ]))))
            self._before = None
        self._pieces, self._keep, self.step, self._looked_at = [], {}, body.from_step, body.from_step
        assert self._job is not None
        self._say(c.Following(self._index, self.step // body.steps_per_round, self._job.training.rounds))
        if pipeline_of(self._job).schedule == "async":
            # As the real one: it may begin the next batch before this one is done.
            self._send("forward", 0, self._neighbours(+1), self.step + 1)
        self._work()

    def _stop_at(self, command: StopAt) -> None:
        self._halt = command
        if self.step < 0:
            self._missing, self._plan = 0, None
            self.halts.append((command.epoch, -1))
            self._say(Halted(command.epoch, -1))
        elif command.now or self.step >= command.step:
            self._hand_over()

    def _hand_over(self) -> None:
        assert self._halt is not None
        self._run += 1
        self._computing = False
        self._reset_batch()
        for first, stop in self._halt.pieces if self.step == self._halt.step else ():
            piece = self.snapshot(first, stop)
            self._say(PieceTaken(first, stop - first, self._round, self.step, self._samples, piece))
        self._halt = dataclasses.replace(self._halt, step=self.step, pieces=())
        self.halts.append((self._halt.epoch, self.step))
        self._say(Halted(self._halt.epoch, self.step))

    def snapshot(self, first: int, stop: int) -> bytes:
        arrays = {}
        for index in range(first, stop):
            arrays |= {
                f"model.{index}.count": self.blocks[index].count,
                f"model.{index}.epoch": self.blocks[index].epoch,
            }
        if self.traits.snapshot_bytes:
            rng = np.random.default_rng(list(f"{self.name}{first}{self.step}".encode()))
            arrays["ballast"] = np.frombuffer(rng.bytes(self.traits.snapshot_bytes), np.uint8)
        which = {"first": str(first), "stop": str(stop), "step": str(self.step)}
        return tensorfile.pack(arrays, which)

    @property
    def _round(self) -> int:
        return self.step // self._body.steps_per_round

    @property
    def _samples(self) -> int:
        pipeline = self._body.pipeline
        return self.step * pipeline.micro_batch * pipeline.num_micro_batches

    # --- a batch ---

    def _reset_batch(self) -> None:
        self._next_forward = self._next_backward = 0
        self._said_norm = False
        self._came: dict[tuple[str, int, int], set[str]] = {}

    def _deliver(self, command: Deliver) -> None:
        error = ""
        if self._plan is None or command.epoch != self._plan.epoch or self.step < 0 or self.halted:
            self.dropped += 1
        else:
            try:
                self._receive(command)
            except RemoteError as refused:
                error = str(refused)
        self._say(Taken(command.epoch, command.sender, 1, error))
        self._work()

    def _receive(self, command: Deliver) -> None:
        assert self._plan is not None
        where = where_of(command.message)
        senders = {
            "forward": self._neighbours(-1),
            "backward": self._neighbours(+1),
            "norm": tuple(self._plan.trainers()),
        }.get(command.work, ())
        if command.sender not in senders or where != [command.epoch, command.step, command.unit]:
            raise RemoteError("stage-message", f"{command.work} {where} of {command.sender}")
        came = self._came.setdefault((command.work, command.step, command.unit), set())
        if not self.step <= command.step <= self.step + 1 or command.sender in came:
            raise RemoteError("stage-message-step", f"{command.work} of batch {command.step} in {self.step}, or twice")
        came.add(command.sender)
        self.taken.append((command.epoch, command.step))

    def _neighbours(self, offset: int) -> tuple[str, ...]:
        stages, index = self._body.pipeline.stages, self._index + offset
        return stages[index].peers if 0 <= index < len(stages) else ()

    def _is_here(self, work: str, unit: int, senders: tuple[str, ...]) -> bool:
        return self._came.get((work, self.step, unit), set()) >= set(senders)

    def _work(self) -> None:
        """The next pass, if one can be done, one at a time."""
        if self._computing or self.step < 0 or self.halted or self.step >= self.total_steps:
            return
        units, rows = self._body.pipeline.num_micro_batches, self.stage.samples[self.stage.peers.index(self._own)]
        pass_s = self.traits.block_s * rows * (self.stage.stop - self.stage.start) * self.slowdown * self.unseen
        ahead = self._next_forward - self._next_backward
        run = self._run
        if ahead and self._is_here("backward", self._next_backward, self._neighbours(+1)):
            self._computing = True
            self._at(2 * pass_s, lambda: self._passed("backward", run))
        elif (
            self._next_forward < units
            and ahead < self.stage.warm_up
            and self._is_here("forward", self._next_forward, self._neighbours(-1))
        ):
            self._computing = True
            self._at(pass_s, lambda: self._passed("forward", run))
        elif self._next_backward == units:
            self._end_batch()

    def _passed(self, work: str, run: int) -> None:
        if self.dead or run != self._run:
            return
        self._computing = False
        if work == "forward":
            self._send(work, self._next_forward, self._neighbours(+1))
            self._next_forward += 1
        else:
            self._send(work, self._next_backward, self._neighbours(-1))
            self._next_backward += 1
        self._work()

    def _send(self, work: str, unit: int, to: tuple[str, ...], step: int = -1) -> None:
        step = self.step if step < 0 else step
        self._say_message(work, step, unit, to, step, unit)

    def _end_batch(self) -> None:
        assert self._plan is not None and self._job is not None
        others = tuple(peer for peer in self._plan.trainers() if peer != self._own)
        if not self._said_norm:
            self._said_norm = True
            self._send("norm", 0, others)
        if not self._is_here("norm", 0, others):
            return
        for books in self.blocks.values():
            books.count[self.step] += 1
            books.epoch[self.step] = self._plan.epoch
        self.step += 1
        came = {where: peers for where, peers in self._came.items() if where[1] >= self.step}
        self._reset_batch()
        self._came = came
        if self.step == self.traits.user_error_at:
            self.dead = True
            self._say(c.TrainerFailed("the loss was not a finite number", user_error=True))
            return
        is_last = not self._neighbours(+1)
        loss = 1 / self.step if is_last else float("nan")
        self._say(c.Progress(self._round, self.step, self._samples, loss, 100.0))
        if self.step - self._looked_at >= self._look_after:
            self._looked_at = self.step
            self._look_after = USE_EVERY if self.slowdown == self._slowdown_seen else USE_AGAIN
            self._slowdown_seen = self.slowdown
            self._say(StageUsed(self.step, 0.5, self.slowdown))
        every = pipeline_of(self._job).snapshot_steps or self._every or self._body.steps_per_round
        round_finished = self.step % self._body.steps_per_round == 0
        if self.step % every == 0 or round_finished or self.step >= self.total_steps:
            self._say_snapshot(loss, round_finished)
        if self.halted:
            self._hand_over()
        self._work()

    def _say_snapshot(self, loss: float, round_finished: bool) -> None:
        start, stop = self.stage.start, self.stage.stop
        self._say(
            c.SnapshotTaken(
                part=start,
                round=self._round,
                step=self.step,
                samples=self._samples,
                loss=loss,
                round_finished=round_finished,
                training_finished=self.step >= self.total_steps,
                snapshot=self.snapshot(start, stop),
                span=stop - start,
                seconds=self.traits.saves_s,
            )
        )


def read_piece(data: bytes, step: int, total_steps: int) -> tuple[int, list[Books]]:
    """The first block and the books of a piece of this step. Raises ``RemoteError`` for anything else."""
    metadata = tensorfile.read_untrusted(data).metadata
    arrays = tensorfile.read(data).arrays()
    first, stop = int(metadata["first"]), int(metadata["stop"])
    if int(metadata["step"]) != step:
        raise RemoteError("snapshot", f"of step {metadata['step']}, expected {step}")
    found = []
    for index in range(first, stop):
        books = Books(np.array(arrays[f"model.{index}.count"]), np.array(arrays[f"model.{index}.epoch"]))
        if books.count.shape != (total_steps,):
            raise RemoteError("snapshot", "of another job")
        found.append(books)
    return first, found


def ledger(pieces: list[tuple[int, list[Books]]]) -> dict[int, Books]:
    """Block by block."""
    return {first + i: books for first, found in pieces for i, books in enumerate(found)}


def check(books: dict[int, Books], step: int, num_blocks: int = NUM_BLOCKS) -> np.ndarray:
    """Every batch up to ``step`` is in every block once, of one and the same history; the epochs of the batches."""
    assert sorted(books) == list(range(num_blocks))
    for each in books.values():
        assert (each.count[:step] == 1).all() and not each.count[step:].any()
        assert (each.epoch == books[0].epoch).all()
    epochs: Any = books[0].epoch[:step]
    return np.asarray(epochs)

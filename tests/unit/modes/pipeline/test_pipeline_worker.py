"""The trainer's side of a pipeline by itself: what it says to each command, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from pipeline_group import samples
from safetensors.torch import load, save

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core import commands as c
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.core.stages.commands import (
    Deliver,
    GivePiece,
    LookAgain,
    Looked,
    SendStageMessage,
    StageMessagesSent,
    StageUsed,
    Taken,
)
from p2ptrain.core.stages.figures import DeviceFigures, planned_times
from p2ptrain.core.worker import Setup
from p2ptrain.ids import PeerId
from p2ptrain.learning.pipeline.training import StageMessage
from p2ptrain.modes.pipeline import worker as stage_worker
from p2ptrain.modes.pipeline.commands import CollectBlocks, FollowStage, Halted, PieceTaken, StopAt
from p2ptrain.modes.pipeline.config import PipelineConfig, pipeline_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.pipeline.worker import StageWorker
from p2ptrain.modes.stages import messages, own_blocks
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage

A, B = PeerId("a" * 16), PeerId("b" * 16)
BLOCKS = 4
ROUND = 3
TOTAL = 12
JOB = Job(
    mode="pipeline",
    model=ModelConfig("lenet", width=0.25),
    data=DataConfig(tuple("abcde"), (1, 8, 8), mean=(0.4,), std=(0.3,)),
    training=TrainingConfig(rounds=TOTAL // ROUND, batch_size=8, learning_rate=0.05),
    tables=(PipelineConfig(micro_batches=2),),
)
T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("one_thread")


def plan(cut: int | None = 2, epoch: int = 1, from_step: int = 0) -> Plan:
    """``A`` trains the blocks before the cut and ``B`` the others; without a cut ``A`` trains all."""
    bounds = [(0, BLOCKS)] if cut is None else [(0, cut), (cut, BLOCKS)]
    stages = tuple(Stage(first, stop, (peer,), (4,), 1) for (first, stop), peer in zip(bounds, (A, B), strict=False))
    pipeline = PipelinePlan("lenet", BLOCKS, 4, 2, stages, () if cut else (B,))
    shares = (1.0,) if cut is None else (0.5, 0.5)
    figures = tuple(DeviceFigures(peer, 0.0, 1.0, (), (), ()) for peer in (A, B))
    return Plan(
        epoch=epoch,
        job=JOB.id,
        mode="pipeline",
        proposer=A,
        peers=(PeerSnapshot(A, 1e9, 0, (10,) * 5, ()), PeerSnapshot(B, 1e9, 0, (), ())),
        parent="" if epoch == 1 else "f" * 64,
        body=PipelineBody("c" * 64, pipeline, shares, figures, from_step, ROUND, int(from_step > 0)),
    )


def timed(plan: Plan) -> Plan:
    """With times of blocks: four samples, of which only ``B`` knows, take half as long again as two."""
    assert isinstance(plan.body, PipelineBody)
    two, four = (100.0,) * BLOCKS, (150.0,) * BLOCKS
    a, b = (
        DeviceFigures(A, 0.0, 1.0, (2,), (two,), (two,)),
        DeviceFigures(B, 0.0, 1.0, (2, 4), (two, four), (two, four)),
    )
    return dataclasses.replace(plan, body=dataclasses.replace(plan.body, figures=(a, b)))


class Worker:
    """One ``StageWorker`` and all that it said."""

    def __init__(self, name: PeerId, job: Job = JOB, spool: str = "") -> None:
        self.name = name
        self.said: list[Any] = []
        configuration = c.Configure(job=job.to_json(), data="", name=f"peer {name[0]}", spool=spool)
        self.stage = StageWorker(Setup(job, configuration, samples("lenet", 1), None, None, None, self.said.append))

    def take(self, kind: type[T]) -> list[T]:
        """What it said of this kind since it was last asked."""
        found = [event for event in self.said if isinstance(event, kind)]
        self.said[:] = [event for event in self.said if not isinstance(event, kind)]
        return found

    def follow(self, plan: Plan, pieces: list[bytes] | None = None, keep: bool = False) -> Worker:
        self.stage.follow(FollowStage(plan.to_json(), self.name, len(pieces or []), keep))
        for piece in pieces or []:
            self.stage.give(GivePiece(piece))
        return self

    @property
    def step(self) -> int:
        assert self.stage._training is not None
        return self.stage._training.step


def alone(epoch: int = 1, job: Job = JOB) -> Worker:
    return Worker(A, job).follow(plan(None, epoch))


def run(*workers: Worker, most: int = 100_000) -> None:
    """Work and carry stage messages until nothing can be done."""
    by_name = {worker.name: worker for worker in workers}
    while most:
        busy = [worker for worker in workers if worker.stage.busy]
        for worker in busy[:1]:
            worker.stage.work()
            most -= 1
        messages = [(w.name, p) for w in workers for p in w.take(SendStageMessage)]
        for sender, p in messages:
            deliver = Deliver(p.epoch, sender, p.work, p.step, p.unit, p.row, p.message)
            by_name[PeerId(p.to)].stage.deliver(deliver)
        if not busy and not messages:
            return


def until(worker: Worker, step: int) -> None:
    while worker.step < step:
        worker.stage.work()


def pair() -> tuple[Worker, Worker]:
    return Worker(A).follow(plan()), Worker(B).follow(plan())


def weights(snapshot: bytes) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load(snapshot).items() if name.startswith("model.")}


# --- training ---------------------------------------------------------------------------------------------------------


def test_two_stages_train_what_one_does_and_say_snapshots_at_the_same_steps() -> None:
    whole = alone()
    run(whole)
    two = pair()
    run(*two)
    expected = list(range(ROUND, TOTAL + 1, ROUND))
    last: dict[str, torch.Tensor] = {}
    for worker in two:
        taken = worker.take(c.SnapshotTaken)
        assert [event.step for event in taken] == expected and all(event.round_finished for event in taken)
        assert [event.training_finished for event in taken] == [False] * (len(expected) - 1) + [True]
        assert all(event.samples == 8 * event.step and event.span == 2 for event in taken)
        last |= weights(taken[-1].snapshot)
        assert not any(event.error for event in worker.take(Taken))
    (reference,) = (event for event in whole.take(c.SnapshotTaken) if event.training_finished)
    torch.testing.assert_close(last, weights(reference.snapshot), rtol=1e-5, atol=1e-6)


def test_only_the_last_stage_knows_the_loss() -> None:
    first, last = pair()
    run(first, last)
    assert all(math.isnan(event.loss) for event in first.take(c.SnapshotTaken) + first.take(c.Progress))
    assert all(event.loss > 0 for event in last.take(c.SnapshotTaken) + last.take(c.Progress))


def test_snapshots_at_the_steps_that_the_job_asks_for() -> None:
    job = JOB.with_table(dataclasses.replace(pipeline_of(JOB), snapshot_steps=5))
    worker = Worker(A, job).follow(dataclasses.replace(plan(None), job=job.id))
    run(worker)
    taken = worker.take(c.SnapshotTaken)
    assert [event.step for event in taken] == [3, 5, 6, 9, 10, 12]
    assert [event.step for event in taken if event.round_finished] == [3, 6, 9, 12]


def test_blocks_that_are_collected_are_cut_anew_and_trained_on_from() -> None:
    two = pair()
    run(*two)
    saved = [next(e.snapshot for e in worker.take(c.SnapshotTaken) if e.step == ROUND) for worker in two]
    collector = Worker(A)
    collector.stage.collect(CollectBlocks(ROUND, 2, ((0, 1), (1, BLOCKS))))
    for snapshot in saved:
        collector.stage.give(GivePiece(snapshot))
    pieces = collector.take(PieceTaken)
    assert [(p.part, p.span, p.step, p.samples) for p in pieces] == [(0, 1, ROUND, 24), (1, BLOCKS - 1, ROUND, 24)]
    assert not collector.stage.busy, "it holds no stage"
    after = plan(1, epoch=2, from_step=ROUND)
    collector.follow(after, [pieces[0].piece])
    other = Worker(B).follow(after, [pieces[1].piece])
    run(collector, other)
    assert collector.step == other.step == TOTAL
    (first,) = [e for e in collector.take(c.SnapshotTaken) if e.training_finished]
    (last,) = [e for e in other.take(c.SnapshotTaken) if e.training_finished]
    whole = alone()
    run(whole)
    (reference,) = [e for e in whole.take(c.SnapshotTaken) if e.training_finished]
    found = weights(first.snapshot) | weights(last.snapshot)
    torch.testing.assert_close(found, weights(reference.snapshot), rtol=1e-5, atol=1e-6)


def test_blocks_that_are_not_all_there_are_refused() -> None:
    two = pair()
    run(*two)
    collector = Worker(A)
    collector.stage.collect(CollectBlocks(ROUND, 1, ((0, BLOCKS),)))
    collector.stage.give(GivePiece(two[0].take(c.SnapshotTaken)[0].snapshot))
    assert collector.take(c.SnapshotRefused) and not collector.take(PieceTaken)


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [4, 5, 9])
def test_it_goes_on_to_the_step_and_hands_over_what_it_was_asked_for(at: int) -> None:
    worker = alone()
    until(worker, 4)
    worker.stage.stop_at(StopAt(2, at, ((0, 1), (2, 4)), now=False))
    run(worker)
    assert worker.take(Halted) == [Halted(2, at)] and worker.step == at and not worker.stage.busy
    pieces = worker.take(PieceTaken)
    assert [(piece.part, piece.span, piece.step, piece.samples) for piece in pieces] == [
        (0, 1, at, 8 * at),
        (2, 2, at, 8 * at),
    ]
    reference = alone()
    until(reference, at)
    assert reference.stage._training is not None
    tensors, _ = reference.stage._training.snapshot(2, 4)
    found = load(pieces[1].piece)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def test_a_step_that_is_past_stops_it_where_it_is_without_pieces() -> None:
    worker = alone()
    until(worker, 6)
    worker.stage.stop_at(StopAt(2, 5, ((0, 2),), now=False))
    assert worker.take(Halted) == [Halted(2, 6)] and not worker.take(PieceTaken)
    run(worker)
    assert worker.step == 6


def test_stop_now_gives_up_the_batch_that_was_begun() -> None:
    first, last = pair()
    run(first, last, most=20)
    step = first.step
    for worker in (first, last):
        worker.stage.stop_at(StopAt(2, 9, ((0, 1),), now=True))
        (halted,) = worker.take(Halted)
        assert halted.step == worker.step and not worker.take(PieceTaken) and not worker.stage.busy
    assert step == first.step and abs(first.step - last.step) <= 1
    for worker in (first, last):  # stage messages that were on their way are taken, and mean nothing
        worker.take(Taken)
        worker.stage.deliver(Deliver(1, B, "backward", worker.step, 0, 0, b"late"))
        assert worker.take(Taken) == [Taken(1, B, 1, "")]


def test_stop_without_a_stage_or_with_half_of_one() -> None:
    worker = Worker(A)
    worker.stage.stop_at(StopAt(1, 0, (), now=True))
    assert worker.said == [Halted(1, -1)]
    worker.said.clear()
    worker.stage.follow(FollowStage(plan(None, 2, 3).to_json(), A, 2, False))
    worker.stage.stop_at(StopAt(3, 5, ((0, 1),), now=False))
    assert worker.said == [Halted(3, -1)] and not worker.stage.busy
    worker.stage.give(GivePiece(b"too late"))
    assert len(worker.said) == 1


# --- going on ---------------------------------------------------------------------------------------------------------


def halted(step: int, pieces: tuple[tuple[int, int], ...]) -> tuple[Worker, list[bytes]]:
    worker = alone()
    worker.stage.stop_at(StopAt(2, step, pieces, now=False))
    run(worker)
    return worker, [piece.piece for piece in worker.take(PieceTaken)]


def test_a_stage_moves_and_keeps_its_place_in_its_samples() -> None:
    """The end is that of one peer that trained all the time; though blocks have moved, and back."""
    reference = alone()
    run(reference)
    first, pieces = halted(5, ((2, 4),))
    second = Worker(B).follow(plan(2, 2, 5), pieces)
    first.follow(plan(2, 2, 5), keep=True)
    assert first.take(c.Following)[-1].round == 1 and second.take(c.Following) == [c.Following(1, 1, 4)]
    for worker in (first, second):
        worker.stage.stop_at(StopAt(3, 8, ((3, 4),) if worker is second else (), now=False))
    run(first, second)
    assert first.step == second.step == 8
    (last,) = (piece.piece for piece in second.take(PieceTaken))
    first.follow(plan(3, 3, 8), [second_piece(second, 2, 3)], keep=True)
    second.follow(plan(3, 3, 8), [last])
    run(first, second)
    found: dict[str, torch.Tensor] = {}
    for worker in (first, second):
        found |= weights(worker.take(c.SnapshotTaken)[-1].snapshot)
    (expected,) = (event for event in reference.take(c.SnapshotTaken) if event.training_finished)
    torch.testing.assert_close(found, weights(expected.snapshot), rtol=1e-5, atol=1e-6)


def second_piece(worker: Worker, first: int, stop: int) -> bytes:
    assert worker.stage._training is not None
    tensors, metadata = worker.stage._training.snapshot(first, stop)
    return save(tensors, metadata)


def damaged(piece: bytes, **metadata: str) -> bytes:
    from p2ptrain.wire.tensorfile import read_untrusted

    tensors = load(piece)
    return save(tensors, {**read_untrusted(piece).metadata, **metadata})


@pytest.mark.parametrize(
    "case", ["no tensors", "cut short", "wrong step", "other blocks", "not finite", "missing", "extra", "huge", "empty"]
)
def test_pieces_that_do_not_fit_are_refused_and_it_can_follow_again(case: str) -> None:
    _, (piece,) = halted(4, ((2, 4),))
    tensors = load(piece)
    name = sorted(weights(piece))[0]
    bad = {
        "no tensors": b"x" * 100,
        "cut short": piece[:-1],
        "wrong step": damaged(piece, step="5"),
        "other blocks": damaged(piece, first="1"),
        "not finite": second(piece, {**tensors, name: torch.full_like(tensors[name], math.nan)}),
        "missing": second(piece, {key: value for key, value in tensors.items() if key != name}),
        "extra": second(piece, {**tensors, "model.evil": torch.ones(1)}),
        "huge": damaged(piece, step="9" * 400),
        "empty": b"",
    }[case]
    worker = Worker(B).follow(plan(2, 2, 4), [bad])
    (refused,) = worker.said
    assert isinstance(refused, c.SnapshotRefused) and refused.detail and not worker.stage.busy
    worker.said.clear()
    worker.stage.deliver(Deliver(2, A, "forward", 4, 0, 0, b"x"))
    assert worker.take(Taken) == [Taken(2, A, 1, "")]
    worker.follow(plan(2, 2, 4), [piece])
    following, saved = worker.said
    assert following == c.Following(1, 1, 4) and worker.step == 4
    assert isinstance(saved, c.SnapshotTaken) and (saved.part, saved.span, saved.step) == (2, 2, 4)
    assert not saved.round_finished, "it is the state that the stage begins with, for others to keep"


def second(piece: bytes, tensors: dict[str, torch.Tensor]) -> bytes:
    from p2ptrain.wire.tensorfile import read_untrusted

    return save(tensors, dict(read_untrusted(piece).metadata))


def test_too_few_blocks_are_refused() -> None:
    _, (piece,) = halted(4, ((3, 4),))
    worker = Worker(B).follow(plan(2, 2, 4), [piece])
    (refused,) = worker.said
    assert isinstance(refused, c.SnapshotRefused) and "2 to 3" in refused.detail


# --- stage messages ---------------------------------------------------------------------------------------------------


def test_every_message_is_said_to_be_taken_whatever_it_is() -> None:
    first, last = pair()
    while not (sent := first.take(SendStageMessage)):
        first.stage.work()
    good = Deliver(1, A, "forward", 0, 0, 0, sent[0].message)
    wrong = [
        dataclasses.replace(good, message=b"no tensors"),
        dataclasses.replace(good, message=b""),
        dataclasses.replace(good, sender=PeerId("c" * 16)),
        dataclasses.replace(good, work="backward"),
        dataclasses.replace(good, work="reduce"),
        dataclasses.replace(good, work="norm"),
        dataclasses.replace(good, step=7),
        dataclasses.replace(good, unit=99),
        dataclasses.replace(good, row=3),
        dataclasses.replace(good, message=save({"evil": torch.ones(2)})),
    ]
    for deliver in wrong:
        last.stage.deliver(deliver)
        (taken,) = last.take(Taken)
        assert (taken.epoch, taken.sender, taken.count) == (1, deliver.sender, 1) and taken.error
    assert not last.stage.busy, "nothing of it was kept"
    last.stage.deliver(dataclasses.replace(good, epoch=2))
    assert last.take(Taken) == [Taken(2, A, 1, "")] and not last.stage.busy, "of another epoch: dropped"
    last.stage.deliver(good)
    assert last.take(Taken) == [Taken(1, A, 1, "")] and last.stage.busy
    last.stage.deliver(good)
    (twice,) = last.take(Taken)
    assert twice.error


def test_it_waits_while_too_much_waits_at_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it goes on taking what comes, and everything is sent in the end, in order."""
    monkeypatch.setattr(messages, "MESSAGES_AHEAD_BYTES", 1)
    first, last = pair()
    first.stage.work()
    (sent,) = first.take(SendStageMessage)
    held = len(sent.message)
    assert not first.stage.busy, "one stage message is too much already"
    first.stage.work()
    assert not first.take(SendStageMessage)
    first.stage.deliver(Deliver(1, B, "backward", 0, 0, 0, b"x"))
    assert len(first.take(Taken)) == 1
    first.stage.handlers[StageMessagesSent](StageMessagesSent(2, held))
    assert not first.stage.busy, "of another epoch"
    first.stage.handlers[StageMessagesSent](StageMessagesSent(1, held))
    first.stage.handlers[StageMessagesSent](StageMessagesSent(1, 0))
    last.stage.deliver(Deliver(1, A, sent.work, sent.step, sent.unit, sent.row, sent.message))
    total = {first.name: held, last.name: 0}
    by_name = {first.name: (first, last), last.name: (last, first)}
    for _ in range(5000):
        for worker, other in by_name.values():
            worker.stage.work()
            for p in worker.take(SendStageMessage):
                total[worker.name] += len(p.message)
                other.stage.deliver(Deliver(1, worker.name, p.work, p.step, p.unit, p.row, p.message))
                assert not worker.stage.busy
                worker.stage.handlers[StageMessagesSent](StageMessagesSent(1, total[worker.name]))
    assert first.step == last.step == TOTAL
    assert not any(event.error for worker in (first, last) for event in worker.take(Taken)[1:])


def test_snapshots_are_handed_over_as_files_where_there_is_a_folder_for_them(tmp_path: Path) -> None:
    with_folder = Worker(A, spool=str(tmp_path)).follow(plan(None))
    without, full = alone(), Worker(A, spool=str(tmp_path / "missing")).follow(plan(None))
    for worker in (with_folder, without, full):
        until(worker, ROUND)
    (spooled,), (given,), (fallen_back,) = (w.take(c.SnapshotTaken) for w in (with_folder, without, full))
    assert Path(spooled.snapshot).parent == tmp_path and len(list(tmp_path.iterdir())) == 1
    until(with_folder, ROUND + 1)
    expected = load(given.snapshot)
    for found in (load(Path(spooled.snapshot).read_bytes()), load(fallen_back.snapshot)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("now", [False, True])
def test_the_last_messages_of_a_finished_batch_leave_after_the_stop(now: bool) -> None:
    worker = alone()
    until(worker, 3)
    waiting = [StageMessage(B, "norm", step, 0, 0, {"x": torch.ones(1)}) for step in (2, 3)]
    worker.stage._outbox.add(waiting)  # there was no room for them at the node
    worker.stage.stop_at(StopAt(2, 3, (), now=now))
    while worker.stage.busy:
        worker.stage.work()
    assert [message.step for message in worker.take(SendStageMessage)] == ([] if now else [2])
    assert worker.step == 3 and worker.take(Halted) == [Halted(2, 3)]


def test_the_first_batches_of_a_stage_do_not_make_its_device_look_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(A, dataclasses.replace(JOB, training=dataclasses.replace(JOB.training, rounds=20)))
    worker.follow(timed(plan(None)))
    seen: list[float] = []
    monkeypatch.setattr(stage_worker, "slowdown_of", lambda seconds, *_: seen.append(seconds) or 1.0)
    begun = worker.stage._training
    assert begun is not None
    until(worker, 1)
    begun._use.forward_s += 1e6  # as if the first had taken that long
    until(worker, 2 * stage_worker.FIRST_LOOK)
    assert [used.step for used in worker.take(StageUsed)] == [stage_worker.WARM_UP + stage_worker.FIRST_LOOK]
    assert max(seen) < 1e6


def test_a_device_is_slow_by_the_times_that_it_was_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own there are none for so large a batch."""
    worker = Worker(A, dataclasses.replace(JOB, training=dataclasses.replace(JOB.training, rounds=20)))
    worker.follow(timed(plan(None)))
    seen: list[float] = []
    monkeypatch.setattr(stage_worker, "slowdown_of", lambda _, expected_s, *__: seen.append(expected_s) or 1.0)
    until(worker, stage_worker.WARM_UP + stage_worker.FIRST_LOOK)
    num_passes = 2 * pipeline_of(JOB).micro_batches * stage_worker.FIRST_LOOK
    assert seen == [pytest.approx(num_passes * (BLOCKS * 100 * 1.5 + stage_worker.PASS_S))]


def test_a_look_that_differs_is_soon_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(A, dataclasses.replace(JOB, training=dataclasses.replace(JOB.training, rounds=40)))
    worker.follow(timed(plan(None)))
    seen = iter([1.05, 2.0, 4.0, 4.1, 3.9])
    monkeypatch.setattr(stage_worker, "slowdown_of", lambda *_: next(seen))
    first, second = stage_worker.FIRST_LOOK, stage_worker.SECOND_LOOK
    steps = [stage_worker.WARM_UP + first, first, second, second, first]
    until(worker, sum(steps))
    assert [used.step for used in worker.take(StageUsed)] == [sum(steps[: i + 1]) for i in range(len(steps))]


def test_a_trainer_that_stands_by_looks_again_at_how_slow_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(A)
    known: list[object] = []
    monkeypatch.setattr(own_blocks, "slowdown_now", lambda chain, times, *_, **__: known.append(times) or 3.0)
    worker.stage.look_again(LookAgain())
    assert worker.take(Looked) == [], "it knows no times yet"
    planned = timed(plan(None))
    worker.follow(planned)
    until(worker, 3)
    worker.stage.look_again(LookAgain())
    assert worker.take(Looked) == [], "it trains"
    worker.stage.stop_at(StopAt(2, 3, (), now=True))
    worker.stage.look_again(LookAgain())
    assert worker.take(Looked) == [Looked(3.0)]
    assert isinstance(planned.body, PipelineBody)
    assert known == [planned_times(planned.body.figures)[A]]

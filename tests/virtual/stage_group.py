"""Groups that train one model as a pipeline, and what is to be seen of them: plans, what is saved, what comes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from blocks_trainer import NUM_BLOCKS
from peer_group import NOTHING, RATE, Room, harvest, job, plan_of
from stage_trainer import StageTrainer, StageTraits, check, ledger, read_piece

from p2ptrain.modes.pipeline import harvest as harvester
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN, Conditions
from p2ptrain.wire.messages import SnapshotRef

SAMPLES = (64,) * 6
TOLD_SLACK = 2


def group(
    seed: int = 0,
    count: int = 3,
    conditions: Conditions = LAN,
    *,
    owners: int = 1,
    settle_s: float = 1.0,
    rounds: int = 10,
    strategy: str = "equal",
    micro_batches: int = 4,
    snapshot_steps: int = 0,
    min_peers: int = 0,
    schedule: str = "sync",
    patience_s: float = 300.0,
    samples: tuple[int, ...] = SAMPLES,
    **traits: object,
) -> Room:
    """``count`` devices that were all given the job; the first ``owners`` of them have samples."""
    room = Room(seed, conditions, traits=StageTraits, bytes_per_s=RATE)
    work = job(
        "pipeline",
        rounds=rounds,
        strategy=strategy,
        micro_batches=micro_batches,
        snapshot_steps=snapshot_steps,
        min_peers=min_peers or count,
        settle_s=settle_s,
        schedule=schedule,
        patience_s=patience_s,
    )
    for number in range(count):
        room.add(number, samples if number < owners else NOTHING, job=work, **traits)
    return room


def trainer(device: Device) -> StageTrainer:
    assert isinstance(device.trainer, StageTrainer)
    return device.trainer


def pipeline_body(device: Device) -> PipelineBody:
    body = plan_of(device).body
    assert isinstance(body, PipelineBody)
    return body


def first_of_stage(room: Room, index: int) -> Device:
    peer = pipeline_body(room.devices[0]).pipeline.stages[index].peers[0]
    return next(device for device in room.on() if device.id == peer)


def total_steps(device: Device) -> int:
    assert device.disk.job is not None
    return device.disk.job.training.rounds * pipeline_body(device).steps_per_round


def all_at(room: Room, step: int) -> Callable[[], bool]:
    return lambda: all(device.trainer is not None and trainer(device).step >= step for device in room.on())


def epoch_trained(room: Room, epoch: int) -> Callable[[], bool]:
    """Whether all that have a stage in the plan of that epoch train it."""

    def looked_at() -> bool:
        on = room.on()
        staged = [d for d in on if d.core.agreement and d.core.agreement.current and plan_of(d).part_of(d.id)]
        trained = [d.core.epoch == epoch and trainer(d).follows[-1:][0:1] for d in staged if d.trainer]
        return bool(trained) and all(f and f[0][0] == epoch for f in trained)

    return looked_at


def saved(room: Room) -> dict[int, list[tuple[Device, SnapshotRef]]]:
    """Runs of blocks that those who are on truly have, by step."""
    found: dict[int, list[tuple[Device, SnapshotRef]]] = {}
    for device in room.on():
        for holding in device.record.holdings:
            if holding.blob in device.disk:
                found.setdefault(holding.step, []).append((device, holding))
    return found


def whole_steps(room: Room) -> list[int]:
    steps = []
    for step, runs in saved(room).items():
        for epoch in {h.epoch for _, h in runs}:
            blocks = {b for _, h in runs if h.epoch == epoch for b in range(h.part, h.part + h.span)}
            steps += [step] if blocks == set(range(NUM_BLOCKS)) else []
    return sorted(steps)


def check_done(room: Room) -> np.ndarray:
    """All batches are in the saved model, each of them once; the epochs they were trained in."""
    steps = total_steps(room.on()[0])
    found = harvest(room, harvester)
    assert found, "no whole model is saved"
    return check(ledger([read_piece(data, steps, steps) for _, data in found.values()]), steps)


def blocks_of(pipeline: PipelinePlan, stage: int | None) -> set[int]:
    return set() if stage is None else set(range(pipeline.stages[stage].start, pipeline.stages[stage].stop))


def state_of(room: Room) -> list[tuple[object, ...]]:
    """For a person who reads a failure."""
    return [
        (d.number, d.record.phase, d.core.epoch, d.record.part, d.record.waiting_for, d.trainer and vars(d.trainer))
        for d in room.on()
    ]


def committed(room: Room) -> dict[int, set[str]]:
    """The plans that anybody took for the one in force, by epoch."""
    found: dict[int, set[str]] = {}
    for device in room.devices.values():
        for _, note in device.notes:
            fields = dict(note.fields)
            if note.kind == "plan-adopted":
                found.setdefault(int(fields["epoch"]), set()).add(str(fields["plan"]))
    return found


def furthest(room: Room) -> int:
    """Batches that somebody who is on has done."""
    return max((trainer(device).step for device in room.on() if device.trainer is not None), default=0)


def told_untruly(room: Room) -> list[tuple[int, int, int, int]]:
    """Where more or fewer batches were told of as lost than there were: device, epoch of the plan, told, lost.

    Of stages that the trainers who are here now began after another one. What is told goes by the news of all trainers,
    who may be a batch further, or one that is behind. Who had no stage meanwhile was told of what others lost, too.
    """
    given_up = {device: dict(trainer(device).given_up) for device in room.on() if device.trainer is not None}
    found = []
    for device, lost in given_up.items():
        told = [0]  # since the last stage began, by plan
        for _, note in device.notes:
            fields = dict(note.fields)
            match note.kind:
                case "plan-adopted":
                    told.append(0)
                case "goes-back" | "gives-way":
                    told[-1] += int(fields["batches"])
                case "training":
                    epoch = int(fields["epoch"])
                    others = [theirs[epoch] for theirs in given_up.values() if epoch in theirs]
                    if epoch in lost and not _is_true(told, lost[epoch], others):
                        found.append((device.number, epoch, sum(told), lost[epoch]))
                    told = [0]
    return found


def _is_true(told: list[int], lost: int, others: list[int]) -> bool:
    """``told``: by plan. All of it, or the last, is what was lost here; or what others lost, the rest one's own."""
    *before, last = told
    rest = sum(before)

    def is_near(told: int, *lost: int) -> bool:
        return any(abs(told - each) <= TOLD_SLACK for each in lost)

    of_others = is_near(last, lost) and is_near(rest, 0, *others)
    return is_near(rest + last, lost) or of_others or (rest > 0 and is_near(rest, lost) and is_near(last, *others))


def under_way(room: Room, after: int) -> Callable[[], bool]:
    """Whether a plan of a later epoch is trained by all of it, and a batch of it is done."""

    def looked_at() -> bool:
        on = [device for device in room.on() if device.core.agreement and device.core.agreement.current]
        staged = [trainer(device) for device in on if plan_of(device).part_of(device.id) and device.trainer is not None]
        begun = [each for each in staged if each.follows and each.follows[-1][0] > after]
        return bool(begun) and len(begun) == len(staged) and all(each.step > each.follows[-1][1] for each in begun)

    return looked_at

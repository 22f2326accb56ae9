"""What leaves a trainer: of its samples no bytes, neither as they were read nor as the model is given them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline_group import Group, cuts, pipeline, samples

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core import commands as c
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import PeerId
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.modes.tasks.commands import Contribute, Contributed, ExtractFeatures, Follow, MakePayload, PayloadMade
from p2ptrain.modes.tasks.plan import body_of
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.runtime.trainer.trainer import Trainer

DATA = DataConfig(tuple("abcd"), (1, 8, 8), mean=(0.5,), std=(0.25,), val=0.0)
NAMES = tuple(PeerId(f"peer{number:012d}") for number in range(2))
TELLING = 32
"""Bytes in a row that come together by no chance."""


def is_told(data: Dataset, told: bytes) -> bool:
    """Whether the beginning of any sample is in it."""
    x, _ = data.tensors()
    read, given = [each.tobytes() for each in data.x], [each.numpy().tobytes() for each in x]
    return any(sample[:TELLING] in told for sample in (*read, *given))


def words(event: object) -> bytes:
    head, raw = c.encode(event)
    return head + bytes(raw.view if isinstance(raw, c.SharedBytes) else raw)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", ["replicas", "tasks"])
def test_no_event_of_a_trainer_has_samples(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), np.uint8)
    labels = np.arange(24) % 4
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=np.array(list("abcd"))[labels])
    training = TrainingConfig(rounds=2, batch_size=8)
    job = Job(mode=mode, model=ModelConfig("lenet"), data=DATA, training=training)  # type: ignore[arg-type]
    plan = first_plan(job, [PeerSnapshot(name, 1e9, 0, (6,) * 4, ()) for name in NAMES], NAMES[0])
    said: list[object] = []
    copies: list[tuple[int, bytes]] = []
    for index, part in enumerate(body_of(plan).parts):
        trainer = Trainer(said.append)
        trainer.handle(c.Configure(job.to_json(), f"npz:{tmp_path / 'own.npz'}", "one"))
        trainer.handle(Follow(plan.to_json(), index))
        while trainer.busy:
            trainer.work()
        trainer.handle(MakePayload(index, tuple(part.shards), NAMES[1]))
        last = next(each for each in reversed(said) if isinstance(each, c.SnapshotTaken))
        assert isinstance(last.snapshot, bytes)
        copies.append((index, last.snapshot))
    for index, copy in copies:
        trainer.handle(ExtractFeatures("fit", index, NAMES[index], copy, 1.0, True, index == len(copies) - 1))
    for step in range(2):
        trainer.handle(Contribute("fit", step, b""))
    kinds = {type(each) for each in said}
    assert {c.SnapshotTaken, PayloadMade, Contributed} <= kinds, kinds
    data = Dataset(pixels, labels, DATA)
    assert not any(is_told(data, words(each)) for each in said)
    assert is_told(data, words(replace(last, snapshot=pixels.tobytes()))), "it would be seen"


@pytest.mark.usefixtures("one_thread")
def test_no_stage_message_has_samples() -> None:
    data = {peer: samples("lenet", place, 16) for place, peer in enumerate(("0a", "0b"))}
    group = Group("lenet", pipeline(cuts("lenet", ((5, 3), (2, 6), (8,)))), data=data)
    told: list[bytes] = []
    deliver = group.deliver

    def noted(sent: tuple[str, StageMessage]) -> None:
        told.extend(each.numpy().tobytes() for each in sent[1].tensors.values())
        deliver(sent)

    group.deliver = noted  # type: ignore[method-assign]
    group.run(1)
    assert told and not any(is_told(each, message) for each in data.values() for message in told)

"""A look at the whole model in the trainer: as a harvest of the same copies would be judged."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core import commands as c
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.models import global_model
from p2ptrain.learning.snapshots import write
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.training import PartTraining
from p2ptrain.runtime.trainer import looking
from p2ptrain.runtime.trainer.looking import ModelLooks
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import to_plain

DATA = DataConfig(("a", "b", "c", "d"), (1, 12, 12), mean=(0.4,), std=(0.3,))
NAMES = tuple(PeerId(f"peer{number:012d}") for number in range(2))
STATE = "0123456789abcdef"


def samples(num: int, seed: int) -> Dataset:
    x = np.random.default_rng(seed).integers(0, 256, (num, 1, 12, 12), np.uint8)
    return Dataset(x, np.arange(num) % 4, DATA)


def trained(mode: str) -> tuple[Job, Plan, list[PartTraining]]:
    config = TrainingConfig(rounds=3, batch_size=8, learning_rate=0.01)
    job = Job(mode=mode, data=DATA, model=ModelConfig("lenet"), training=config)  # type: ignore[arg-type]
    plan = first_plan(job, [PeerSnapshot(name, 1e9, 0, (9,) * 4, ()) for name in NAMES], NAMES[0])
    found = []
    for part in plan.parts:
        for name in part.trainers:
            one = PartTraining(job, Parts(job, plan), part.index, samples(16, len(found)), name)
            while not one.step():
                pass
            found.append(one)
    return job, plan, found


def copies(plan: Plan, trainings: list[PartTraining]) -> list[c.LookAtModel]:
    commands: list[c.LookAtModel] = []
    owners = [name for part in plan.parts for name in part.trainers]
    for owner, one in zip(owners, trainings, strict=True):
        data = write(*one.snapshot(), None)
        assert isinstance(data, bytes)
        ref = SnapshotRef(one.part, owner, 1, 1, 2, 16, BlobId("ab" * 32), len(data))
        first = {"plan": plan.to_json(), "num_bytes": 2 * len(data)} if not commands else {}
        about: dict[str, Any] = {"is_last": len(commands) == len(owners) - 1, "num_copies": len(owners), **first}
        commands.append(c.LookAtModel(STATE, json.dumps(to_plain(ref)), data, **about))
    return commands


def looked(job: Job, val: Dataset | None, commands: list[c.LookAtModel]) -> c.ModelLooked:
    said: list[object] = []
    looks = ModelLooks(job, val, c.Configure(job.to_json(), "none", "one"), said.append)
    for command in commands:
        assert not said
        looks.copy_came(command)
    (event,) = said
    assert isinstance(event, c.ModelLooked) and event.state == STATE
    return event


@pytest.mark.parametrize("mode", ["replicas", "tasks"])
def test_it_counts_what_the_assembled_model_gets_right_and_draws_no_random_number(mode: str) -> None:
    job, plan, trainings = trained(mode)
    commands, val = copies(plan, trainings), samples(30, 9)
    before = torch.random.get_rng_state()
    event = looked(job, val, commands)
    assert torch.equal(before, torch.random.get_rng_state())
    parts = Parts(job, plan)
    states: dict[int, list[tuple[float, dict[str, torch.Tensor]]]] = {}
    for one in trainings:
        states.setdefault(one.part, []).append((16.0, dict(one.trainer.model.state_dict())))
    model = global_model(job, allow_user_code=False)
    model.load_state_dict(parts.assemble({i: [(1.0, parts.mean_of(i, each))] for i, each in states.items()}))
    expected = evaluate(model, [val.tensors()], 4)
    assert (event.samples, event.why) == (30, "")
    assert event.correct == round(expected.accuracy * 30)
    assert event.loss == pytest.approx(expected.loss * 30, rel=1e-4) and event.seconds > 0


def test_of_many_samples_some_are_taken_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MOST_SAMPLES", 10)
    job, plan, trainings = trained("replicas")
    first = looked(job, samples(95, 9), copies(plan, trainings))
    assert first.samples == 10
    again = looked(job, samples(95, 9), copies(plan, trainings))
    assert (again.correct, again.loss) == (first.correct, first.loss)


def test_what_can_not_be_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    job, plan, trainings = trained("tasks")
    commands = copies(plan, trainings)
    last = dataclasses.replace(commands[1], num_copies=3)
    assert looked(job, samples(8, 1), [commands[0], last]).why == "1 of 3 copies were not here any more"
    twice = [commands[0], dataclasses.replace(commands[1], holding=commands[0].holding)]
    assert "part" in looked(job, samples(8, 1), twice).why
    assert looked(job, None, commands).samples == 0
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    event = looked(job, samples(8, 1), commands)
    assert event.samples == 0 and "B of memory" in event.why

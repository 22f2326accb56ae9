"""Groups of real processes on this machine: what is said when one of them ends early."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2ptrain.config import DataConfig, Job
from p2ptrain.core.harvest import Harvest
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment.group import Experiment, PeerShare, check_running
from p2ptrain.experiment.measure import union
from p2ptrain.experiment.processes import LOG_LINES
from p2ptrain.ids import PeerId
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.harvest import TasksHarvest
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan

LOG = "".join(f"line {number}\n" for number in range(100))


@pytest.fixture
def processes() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """One that goes on, and one that has ended."""
    on = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    ended.wait()
    yield {"on": on, "ended": ended}
    on.kill()
    on.communicate()


def test_the_baseline_trains_on_what_the_peers_train_on_and_not_on_what_is_for_validation(tmp_path: Path) -> None:
    rows = np.arange(200, dtype=np.uint8).reshape(200, 1, 1)
    np.savez(tmp_path / "x.npz", x_train=rows, y_train=np.arange(200) % 2)
    data = f"npz:{tmp_path / 'x.npz'}"
    source = open_source(data)
    contract = propose_contract(source)
    experiment = Experiment(Job(data=contract), data, (PeerShare("a", "1/2"), PeerShare("b", "2/2")))
    central = set(union(experiment).x.ravel().tolist())
    held = set(load(source, contract, "val").x.ravel().tolist())
    assert held and central == set(range(200)) - held


def status(**phases: str) -> Any:
    return SimpleNamespace(records=[SimpleNamespace(name=name, phase=phase) for name, phase in phases.items()])


def test_who_ended_or_failed_is_said_with_the_end_of_its_log(
    tmp_path: Path, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    for name in processes:
        (tmp_path / f"{name}.log").write_text(LOG)
    with pytest.raises(P2PTrainError, match="ended ended by itself with status 3") as told:
        check_running(tmp_path, processes, processes.keys(), status())
    lines = str(told.value).splitlines()
    assert len(lines) == LOG_LINES + 1 and lines[-1].strip() == "line 99"
    with pytest.raises(P2PTrainError, match=r"on: its trainer failed[^§]*line 99"):
        check_running(tmp_path, processes, ["on"], status(on="failed"))
    (tmp_path / "on.log").unlink()
    with pytest.raises(P2PTrainError, match="can't be read"):
        check_running(tmp_path, processes, ["on"], status(on="failed"))


def test_who_was_killed_on_purpose_or_is_somebody_else_does_not_count(
    tmp_path: Path, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    check_running(tmp_path, processes, ["on"], status(on="training", ended="failed", other="failed"))


@pytest.mark.parametrize(
    ("mode", "targets", "num_parts"),
    [("tasks", "all", 2), ("tasks", "own", 2), ("tasks", "rest", 2), ("replicas", "all", 1)],
)
def test_parts_that_are_models_of_their_own(mode: str, targets: Any, num_parts: int) -> None:
    data = DataConfig(tuple("abcd"), (1, 12, 12), mean=(0.4,), std=(0.3,))
    job = Job(mode=mode, data=data, tables=(TasksConfig(num_groups=2, targets=targets),))
    peers = [PeerSnapshot(PeerId(letter * 16), 1e9, 0, (9, 9, 9, 9), ()) for letter in "ab"]
    plan = first_plan(job, peers, peers[0].peer)
    parts = Parts(job, plan)
    states = {part.index: dict(parts.submodel(part.index).state_dict()) for part in plan.parts}
    found = TasksHarvest(job, plan, {}, states, ()).part_models()
    classes = [part.classes for part in parts.body.parts]
    assert len(classes) == num_parts and sorted(found) == list(range(num_parts))
    outputs = [{"all": (), "own": own, "rest": (*own, -1)}[targets] for own in classes]
    assert [found[index][1] for index in range(num_parts)] == outputs
    for index, (model, _) in found.items():
        assert all(bool((tensor == states[index][name]).all()) for name, tensor in model.state_dict().items())


def test_a_part_of_a_pipeline_is_no_model_of_its_own() -> None:
    assert Harvest(Job(mode="pipeline"), SimpleNamespace(), {}, {}, ()).part_models() == {}  # type: ignore[arg-type]

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

from p2ptrain.config import Job
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment.group import Experiment, PeerShare, check_running
from p2ptrain.experiment.measure import union
from p2ptrain.experiment.processes import LOG_LINES
from p2ptrain.learning.data import load, open_source, propose_contract

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

"""The benchmark of the neighbours: equal work for all, and what is measured. Nothing is installed here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import bench  # noqa: E402
from benchmarks import environments, neighbours, neighbours_observed  # noqa: E402
from benchmarks.common import Settings  # noqa: E402
from benchmarks.neighbours_groups import WORKERS, write_files  # noqa: E402
from benchmarks.peers import Happened, PeerProcess  # noqa: E402

from p2ptrain.experiment.group import shares  # noqa: E402
from p2ptrain.learning.models import global_model  # noqa: E402
from p2ptrain.learning.training import LocalTrainer  # noqa: E402

ROUNDS = 2


def load_workload() -> ModuleType:
    """As the workers have it: by itself."""
    spec = importlib.util.spec_from_file_location("workload", WORKERS / "workload.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["workload"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def setting(workload: ModuleType, data: Path, job: Any) -> Any:
    t = job.training
    return workload.Setting(
        name="worker",
        number=0,
        data=str(data),
        rounds=t.rounds,
        batch_size=t.batch_size,
        learning_rate=t.learning_rate,
        momentum=t.momentum,
        weight_decay=t.weight_decay,
        warmup=t.warmup,
        max_norm=t.clip,
        seed=job.seed,
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_worker_takes_the_steps_that_a_peer_takes(tmp_path: Path, layout: torch.memory_format) -> None:
    workload, job = load_workload(), neighbours.make_job("p2ptrain replicas", 3, ROUNDS)
    files = write_files(tmp_path, job, shares(3, job.data.classes, "iid"))
    worker = workload.LocalTraining(setting(workload, files.shares[0], job), layout)
    assert worker.steps_per_round == 30
    peer = LocalTrainer(
        global_model(job, allow_user_code=False),
        job.training,
        num_classes=10,
        total_steps=worker.total_steps,
        seed=job.seed,
    )
    for x, y in list(worker._batches())[:8]:
        worker.step(x, y)
        assert peer.step(x, y) == pytest.approx(worker.last_loss, rel=1e-3)
    ours, theirs = peer.model.state_dict(), worker.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)


def test_workers_share_the_samples_as_peers_do(tmp_path: Path) -> None:
    job = neighbours.make_job("hivemind", 0, ROUNDS)
    for split, sizes in (("iid", [479] * 3), ("disjoint", [577, 433, 427])):
        files = write_files(tmp_path, job, shares(3, job.data.classes, split))
        labels = [np.load(path)["y"] for path in files.shares]
        assert [len(y) for y in labels] == sizes and len(np.load(files.everything)["y"]) == 1437
        if split == "disjoint":
            assert all(set(y % 3) == {number} for number, y in enumerate(labels))
        assert all(len(np.load(path)["y_test"]) == 360 for path in files.shares)


def trace(name: str, *events: tuple[float, str, dict[str, Any]]) -> PeerProcess:
    happened = [Happened(at, kind, fields) for at, kind, fields in events]
    return PeerProcess(name, SimpleNamespace(), 0.0, happened)  # type: ignore[arg-type]


def test_going_on_counts_nothing_that_came_from_the_dead() -> None:
    kinds = ("note:round", "note:gossip")
    first = trace("a", (1.0, "note:round", {}), (5.5, "note:round", {}), (5.2, "note:gossip", {"peer": "b"}))
    second = trace("b", (5.3, "note:round", {}), (5.1, "note:gossip", {"peer": "dead"}))
    assert neighbours_observed.when_all_went_on([first, second], kinds, 5.0, "dead") is None
    second.events.append(Happened(7.0, "note:gossip", {"peer": "a"}))
    assert neighbours_observed.when_all_went_on([first, second], kinds, 5.0, "dead") == 7.0
    assert neighbours_observed.when_all_went_on([first], ("note:round",), 5.0, "dead") == 5.5


def test_what_cannot_be_installed_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "neighbour").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: hm\nERROR: No matching distribution for it\n")

    monkeypatch.setenv("P2PTRAIN_BENCHMARKS", str(tmp_path))
    monkeypatch.setattr(environments.subprocess, "run", fail)
    requirements = WORKERS / "requirements-hivemind.txt"
    with pytest.raises(environments.NotInstallableError, match="No matching distribution"):
        environments.ensure("neighbour", requirements)
    assert not (tmp_path / "neighbour").exists() and environments.python_of("neighbour", requirements) is None


def test_an_environment_of_other_requirements_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PTRAIN_BENCHMARKS", str(tmp_path))
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("one==1\n")
    (tmp_path / "name" / "bin").mkdir(parents=True)
    python = tmp_path / "name" / "bin" / "python"
    python.touch()
    assert environments.python_of("name", requirements) is None
    (tmp_path / "name" / environments.STAMP).write_text("one==1\n")
    assert environments.python_of("name", requirements) == python
    requirements.write_text("one==2\n")
    assert environments.python_of("name", requirements) is None


def test_one_neighbour_missing_or_failing_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(name: str, _: Path) -> Path:
        if name == "hivemind":
            raise environments.NotInstallableError("no wheel for this machine")
        return Path(sys.executable)

    def measure(case: neighbours.Case, *_: object, **__: object) -> dict[str, float]:
        if case.framework == "torchft":
            raise TimeoutError("torchft_worker-0: ready: not within 1 s")
        return {"round_s": 1.0}

    monkeypatch.setattr(environments, "ensure", ensure)
    monkeypatch.setattr(environments, "python_of", lambda *_: None)
    monkeypatch.setattr(neighbours, "measure_case", measure)
    samples = list(neighbours.run(Settings(repeat=1)))
    names = [sample.case for sample in samples if not sample.figures]
    assert "hivemind: not installable here: no wheel for this machine" in names
    assert len([name for name in names if name.startswith("iid: torchft: failed: torchft_worker-0")]) == 1
    assert {s.case for s in samples if s.figures} == {
        case.name for case in neighbours.CASES if case.framework in ("central", "p2ptrain replicas", "p2ptrain tasks")
    }
    assert [s.case for s in samples if s.is_baseline] == ["iid: central", "disjoint: central"]


def test_the_notes_state_the_settings() -> None:
    text = "\n".join(neighbours.notes([]))
    assert "hivemind==" in text and "torchft==" in text and "heartbeat_timeout_ms" in text and "12 rounds" in text


@pytest.mark.slow
def test_neighbours_writes_sound_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PTRAIN_BENCHMARKS", str(tmp_path / "none"))
    assert bench.main(["neighbours", "--tiny", "--repeat", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "neighbours.json").read_text())
    figures = {case["case"]: case["figures"] for case in result["cases"]}
    assert figures.keys() == {"iid: central", "iid, one killed: p2ptrain replicas"} and not result["incomplete"]
    assert all(case["ended"]["low"] == 1 for case in figures.values())
    assert {"accuracy_percent", "round_s", "node_peak_rss_mb", "trainer_peak_rss_mb"} <= figures.popitem()[1].keys()

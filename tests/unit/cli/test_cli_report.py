"""The report as a command: it overwrites its own, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run

from p2ptrain.runtime.metrics.recorder import FILE
from p2ptrain.runtime.node.journal import Journal


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P2PTRAIN_STATE", str(tmp_path / "state"))
    metrics = Journal(tmp_path / "state" / FILE)
    metrics.write(1.7e9, "job", job="aa11", name="shapes", mode="split")
    metrics.write(1.7e9, "metrics", job="aa11", peer="p", name="laptop", own=True, phase="training", round=1, loss=0.5)
    metrics.close()
    return tmp_path / "state"


def test_a_page_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["report", "--csv", "figures.csv"], capsys)
    assert status == 0 and "report.html and figures.csv: 1 peer, 1 figure, 0 events" in out
    assert "mode split" in (tmp_path / "report.html").read_text()
    assert "laptop" in (tmp_path / "figures.csv").read_text()
    assert run(["report", "state", "--csv", "figures.csv"], capsys)[0] == 0, "its own are written anew"


def test_other_files_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.html").write_text("my thesis")
    status, _, err = run(["report"], capsys)
    assert status == 2 and "is no report" in err and (tmp_path / "report.html").read_text() == "my thesis"
    assert run(["report", "--force"], capsys)[0] == 0
    assert run(["report", "nowhere"], capsys)[0] == 2
    status, _, err = run(["report", "--job", "zz"], capsys)
    assert status == 2 and "there is aa11" in err

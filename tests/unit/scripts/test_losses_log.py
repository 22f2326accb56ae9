"""What a run with losses keeps of a group that never begins."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

import losses


@contextlib.contextmanager
def a_group(*args: Any) -> Any:
    told = SimpleNamespace(at=1.0, kind="note:waiting", fields={"for": "a plan"})
    peers = [SimpleNamespace(name="device 0", events=[told])]
    yield SimpleNamespace(peers=peers, add_many=lambda count: peers)


def never(*args: Any) -> None:
    raise TimeoutError("no plan")


def test_a_group_that_never_begins_leaves_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LimitedGroup", a_group)
    monkeypatch.setattr(losses, "wait_for_all", never)
    file = tmp_path / "logs" / "a case.log"
    with pytest.raises(TimeoutError, match="no plan"):
        losses.run(losses.Case(lambda scene: None), file)
    assert "device 0 note:waiting" in file.read_text()

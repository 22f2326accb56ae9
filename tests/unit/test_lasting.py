"""What is written lasts, on systems that each ask for it in their own way."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from p2ptrain import lasting
from p2ptrain.config import Job
from p2ptrain.learning.checkpoint import save_model
from p2ptrain.net.private_files import read_private, write_private
from p2ptrain.runtime.store.disk import Disk

FULL = 51


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is asked for on a Mac."""
    made: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: made.append("fsync"))
    mac = SimpleNamespace(F_FULLFSYNC=FULL, fcntl=lambda fd, what: made.append("full" if what == FULL else "other"))
    monkeypatch.setattr(lasting, "fcntl", mac)
    return made


def test_macos_is_asked_to_bring_it_onto_the_drive(tmp_path: Path, calls: list[str]) -> None:
    Disk().write_file(tmp_path / "vote", b"yes")
    assert (tmp_path / "vote").read_bytes() == b"yes" and calls == ["full", "full"], "the file, and its folder"


@pytest.mark.parametrize("system", ["a network disk of a Mac", "Linux", "Windows"])
def test_elsewhere_it_is_fsync(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def refuses(fd: int, what: int) -> None:
        raise OSError(45, "Operation not supported")

    there = {"a network disk of a Mac": SimpleNamespace(F_FULLFSYNC=FULL, fcntl=refuses), "Linux": SimpleNamespace()}
    monkeypatch.setattr(lasting, "fcntl", there.get(system))
    Disk().write_file(tmp_path / "vote", b"yes")
    assert calls == ["fsync", "fsync"]


def test_secrets_and_models_last_there_too(tmp_path: Path, calls: list[str]) -> None:
    write_private(tmp_path / "key", "secret", replace=True)
    assert read_private(tmp_path / "key") == "secret" and calls == ["full", "full"]
    save_model(tmp_path / "model.safetensors", {"w": torch.ones(2)}, Job())
    assert load_file(tmp_path / "model.safetensors")["w"].tolist() == [1, 1] and calls == ["full"] * 4

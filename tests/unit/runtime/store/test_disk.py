"""What is written lasts, on systems that each ask for it in their own way."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2ptrain import whole_files
from p2ptrain.runtime.store.disk import Disk
from p2ptrain.wire import shared_bytes

FULL = 51


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is asked for on a Mac."""
    made: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: made.append("fsync"))
    mac = SimpleNamespace(F_FULLFSYNC=FULL, fcntl=lambda fd, what: made.append("full" if what == FULL else "other"))
    monkeypatch.setattr(whole_files, "fcntl", mac)
    return made


def test_macos_is_asked_to_bring_it_onto_the_drive(tmp_path: Path, calls: list[str]) -> None:
    Disk().write_file(tmp_path / "vote", b"yes")
    assert (tmp_path / "vote").read_bytes() == b"yes" and calls == ["full", "full"], "the file, and its folder"


@pytest.mark.parametrize("system", ["a network disk of a Mac", "Linux", "Windows"])
def test_elsewhere_it_is_fsync(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def refuses(fd: int, what: int) -> None:
        raise OSError(45, "Operation not supported")

    there = {"a network disk of a Mac": SimpleNamespace(F_FULLFSYNC=FULL, fcntl=refuses), "Linux": SimpleNamespace()}
    monkeypatch.setattr(whole_files, "fcntl", there.get(system))
    Disk().write_file(tmp_path / "vote", b"yes")
    assert calls == ["fsync", "fsync"]


def test_no_write_is_larger_than_a_system_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[int] = []
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: largest.append(len(data)) or write(fd, data, at))
    monkeypatch.setattr(shared_bytes, "MAX_WRITE_BYTES", 4)
    Disk().write_file(tmp_path / "blob", b"0123456789")
    assert (tmp_path / "blob").read_bytes() == b"0123456789" and largest == [4, 4, 2]

"""The disk, on systems that each take what they take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2ptrain.runtime.store.disk import Disk
from p2ptrain.wire import shared_bytes


def test_no_write_is_larger_than_a_system_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[int] = []
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: largest.append(len(data)) or write(fd, data, at))
    monkeypatch.setattr(shared_bytes, "MAX_WRITE_BYTES", 4)
    Disk().write_file(tmp_path / "blob", b"0123456789")
    assert (tmp_path / "blob").read_bytes() == b"0123456789" and largest == [4, 4, 2]

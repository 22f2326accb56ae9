"""Loggers beside p2ptrain's own file: TensorBoard's format to the byte, and classes that a person names."""

from __future__ import annotations

import struct
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2ptrain import loggers
from p2ptrain.errors import UserError
from p2ptrain.loggers import TensorBoard, _masked, find_logger


def records(path: Path) -> list[bytes]:
    """As TensorBoard reads them: length, its checksum, data, their checksum."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert data[8:12] == _masked(data[:8]) and data[12 + length : 16 + length] == _masked(body)
        found.append(body)
        data = data[16 + length :]
    return found


def test_events_are_those_of_tensorboards_own_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of ``tensorboard.compat.proto.event_pb2.Event`` 2.21, and a checksum of its ``masked_crc32c``."""
    monkeypatch.setattr("time.time", lambda: 1764.5)
    board = TensorBoard(tmp_path / "runs")
    board.log("laptop", 300, {"loss": 0.25})
    board.close()
    (file,) = (tmp_path / "runs" / "laptop").glob("events.out.tfevents.1764.*")
    version, event = records(file)
    assert version == bytes.fromhex("090000000000929b401a0d627261696e2e4576656e743a32")
    assert event == bytes.fromhex("090000000000929b4010ac022a0d0a0b0a046c6f7373150000803e")
    assert _masked(b"hello") == struct.pack("<I", 0x191C1FBB)


def test_each_peer_is_a_run_whatever_its_name(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for name in ("laptop", "../../etc", "Zoë's board", ""):
        board.log(name, 1, {"loss": 1.0, "round": 2.0})
        board.log(name, 2, {"loss": 0.5})
    board.close()
    runs = sorted(each.relative_to(tmp_path).parts[0] for each in tmp_path.rglob("events*"))
    assert runs == ["Zoë_s board", "_", "_.._etc", "laptop"]
    assert all(len(records(each)) == 3 for each in tmp_path.rglob("events*"))


def test_the_class_that_the_docstring_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (loggers.__doc__ or "").split("\n")
    block = [line for line in lines if not line or line.startswith("    ")]
    (tmp_path / "mine.py").write_text(textwrap.dedent("\n".join(block)))
    calls: list[tuple[object, ...]] = []
    tracker = SimpleNamespace(
        start_run=lambda: calls.append(("start",)),
        end_run=lambda: calls.append(("end",)),
        log_metrics=lambda values, step: calls.append((values, step)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.chdir(tmp_path)
    shown = find_logger("mine:MLflow")()
    shown.log("laptop", 300, {"loss": 0.25})
    shown.close()
    assert calls == [("start",), ({"laptop/loss": 0.25}, 300), ("end",)]


def test_a_class_is_found_in_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_logging.py").write_text(
        "class Good:\n    def log(self, peer, step, values): ...\n    def close(self): ...\n"
        "class Half:\n    def log(self, peer, step, values): ...\n"
    )
    (tmp_path / "mine_that_fails.py").write_text("1 / 0\n")
    assert find_logger("mine_for_logging:Good").__name__ == "Good"
    for name, why in (
        ("mine_for_logging:Half", "close"),
        ("mine_for_logging:None", "no class"),
        ("mine_for_logging", "package.module:Class"),
        ("nowhere_at_all:X", "can't be imported"),
        ("mine_that_fails:X", "ZeroDivisionError"),
    ):
        with pytest.raises(UserError, match=why):
            find_logger(name)

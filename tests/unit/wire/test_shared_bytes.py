"""Bytes that processes hand each other, and their place in messages of node and trainer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest

from p2ptrain.core.commands import Beat, SnapshotTaken
from p2ptrain.modes.registry import commands
from p2ptrain.modes.tasks.commands import Merge, PayloadMade
from p2ptrain.runtime.trainer import process
from p2ptrain.wire import shared_bytes, tensorfile
from p2ptrain.wire.shared_bytes import SHARED_FROM_BYTES, SharedBytes, shared_or_not

KNOWN = commands()


def filled(num_bytes: int = SHARED_FROM_BYTES) -> SharedBytes:
    shared = SharedBytes.create(num_bytes)
    assert shared.write(bytes(range(256)) * (num_bytes // 256), 0) == num_bytes
    return shared


def test_they_are_mapped_and_a_private_copy_is_ones_own() -> None:
    shared = filled()
    view, private = shared.view, shared.private()
    assert len(shared) == len(view) == len(private) and view[255] == private[255] == 255
    private[255] = 1
    assert view[255] == 255 and view.readonly
    shared.write(b"\7", 255)
    assert view[255] == 7 and private[255] == 1
    del shared
    assert view[255] == 7, "what is mapped stays readable"


@pytest.mark.skipif(sys.platform != "linux", reason="sealed memory is Linux's")
def test_nobody_can_make_them_shorter_and_they_have_no_name() -> None:
    shared, before = filled(), set(os.listdir("/dev/shm"))
    with pytest.raises(OSError):
        os.truncate(shared.fd, 10)
    assert set(os.listdir("/dev/shm")) <= before, "nothing is left by whoever is killed"


def test_a_file_is_closed_with_them() -> None:
    fd = filled().fd
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_deleted_file_does_where_there_is_no_nameless_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_bytes.sys, "platform", "darwin")
    assert filled().view[255] == 255


def test_a_linux_whose_python_knows_no_nameless_memory_has_a_deleted_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    for name in ("F_ADD_SEALS", "F_SEAL_SHRINK", "F_SEAL_GROW"):
        monkeypatch.delattr(fcntl, name, raising=False)
    assert filled().view[255] == 255


def test_no_write_is_too_large_for_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_bytes, "MAX_WRITE_BYTES", 100)
    assert bytes(filled().view[:256]) == bytes(range(256))


def test_few_bytes_and_a_system_without_files_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_or_not(SHARED_FROM_BYTES - 1) is None and shared_or_not(SHARED_FROM_BYTES) is not None

    def none_left(*_: object) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(shared_bytes, "_new_file", none_left)
    assert shared_or_not(SHARED_FROM_BYTES) is None
    array = np.ones(SHARED_FROM_BYTES, np.uint8)
    assert tensorfile.pack_to_share({"x": array}) == tensorfile.pack({"x": array})


def test_a_file_shorter_than_is_said_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(OSError, match="less than 4 bytes"):
        SharedBytes(os.open(tmp_path / "short", os.O_RDONLY), 4)


@pytest.mark.parametrize("num_floats", [3, SHARED_FROM_BYTES])
def test_tensors_are_laid_out_alike_wherever_they_are_written(num_floats: int) -> None:
    arrays = {
        "b": np.arange(num_floats, dtype=np.float32),
        "a": np.array([True, False]),
        "none": np.zeros((0, 2), "f2"),
    }
    made = tensorfile.pack_to_share(arrays, {"k": "v"})
    assert isinstance(made, SharedBytes) == (num_floats > 3)
    assert bytes(made.view if isinstance(made, SharedBytes) else made) == tensorfile.pack(arrays, {"k": "v"})


# --- messages ---------------------------------------------------------------------------------------------------------


def test_what_is_shared_goes_from_trainer_to_node_and_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process._send(theirs, Beat("works"))
        process._send(theirs, PayloadMade(3, (("part", 1.5),), filled()))
        process._send(theirs, SnapshotTaken(0, 1, 2, 3, 0.5, True, False, b"small"))
        assert process._receive(ours, KNOWN, process._kept) == Beat("works")
        made = process._receive(ours, KNOWN, process._kept)
        assert isinstance(made, PayloadMade) and made.masses == (("part", 1.5),)
        assert isinstance(made.payload, SharedBytes) and made.payload.view[255] == 255
        taken = process._receive(ours, KNOWN, process._kept)
        assert isinstance(taken, SnapshotTaken) and taken.snapshot == b"small"

        process._send(ours, Merge(4, "peer", (), made.payload, True))  # type: ignore[arg-type]
        link = process.NodeLink(os.dup(theirs.fileno()))
        merge = link.receive(block=True)
        assert isinstance(merge, Merge) and isinstance(merge.payload, mmap) and merge.payload[255] == 255
        assert link.receive(block=False) is None


def test_without_a_file_left_a_payload_comes_as_one_that_was_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    real = socket.recv_fds

    def lost(link: socket.socket, size: int, most: int, flags: int = 0) -> object:
        data, files, flags, address = real(link, size, most, flags)
        for file in files:
            os.close(file)
        return data, [], flags, address

    monkeypatch.setattr(process.socket, "recv_fds", lost)
    with ours, theirs:
        process._send(theirs, PayloadMade(3, (("part", 1.5),), filled()))
        made = process._receive(ours, KNOWN, process._kept)
        assert isinstance(made, PayloadMade) and made.masses and not made.payload, "its masses come back"
        process._send(ours, Merge(4, "peer", (), filled(), True))  # type: ignore[arg-type]
        with pytest.raises(OSError, match="can't be opened"):
            process.NodeLink(os.dup(theirs.fileno())).receive(block=True)


def test_a_process_that_is_killed_leaves_what_it_handed_over(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    program = (
        "import os, signal, socket, sys\n"
        "from p2ptrain.modes.tasks.commands import PayloadMade\n"
        "from p2ptrain.runtime.trainer import process\n"
        "from p2ptrain.wire.shared_bytes import SharedBytes\n"
        "shared = SharedBytes.create(1 << 20)\n"
        "shared.write(b'here', 0)\n"
        "process._send(socket.socket(fileno=int(sys.argv[1])), PayloadMade(1, (), shared))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with ours, theirs:
        child = subprocess.Popen([sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        try:
            made = process._receive(ours, KNOWN, process._kept)
            child.wait(60.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    assert isinstance(made, PayloadMade) and isinstance(made.payload, SharedBytes)
    assert bytes(made.payload.view[:4]) == b"here"

"""The node's end of the trainer process, with another process in its place."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from p2ptrain.core.commands import Stop, TrainerFailed
from p2ptrain.net.limits import raise_open_files
from p2ptrain.runtime.trainer import process
from p2ptrain.runtime.trainer.process import NodeLink, TrainerProcess

WAIT_S = 60.0


class Stuck:
    """A terminal after Ctrl-S."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def write(self, text: str) -> int:
        self.goes_on.wait(WAIT_S)
        return len(text)

    def flush(self) -> None:
        pass


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """``program`` runs where the trainer would."""
    real = subprocess.Popen

    def started(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", program, command[-1]], **options)

    monkeypatch.setattr(process.subprocess, "Popen", started)


def test_what_a_trainer_prints_never_holds_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "for _ in range(20_000): print('x' * 100)")
    terminal = Stuck()
    monkeypatch.setattr(sys, "stderr", terminal)

    async def scene() -> object:
        heard = asyncio.get_running_loop().create_future()
        trainer = TrainerProcess(heard.set_result)
        await trainer.start()
        try:
            return await asyncio.wait_for(heard, WAIT_S)
        finally:
            terminal.goes_on.set()
            await trainer.stop()

    said = asyncio.run(scene())
    assert isinstance(said, TrainerFailed) and "status 0" in said.detail, "it came to its end"


@pytest.mark.skipif(raise_open_files() <= 1100, reason="no more than 1,100 files may be open here")
def test_a_trainer_of_a_node_with_a_thousand_open_files_hears_its_commands() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = NodeLink(fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 1100))
        assert not link.waits_for_one(0)
        process._send(ours, Stop())
        assert link.waits_for_one(WAIT_S) and link.receive(block=False) == Stop()

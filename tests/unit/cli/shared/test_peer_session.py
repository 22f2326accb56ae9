"""What ends a running peer, and what does not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from p2ptrain.cli.shared.peer_session import _Session
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.outlet import Aside, Outlet


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_its_goodbye(name: signal.Signals) -> None:
    async def scene() -> None:
        session = _Session(PeerOptions("", "peer"), Path(), quiet=True, as_json=False)
        session.catch_signals()
        os.kill(os.getpid(), name)
        await asyncio.wait_for(session.until.wait(), 100)

    asyncio.run(scene())


def test_under_nohup_a_terminal_that_closes_is_no_reason_to_stop() -> None:
    async def scene() -> None:
        session = _Session(PeerOptions("", "peer"), Path(), quiet=True, as_json=False)
        session.catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)  # one that is heard, after the one that is not
        await asyncio.wait_for(session.until.wait(), 100)
        assert session._num_signals == 1

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(scene())
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_nobody_can_read_has_its_line_in_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    session = _Session(PeerOptions("", "peer"), Path(), quiet=True, as_json=True)
    notes: list[Note] = []
    session._node = cast(PeerNode, SimpleNamespace(note=notes.append, journal=SimpleNamespace(lost=0)))
    outlet = Outlet("test")
    reads, writes = os.pipe()
    with open(writes, "w") as stream:
        monkeypatch.setattr(sys, "stdout", Aside(stream, outlet))
        sys.stdout.write("read\n")
        assert outlet.flush(60)
        session._look_at_output()
        assert not notes
        os.close(reads)  # a terminal that is closed, a pager that has ended
        told = []
        for _ in range(8):
            sys.stdout.write("lost\n")
            assert outlet.flush(60)
            session._look_at_output()
            told = [dict(note.fields)["lines"] for note in notes]
        monkeypatch.undo()
    outlet.close()
    assert told == [1, 2, 4, 8], "a line about lost lines, which is lost too, brings no next one for ever"
    assert {note.kind for note in notes} == {"output-lost"}


def test_a_journal_that_cannot_be_written_is_said_once_and_as_it_grows(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()  # as one of another user's
    journal = Journal(tmp_path / "journal.jsonl")
    session = _Session(PeerOptions("", "peer"), tmp_path, quiet=True, as_json=True)
    session._node = cast(PeerNode, SimpleNamespace(note=None, journal=journal))
    said: list[str] = []
    session._say = lambda text, kind="note": said.append(text)  # type: ignore[method-assign]
    for number in range(4):
        session._look_at_output()
        journal.write(float(number), "joined")
    session._look_at_output()
    assert [int(text.split(": ")[1].split()[0]) for text in said] == [1, 2, 4] and "can't be written" in said[0]

"""What ends a running peer, and what does not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from p2ptrain.cli.shared.peer_session import _Session
from p2ptrain.runtime.node.peer_options import PeerOptions


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_its_goodbye(name: signal.Signals) -> None:
    async def scene() -> None:
        session = _Session(PeerOptions("", "peer"), Path(), quiet=True, as_json=False)
        session.catch_signals()
        os.kill(os.getpid(), name)
        await asyncio.wait_for(session.until.wait(), 10)

    asyncio.run(scene())


def test_under_nohup_a_terminal_that_closes_is_no_reason_to_stop() -> None:
    async def scene() -> None:
        session = _Session(PeerOptions("", "peer"), Path(), quiet=True, as_json=False)
        session.catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)  # one that is heard, after the one that is not
        await asyncio.wait_for(session.until.wait(), 10)
        assert session._num_signals == 1

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(scene())
    finally:
        signal.signal(signal.SIGHUP, before)

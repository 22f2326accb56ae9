"""Visits over real sockets on loopback: whoever looks at a group leaves nothing in a peer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from p2ptrain import api
from p2ptrain.net.keys import Group, new_group, new_identity
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.store.state_dir import StateDir

NUM_VISITS = 600
"""More than a peer of a thousand descriptors and two a visit lived to see."""
AT_ONCE = 24
DEADLINE_S = 200.0


def peer_node(group: Group, state: Path, peers: tuple[str, ...] = ()) -> PeerNode:
    """One without a job: it waits for one, and answers."""
    network = NetworkConfig(("127.0.0.1",), peers=peers, discover=False)
    return PeerNode(new_identity(), group, network, PeerOptions("", "peer"), StateDir(state), Journal(None))


def endpoint(node: PeerNode) -> str:
    return node.addresses()[0].removeprefix("tcp://")


async def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


@pytest.mark.timeout(900)
def test_visits_leave_nothing(tmp_path: Path) -> None:
    async def visit(group: Group, node: PeerNode, turn: asyncio.Semaphore) -> None:
        async with turn:
            network = NetworkConfig(("127.0.0.1",), peers=(endpoint(node),), discover=False)
            found = await api.status(group, network=network, wait_s=DEADLINE_S)
            assert [record.peer for record in found.records] == [node.identity.peer]

    async def scene() -> None:
        group = new_group()
        node = peer_node(group, tmp_path)
        await node.start()
        turn, process = asyncio.Semaphore(AT_ONCE), psutil.Process()
        try:
            await visit(group, node, turn)  # what is opened once is open now
            core = node.core
            assert core is not None
            await until(lambda: not core.sessions.peers(), "the first visitor is still here")
            before, tasks = process.num_fds(), len(asyncio.all_tasks())
            started = time.monotonic()
            await asyncio.gather(*(visit(group, node, turn) for _ in range(NUM_VISITS)))
            took = time.monotonic() - started
            await until(lambda: not core.sessions.peers(), "visitors are still here")
            await until(lambda: process.num_fds() <= before, "descriptors are still open")
            await until(lambda: len(asyncio.all_tasks()) <= tasks, "tasks are still running")
            print(f"{before} descriptors before, {process.num_fds()} after {NUM_VISITS} visits in {took:.1f} s")
            assert node.failure is None
        finally:
            await node.close()
            node.state.close()

    asyncio.run(scene())

"""A new code over real sockets: who stays follows, whoever slept too, and who was removed is out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2ptrain import api
from p2ptrain.errors import UserError
from p2ptrain.net.group import courier
from p2ptrain.net.group.admission import admit
from p2ptrain.net.group.founding import found
from p2ptrain.net.group.kept import KeptGroup, join_group, load_kept, save_kept
from p2ptrain.net.keys import Group, load_or_make_identity
from p2ptrain.runtime import new_code
from p2ptrain.runtime.node import group_codes
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.store.members import APPLICANTS, load_members

WAIT_S = 100.0
"""Generous: a loaded machine is slow."""


def two_free_ports() -> int:
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", port + 1))
                return port


async def until(is_true: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_true():
            await asyncio.sleep(0.02)
    assert is_true(), what


class Device:
    """A state directory and a port; its peer runs while ``running``."""

    def __init__(self, folder: Path, group: Group, known: tuple[str, ...] = ()) -> None:
        self.state = folder
        self.name = folder.name
        self.port = two_free_ports()
        self.known = known
        self.node: PeerNode | None = None
        self.codes: list[Group] = []
        """Under which it listened, one after the other."""
        self._task: asyncio.Task[None] | None = None
        self._until = asyncio.Event()
        self.identity = load_or_make_identity(folder)
        join_group(folder, group)

    @property
    def network(self) -> NetworkConfig:
        return NetworkConfig(("127.0.0.1",), self.port, self.known, discover=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def group(self) -> Group:
        kept = load_kept(self.state)
        assert kept is not None
        return kept.group

    def start(self) -> None:
        def started(node: PeerNode) -> None:
            self.node = node
            self.codes.append(node.group)

        self._until = asyncio.Event()
        options = PeerOptions(name=self.name, flops_per_s=0.0, device="cpu", num_threads=1)
        running = api.run_peer(
            self.group, options, network=self.network, state_dir=self.state, until=self._until, on_start=started
        )
        self._task = asyncio.create_task(running)

    def sees(self, *others: Device) -> bool:
        peer = self.node._peer if self.node is not None else None
        return peer is not None and {each.identity.peer for each in others} <= set(peer.group.alive())

    def knocked_in_vain(self, times: int) -> bool:
        sessions = self.node.core.sessions if self.node is not None and self.node.core is not None else None
        return sessions is not None and not sessions.peers() and any(e.attempts >= times for e in sessions.unanswered())

    async def stop(self) -> None:
        self._until.set()
        if self._task is not None:
            await self._task
        self._task = None

    async def ended(self) -> str:
        """Why it ended by itself."""
        assert self._task is not None
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(UserError) as error:
                await self._task
        self._task = None
        return str(error.value)


def visit(*devices: Device) -> NetworkConfig:
    return NetworkConfig(("127.0.0.1",), peers=tuple(each.address for each in devices), discover=False)


@asynccontextmanager
async def room(folder: Path, *names: str, approves: bool = False) -> AsyncIterator[list[Device]]:
    """The first has made the group."""
    identity = load_or_make_identity(folder / names[0])
    founding = found(identity.public)
    group = founding.group(approves=approves)
    word = admit(identity, group, identity.public) if approves else b""
    save_kept(folder / names[0], KeptGroup(group, founding, word))
    first = Device(folder / names[0], group)
    devices = [first, *(Device(folder / name, group, (first.address,)) for name in names[1:])]
    try:
        yield devices
    finally:
        await asyncio.gather(*(each.stop() for each in devices), return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_codes, "LOOK_S", 0.05)
    monkeypatch.setattr(courier, "LOOK_S", 0.05)
    monkeypatch.setattr(courier, "AGAIN_S", 0.5)
    monkeypatch.setattr(courier, "MAX_AGAIN_S", 1.0)


def test_who_stays_follows_who_slept_too_and_who_was_removed_is_out(tmp_path: Path) -> None:
    async def test() -> None:
        async with room(tmp_path, "maker", "stays", "sleeps", "goes") as devices:
            maker, stays, sleeps, goes = devices
            for each in devices:
                each.start()
            await until(lambda: maker.sees(stays, sleeps, goes) and goes.sees(stays), "all met")
            old = maker.group
            await until(lambda: len(load_members(maker.state, old.tag)) == 3, "the maker knows all")
            await sleeps.stop()

            network = visit(maker)
            rotation = await new_code.plan_rotation(maker.state, ["goes"], network)
            assert {each.name for each in rotation.stay.values()} == {"stays", "sleeps"}
            kept, notice = new_code.keep_rotation(maker.state, rotation)
            arrived = await new_code.spread(rotation, kept, notice, network, wait_s=WAIT_S)
            assert arrived == {stays.identity.peer}
            assert "removed" in await goes.ended()
            await until(lambda: maker.sees(stays) and stays.sees(maker), "those that stay met again")
            assert maker.codes == stays.codes == [old, kept.group] and stays.group == kept.group != old

            goes.start()  # with all that it has
            await until(lambda: goes.knocked_in_vain(2), "the removed one tries to get in")
            assert not any(each.sees(goes) for each in (maker, stays)) and goes.group == old
            await goes.stop()

            sleeps.start()
            await until(lambda: sleeps.sees(maker, stays) and maker.sees(sleeps), "who slept is in again")
            assert sleeps.codes[-1] == kept.group == sleeps.group
            assert not any(each.sees(goes) for each in (maker, stays, sleeps))

    asyncio.run(test())


def test_in_a_group_that_admits_one_by_one_the_code_alone_lets_nobody_in(tmp_path: Path) -> None:
    async def test() -> None:
        async with room(tmp_path, "maker", "member", "asks", approves=True) as (maker, member, asks):
            tag = maker.group.tag
            asks.known = (maker.address, member.address)
            for each in (maker, member, asks):
                each.start()
            await until(lambda: load_members(maker.state, tag, APPLICANTS).keys() >= {asks.identity.peer}, "it asks")
            await until(lambda: len(new_code.asking(maker.state)) == 2, "both ask")
            assert not maker.sees(asks) and not maker.sees(member)
            with pytest.raises(UserError, match="one by one"):
                await api.status(member.group, network=visit(maker), state_dir=member.state)

            assert set(new_code.approve(maker.state, ["member"])) == {member.identity.peer}
            await until(lambda: maker.sees(member) and member.sees(maker), "who was let in is in")
            await until(lambda: asks.knocked_in_vain(3), "the other tries")
            assert not any(each.sees(asks) for each in (maker, member))
            found = await api.status(member.group, network=visit(maker, member), wait_s=WAIT_S, state_dir=member.state)
            assert {record.name for record in found.records} == {"maker", "member"}

            rotation = await new_code.plan_rotation(maker.state, [], visit(maker))
            kept, notice = new_code.keep_rotation(maker.state, rotation)
            assert kept.group.approves
            arrived = await new_code.spread(rotation, kept, notice, visit(maker, member), wait_s=WAIT_S)
            assert arrived == {member.identity.peer}
            await until(lambda: maker.sees(member) and member.sees(maker), "they met again")
            assert not maker.sees(asks)

    asyncio.run(test())

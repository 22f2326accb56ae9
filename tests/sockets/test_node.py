"""The I/O shell by itself: what it does beside, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2ptrain.core.commands import TrainerFailed
from p2ptrain.net.keys import new_group, new_identity
from p2ptrain.runtime.node.journal import Journal, Line
from p2ptrain.runtime.node.node import NetworkConfig, Node
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.store.state_dir import StateDir

WAIT_S = 60.0


def in_a_node(
    scene: Callable[[Node, list[Any]], Any], hear: Callable[[Line], None] = lambda line: None
) -> tuple[Node, list[Any]]:
    """A node that listens nowhere, and what ``scene`` made it say."""
    said: list[Any] = []

    async def play() -> Node:
        journal = Journal(None, on_line=hear)
        node = Node(new_identity(), new_group(), NetworkConfig(("127.0.0.1",), discover=False), journal)
        await asyncio.wait_for(scene(node, said), WAIT_S)
        await asyncio.wait_for(node.close(), WAIT_S)
        return node

    return asyncio.run(play()), said


@pytest.mark.parametrize("how", ["in_thought", "on_disk"])
def test_the_loop_goes_on_while_something_takes_long(how: str) -> None:
    async def scene(node: Node, said: list[Any]) -> None:
        goes_on = threading.Event()
        done = asyncio.get_running_loop().create_future()
        work = lambda: goes_on.wait(WAIT_S)  # noqa: E731
        if how == "in_thought":
            node.in_thought(work, done.set_result)
        else:
            node.on_disk(work, lambda result, error: done.set_result(result))
        await asyncio.sleep(0)
        goes_on.set()  # nobody could, if the loop waited for the work
        said.append(await done)

    assert in_a_node(scene)[1] == [True]


def test_thoughts_end_in_the_order_in_which_they_began() -> None:
    async def scene(node: Node, said: list[Any]) -> None:
        done = asyncio.get_running_loop().create_future()
        for number in range(5):
            node.in_thought(lambda number=number: number, said.append)
        node.in_thought(lambda: None, done.set_result)
        await done

    assert in_a_node(scene)[1] == list(range(5))


def test_a_thought_that_fails_ends_the_node_and_says_why() -> None:
    async def scene(node: Node, said: list[Any]) -> None:
        node.in_thought(lambda: 1 // 0, said.append)
        await node.wait_finished()

    node, said = in_a_node(scene)
    assert isinstance(node.failure, ZeroDivisionError) and said == []


def test_a_node_does_not_wait_for_a_thought_to_end() -> None:
    enough = threading.Event()

    async def scene(node: Node, said: list[Any]) -> None:
        node.in_thought(lambda: enough.wait(2 * WAIT_S), said.append)
        await asyncio.sleep(0)

    try:
        _, said = in_a_node(scene)
        assert said == [] and not enough.is_set()
    finally:
        enough.set()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_what_comes_in_while_it_closes_is_nobody_s_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour that goes at the same time, a read that is answered, a dial: all was to be done by who is gone."""

    async def scene(node: Node, said: list[Any]) -> None:
        close = node.transport.close

        async def late(linger_s: float) -> None:
            node.feed(lambda now: said.append("fed"))  # type: ignore[arg-type, return-value]
            node.on_disk(lambda: 1 // 0, lambda result, error: said.append("on disk"))
            node.in_thought(lambda: 1 // 0, said.append)
            node.later(0.0, lambda: said.append("later"))
            await close(linger_s)
            node.transport.dial("tcp://127.0.0.1:9")

        monkeypatch.setattr(node.transport, "close", late)

    node, said = in_a_node(scene)
    assert node.failure is None and said == []


def test_what_fails_while_it_closes_is_noted_and_does_not_end_it_in_failure() -> None:
    lines: list[Line] = []

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            raise ZeroDivisionError("at the end")

    async def scene(node: Node, said: list[Any]) -> None:
        node._spawn(fails_when_cancelled())
        await asyncio.sleep(0)

    node, _ = in_a_node(scene, lines.append)
    assert node.failure is None
    assert [(line.kind, line.fields["what"]) for line in lines] == [
        ("failed-while-closing", "ZeroDivisionError: at the end")
    ]


def test_what_fails_after_the_last_words_is_noted_and_no_failure_of_the_peer() -> None:
    lines: list[Line] = []

    async def scene(node: Node, said: list[Any]) -> None:
        node._says_goodbye = True
        with pytest.raises(ZeroDivisionError):
            node.feed(lambda now: [1 // 0])

    node, _ = in_a_node(scene, lines.append)
    assert node.failure is None and [line.kind for line in lines] == ["failed-while-closing"]


def test_a_trainer_that_fails_during_the_goodbye_is_not_replaced(tmp_path: Path) -> None:
    lines: list[Line] = []

    async def play() -> PeerNode:
        state, journal = StateDir(tmp_path), Journal(None, on_line=lines.append)
        network = NetworkConfig(("127.0.0.1",), discover=False)
        node = PeerNode(new_identity(), new_group(), network, PeerOptions(data="", name="peer"), state, journal)
        node._says_goodbye = True
        node._trainer_said(TrainerFailed("told to stop in the middle of something", user_error=True))
        await node._start_trainer()
        await node.close()
        state.close()
        return node

    node = asyncio.run(play())
    assert node.failure is None and node.trainer is None
    assert [line.kind for line in lines] == ["trainer-failed-at-the-end"]

"""The I/O shell by itself: what it does beside, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from p2ptrain.net.keys import new_group, new_identity
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig, Node

WAIT_S = 10.0


def in_a_node(scene: Callable[[Node, list[Any]], Any]) -> tuple[Node, list[Any]]:
    """A node that listens nowhere, and what ``scene`` made it say."""
    said: list[Any] = []

    async def play() -> Node:
        node = Node(new_identity(), new_group(), NetworkConfig(("127.0.0.1",), discover=False), Journal(None))
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

"""When the way to a lost peer is looked at."""

from __future__ import annotations

import asyncio

from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.path_watch import AGAIN_S, MAX_REMEMBERED, PathWatch

ADDRESS = "tcp://10.0.0.2:5710"


def admitted(peer: str = "p", address: str = ADDRESS) -> Note:
    return Note("admitted", (("peer", peer), ("address", address)))


def closed(reason: str, peer: str = "p") -> Note:
    return Note("link-closed", (("peer", peer), ("reason", reason)))


def test_a_loss_is_looked_into_and_a_goodbye_is_not() -> None:
    now = [0.0]
    watch = PathWatch(lambda note: None, clock=lambda: now[0])
    assert watch.heard(closed("failed")) is None, "never admitted"
    assert watch.heard(admitted()) is None and watch.heard(closed("goodbye")) is None
    assert watch.heard(closed("failed")) == ADDRESS
    assert watch.heard(closed("failed")) is None, "not again so soon"
    now[0] = AGAIN_S
    assert watch.heard(closed("failed")) == ADDRESS
    now[0] = 2 * AGAIN_S
    assert watch.heard(Note("asked-again", (("peer", "p"),))) == ADDRESS, "what was sent does not seem to arrive"
    for number in range(2 * MAX_REMEMBERED):
        watch.heard(admitted(f"p{number}"))
    assert len(watch._addresses) == MAX_REMEMBERED


def test_only_what_is_lost_or_slow_is_told() -> None:
    async def scene(passage: str, took_s: float = 0.1) -> list[Note]:
        told: list[Note] = []

        async def look(address: str) -> tuple[str, float]:
            return passage, took_s

        await PathWatch(told.append, look).look(ADDRESS)  # type: ignore[arg-type]
        return told

    assert asyncio.run(scene("lost")) == [Note("large-packets-lost", (("address", ADDRESS),))]
    assert asyncio.run(scene("passes")) == asyncio.run(scene("unknown", 9.0)) == []
    assert asyncio.run(scene("passes", 7.2)) == [Note("slow-way", (("address", ADDRESS), ("took_s", 7.2)))]

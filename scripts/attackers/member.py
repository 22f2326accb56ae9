"""A whole peer that plays along, so that it is planned with, and lies beside its honest words: its masses, its samples.

Invariant: what it trains and sends is honest; what it says of how much that counts for is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2ptrain import api
from p2ptrain.errors import P2PTrainError
from p2ptrain.net.keys import Group
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.wire import messages as m

MASS = 1e15
SAMPLES = 2**62
LIE_S = 1.0


async def play_along(group: Group, addresses: Sequence[str], data: str, state: Path, life_s: float) -> Counter[str]:
    """For so long; how often it lied. What ends it sooner is nobody's trouble."""
    told: Counter[str] = Counter()
    until = asyncio.Event()
    liars: list[asyncio.Task[None]] = []

    def started(node: Any) -> None:
        _overstate_masses(node, told)
        liars.append(asyncio.ensure_future(_overstate_samples(node, told)))

    options = PeerOptions(data=data, name="liar", shard="1/4", flops_per_s=1e9, num_threads=1, device="cpu")
    network = NetworkConfig(("127.0.0.1",), peers=tuple(addresses), discover=False)
    asyncio.get_running_loop().call_later(life_s, until.set)
    with contextlib.suppress(P2PTrainError):
        await api.run_peer(
            group,
            dataclasses.replace(options, keep_model=False),
            network=network,
            state_dir=state,
            until=until,
            on_start=started,
        )
    for liar in liars:
        liar.cancel()
    return told


def _overstate_masses(node: Any, told: Counter[str]) -> None:
    """Of all that it pushes and answers."""
    sessions = node.core.sessions
    send = sessions.send

    def lie(to: Any, message: m.Message, *rest: Any) -> Any:
        if isinstance(message, m.GossipPush):
            told["mass of 1e15"] += 1
            masses = tuple(dataclasses.replace(each, mass=MASS) for each in message.masses)
            message = dataclasses.replace(message, masses=masses)
        return send(to, message, *rest)

    sessions.send = lie


async def _overstate_samples(node: Any, told: Counter[str]) -> None:
    """In its record, again and again, as its own trainer says otherwise."""
    while True:
        await asyncio.sleep(LIE_S)
        told["2^62 samples"] += 1
        node.feed(lambda now: node.core.run(node.core.records.update(now, samples=SAMPLES), now))

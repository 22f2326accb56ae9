"""A holder of the code that is admitted like anybody, as one who only looks, and sends whatever it likes.

Invariant: it has a key of its own each time, so that a ban of the last one costs it nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Sequence

from attackers.made_up import CALM, random_message, spoilt
from p2ptrain.ids import JobId, PeerId
from p2ptrain.net.keys import Group
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.signing import Statements
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.messages import Lane, Message, Record, Records, SnapshotRef

LOOPBACK = "127.0.0.1"
ADMISSION_S = 60.0


class Listener(ObserverNode):
    """Once ``is_deaf``, it never reads on from what comes next over the bulk lane."""

    is_deaf = False

    async def _frames(self, lane: Lane, sender_key: bytes, frames: list[bytes]) -> None:
        if lane == "bulk" and self.is_deaf:
            await asyncio.Event().wait()
        await super()._frames(lane, sender_key, frames)


class Insider:
    """A context. ``addresses``: ``HOST:PORT`` of peers that it dials; ``target`` is whom it talks to."""

    def __init__(self, group: Group, addresses: Sequence[str], rng: random.Random) -> None:
        self.group = group
        self.rng = rng
        self.num_sent: Counter[str] = Counter()
        self.target = PeerId("")
        network = NetworkConfig((LOOPBACK,), peers=tuple(addresses), discover=False)
        self.node = Listener(group, network)
        self.said = Statements(signing_of(self.node.identity), group.proof_key)

    async def __aenter__(self) -> Insider:
        await self.node.start()
        deadline = time.monotonic() + ADMISSION_S
        while not (admitted := self.node.observer.sessions.peers()):
            if time.monotonic() > deadline:
                await self.node.close()
                raise TimeoutError(f"not admitted within {ADMISSION_S:g} s")
            await asyncio.sleep(0.01)
        self.target = admitted[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.close()

    def made(self, ref: SnapshotRef) -> SnapshotRef:
        """In its own name, and signed with its key."""
        own, told = self.node.identity, self.node.observer.records.get(self.target)
        job = told.job if told is not None else JobId(self.node.observer.job_id)
        return self.said.made(dataclasses.replace(ref, trainer=own.peer), own.peer, own.public, job)

    def targets(self) -> list[PeerId]:
        """Those that it has a session with now."""
        return list(self.node.observer.sessions.peers())

    def frames(self, message: Message, epoch: int = 1) -> list[bytes]:
        """As they should be, in the session with ``target``; none where there is no session any more."""
        observer = self.node.observer
        effects = observer.sessions.send(self.target, message, observer.job_id, epoch, self.node.now())
        return list(effects[0].frames) if effects else []  # type: ignore[union-attr]

    async def send(self, what: str, lane: Lane, frames: list[bytes]) -> None:
        """Over the link to ``target``; counted as ``what``."""
        address = self.node.observer.sessions.address_of(self.target)
        if address is None or not frames:
            return
        self.num_sent[what] += 1
        self.node.transport.send(address, lane, frames)
        if sum(self.num_sent.values()) % 16 == 0:
            await asyncio.sleep(0.003)

    def random_message(self) -> Message:
        message: Message = random_message(self.rng.choice(CALM), self.rng)
        if isinstance(message, Records) and self.rng.random() < 0.7:
            message = Records((self.own_record(),))
        return message

    def own_record(self) -> Record:
        """Of a peer that claims anything: this job, another, any plan, holdings that nobody has."""
        made: Record = random_message(Record, self.rng)
        job = self.rng.choice(["", made.job, self.node.observer.job_id])
        identity = self.node.identity
        own = dataclasses.replace(made, peer=identity.peer, key=identity.public, job=job, addresses=())
        return self.said.signed(own)

    def spoilt(self) -> tuple[str, Lane, list[bytes]]:
        """What was done to a message, its lane, and the frames that came of it."""
        message = self.random_message()
        frames = self.frames(message)
        return spoilt(self.rng, message, frames) if frames else ("gone", "control", [])

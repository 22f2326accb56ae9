"""What the simulations of large groups share: links between peers, and counting bytes.

Invariant: the bytes counted are those of the frames that the codec makes of the very messages sent, without
encryption, ZeroMQ and TCP (which add some 60 a message).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from p2ptrain.protocol.machine import Send
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Message

NUM_WATCHED = 24
"""Peers whose bytes are counted; all are alike."""


def frame_bytes(message: Message) -> int:
    """On the wire, with an envelope as of a group that trains."""
    return sum(map(len, codec.encode(message, session=bytes(8), sequence=1_000_000, job="0" * 16, epoch=1)))


def neighbours(num_peers: int, num_links: int, rng: random.Random) -> list[list[int]]:
    """Of each peer ``num_links`` others (an even number; all in a small group), both ways: a circle's random chords."""
    if num_links >= num_peers - 1:
        return [[other for other in range(num_peers) if other != own] for own in range(num_peers)]
    chords = rng.sample(range(1, (num_peers - 1) // 2 + 1), num_links // 2)
    return [[(own + sign * chord) % num_peers for chord in chords for sign in (1, -1)] for own in range(num_peers)]


@dataclass(slots=True)
class Meter:
    """Bytes that the watched peers send while it runs."""

    running: bool = False
    num_bytes: int = 0

    def counted(self, effects: list[object]) -> list[object]:
        """The same effects, once what they send is counted."""
        if self.running:
            self.num_bytes += sum(frame_bytes(effect.message) for effect in effects if isinstance(effect, Send))
        return effects

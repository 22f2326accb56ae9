"""What ``Sessions`` wants done, and what it tells the other state machines.

Invariant: plain data; only the transport and ``runtime/`` act on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import MessageReceived, Note
from p2ptrain.wire.codec import Envelope
from p2ptrain.wire.messages import Admitted, Lane, NewCode
from p2ptrain.wire.schema import RawBytes


@dataclass(frozen=True, slots=True)
class Dial:
    """Open the links to a control address; ``bulk_address`` is "" until it is known (then ``Dial`` comes again)."""

    address: str
    bulk_address: str = ""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the links to an address, and forget what waits to be sent there."""

    address: str


@dataclass(frozen=True, slots=True)
class SendFrames:
    """Send over the ``lane`` of the neighbour that ``address`` (its control address) names."""

    address: str
    lane: Lane
    frames: Sequence[RawBytes]


@dataclass(frozen=True, slots=True)
class PeerAdmitted:
    peer: PeerId
    key: bytes
    address: str
    software: str


@dataclass(frozen=True, slots=True)
class PeerDropped:
    """``reason``: "restarted", "banned", "goodbye", "idle", "silent", "too many visitors", or what ``drop`` got."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Ban:
    """Let nothing of this key in for ``seconds``."""

    key: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class IdentityTaken:
    """Another device, at ``address``, has this process's key and was first: this one has to end, without a word."""

    address: str


@dataclass(frozen=True, slots=True)
class NoticeTold:
    """What the group's founder says, or so it seems. ``key``: who passed it on, whom a false one is to be blamed on."""

    key: bytes
    notice: NewCode | Admitted


@dataclass(frozen=True, slots=True)
class Knocked:
    """Somebody at ``address`` holds the code, and the group's founder has not admitted it."""

    key: bytes
    name: str
    address: str


Effect = NoticeTold | Knocked | IdentityTaken | Dial | HangUp | SendFrames | PeerAdmitted | PeerDropped | Ban | Note


@dataclass(frozen=True, slots=True)
class Received:
    """A message of an admitted peer, and the envelope it came in."""

    event: MessageReceived
    envelope: Envelope

"""Who is admitted: the sessions that hold, those that ended not long ago, and the numbers of the frames in them.

Invariant: a frame is let in only if it names the session of its sender's key, and is newer than every one before it on
its lane. An ended session that is opened again by the same two boots goes on counting where it was. All is bounded by
whoever opens, and ``MAX_FORMER``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.protocol.session.guests import End
from p2ptrain.protocol.session.proofs import session_name
from p2ptrain.wire import codec
from p2ptrain.wire.codec import Envelope
from p2ptrain.wire.messages import Lane, Message, lane_of

MAX_FORMER = 512


@dataclass(slots=True)
class Session:
    peer: PeerId
    end: End
    name: bytes
    address: str
    """The control address that reaches it."""
    said_goodbye: bool = False
    rests: bool = False
    """It is over, and the next frame of its brings it back."""
    heard: dict[Lane, int] = field(default_factory=lambda: {"control": 0, "bulk": 0})


class SessionTable:
    """By key. ``boot``: of this process."""

    def __init__(self, own_key: bytes, boot: bytes) -> None:
        self._own_end = (own_key, boot)
        self._sessions: dict[bytes, Session] = {}
        self._keys: dict[PeerId, bytes] = {}
        self._former: OrderedDict[bytes, Session] = OrderedDict()
        self._sequences: dict[Lane, int] = {"control": 0, "bulk": 0}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, key: bytes) -> bool:
        return key in self._sessions

    def __getitem__(self, key: bytes) -> Session:
        return self._sessions[key]

    def get(self, key: bytes) -> Session | None:
        return self._sessions.get(key)

    def peers(self) -> list[PeerId]:
        return list(self._keys)

    def key_of(self, peer: PeerId) -> bytes | None:
        return self._keys.get(peer)

    def routes(self) -> set[str]:
        """The addresses that sessions use."""
        return {session.address for session in self._sessions.values()}

    def open(self, key: bytes, end: End, address: str) -> Session:
        """A session with ``key``, which has none."""
        name = session_name((key, end.boot), self._own_end)
        session = Session(peer_id(key), end, name, address)
        former = self._former.pop(key, None)
        if former and former.name == name:
            session.heard = former.heard
        self._sessions[key] = session
        self._keys[session.peer] = key
        return session

    def close(self, key: bytes, *, rests: bool = False) -> Session:
        """It is over."""
        session = self._sessions.pop(key)
        session.rests = rests
        del self._keys[session.peer]
        self._former[key] = session
        self._former.move_to_end(key)
        if len(self._former) > MAX_FORMER:
            self._former.popitem(last=False)
        return session

    def resting(self, key: bytes, lane: Lane, envelope: Envelope) -> Session | None:
        """The session of a new frame, if it rests."""
        former = self._former.get(key) if key not in self._sessions else None
        if former is None or not former.rests or former.name != envelope.session:
            return None
        return former if envelope.sequence > former.heard[lane] else None

    def reopen(self, key: bytes) -> Session:
        """A session that rests goes on as it was."""
        session = self._sessions[key] = self._former.pop(key)
        self._keys[session.peer] = key
        return session

    def forget_first(self, key: bytes) -> None:
        """Of the sessions that are over, remember this one least."""
        self._former.move_to_end(key, last=False)

    def has_left(self, key: bytes, boot: bytes) -> bool:
        """Whether this process of theirs said goodbye."""
        former = self._former.get(key)
        return former is not None and former.said_goodbye and former.end.boot == boot

    def told_before(self, key: bytes) -> tuple[str, ...]:
        """Where it was, as it said in its session before this one."""
        former = self._former.get(key)
        return former.end.addresses if former is not None else ()

    def check(self, lane: Lane, key: bytes, envelope: Envelope) -> None:
        """A frame has come. Raises ``RemoteError`` unless it may be let in."""
        session = self._sessions.get(key)
        if session is None or session.name != envelope.session:
            raise RemoteError("session", f"{envelope.kind} outside of a session")
        if envelope.sequence <= session.heard[lane]:
            raise RemoteError("replay", f"{envelope.kind} {envelope.sequence}, {session.heard[lane]} was here before")
        session.heard[lane] = envelope.sequence

    def frames(self, key: bytes, message: Message, job: str, epoch: int) -> SendFrames:
        """The next message to ``key``."""
        session, lane = self._sessions[key], lane_of(message)
        self._sequences[lane] += 1
        frames = codec.encode(message, session=session.name, sequence=self._sequences[lane], job=job, epoch=epoch)
        return SendFrames(session.address, lane, frames)

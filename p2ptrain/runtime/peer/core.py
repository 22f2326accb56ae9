"""What peers and observers have in common: sessions, blobs, and the loop that turns effects into more effects.

Invariant: a core does no I/O and reads no clock. Effects that another machine of this core understands are handled
here, in order, until only such are left that the node must carry out.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from p2ptrain.core.effects import AbandonBlob, BlobArrived, BlobLost, CountRefused, Effects, Handler, VerifyBlob
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId, peer_id
from p2ptrain.protocol.blobs.fetching import TransferConfig
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import FetchCompleted, FetchFailed, Transfers
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.session.address_book import Source
from p2ptrain.protocol.session.door import OPEN_DOOR, Door
from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.protocol.session.sessions import MAX_PEERS, Sessions
from p2ptrain.protocol.session.visitors import MAX_VISITORS
from p2ptrain.runtime.peer.reach import Reach
from p2ptrain.runtime.peer.waiting import finding_words
from p2ptrain.wire.messages import (
    EPOCH_BOUND,
    JOB_BOUND,
    Chunk,
    Fetch,
    FetchRefused,
    Lane,
    StatusReply,
    StatusRequest,
)
from p2ptrain.wire.schema import RawBytes

ASKED_OFTEN = 5
"""Questions for the same thing come a second apart."""
MOST_ASKED = 32
"""Of a large room so many are asked how they are at once: each tells of all others."""


class Core:
    """Subclasses fill ``_handlers`` (effect type -> what to do) and ``_on_message`` (message type -> what to do)."""

    def __init__(
        self,
        own_key: bytes,
        proof_key: bytes,
        addresses: Iterable[str],
        bulk_port: int,
        rng: random.Random,
        software: str,
        transfers: TransferConfig | None = None,
        *,
        is_member: Callable[[PeerId], bool] = lambda peer: True,
        max_visitors: int = MAX_VISITORS,
        started_s: int = 0,
        door: Door = OPEN_DOOR,
    ) -> None:
        self.own_id: PeerId = peer_id(own_key)
        self.sessions = Sessions(
            own_key,
            proof_key,
            addresses,
            bulk_port,
            rng,
            software,
            is_member=is_member,
            max_visitors=max_visitors,
            started_s=started_s,
            door=door,
        )
        self.transfers = Transfers(transfers)
        self.refused: Counter[str] = Counter()
        """Messages of admitted peers that were not acted upon, by reason; see also ``sessions.refused``."""
        self.sent: Counter[str] = Counter()
        """Bytes by kind of message, without handshakes."""
        self.figures: dict[str, float] = {}
        """What the device measures of itself. The node keeps it true."""
        self.answers: dict[PeerId, StatusReply] = {}
        """The last one of each peer that was asked how it is."""
        self._asked: set[PeerId] = set()
        """Who has yet to answer."""
        self._turn = 0
        """Of those that are linked, whose it is to be asked."""
        self._num_asked: Counter[PeerId] = Counter()
        self.reach: Reach | None = None
        """Who only looks dials nobody beside those that it hears of."""
        self.troubles: dict[str, str] = {}
        """Sources of addresses that find nothing, by what people call them, and why. The node keeps it true."""
        self._handlers: dict[type, Handler] = {
            Send: self._send,
            FetchCompleted: lambda effect, now: [VerifyBlob(effect.blob)],
            FetchFailed: lambda effect, now: [AbandonBlob(effect.blob), BlobLost(effect.blob, effect.reason)],
            CountRefused: self._count,
        }
        self._on_message: dict[type, Callable[[PeerId, Any, float], Effects]] = {
            Fetch: self._transfer_message,
            Chunk: self._transfer_message,
            FetchRefused: self._transfer_message,
            StatusReply: self._status_came,
        }

    @property
    def job_id(self) -> str:
        """The job that this core's messages are about ("" = none yet)."""
        return ""

    @property
    def epoch(self) -> int:
        return 0

    def num_missing(self) -> int:
        """How many others this node would like to find; discovery asks more often while there are any."""
        return int(not self.sessions.peers())

    def finding(self) -> str:
        """What came of looking for others, for people."""
        return finding_words(self.sessions.unanswered(), self.troubles, self.sessions.refused["version"] > 0)

    # --- what the node calls ---

    def propose(self, address: str, now: float, source: Source = "peer") -> Effects:
        """Discovery, the user or the store names an address."""
        if source == "mdns" and self.reach is not None and self.reach.leads_to_member(address):
            return []
        return self.run(self.sessions.propose(address, now, source=source), now)

    def frames_received(self, lane: Lane, sender_key: bytes, frames: Sequence[RawBytes], now: float) -> Effects:
        received, effects = self.sessions.frames_received(lane, sender_key, frames, now)
        out = self.run(effects, now)
        if received is None:
            return out
        sender, message, envelope = received.event.sender, received.event.message, received.envelope
        if self.reach is not None:
            self.reach.came(sender, message, now)
        handler = self._on_message.get(type(message))
        if handler is None:
            if self.job_id or not isinstance(message, JOB_BOUND):  # without a job nothing can be done about those yet
                self.refused["unexpected"] += 1
        elif self.job_id and envelope.job and envelope.job != self.job_id and isinstance(message, JOB_BOUND):
            self.refused["other-job"] += 1
        elif isinstance(message, EPOCH_BOUND) and envelope.epoch < self.epoch:
            self.refused["old-epoch"] += 1
        else:
            try:
                out += self.run(handler(sender, message, now), now)
            except RemoteError as error:
                out += self.run(self._blame(sender_key, error, now), now)
        return out

    def ask_status(self, now: float) -> Effects:
        """Of everyone who is linked, those of a large room in turn; the answers will be in ``answers``."""
        peers = self.sessions.peers()
        self.answers = {peer: answer for peer, answer in self.answers.items() if peer in peers}
        start = self._turn % max(1, len(peers))
        asked = [*peers[start:], *peers[:start]][:MOST_ASKED]
        self._turn = start + len(asked)
        self._asked = self._asked.intersection(peers).union(asked)
        return self.run([Send(peer, StatusRequest()) for peer in asked], now)

    def _status_came(self, sender: PeerId, message: StatusReply, now: float) -> Effects:
        if sender not in self._asked:
            self.refused["unexpected"] += 1
            return []
        self._asked.discard(sender)
        self.answers[sender] = message
        return []

    def process_gone(self, peer: PeerId, now: float) -> Effects:
        """Its connection closed, and its device says that nobody listens where it did."""
        return []

    def chunk_read(self, effect: ReadChunk, data: RawBytes | None, now: float) -> Effects:
        """The node's answer to ``ReadChunk``; ``None`` = the store has no such blob."""
        if data is None:
            return self.run(self.transfers.unknown(effect.to, effect.blob), now)
        return self.run(self.transfers.chunk_read(effect.to, effect.blob, effect.offset, data), now)

    def chunk_unread(self, effect: ReadChunk, now: float) -> Effects:
        """The node's answer to ``ReadChunk`` when it can't read now: nothing is said, and ``to`` asks again."""
        return self.run(self.transfers.unread(effect.to, effect.blob, effect.offset), now)

    def blob_checked(self, blob: BlobId, sound: bool, now: float) -> Effects:
        """The node's answer to ``VerifyBlob``. The fetch may have been given up meanwhile."""
        if not any(each.blob == blob and each.state == "verifying" for each in self.transfers.progress()):
            return []
        if not sound:
            return self.run(self.transfers.corrupt(blob, now), now)
        return self.run([*self.transfers.verified(blob, now), BlobArrived(blob)], now)

    def blob_refused(self, blob: BlobId, reason: str, now: float) -> Effects:
        """The store can't take an incoming blob."""
        return self.run([*self.transfers.cancel(blob, now), AbandonBlob(blob), BlobLost(blob, reason)], now)

    def tick(self, now: float) -> Effects:
        return self.run([*self.sessions.tick(now), *self.transfers.tick(now)], now)

    def next_deadline(self) -> float:
        return min(self.sessions.next_deadline(), self.transfers.next_deadline(), NEVER)

    # --- for subclasses ---

    def asked_again(self, sender: PeerId) -> Effects:
        """Somebody asks for what it should have by now: now and then a note, as the answers may get lost on the way."""
        self._num_asked[sender] += 1
        if len(self._num_asked) > MAX_PEERS:
            self._num_asked = Counter({sender: 1})
        return [Note("asked-again", (("peer", sender),))] if self._num_asked[sender] % ASKED_OFTEN == 0 else []

    def run(self, effects: Iterable[Any], now: float) -> Effects:
        """Handle what this core can handle itself; the rest, in order, is for the node."""
        queue = deque(effects)
        out: Effects = []
        while queue:
            effect = queue.popleft()
            handler = self._handlers.get(type(effect))
            if handler is None:
                out.append(effect)
            else:
                queue.extendleft(reversed(handler(effect, now)))
        return out

    def _send(self, effect: Send, now: float) -> Effects:
        effects: Effects = list(self.sessions.send(effect.to, effect.message, self.job_id, self.epoch, now))
        if not effects:
            return self.reach.dial(effect, now) if self.reach else []
        if self.reach is not None:
            self.reach.carried(effect.to, effect.message, now)
        sent = sum(len(frame) for each in effects if isinstance(each, SendFrames) for frame in each.frames)
        self.sent[effect.message.KIND] += sent
        return effects

    def _transfer_message(self, sender: PeerId, message: Fetch | Chunk | FetchRefused, now: float) -> Effects:
        return list(self.transfers.received(sender, message, now))

    def _count(self, effect: CountRefused, now: float) -> Effects:
        self.refused[effect.reason] += effect.count
        return []

    def _blame(self, sender_key: bytes, error: RemoteError, now: float) -> Effects:
        """Count what a peer should not have said; too much of it and the session layer drops the peer."""
        return list(self.sessions.offended(sender_key, error, now))

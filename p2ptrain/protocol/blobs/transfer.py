"""Content-addressed blobs from peer to peer, driven by the receiver.

Responsible for what to ask, of whom, and when to ask again; ``serving`` is the other end. The bytes themselves pass
through as effects and are never kept here. Invariant: the bytes asked for and not yet arrived or given up, over all
fetches, never exceed ``max_in_flight_bytes``, and every fetch ends, completed or failed, in bounded time.

A fetch: queued -> fetching -> verifying -> (``verified``: gone | ``corrupt``: fetching again without the liar). One
source at a time; when it refuses, dies or stalls the next one carries on from the bytes that are there, because any
holder of a content address will do. When bytes of several sources add up to a wrong hash, nobody can say whose were
wrong: the blob is fetched again *solo*, all of it from one source, and then a wrong hash names its source.

Time-outs: ``margin`` times what the bytes outstanding at that source should take at its measured rate, doubled for
each time-out in a row without any sign of life.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.blobs.fetching import Fetching, FetchProgress, Request, Source, TransferConfig
from p2ptrain.protocol.blobs.serving import ReadChunk, Serving
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import Chunk, Fetch, FetchRefused
from p2ptrain.wire.schema import RawBytes

_MAX_REMEMBERED_REQUESTS = 16384
ROOM_S = 0.05
"""Between two looks whether a link has room."""


@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Put these bytes of an incoming blob where they belong."""

    blob: BlobId
    offset: int
    data: RawBytes


@dataclass(frozen=True, slots=True)
class FetchCompleted:
    """All bytes have gone out as ``WriteChunk``: check the hash, then call ``verified`` or ``corrupt``."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """Given up; what has been written is worth nothing."""

    blob: BlobId
    reason: str


Effect = Send | Note | WriteChunk | FetchCompleted | FetchFailed | ReadChunk


class Transfers:
    """Fetches blobs from others, and serves them to others."""

    def __init__(self, config: TransferConfig | None = None) -> None:
        self._config = config or TransferConfig()
        self._fetches: dict[BlobId, Fetching] = {}
        self._peers: dict[PeerId, Source] = {}
        self._asked: OrderedDict[tuple[PeerId, BlobId, int], frozenset[int]] = OrderedDict()
        """Lengths asked for, by peer, blob and offset; kept after arrival, so that late and double chunks are known."""
        self.has_room: Callable[[PeerId], bool] = lambda peer: True
        """Whether a peer's link takes more of what it asked for. The node says so."""
        self._look_at = 0.0
        self._now = 0.0
        self._serving = Serving(
            self._config.max_reads, self._config.max_reads_queued_per_peer, lambda peer: self.has_room(peer)
        )

    # --- fetching ---------------------------------------------------------------------------------------------------

    def fetch(
        self, blob: BlobId, num_bytes: int, sources: Sequence[PeerId], now: float, bytes_per_s: float = 0.0
    ) -> list[Effect]:
        """Get ``blob`` from any of ``sources``, the best first. A fetch under way gains the sources.

        With ``bytes_per_s`` it has time: it goes no faster, and not at all while others are in a hurry (0)."""
        known = self._fetches.get(blob)
        if known is not None:
            known.bytes_per_s = bytes_per_s if known.bytes_per_s else 0.0
            if known.num_bytes != num_bytes:
                sizes = (("blob", blob), ("num_bytes", known.num_bytes), ("claimed", num_bytes))
                return [Note("fetch-size-disputed", sizes)]
            return [effect for source in sources for effect in self.add_source(blob, source, now)]
        if not 1 <= num_bytes <= self._config.max_blob_bytes:
            return [FetchFailed(blob, f"{num_bytes} bytes is outside 1..{self._config.max_blob_bytes}")]
        if len(self._fetches) >= self._config.max_queued:
            return [FetchFailed(blob, f"{len(self._fetches)} fetches are under way already")]
        if not sources:
            return [FetchFailed(blob, "no source left")]
        self._fetches[blob] = Fetching(blob, num_bytes, list(dict.fromkeys(sources)), bytes_per_s=bytes_per_s)
        return self._pump(now)

    def add_source(self, blob: BlobId, peer: PeerId, now: float) -> list[Effect]:
        """``peer`` has it too. Without effect if nobody fetches it, or if ``peer`` served wrong bytes of it."""
        fetch = self._fetches.get(blob)
        if fetch is None or peer in fetch.banned or peer in fetch.sources:
            return []
        fetch.sources.append(peer)
        fetch.is_in_vain = fetch.is_in_vain and self.hands_out_nothing(peer)
        return self._pump(now)

    def cancel(self, blob: BlobId, now: float) -> list[Effect]:
        """Nobody wants it any more."""
        if blob in self._fetches:
            self._close(self._fetches[blob])
        return self._pump(now)

    def verified(self, blob: BlobId, now: float) -> list[Effect]:
        """The hash of a completed blob is right."""
        return self.cancel(blob, now)

    def corrupt(self, blob: BlobId, now: float) -> list[Effect]:
        """The hash of a completed blob is wrong: start over, or fail when no source is left."""
        fetch = self._fetches.get(blob)
        if fetch is None or fetch.state != "verifying":
            raise LocalError(f"blob {blob} was not waiting to be verified")
        effects: list[Effect] = []
        if len(fetch.served) == 1:
            (liar,) = fetch.served
            fetch.banned.add(liar)
            effects.append(Note("fetch-corrupt", (("blob", blob), ("peer", liar))))
        else:
            served = fetch.served
            fetch.solo = True
            fetch.sources.sort(key=lambda peer: served.get(peer, 0))
            effects.append(Note("fetch-corrupt", (("blob", blob), ("peers", " ".join(sorted(served))))))
        fetch.sources = [peer for peer in fetch.sources if peer not in fetch.banned]
        fetch.state = "queued"
        if not fetch.sources:
            effects.append(self._fail(fetch, "no source left: the bytes served were wrong"))
        return effects + self._pump(now)

    def received(self, sender: PeerId, message: Fetch | Chunk | FetchRefused, now: float) -> list[Effect]:
        """A message of ``sender``. Raises ``RemoteError`` for a chunk that was not asked for."""
        if isinstance(message, Fetch):
            return [*self._serving.asked(sender, message)]
        if isinstance(message, Chunk):
            return self._chunk_received(sender, message, now)
        fetch = self._fetches.get(message.blob)
        if fetch is not None and sender in fetch.sources and sender not in fetch.served:
            self._source(sender).in_vain(now, self._config, silent=False)
        return [] if fetch is None else self._drop_source(fetch, sender, "refused") + self._pump(now)

    def peer_gone(self, peer: PeerId, now: float) -> list[Effect]:
        """``peer`` is dead or has left: it serves nothing and wants nothing any more."""
        effects: list[Effect] = [*self._serving.peer_gone(peer)]
        for fetch in list(self._fetches.values()):
            effects += self._drop_source(fetch, peer, "gone")
        self._peers.pop(peer, None)
        return effects + self._pump(now)

    def tick(self, now: float) -> list[Effect]:
        """Give up what is overdue, and ask again; serve those whose links have room by now."""
        self._now = now
        effects: list[Effect] = []
        if self._serving.is_waiting and now >= self._look_at:
            self._look_at = now + ROOM_S
            effects += self._serving.look()
        for fetch in [f for f in self._fetches.values() if f.state == "fetching"]:
            if now >= fetch.fails_at(self._config):
                waited = now - fetch.progress_at
                silent = [each for each in map(self._source, fetch.sources) if each.strikes and not fetch.have.total]
                for source in silent:
                    source.in_vain(now, self._config, silent=True)
                effects.append(self._fail(fetch, f"nothing new from {len(fetch.sources)} source(s) for {waited:.0f} s"))
                continue
            late = [r for r in fetch.requests.values() if now >= r.expires_at]
            for request in late:
                self._settle(fetch, request)
                self._source(request.peer).timed_out(request, now)
            is_slow = fetch.is_slow(self._config, now)
            if is_slow or self._turns_to_another(fetch, late):
                left = fetch.sources.pop(0)
                fetch.sources.append(left)
                fetch.sources.sort(key=lambda peer: self._source(peer).is_stalled(self._config))
                self._leave(fetch, left)
                fetch.turned(now)
                why = "fetch-slow" if is_slow else "fetch-stalled"
                effects.append(Note(why, (("blob", fetch.blob), ("peer", left))))
        return effects + self._pump(now)

    def next_deadline(self) -> float:
        fetching = [fetch for fetch in self._fetches.values() if fetch.state == "fetching"]
        times = [min(fetch.fails_at(self._config), fetch.looks_at_source_at(self._config)) for fetch in fetching]
        times += [self._look_at] if self._serving.is_waiting else []
        times += [request.expires_at for fetch in fetching for request in fetch.requests.values()]
        if all(fetch.bytes_per_s for fetch in fetching):
            times += [fetch.next_at for fetch in fetching if not fetch.requests]
        return min(times, default=NEVER)

    def hands_out_nothing(self, peer: PeerId) -> bool:
        """Whether a peer did not hand out lately what it said to have, and nothing else since."""
        known = self._peers.get(peer)
        return known is not None and self._now < known.vain_until

    def uses(self, peer: PeerId) -> bool:
        """Whether something is being fetched from a peer, or by it."""
        return self._serving.serves(peer) or any(peer in fetch.sources for fetch in self._fetches.values())

    def progress(self) -> tuple[FetchProgress, ...]:
        """All fetches, in the order they were asked for."""
        return tuple(fetch.progress(self._config) for fetch in self._fetches.values())

    @property
    def in_flight_bytes(self) -> int:
        return sum(fetch.in_flight_bytes for fetch in self._fetches.values())

    # --- serving ----------------------------------------------------------------------------------------------------

    def chunk_read(self, to: PeerId, blob: BlobId, offset: int, data: RawBytes) -> list[Effect]:
        """A ``ReadChunk`` has been carried out. Call it when the link to ``to`` has room for the answer."""
        return [*self._serving.chunk_read(to, blob, offset, data)]

    def unknown(self, to: PeerId, blob: BlobId) -> list[Effect]:
        """The bytes of a ``ReadChunk`` aren't there: ``to`` is told, and its other reads of the blob forgotten."""
        return [*self._serving.unknown(to, blob)]

    def unread(self, to: PeerId, blob: BlobId, offset: int) -> list[Effect]:
        """A ``ReadChunk`` can't be carried out for now: ``to`` will ask again."""
        return [*self._serving.unread(to, blob, offset)]

    @property
    def num_reads_dropped(self) -> int:
        """Requests of others dropped because they had too many waiting; they ask again."""
        return self._serving.num_dropped

    # --- inside -----------------------------------------------------------------------------------------------------

    def _source(self, peer: PeerId) -> Source:
        return self._peers.setdefault(peer, Source())

    def _chunk_received(self, sender: PeerId, chunk: Chunk, now: float) -> list[Effect]:
        lengths = self._asked.get((sender, chunk.blob, chunk.offset))
        if lengths is None:
            raise RemoteError("unasked", f"chunk at {chunk.offset} of blob {chunk.blob}")
        start, end = chunk.offset, chunk.offset + len(chunk.data)
        if len(chunk.data) not in lengths:
            raise RemoteError("chunk-length", f"{len(chunk.data)} bytes at {start}, asked for {sorted(lengths)}")
        fetch = self._fetches.get(chunk.blob)
        if fetch is None or fetch.state != "fetching" or sender in fetch.banned:
            return []
        request = fetch.requests.get(start)
        if request is not None and request.peer == sender and request.length == len(chunk.data):
            self._settle(fetch, request)
            self._source(sender).answered(request, now)
        gaps = list(fetch.have.gaps(start, end))
        if gaps:  # late ones too are a sign of life
            self._source(sender).arrived(len(chunk.data), now)
        if fetch.solo and sender != fetch.sources[0]:
            return self._pump(now)
        effects: list[Effect] = []
        for low, high in gaps:
            effects.append(WriteChunk(chunk.blob, low, chunk.data[low - start : high - start]))
            fetch.served[sender] = fetch.served.get(sender, 0) + high - low
            fetch.progress_at = now
        fetch.have.add(start, end)
        if fetch.have.total == fetch.num_bytes:
            self._settle_all(fetch)
            fetch.state = "verifying"
            effects.append(FetchCompleted(fetch.blob))
        return effects + self._pump(now)

    def _turns_to_another(self, fetch: Fetching, late: Sequence[Request]) -> bool:
        """Whether its source has stalled. Where all have, each gets its time: another question each moment would fill a
        slow link with questions for what is on its way."""
        first, *others = fetch.sources
        if not others or not self._source(first).is_stalled(self._config):
            return False
        others_stall = all(self._source(peer).is_stalled(self._config) for peer in others)
        return not others_stall or any(request.peer == first for request in late)

    def _drop_source(self, fetch: Fetching, peer: PeerId, why: str) -> list[Effect]:
        if peer not in fetch.sources:
            return []
        was_first = fetch.sources[0] == peer
        fetch.sources.remove(peer)
        if fetch.state == "verifying":
            return []
        if not fetch.sources:
            return [
                self._fail(fetch, f"no source left: the last, {peer}, is {why}" if why == "gone" else f"{peer} {why}")
            ]
        if was_first:
            self._leave(fetch, peer)
        return []

    def _leave(self, fetch: Fetching, peer: PeerId) -> None:
        for request in [r for r in fetch.requests.values() if r.peer == peer]:
            self._settle(fetch, request)
        if fetch.solo:
            fetch.start_over()

    def _fail(self, fetch: Fetching, reason: str) -> FetchFailed:
        self._close(fetch)
        return FetchFailed(fetch.blob, reason)

    def _close(self, fetch: Fetching) -> None:
        self._settle_all(fetch)
        del self._fetches[fetch.blob]

    def _settle_all(self, fetch: Fetching) -> None:
        for request in list(fetch.requests.values()):
            self._settle(fetch, request)

    def _settle(self, fetch: Fetching, request: Request) -> None:
        del fetch.requests[request.offset]
        self._source(request.peer).outstanding_bytes -= request.length

    def _pump(self, now: float) -> list[Effect]:
        """Start queued fetches and ask for more, evenly over the fetches, as far as the bounds allow."""
        for has_time in (False, True):
            those = [fetch for fetch in self._fetches.values() if bool(fetch.bytes_per_s) == has_time]
            room_for = self._config.max_fetches - sum(fetch.state == "fetching" for fetch in those)
            for fetch in [fetch for fetch in those if fetch.state == "queued"][: max(0, room_for)]:
                fetch.sources.sort(key=lambda peer: self._source(peer).is_stalled(self._config))
                fetch.is_in_vain = all(map(self.hands_out_nothing, fetch.sources))
                fetch.begin(now)
        effects: list[Effect] = []
        room = self._config.max_in_flight_bytes - self.in_flight_bytes
        fetching = [fetch for fetch in self._fetches.values() if fetch.state == "fetching"]
        hungry = [fetch for fetch in fetching if not fetch.bytes_per_s] or [f for f in fetching if f.may_ask(now)]
        while hungry:
            fetch = min(hungry, key=lambda f: f.in_flight_bytes)
            gap, source = fetch.next_gap(), self._source(fetch.sources[0])
            most = 1 if fetch.bytes_per_s else source.window(self._config)
            if gap is None or len(fetch.requests) >= most:
                hungry.remove(fetch)
                continue
            length = min(gap[1] - gap[0], source.chunk_bytes(self._config))
            length = min(length, self._config.calm_chunk_bytes) if fetch.bytes_per_s else length
            if length > room:
                break
            room -= length
            effects.append(self._ask(fetch, gap[0], length, now))
        return effects

    def _ask(self, fetch: Fetching, offset: int, length: int, now: float) -> Send:
        peer = fetch.sources[0]
        source = self._source(peer)
        source.asked(length, now)
        fetch.asked(length, now)
        key = (peer, fetch.blob, offset)
        expires_at = now + source.timeout_s(self._config)
        fetch.requests[offset] = Request(peer, offset, length, now, expires_at, key not in self._asked)
        self._asked[key] = self._asked.get(key, frozenset()) | {length}
        self._asked.move_to_end(key)
        while len(self._asked) > _MAX_REMEMBERED_REQUESTS:
            self._asked.popitem(last=False)
        return Send(peer, Fetch(fetch.blob, offset, length))

"""A blob that is being fetched and the peers it comes from: what is here, what is asked of whom, how fast they are.

Invariant: pure bookkeeping of one fetch and of one source; what to do about it ``transfer`` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import NEVER

_RATE_WINDOW_S = 0.05
"""Arrivals are summed over at least this long before they count as a rate: one read of a socket brings several."""

FetchState = Literal["queued", "fetching", "verifying"]


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """Bounds of memory and patience."""

    max_chunk_bytes: int = 1 << 20
    first_chunk_bytes: int = 64 << 10
    """Asked of a source whose rate is unknown."""
    min_chunk_bytes: int = 16 << 10
    """Then what it delivers in ``chunk_s``, from this up to ``max_chunk_bytes``: a slow link gets small questions, so
    that the bytes outstanding are never more than it can bring before they time out. On a long way they are larger: all
    that is outstanding is twice what the way holds, as its rate would else follow from the questions (BBR; Cardwell et
    al. 2016)."""
    chunk_s: float = 0.5
    window: int = 4
    """Requests outstanding in a fetch: its credits. Two at most while the source's rate is unknown."""
    max_window: int = 12
    """Of a fast source: as many of the largest chunks as it brings in ``chunk_s``, so that it never waits for us."""
    max_in_flight_bytes: int = 16 << 20
    max_fetches: int = 4
    """At once; of those that have time, as many more."""
    calm_chunk_bytes: int = 64 << 10
    """At most asked for at once, one after the other, of a fetch that has time: a stage message waits for no more."""
    max_queued: int = 256
    max_blob_bytes: int = 4 << 30
    first_timeout_s: float = 3.0
    min_timeout_s: float = 0.5
    max_timeout_s: float = 20.0
    margin: float = 4.0
    stall_strikes: int = 2
    """Time-outs in a row without a sign of life before another source is tried."""
    idle_s: float = 90.0
    """A fetch fails after this long without a new byte ..."""
    silent_s: float = 45.0
    """... or without its first one ..."""
    vain_s: float = 10.0
    """... where all that say to have it have not handed out before what they said to have ..."""
    overall_s: float = 120.0
    min_bytes_per_s: float = 32 << 10
    """... or ``overall_s`` plus its size at this rate after it started."""
    slow_s: float = 30.0
    """A source that brings less than that rate for so long gives way to another."""
    max_vain: int = 32
    """So often in a row a source may refuse what it said to have: it was replaced by something newer, maybe."""
    mistrusted_s: float = 600.0
    """After that, or after not a word, a source counts as one that hands out nothing, until it does."""
    max_reads: int = 8
    max_reads_queued_per_peer: int = 32


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How a fetch stands: ``waiting_for`` the source asked now ("" = none), without a new byte since then."""

    blob: BlobId
    state: FetchState
    num_bytes: int
    received_bytes: int
    bytes_per_s: float
    waiting_for: str
    waiting_since: float
    fails_at: float


class Ranges:
    """A set of byte positions as sorted, disjoint, non-touching ``[start, end)`` pairs."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Sequence[tuple[int, int]] = ()) -> None:
        self._pairs = list(pairs)

    @property
    def total(self) -> int:
        return sum(end - start for start, end in self._pairs)

    def copy(self) -> Ranges:
        return Ranges(self._pairs)

    def add(self, start: int, end: int) -> None:
        before = [p for p in self._pairs if p[1] < start]
        after = [p for p in self._pairs if p[0] > end]
        for low, high in self._pairs[len(before) : len(self._pairs) - len(after)]:
            start, end = min(start, low), max(end, high)
        self._pairs = [*before, (start, end), *after]

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of ``[start, end)`` that are not in the set."""
        for low, high in self._pairs:
            if high <= start:
                continue
            if low >= end:
                break
            if start < low:
                yield start, low
            start = high
        if start < end:
            yield start, end


@dataclass(frozen=True, slots=True)
class Request:
    """A chunk asked of a peer."""

    peer: PeerId
    offset: int
    length: int
    asked_at: float
    expires_at: float
    is_first: bool = True
    """It was not asked before, so that an answer is one to this."""


@dataclass(slots=True)
class Source:
    """What is known of a peer as a source, over all fetches."""

    bytes_per_s: float = 0.0
    round_trip_s: float = NEVER
    """The shortest yet, of a chunk."""
    outstanding_bytes: int = 0
    strikes: int = 0
    struck_at: float = -NEVER
    arrived_at: float = -NEVER
    sample_bytes: int = 0
    sample_since: float = 0.0
    num_vain: int = 0
    """Fetches in a row in which it was asked for what it said to have, and refused."""
    vain_until: float = -NEVER

    def in_vain(self, now: float, config: TransferConfig, *, silent: bool) -> None:
        """It was asked for a blob, and did not hand out a byte of it."""
        self.num_vain += 1
        if silent or self.num_vain >= config.max_vain:
            self.num_vain, self.vain_until = 0, now + config.mistrusted_s

    def asked(self, length: int, now: float) -> None:
        if self.outstanding_bytes == 0:
            self.sample_bytes, self.sample_since = 0, now
        self.outstanding_bytes += length

    def arrived(self, length: int, now: float) -> None:
        self.strikes, self.arrived_at = 0, now
        self.num_vain, self.vain_until = 0, -NEVER
        self.sample_bytes += length
        elapsed = now - self.sample_since
        if elapsed >= _RATE_WINDOW_S:
            rate = self.sample_bytes / elapsed
            self.bytes_per_s = rate if self.bytes_per_s == 0 else 0.7 * self.bytes_per_s + 0.3 * rate
            self.sample_bytes, self.sample_since = 0, now

    def answered(self, request: Request, now: float) -> None:
        """How long the way is: of several questions at once, what the first answer took."""
        if request.is_first:
            self.round_trip_s = min(self.round_trip_s, now - request.asked_at)

    def timed_out(self, request: Request, now: float) -> None:
        """Strike, once for all the requests asked since the last strike, unless something has come meanwhile."""
        if self.arrived_at <= request.asked_at and request.asked_at >= self.struck_at:
            self.strikes, self.struck_at = self.strikes + 1, now

    def window(self, config: TransferConfig) -> int:
        """Requests that may be outstanding."""
        if not self.bytes_per_s:
            return min(config.window, 2)
        return max(config.window, min(config.max_window, int(self.bytes_per_s * config.chunk_s / self._most(config))))

    def chunk_bytes(self, config: TransferConfig) -> int:
        """To ask for at once."""
        high = self._most(config)
        way_s = 2 * self.round_trip_s / config.window if self.round_trip_s < NEVER else 0.0
        by_rate = max(config.min_chunk_bytes, int(self.bytes_per_s * max(config.chunk_s, way_s)))
        return min(by_rate if self.bytes_per_s else config.first_chunk_bytes, high)

    @staticmethod
    def _most(config: TransferConfig) -> int:
        return min(config.max_chunk_bytes, config.max_in_flight_bytes)

    def timeout_s(self, config: TransferConfig) -> float:
        """For what is outstanding."""
        expected = self.outstanding_bytes / self.bytes_per_s * config.margin if self.bytes_per_s else 0.0
        if self.round_trip_s < NEVER:
            expected = max(expected, 2 * self.round_trip_s)
        timeout = max(config.min_timeout_s if self.bytes_per_s else config.first_timeout_s, expected)
        return min(timeout * 2.0 ** min(self.strikes, 16), config.max_timeout_s)

    def is_stalled(self, config: TransferConfig) -> bool:
        return self.strikes >= config.stall_strikes


@dataclass(slots=True)
class Fetching:
    """A blob on its way, or waiting for that."""

    blob: BlobId
    num_bytes: int
    sources: list[PeerId]
    state: FetchState = "queued"
    started_at: float = 0.0
    progress_at: float = 0.0
    have: Ranges = field(default_factory=Ranges)
    requests: dict[int, Request] = field(default_factory=dict)
    served: dict[PeerId, int] = field(default_factory=dict)
    """Bytes that each source gave to this attempt."""
    banned: set[PeerId] = field(default_factory=set)
    solo: bool = False
    bytes_per_s: float = 0.0
    """It has time, and is asked for no faster than this, by small chunks; 0 = as fast as it goes."""
    is_in_vain: bool = False
    """It is asked of such as have handed out nothing before, for want of others."""
    next_at: float = 0.0
    """When such a fetch may ask again (GCRA, without a burst)."""
    turned_at: float = 0.0
    turned_with: int = 0
    """Since when it asks its first source, and how many bytes were here then."""

    @property
    def in_flight_bytes(self) -> int:
        return sum(request.length for request in self.requests.values())

    def may_ask(self, now: float) -> bool:
        """Of a fetch that has time: whether it is its time."""
        return not self.requests and now >= self.next_at

    def asked(self, length: int, now: float) -> None:
        if self.bytes_per_s:
            self.next_at = max(self.next_at, now) + length / self.bytes_per_s

    def begin(self, now: float) -> None:
        self.state, self.started_at, self.progress_at = "fetching", now, now
        self.start_over()
        self.turned(now)

    def turned(self, now: float) -> None:
        """It asks another source from now on."""
        self.turned_at, self.turned_with = now, self.have.total

    def looks_at_source_at(self, config: TransferConfig) -> float:
        """When its source is held against what it brought; never where it is the only one, or nothing hurries."""
        return NEVER if len(self.sources) < 2 or self.bytes_per_s or self.solo else self.turned_at + config.slow_s

    def is_slow(self, config: TransferConfig, now: float) -> bool:
        """Whether its source brings so little that another is worth a try. If it does not, it is looked at again."""
        if now < self.looks_at_source_at(config):
            return False
        brought = self.have.total - self.turned_with
        if brought < config.min_bytes_per_s * (now - self.turned_at):
            return True
        self.turned(now)
        return False

    def start_over(self) -> None:
        self.have, self.served = Ranges(), {}

    def next_gap(self) -> tuple[int, int] | None:
        """The first bytes that are neither here nor asked for."""
        covered = self.have.copy()
        for request in self.requests.values():
            covered.add(request.offset, request.offset + request.length)
        return next(covered.gaps(0, self.num_bytes), None)

    def fails_at(self, config: TransferConfig) -> float:
        overall = config.overall_s + self.num_bytes / config.min_bytes_per_s
        first_s = config.vain_s if self.is_in_vain else config.silent_s
        idle_s = config.idle_s if self.have.total else min(config.idle_s, first_s)
        return min(self.started_at + overall, self.progress_at + idle_s)

    def progress(self, config: TransferConfig) -> FetchProgress:
        active = self.state == "fetching"
        elapsed = self.progress_at - self.started_at
        received = self.have.total
        return FetchProgress(
            blob=self.blob,
            state=self.state,
            num_bytes=self.num_bytes,
            received_bytes=received,
            bytes_per_s=received / elapsed if elapsed > 0 else 0.0,
            waiting_for=self.sources[0] if active else "",
            waiting_since=self.progress_at,
            fails_at=self.fails_at(config) if active else NEVER,
        )

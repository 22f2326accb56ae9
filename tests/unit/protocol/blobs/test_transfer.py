"""Fetching and serving blobs: credits, time-outs, dying and lying sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.protocol.blobs.fetching import Ranges, TransferConfig
from p2ptrain.protocol.blobs.transfer import FetchCompleted, FetchFailed, ReadChunk, Transfers, WriteChunk
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import Chunk, Fetch, FetchRefused

A, B, C = PeerId("a" * 16), PeerId("b" * 16), PeerId("c" * 16)
DATA = bytes(range(100))
BLOB = blob_id(DATA)
SMALL = TransferConfig(first_chunk_bytes=10, max_chunk_bytes=10, window=2, max_in_flight_bytes=60)


def asks(effects) -> list[tuple[PeerId, int, int]]:
    return [(e.to, e.message.offset, e.message.length) for e in effects if isinstance(e, Send)]


def chunk(offset: int, length: int = 10, data: bytes = DATA) -> Chunk:
    return Chunk(blob_id(data), offset, data[offset : offset + length])


def of(kind, effects) -> list:
    return [e for e in effects if isinstance(e, kind)]


class Sink:
    """Carries out the effects of a receiver whose sources all answer at once and in truth."""

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        self.received = bytearray(len(DATA))
        self.ended: list = []

    def run(self, effects, now: float = 0.0, content: dict[PeerId, bytes] | None = None, most: int = 10**6) -> list:
        """Answer at most ``most`` requests; the effects not carried out."""
        queue = list(effects)
        while queue and most > 0:
            effect = queue.pop(0)
            if isinstance(effect, Send):
                most -= 1
                data = (content or {}).get(effect.to, DATA)
                ask = effect.message
                answer = Chunk(ask.blob, ask.offset, data[ask.offset : ask.offset + ask.length])
                queue += self.transfers.received(effect.to, answer, now)
            elif isinstance(effect, WriteChunk):
                self.received[effect.offset : effect.offset + len(effect.data)] = effect.data
            else:
                self.ended.append(effect)
        return queue


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=20), st.integers(0, 20), st.integers(1, 20))
def test_ranges_are_a_set(pairs, start, length):
    ranges, model = Ranges(), set()
    for low, size in pairs:
        ranges.add(low, low + size)
        model |= set(range(low, low + size))
    assert ranges.total == len(model)
    gaps = list(ranges.gaps(start, start + length))
    assert {i for low, high in gaps for i in range(low, high)} == set(range(start, start + length)) - model
    assert all(low < high for low, high in gaps)


# --- fetches that have time ---


def paced(transfers: Transfers, now: float, until: float) -> list[tuple[float, int]]:
    """Answer whatever is asked at once; when each chunk was asked for, and its length."""
    found, effects = [], transfers.tick(now)
    while True:
        for effect in list(effects):
            if isinstance(effect, Send):
                ask = effect.message
                found.append((now, ask.length))
                effects += transfers.received(effect.to, chunk(ask.offset, ask.length), now)
        now = transfers.next_deadline()
        if now > until:
            return found
        effects = transfers.tick(now)


def test_a_fetch_that_has_time_goes_no_faster_and_by_small_chunks():
    transfers = Transfers(TransferConfig(first_chunk_bytes=50, calm_chunk_bytes=5))
    (ask,) = transfers.fetch(BLOB, 100, [A], 1.0, bytes_per_s=10.0)
    assert ask.message.length == 5
    transfers.received(A, chunk(0, 5), 1.0)
    asked = paced(transfers, 1.0, 100.0)
    assert [length for _, length in asked] == [5] * 19
    assert [round(at, 6) for at, _ in asked] == [1.5 + 0.5 * i for i in range(19)]


def test_a_fetch_that_has_time_waits_for_one_in_a_hurry_and_takes_none_of_its_places():
    others = [blob_id(bytes([i]) * 100) for i in range(4)]
    transfers = Transfers(SMALL)
    for blob in others:
        transfers.fetch(blob, 100, [A], 0.0, bytes_per_s=1000.0)
    effects = transfers.fetch(BLOB, 100, [B], 0.0)
    assert asks(effects) == [(B, 0, 10), (B, 10, 10)], "four that have time are under way, and it begins at once"
    assert asks(transfers.received(A, Chunk(others[0], 0, bytes([0]) * 10), 0.2)) == []
    assert transfers.next_deadline() > 0.5, "it does not look again and again meanwhile"
    asked = []
    while effects:
        asked += [ask for ask in asks(effects) if ask[0] == A]
        todo = [ask for ask in asks(effects) if ask[0] == B]
        assert not (asked and todo)
        effects = [each for _, offset, length in todo for each in transfers.received(B, chunk(offset, length), 0.3)]
    assert asked == [(A, 10, 10)], "then it goes on"


def test_who_is_in_a_hurry_for_what_had_time_gets_it_as_fast_as_it_goes():
    transfers = Transfers(SMALL)
    transfers.fetch(BLOB, 100, [A], 0.0, bytes_per_s=1.0)
    effects = transfers.fetch(BLOB, 100, [B], 0.1)
    effects += transfers.received(A, chunk(0), 0.2)
    assert asks(effects) == [(A, 10, 10), (A, 20, 10)]
    sink = Sink(transfers)
    sink.received[:10] = DATA[:10]
    sink.run(effects, 0.3)
    assert bytes(sink.received) == DATA


# --- receiving ---


def test_a_window_of_requests_and_all_bytes_once():
    transfers = Transfers(SMALL)
    effects = transfers.fetch(BLOB, 100, [A, B], 0.0)
    assert asks(effects) == [(A, 0, 10), (A, 10, 10)]
    sink = Sink(transfers)
    assert sink.run(effects) == []
    assert sink.received == DATA
    assert sink.ended == [FetchCompleted(BLOB)]
    assert transfers.next_deadline() == NEVER
    assert transfers.progress()[0].state == "verifying"
    assert transfers.verified(BLOB, 1.0) == []
    assert transfers.progress() == ()


def test_out_of_order_and_double_chunks():
    transfers = Transfers(SMALL)
    transfers.fetch(BLOB, 100, [A], 0.0)
    first = transfers.received(A, chunk(10), 1.0)
    assert of(WriteChunk, first) == [WriteChunk(BLOB, 10, DATA[10:20])]
    assert asks(first) == [(A, 20, 10)]
    assert transfers.received(A, chunk(10), 1.0) == []
    assert of(WriteChunk, transfers.received(A, chunk(0), 1.0)) == [WriteChunk(BLOB, 0, DATA[:10])]
    assert transfers.progress()[0].received_bytes == 20


def test_what_was_not_asked_is_the_senders_fault():
    transfers = Transfers(SMALL)
    transfers.fetch(BLOB, 100, [A], 0.0)
    for sender, message, reason in [
        (A, chunk(50), "unasked"),
        (B, chunk(0), "unasked"),
        (A, Chunk(blob_id(b"x"), 0, b"x"), "unasked"),
        (A, chunk(0, 9), "chunk-length"),
        (A, chunk(0, 11), "chunk-length"),
    ]:
        with pytest.raises(RemoteError) as caught:
            transfers.received(sender, message, 1.0)
        assert caught.value.reason == reason
    assert transfers.received(C, FetchRefused(BLOB), 1.0) == [], "not one of the sources"
    assert transfers.received(A, FetchRefused(blob_id(b"x")), 1.0) == []


def test_the_next_source_carries_on_from_the_bytes_that_are_there():
    transfers, sink = Transfers(SMALL), None
    sink = Sink(transfers)
    sink.run(transfers.fetch(BLOB, 100, [A, B, C], 0.0), most=4)
    assert transfers.progress()[0].received_bytes == 40
    effects = transfers.received(A, FetchRefused(BLOB), 1.0)
    assert asks(effects) == [(B, 40, 10), (B, 50, 10)]
    assert of(WriteChunk, transfers.received(A, chunk(40), 1.0)), "come late, still of use"
    effects = transfers.peer_gone(B, 2.0)
    assert asks(effects) == [(C, 50, 10), (C, 60, 10)]
    assert of(FetchFailed, transfers.peer_gone(C, 3.0)) == [
        FetchFailed(BLOB, f"no source left: the last, {C}, is gone")
    ]
    assert transfers.progress() == ()
    assert transfers.in_flight_bytes == 0
    assert transfers.received(C, chunk(50), 4.0) == [], "late, but asked for"


def test_a_silent_source_is_asked_again_then_left():
    transfers = Transfers(SMALL)
    transfers.fetch(BLOB, 100, [A, B], 0.0)
    assert transfers.next_deadline() == 3.0
    assert transfers.tick(2.9) == []
    effects = transfers.tick(3.0)
    assert asks(effects) == [(A, 0, 10), (A, 10, 10)]
    assert transfers.next_deadline() == 9.0, "twice the time"
    effects = transfers.tick(9.0)
    assert asks(effects) == [(B, 0, 10), (B, 10, 10)]
    assert of(Note, effects) == [Note("fetch-stalled", (("blob", BLOB), ("peer", A)))]
    sink = Sink(transfers)
    sink.run(effects)
    assert sink.received == DATA


def test_the_only_source_is_asked_until_the_deadline():
    transfers = Transfers(SMALL)
    effects = transfers.fetch(BLOB, 100, [A], 0.0)
    now, num_asks = 0.0, 0
    while not of(FetchFailed, effects):
        num_asks += len(asks(effects))
        now = transfers.next_deadline()
        effects = transfers.tick(now)
    assert now == SMALL.silent_s
    assert 8 <= num_asks <= 20
    assert transfers.next_deadline() == NEVER


def test_a_trickle_ends_too():
    config = TransferConfig(first_chunk_bytes=1, max_chunk_bytes=1, window=1, overall_s=50.0, min_bytes_per_s=100.0)
    transfers = Transfers(config)
    effects = transfers.fetch(BLOB, 100, [A], 0.0)
    now = 0.0
    while not of(FetchFailed, effects):
        now += 0.9
        effects = transfers.tick(now)
        if not effects and transfers.next_deadline() > now:
            effects = transfers.received(A, chunk(transfers.progress()[0].received_bytes, 1), now)
    assert now < 52.0


def test_one_that_hands_out_a_trickle_gives_way_to_another():
    """It answers every question in time, so it never stalls."""
    config = TransferConfig(first_chunk_bytes=1, min_chunk_bytes=1, max_chunk_bytes=1, window=1, min_bytes_per_s=2.0)
    transfers = Transfers(config)
    effects = transfers.fetch(BLOB, 100, [A, B], 0.0)
    now, asked = 0.0, list[PeerId]()
    while len(asked) < 100 and now < 200.0:
        asked += [peer for peer, _, _ in asks(effects)]
        now += 1.0 if asked[-1] == A else 0.1
        effects = transfers.tick(now)
        if not asks(effects):
            effects += transfers.received(asked[-1], chunk(transfers.progress()[0].received_bytes, 1), now)
    assert asked.count(A) <= config.slow_s + 1 and asked[-1] == B, "who is fast enough stays"
    assert now < 2 * config.slow_s


def test_time_outs_and_chunks_follow_the_measured_rate():
    size = 64 << 20
    transfers = Transfers(TransferConfig())
    blob = BlobId("0" * 64)
    pending = [e.message for e in transfers.fetch(blob, size, [A], 0.0)]
    assert pending[0].length == 64 << 10
    now = 0.0
    for _ in range(60):
        ask = pending.pop(0)
        now += ask.length / 1e6  # 1 MB/s
        pending += [
            e.message
            for e in transfers.received(A, Chunk(blob, ask.offset, bytes(ask.length)), now)
            if isinstance(e, Send)
        ]
    assert pending[-1].length == pytest.approx(5e5, rel=0.05), "half a second's worth"
    expected = sum(ask.length for ask in pending) / 1e6
    assert transfers.next_deadline() - now > 2 * expected
    assert transfers.next_deadline() - now < 8 * expected
    assert transfers.progress()[0].bytes_per_s == pytest.approx(1e6, rel=0.05)


def test_where_all_sources_stall_each_gets_its_time():
    """A slow link: what was asked for is on its way, and nothing more is asked for at each moment."""
    transfers, now, turns = Transfers(SMALL), 0.0, 0
    questions = len(asks(transfers.fetch(BLOB, 100, [A, B], now)))
    for _ in range(4000):  # 40 s
        now += 0.01
        effects = transfers.tick(now)
        turns += sum(isinstance(e, Note) for e in effects)
        questions += len(asks(effects))
    assert 2 <= turns < 20
    assert questions < 40


def test_bytes_in_flight_and_fetches_are_bounded_and_shared():
    config = TransferConfig(
        first_chunk_bytes=10, max_chunk_bytes=10, window=4, max_in_flight_bytes=30, max_fetches=2, max_queued=3
    )
    transfers = Transfers(config)
    blobs = [BlobId(f"{n:064d}") for n in range(4)]
    assert len(asks(transfers.fetch(blobs[0], 100, [A], 0.0))) == 2
    assert len(asks(transfers.fetch(blobs[1], 100, [A], 0.0))) == 1
    assert asks(transfers.fetch(blobs[2], 100, [A], 0.0)) == []
    assert of(FetchFailed, transfers.fetch(blobs[3], 100, [A], 0.0))
    assert transfers.in_flight_bytes == 30
    assert [p.state for p in transfers.progress()] == ["fetching", "fetching", "queued"]
    more = transfers.received(A, Chunk(blobs[1], 0, DATA[:10]), 0.0)
    assert [e.message.blob for e in of(Send, more)] == [blobs[1]], "the one with less in flight"
    effects = transfers.cancel(blobs[0], 0.0)
    assert [e.message.blob for e in of(Send, effects)] == [blobs[2], blobs[1]]
    assert transfers.in_flight_bytes == 30


def test_limits_of_a_fetch():
    transfers = Transfers(TransferConfig(max_blob_bytes=100))
    assert of(FetchFailed, transfers.fetch(BLOB, 101, [A], 0.0))
    assert of(FetchFailed, transfers.fetch(BLOB, 0, [A], 0.0))
    assert of(FetchFailed, transfers.fetch(BLOB, 100, [], 0.0))
    assert asks(transfers.fetch(BLOB, 100, [A], 0.0)) == [(A, 0, 100)]
    assert transfers.fetch(BLOB, 100, [A, B], 0.0) == []
    assert of(Note, transfers.fetch(BLOB, 99, [A, B], 0.0)), "two sizes of one content"
    assert asks(transfers.peer_gone(A, 1.0)) == [(B, 0, 100)]


def test_who_hands_out_nothing_is_remembered_until_it_does():
    transfers = Transfers(SMALL)
    effects, now = transfers.fetch(BLOB, 100, [A], 0.0), 0.0
    while not of(FetchFailed, effects):
        now = transfers.next_deadline()
        effects = transfers.tick(now)
    assert now == SMALL.silent_s and transfers.hands_out_nothing(A) and not transfers.hands_out_nothing(B)
    effects, begun = transfers.fetch(BLOB, 100, [A], now), now
    while not of(FetchFailed, effects):
        now = transfers.next_deadline()
        effects = transfers.tick(now)
    assert now == begun + SMALL.vain_s
    assert asks(transfers.fetch(BLOB, 100, [A], now))[0] == (A, 0, 10)
    transfers.received(A, chunk(0), now)
    assert not transfers.hands_out_nothing(A)


def test_one_that_refuses_what_it_said_to_have_is_forgiven_a_few_times_and_after_a_while():
    transfers = Transfers(SMALL)
    for number in range(SMALL.max_vain):
        assert not transfers.hands_out_nothing(A)
        transfers.tick(float(number))
        transfers.fetch(BLOB, 100, [A], float(number))
        assert of(FetchFailed, transfers.received(A, FetchRefused(BLOB), float(number)))
    assert transfers.hands_out_nothing(A)
    transfers.tick(SMALL.max_vain + SMALL.mistrusted_s)
    assert not transfers.hands_out_nothing(A)


def test_progress_says_for_whom_and_since_when():
    transfers = Transfers(SMALL)
    transfers.fetch(BLOB, 100, [A], 5.0)
    transfers.received(A, chunk(0), 7.0)
    (progress,) = transfers.progress()
    assert (progress.received_bytes, progress.num_bytes) == (10, 100)
    assert (progress.waiting_for, progress.waiting_since) == (A, 7.0)
    assert progress.fails_at == 7.0 + SMALL.idle_s
    assert progress.bytes_per_s == 5.0


# --- lies ---

LIE = bytes(100)


def test_one_liar_is_left_for_the_others():
    transfers = Transfers(SMALL)
    sink = Sink(transfers)
    sink.run(transfers.fetch(BLOB, 100, [A, B], 0.0), content={A: LIE})
    effects = transfers.corrupt(BLOB, 1.0)
    assert of(Note, effects) == [Note("fetch-corrupt", (("blob", BLOB), ("peer", A)))]
    sink.run(effects, content={A: LIE})
    assert sink.received == DATA
    assert transfers.verified(BLOB, 2.0) == []


def test_a_liar_alone_fails_the_fetch():
    transfers = Transfers(SMALL)
    Sink(transfers).run(transfers.fetch(BLOB, 100, [A], 0.0), content={A: LIE})
    assert of(FetchFailed, transfers.corrupt(BLOB, 1.0))
    assert transfers.add_source(BLOB, A, 2.0) == []
    with pytest.raises(LocalError):
        transfers.corrupt(BLOB, 1.0)


def test_a_liar_among_several_is_found_by_asking_each_for_all():
    transfers = Transfers(SMALL)
    sink = Sink(transfers)
    sink.run(transfers.fetch(BLOB, 100, [A, B], 0.0), most=3, content={A: LIE})
    sink.run(transfers.received(A, FetchRefused(BLOB), 1.0))
    transfers.add_source(BLOB, A, 1.0)
    effects = transfers.corrupt(BLOB, 1.0)
    (note,) = of(Note, effects)
    assert dict(note.fields)["peers"] == f"{A} {B}", "nobody can say who it was"
    assert {to for to, _, _ in asks(effects)} == {A}, "the one that gave less goes first"
    sink.run(effects, content={A: LIE})
    sink.run(transfers.corrupt(BLOB, 2.0), content={A: LIE})
    assert sink.received == DATA
    assert transfers.progress()[0].state == "verifying"


def test_asked_alone_a_source_shares_with_nobody():
    transfers = Transfers(SMALL)
    sink = Sink(transfers)
    sink.run(transfers.fetch(BLOB, 100, [A, B], 0.0), most=3)
    sink.run(transfers.received(A, FetchRefused(BLOB), 1.0))
    transfers.add_source(BLOB, A, 1.0)
    rest = sink.run(transfers.corrupt(BLOB, 1.0), most=3)
    assert {to for to, _, _ in asks(rest)} == {A}
    effects = transfers.peer_gone(A, 2.0)
    assert asks(effects)[0] == (B, 0, 10), "from the start"
    assert of(WriteChunk, transfers.received(A, chunk(30), 2.0)) == [], "the bytes of the other count no more"


# --- serving ---


def test_reads_are_served_in_turns_and_bounded():
    transfers = Transfers(TransferConfig(max_reads=2, max_reads_queued_per_peer=3))
    effects = [e for n in range(6) for e in transfers.received(A, Fetch(BLOB, n * 10, 10), 0.0)]
    assert effects == [ReadChunk(A, BLOB, 0, 10), ReadChunk(A, BLOB, 10, 10)]
    assert transfers.num_reads_dropped == 1
    assert transfers.received(B, Fetch(BLOB, 0, 10), 0.0) == []
    served = []
    reads = list(effects)
    while reads:
        read = reads.pop(0)
        data = DATA[read.offset : read.offset + read.length]
        answer, *more = transfers.chunk_read(read.to, read.blob, read.offset, data)
        assert answer == Send(read.to, Chunk(BLOB, read.offset, data))
        served.append(read.to)
        reads += more
    assert served == [A, A, A, B, A, A]


def test_a_request_come_twice_is_read_once():
    transfers = Transfers(TransferConfig(max_reads=1))
    assert len(transfers.received(A, Fetch(BLOB, 0, 10), 0.0)) == 1
    for _ in range(3):
        assert transfers.received(A, Fetch(BLOB, 0, 10), 0.0) == []
        assert transfers.received(A, Fetch(BLOB, 10, 10), 0.0) == []
        assert transfers.received(A, Fetch(BLOB, 0, 20), 0.0) == []
    _, read = transfers.chunk_read(A, BLOB, 0, DATA[:10])
    assert read == ReadChunk(A, BLOB, 10, 10) or read == ReadChunk(A, BLOB, 0, 20)
    _, read = transfers.chunk_read(A, BLOB, read.offset, DATA[read.offset : read.offset + read.length])
    assert transfers.chunk_read(A, BLOB, read.offset, DATA[read.offset : read.offset + read.length])[1:] == []


def test_what_is_not_there_is_refused_once():
    transfers = Transfers(TransferConfig(max_reads=1))
    for n in range(4):
        transfers.received(A, Fetch(BLOB, n, 1), 0.0)
    transfers.received(B, Fetch(BLOB, 7, 1), 0.0)
    assert transfers.unknown(A, BLOB) == [Send(A, FetchRefused(BLOB)), ReadChunk(B, BLOB, 7, 1)]


def test_the_dead_are_not_served():
    transfers = Transfers(TransferConfig(max_reads=1))
    transfers.received(A, Fetch(BLOB, 0, 1), 0.0)
    transfers.received(A, Fetch(BLOB, 1, 1), 0.0)
    transfers.received(B, Fetch(BLOB, 2, 1), 0.0)
    assert transfers.peer_gone(A, 0.0) == [ReadChunk(B, BLOB, 2, 1)]
    assert transfers.chunk_read(A, BLOB, 0, b"x") == []
    with pytest.raises(LocalError):
        transfers.chunk_read(B, BLOB, 2, b"xx")


def test_who_takes_nothing_of_what_it_asked_for_is_read_nothing_more() -> None:
    """And keeps nobody else waiting; once its link has room it is served."""
    transfers, deaf = Transfers(TransferConfig(max_reads=2)), {A}
    transfers.has_room = lambda peer: peer not in deaf
    for offset in range(4):
        assert transfers.received(A, Fetch(BLOB, 10 * offset, 10), 0.0) == []
    assert transfers.next_deadline() <= 0.0 and transfers.tick(0.0) == []
    assert 0.0 < transfers.next_deadline() < 1.0
    assert transfers.received(B, Fetch(BLOB, 0, 10), 0.0) == [ReadChunk(B, BLOB, 0, 10)]
    assert of(Send, transfers.chunk_read(B, BLOB, 0, DATA[:10])) == [Send(B, chunk(0))]
    deaf.clear()
    assert transfers.tick(1.0) == [ReadChunk(A, BLOB, 0, 10), ReadChunk(A, BLOB, 10, 10)]
    for offset in (0, 10, 20, 30):
        transfers.chunk_read(A, BLOB, offset, DATA[offset : offset + 10])
    assert transfers.next_deadline() == NEVER

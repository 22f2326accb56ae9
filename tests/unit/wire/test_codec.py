"""The wire codec: golden bytes of every kind, roundtrips of generated messages, and hostile bytes.

Regenerate the golden bytes after a wanted change of the wire: raise ``WIRE_VERSION`` in wire/messages.py, then
``P2PTRAIN_WRITE_GOLDEN=1 pytest tests/unit/wire/test_codec.py -k golden``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.wire import codec
from p2ptrain.wire import messages as m
from p2ptrain.wire.codec import Envelope, WireVersionError, decode, encode
from p2ptrain.wire.partial import pack_fields
from p2ptrain.wire.schema import Bound, RawBytes

GOLDEN = Path(__file__).parents[2] / "golden" / "messages.json"
LANES: tuple[m.Lane, ...] = ("control", "bulk")

NONCE, ECHO, MAC, BLOB = b"n" * 16, b"e" * 16, b"m" * 32, m.BlobId("ab" * 32)
ALICE, BOB = m.PeerId("alicealicealice2"), m.PeerId("bobbobbobbobbob3")
ADDRESSES = ("tcp://192.168.1.7:4700", "tcp://[2001:db8::7]:4700")
RUMOURS = (m.Rumour(BOB, "suspect", 3), m.Rumour(ALICE, "alive", 0))
HOLDING = m.SnapshotRef(2, ALICE, 5, 40, 400, 12800, BLOB, 1_000_000, 3, "part", "k" * 40, "s" * 80)
DATA = b"\x08" + bytes(7) + b"{}      "
RECORD = m.Record(
    BOB, 7, b"k" * 40, "kitchen-pi", ADDRESSES, m.JobId("0123456789abcdef"), (600, 0, 12), (2,), 1.5e9, 4 << 30, 5,
    "cd" * 32, 2, "training", 41, 410, 13120, 1.25, 96.5, 123456, "round 41 from 2 peers", (HOLDING,),
    12.5e6, 1.75, "ef" * 32, "0f" * 32, (m.LinkFigure(ALICE, 2.5e6, 0.004),), helper_s=0.25, ends_after=42,
    looks=(m.LookFigure("0123456789abcdef", 40, 50, 45, 12.5),),
)  # fmt: skip
ADMISSION = m.Admission(b"k" * 40, b"f" * 32, b"d" * 40, b"s" * 64, b"")
JOB_REPLY = m.JobReply(b'{"mode":"tasks"}')
SAMPLES: list[m.Message] = [
    m.Hello(NONCE, ADDRESSES, 4701, "p2ptrain 0.1.0"),
    m.Welcome(NONCE, ECHO, MAC, ADDRESSES, 4701, "p2ptrain 0.1.0", "laptop", None),
    m.Proof(ECHO, MAC, "kitchen-pi", ADMISSION),
    m.Refused("another wire version", 1),
    m.Admitted(ADMISSION),
    m.NewCode(b"k" * 40, b"f" * 32, (m.SealedCode(ALICE, b"b" * 81),), (BOB,), b"s" * 64),
    m.Goodbye(),
    m.Ping(9, RUMOURS),
    m.PingRequest(10, BOB, ()),
    m.Ack(9, RUMOURS),
    m.RecordDigest((m.RecordVersion(ALICE, 3), m.RecordVersion(BOB, 7)), True),
    m.Records((RECORD,)),
    m.RecordChanges((m.RecordChange(ALICE, 3, 5, pack_fields(RECORD, {"step", "loss"}), b"s" * 64),)),
    m.StatusRequest(),
    m.StatusReply(
        RUMOURS, (m.RefusedCount("schema", 4),), (m.SentBytes("chunk", 1 << 40),), (m.Figure("battery", 0.5),)
    ),
    m.Stop(m.JobId("0123456789abcdef"), 8, "laptop"),
    m.StopReply("refuses"),
    m.JobRequest(),
    JOB_REPLY,
    m.PlanRequest("cd" * 32),
    m.PlanReply(b'{"parts":[]}'),
    m.PlanVote("cd" * 32, 6, True),
    m.ProfileRequest("ef" * 32),
    m.ProfileReply(b'{"forward_s":[]}'),
    m.Fetch(BLOB, 1 << 20, 1 << 20),
    m.Chunk(BLOB, 1 << 20, b"some bytes"),
    m.FetchRefused(BLOB),
    m.GossipPush(77, 5, (m.ShardMass("trunk", 128.0), m.ShardMass("class 3", 0.5)), BLOB, 4096, True),
    m.ReplicaOffer(HOLDING),
    m.ReplicaAck(BLOB),
    m.HeadFitCall(5, (HOLDING,)),
    m.HeadFitReady("0123456789abcdef", 500),
    m.HeadFitGradient("0123456789abcdef", 3, 500, DATA),
    m.HeadFitState("0123456789abcdef", 4, DATA),
    m.StreamData(5, 17, "backward", 410, 3, 8, DATA, "cd" * 32, 19),
    m.StreamAck(5, 16, "cd" * 32, 18, 19),
    m.LinkProbe(3, b"some bytes", True),
    m.LinkEcho(3, True),
]
CONTEXT: dict[str, Any] = {"session": b"sessions", "sequence": 42, "job": "0123456789abcdef", "epoch": 5}


def sample_frames() -> dict[str, list[bytes]]:
    return {sample.KIND: encode(sample, **CONTEXT) for sample in SAMPLES}


# --- golden bytes -----------------------------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    made = {kind: [frame.hex() for frame in frames] for kind, frames in sample_frames().items()}
    if os.environ.get("P2PTRAIN_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"wire_version": m.WIRE_VERSION, "kinds": made}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    changed = sorted(
        kind for kind in made.keys() | golden["kinds"].keys() if made.get(kind) != golden["kinds"].get(kind)
    )
    assert not changed and golden["wire_version"] == m.WIRE_VERSION, (
        f"the bytes of {changed} changed. If that is wanted: raise WIRE_VERSION in p2ptrain/wire/messages.py, then "
        "run P2PTRAIN_WRITE_GOLDEN=1 pytest tests/unit/wire/test_codec.py -k golden, and commit the new file"
    )


def test_every_kind_has_a_sample() -> None:
    assert [sample.KIND for sample in SAMPLES] == list(m.KINDS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.KIND)
def test_golden_bytes_are_read_back(sample: m.Message) -> None:
    frames = [bytes.fromhex(frame) for frame in json.loads(GOLDEN.read_text())["kinds"][sample.KIND]]
    envelope, message = decode(frames, m.lane_of(sample))
    assert message == sample
    assert envelope == Envelope(m.WIRE_VERSION, sample.KIND, b"sessions", 42, "0123456789abcdef", 5)


# --- generated messages -----------------------------------------------------------------------------------------------


def values(hint: Any, bound: Bound | None = None) -> st.SearchStrategy[Any]:
    """Any value that ``hint`` allows, kept short."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        return values(inner, next((extra for extra in extras if isinstance(extra, Bound)), bound))
    if hint == RawBytes:
        return values(bytes, bound)
    if get_origin(hint) is UnionType:
        return st.none() | values(get_args(hint)[0])
    hint = getattr(hint, "__supertype__", hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return st.builds(hint, **{field.name: values(hints[field.name]) for field in dataclasses.fields(hint)})
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    low, high = (bound.low, bound.high) if bound else (0, 256)
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), min_size=int(low), max_size=int(min(high, low + 3))).map(tuple)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(low), int(high) if bound else 2**63 - 1)
    if hint is float:
        return st.floats(low, high) if bound else st.floats(-1e300, 1e300)
    short = {"min_size": int(low), "max_size": int(min(high, low + 20))}
    return st.text(st.characters(codec="utf-8"), **short) if hint is str else st.binary(**short)


any_message = st.sampled_from(list(m.KINDS.values())).flatmap(values)


@given(
    any_message,
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**63 - 1),
    st.text("0123456789abcdef", max_size=16),
    st.integers(0, 2**63 - 1),
)
@settings(max_examples=300, deadline=None)
def test_roundtrip(message: m.Message, session: bytes, sequence: int, job: str, epoch: int) -> None:
    frames = encode(message, session=session, sequence=sequence, job=job, epoch=epoch)
    lane = m.lane_of(message)
    assert decode(frames, lane) == (Envelope(m.WIRE_VERSION, message.KIND, session, sequence, job, epoch), message)
    assert len(frames[0]) <= codec.header_bytes(message)
    with pytest.raises(RemoteError) as caught:
        decode(frames, "bulk" if lane == "control" else "control")
    assert caught.value.reason == "lane"


# --- hostile bytes ----------------------------------------------------------------------------------------------------


def survives(frames: list[bytes], lane: m.Lane) -> None:
    try:
        decode(frames, lane)
    except RemoteError as error:
        assert error.reason in codec.REASONS


@given(st.lists(st.binary(max_size=200), max_size=4), st.sampled_from(LANES))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_raise_only_remote_errors(frames: list[bytes], lane: m.Lane) -> None:
    survives(frames, lane)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_frames_raise_only_remote_errors(data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(SAMPLES))
    frames = encode(sample, **CONTEXT)
    header = bytearray(frames[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(header) - 1))
        what = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        if what == "set":
            header[at] = data.draw(st.integers(0, 255))
        elif what == "insert":
            header[at:at] = data.draw(st.binary(max_size=8))
        else:
            del header[at : at + 1 if what == "drop" else None]
        if not header:
            break
    frames[0] = bytes(header)
    survives(data.draw(st.permutations(frames)), m.lane_of(sample))


numbers = st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
plain_values = st.recursive(
    st.none() | numbers | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(SAMPLES), st.data())
@settings(max_examples=400, deadline=None)
def test_wrong_values_in_a_well_formed_header(sample: m.Message, data: st.DataObject) -> None:
    frames = encode(sample, **CONTEXT)
    header = msgpack.unpackb(frames[0])
    where = data.draw(st.sampled_from([header, header["b"]]))
    key = data.draw(st.sampled_from(sorted(where) or ["x"]))
    where[key] = data.draw(plain_values)
    survives([msgpack.packb(header), *frames[1:]], m.lane_of(sample))


def test_duplicate_keys_and_trailing_bytes() -> None:
    frames = encode(m.Ping(1, ()))
    twice = frames[0].replace(b"\xa1e", b"\xa1v")
    for raw in (frames[0] + b"\x00", twice, frames[0][:-1], b"", b"\x90", b"\xc1"):
        with pytest.raises(RemoteError) as caught:
            decode([raw], "control")
        assert caught.value.reason == "header"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x91" * 60_000,
        b"\x81\xa1v" * 20_000,
        b"\xdd\x00\x01\x00\x00" + b"\x90" * 60_000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\x08\x05abcdefgh",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\x81\x91\x01\x01",
        b"\x82\x01\x01\x02\x02",
    ],
    ids=["deep lists", "deep maps", "many lists", "huge map", "extension", "timestamp", "list as key", "number as key"],
)
def test_bombs(raw: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        decode([raw], "control")
    assert caught.value.reason == "header"


@pytest.mark.parametrize(
    ("frames", "lane", "reason"),
    [
        ([], "control", "frames"),
        ([b"x"] * 3, "bulk", "frames"),
        ([b"x" * (64 * 1024 + 1)], "control", "size"),
        ([b"x", bytes((16 << 20) + 1)], "bulk", "size"),
        ([*encode(m.Ping(1, ())), b"more"], "control", "frames"),
        (encode(JOB_REPLY)[:1], "bulk", "frames"),
        ([*encode(JOB_REPLY), b"more"], "bulk", "frames"),
    ],
)
def test_frame_counts_and_lengths(frames: list[bytes], lane: m.Lane, reason: str) -> None:
    with pytest.raises(RemoteError) as caught:
        decode(frames, lane)
    assert caught.value.reason == reason


def test_an_unknown_kind() -> None:
    header = {**msgpack.unpackb(encode(m.JobRequest())[0]), "k": "sing"}
    with pytest.raises(RemoteError) as caught:
        decode([msgpack.packb(header)], "control")
    assert caught.value.reason == "kind"


# --- versions ---------------------------------------------------------------------------------------------------------


def of_version(message: m.Message, version: int) -> list[bytes]:
    frames = encode(message)
    return [msgpack.packb({**msgpack.unpackb(frames[0]), "v": version}), *frames[1:]]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.KIND)
def test_another_version_is_named_but_hello_and_refused_are_read(sample: m.Message) -> None:
    frames = of_version(sample, m.WIRE_VERSION + 1)
    if isinstance(sample, m.Hello | m.Refused):
        envelope, message = decode(frames, "control")
        assert (envelope.version, message) == (m.WIRE_VERSION + 1, sample)
    else:
        with pytest.raises(WireVersionError) as caught:
            decode(frames, m.lane_of(sample))
        assert (caught.value.reason, caught.value.version) == ("version", m.WIRE_VERSION + 1)


def test_a_kind_of_the_future_says_its_version() -> None:
    with pytest.raises(WireVersionError) as caught:
        decode([msgpack.packb({"v": m.WIRE_VERSION + 1, "k": "sing", "new": 1})], "control")
    assert caught.value.version == m.WIRE_VERSION + 1


# --- our own bugs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        m.Ping(-1, ()),
        m.Ping(2**64, ()),
        m.Hello(b"short", (), 1, ""),
        m.Hello(NONCE, (), 0, "x"),
        m.Refused("\ud800", 1),
        m.Chunk(BLOB, 0, b""),
        m.Chunk(BLOB, 0, bytes((1 << 20) + 1)),
        m.StreamData(1, 0, "sideways", 0, 0, 0, DATA),  # type: ignore[arg-type]
        m.StreamData(1, 0, "forward", 0, 0, 0, bytes((16 << 20) + 1)),
        m.StreamData(1, 0, "forward", 0, 65536, 0, DATA),
        m.ProfileReply(bytes(256 * 1024 + 1)),
        m.ReplicaOffer(dataclasses.replace(HOLDING, span=0)),
        m.Records((dataclasses.replace(RECORD, slowdown=float("inf")),)),
        m.GossipPush(1, 1, (m.ShardMass("a", float("nan")),), BLOB, 1, False),
        m.Records((dataclasses.replace(RECORD, holdings=(HOLDING,) * 256),) * 3),
    ],
)
def test_encode_refuses_what_decode_would(message: m.Message) -> None:
    with pytest.raises(LocalError):
        encode(message)


def test_encode_refuses_a_wrong_session() -> None:
    with pytest.raises(LocalError):
        encode(m.JobRequest(), session=b"short")
    with pytest.raises(LocalError):
        encode(m.JobRequest(), epoch=-1)

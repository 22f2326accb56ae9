"""Anything at all, sent to a live peer: by strangers without the code, and by holders of it who mean no good.

A failing run names its seed; ``P2PTRAIN_SEED=<seed> pytest <test>`` repeats it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import psutil
import pytest
import zmq

from p2ptrain import api
from p2ptrain.core.harvest import Harvest
from p2ptrain.errors import NotCoveredError
from p2ptrain.net.signing import signing_of
from p2ptrain.net.transport import LANES
from p2ptrain.protocol.signing import Statements
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire import codec
from p2ptrain.wire.messages import (
    BULK,
    KINDS,
    Hello,
    Lane,
    Message,
    Ping,
    Proof,
    Record,
    Records,
    Refused,
    Rumour,
    StatusRequest,
    Welcome,
    lane_of,
)
from p2ptrain.wire.schema import Bound

sys.path.append(str(Path(__file__).parents[1] / "processes"))

from group import PeerGroup, PeerProcess, make_job, peer_group

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("P2PTRAIN_SEED", "1"))
MIB = 2**20


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerGroup]:
    """A group of one, which has trained its model and serves it."""
    with peer_group(tmp_path_factory.mktemp("target")) as peers:
        peers.add(job=make_job(peers=1, rounds=2, epochs=1).to_json()).start()
        peers.until_all("done")
        peers.harvest()  # what it allocates once, it has allocated now
        yield peers


def rss(peer: PeerProcess) -> int:
    return int(psutil.Process(peer.pid).memory_info().rss)


def harvested(peers: PeerGroup) -> Harvest:
    """Of a group that may have much to answer first."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return peers.harvest()
        except NotCoveredError:
            assert time.monotonic() < deadline, "it does not tell its plan"


def check_well(peers: PeerGroup, rss_before: int, growth: int) -> Counter[str]:
    """It runs, answers a status and a harvest, has not grown, and no error of its own was written; what it refused."""
    (peer,) = peers.peers
    assert peer.running, peer.tail()
    grown = rss(peer) - rss_before
    print(f"seed {SEED}: grown by {grown / MIB:.1f} MiB")
    assert not harvested(peers).missing
    status = peers.status()
    assert status.states[peer.id] == "alive"
    said = peer.errors.read_text()
    assert "Traceback" not in said and "Error" not in said, f"seed {SEED}\n{said[-4000:]}"
    assert grown < growth, f"seed {SEED}: grown by {grown / MIB:.1f} MiB"
    return Counter(status.refused[peer.id])


# --- strangers --------------------------------------------------------------------------------------------------------


def greeting(mechanism: bytes, as_server: bool) -> bytes:
    """ZMTP 3.1's."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def garbage(rng: random.Random) -> bytes:
    start = rng.choice([b"", b"\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", greeting(b"CURVE", False)])
    frame = b"\x04" + rng.choice([b"\x05HELLO", b"\x08INITIATE", b"\x05READY", b""]) + rng.randbytes(194)
    size = rng.choice([0, 1, 7, 64, 5000, 200_000])
    return start + rng.choice([b"", frame[:1] + bytes([len(frame) % 256]) + frame[1:]]) + rng.randbytes(size)


def test_strangers_are_not_let_in(target: PeerGroup) -> None:
    (peer,) = target.peers
    rng, before, since = random.Random(SEED), rss(peer), time.time()
    idle: list[socket.socket] = []
    for number in range(400):
        with suppress(OSError):
            link = socket.create_connection(("127.0.0.1", peer.port + number % 2), timeout=5)
            if number % 8 == 0:
                idle.append(link)  # and says nothing more
                continue
            if number % 4 == 1:
                link.sendall(greeting(rng.choice([b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", rng.randbytes(20)]), False))
            link.sendall(garbage(rng))
            if number % 3:
                link.close()
            else:
                idle.append(link)
    knock_with_zmq(peer, rng)
    assert not peer.said("admitted", since) and not peer.said("joined", since) and not peer.said("banned", since)
    check_well(target, before, 20 * MIB)
    for link in idle:
        link.close()
    connections = len(psutil.Process(peer.pid).net_connections("tcp"))
    print(f"{connections} connections are left")


def knock_with_zmq(peer: PeerProcess, rng: random.Random) -> None:
    """As any ZeroMQ client would: without security, with a password, with the wrong server key."""
    context = zmq.Context()
    try:
        for port in (peer.port, peer.port + 1):
            for mechanism in ("NULL", "PLAIN", "CURVE"):
                dealer = context.socket(zmq.DEALER)
                dealer.linger = 0
                if mechanism == "PLAIN":
                    dealer.plain_username, dealer.plain_password = b"admin", b"admin"
                if mechanism == "CURVE":
                    dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
                    dealer.curve_serverkey = zmq.curve_keypair()[0]
                dealer.connect(f"tcp://127.0.0.1:{port}")
                for _ in range(200):
                    with suppress(zmq.Again):
                        dealer.send_multipart([rng.randbytes(rng.randrange(2000))], flags=zmq.DONTWAIT)
        time.sleep(1.5)
    finally:
        context.destroy(linger=0)


# --- holders of the code ----------------------------------------------------------------------------------------------


def random_value(hint: Any, rng: random.Random) -> Any:
    """Of the declared type and within its bounds."""
    bound: Bound | None = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
    if get_origin(hint) is Annotated or hasattr(hint, "__supertype__"):
        return random_value(Annotated[hint.__supertype__, bound] if bound else hint.__supertype__, rng)
    if dataclasses.is_dataclass(hint):
        return random_message(hint, rng)
    if get_origin(hint) is Literal:
        return rng.choice(get_args(hint))
    low, high = (bound.low, bound.high) if bound else (0, 8)
    if get_origin(hint) is tuple:
        count = rng.randint(int(low), int(min(high, low + 5)))
        return tuple(random_value(get_args(hint)[0], rng) for _ in range(count))
    if hint is bool:
        return rng.random() < 0.5
    if hint is int:
        top = int(high) if bound else 2**63 - 1
        return rng.choice([int(low), top, rng.randint(int(low), top), rng.randint(int(low), min(top, 4))])
    if hint is float:
        return rng.choice([low, high, rng.uniform(low, high)])
    length = rng.randint(int(low), int(min(high, max(low, 40))))
    if hint is bytes:
        return rng.randbytes(length)
    letters = "0123456789abcdef" if length == 64 else "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(rng.choice(letters) for _ in range(length))


def random_message(cls: Any, rng: random.Random) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    return cls(**{field.name: random_value(hints[field.name], rng) for field in dataclasses.fields(cls)})


CALM = [cls for cls in KINDS.values() if cls not in (Hello, Welcome, Proof, Refused)]


class Insider:
    """Holds the code, was admitted like anybody, and sends whatever it likes."""

    def __init__(self, peers: PeerGroup, directory: Path, rng: random.Random) -> None:
        (self.peer,) = peers.peers
        self.rng = rng
        network = NetworkConfig(("127.0.0.1",), peers=(self.peer.address,), discover=False)
        self.node = ObserverNode(peers.group, network, directory)
        self.num_sent: Counter[str] = Counter()
        self.said = Statements(signing_of(self.node.identity), peers.group.proof_key)

    async def __aenter__(self) -> Insider:
        await self.node.start()
        deadline = time.monotonic() + 20
        while not self.node.observer.sessions.peers():
            assert time.monotonic() < deadline, "not admitted"
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.close()

    def frames(self, message: Message, epoch: int = 1) -> list[bytes]:
        """As they should be, in this session."""
        status_job = self.node.observer.job_id
        effects = self.node.observer.sessions.send(self.peer.id, message, status_job, epoch, self.node.now())
        return list(effects[0].frames)  # type: ignore[union-attr]

    async def send(self, what: str, lane: Lane, frames: list[bytes]) -> None:
        self.num_sent[what] += 1
        address = self.node.observer.sessions.address_of(self.peer.id) or f"tcp://{self.peer.address}"
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
        """One frame set that nobody should accept, or only once."""
        rng, message = self.rng, self.random_message()
        lane, frames = lane_of(message), self.frames(message)
        what = rng.choice(["random", "cut", "flipped", "lane", "frames", "shape", "value", "nested", "empty", "sized"])
        if what == "random":
            frames = [rng.randbytes(rng.randrange(300)) for _ in range(rng.randint(1, 2))]
        elif what == "cut":
            frames[0] = frames[0][: rng.randrange(len(frames[0]))]
        elif what == "flipped":
            spot = rng.randrange(len(frames[0]))
            frames[0] = frames[0][:spot] + bytes([frames[0][spot] ^ 1 << rng.randrange(8)]) + frames[0][spot + 1 :]
        elif what == "lane":
            lane = "control" if isinstance(message, BULK) else "bulk"
        elif what == "frames":
            frames = [*frames, *(b"x" * rng.randrange(9) for _ in range(rng.choice([1, 2, 50])))]
        elif what == "nested":
            frames[0] = b"\x91" * rng.choice([10, 600, 60_000])
        elif what == "empty":
            frames = rng.choice([[b""], [b"", b""], [b"\x80"]])
        elif what == "sized":
            frames[0] = frames[0] + bytes(rng.choice([1, 60 << 10, 64 << 10]))
        else:
            header = msgpack.unpackb(frames[0])
            body = header["b"]
            if what == "shape" and body and rng.random() < 0.5:
                del body[rng.choice(sorted(body))]
            elif what == "shape":
                header[rng.choice(["b", "v", "k", "s", "q", "j", "e", "x"])] = rng.choice(
                    [None, -1, 2**63, "?", b"", []]
                )
            elif body:
                odd = [None, -1, 2**63, 1e400, float("nan"), "x" * 5000, b"x", [[]] * 300, {"a": {}}]
                body[rng.choice(sorted(body))] = rng.choice(odd)
            frames[0] = msgpack.packb(header)
        return what, lane, frames


def test_nonsense_from_a_holder_of_the_code(target: PeerGroup, tmp_path: Path) -> None:
    (peer,) = target.peers
    rng, before, since = random.Random(SEED), rss(peer), time.time()
    refused = Counter(target.status().refused[peer.id])
    sent: Counter[str] = Counter()

    async def test() -> None:
        for number in range(20):
            async with Insider(target, tmp_path / str(number), rng) as insider:
                for _ in range(250):
                    await insider.send(*insider.spoilt())
                await asyncio.sleep(0.1)
                sent.update(insider.num_sent)
        await asyncio.sleep(1.5)  # what the transport refused is told once a second

    target.ask(test(), 120)
    after = check_well(target, before, 50 * MIB)
    after.subtract(refused)
    bans = len(peer.lines("banned", since))
    print(f"{sent.total()} sent: {dict(sent)}\nrefused: {dict(+after)}\n{bans} bans")
    assert bans >= 18, "of twenty senders"
    assert set(after) & codec.REASONS >= {"header", "schema", "lane", "frames"}
    assert after.total() > 0.8 * sent.total(), "all but what was on its way when a sender was cut off"


def test_any_well_formed_message_from_a_member(target: PeerGroup, tmp_path: Path) -> None:
    (peer,) = target.peers
    rng, before = random.Random(SEED + 1), rss(peer)

    async def test() -> None:
        for number in range(6):
            async with Insider(target, tmp_path / str(number), rng) as insider:
                await asyncio.sleep(0.5)  # the job is known by then
                await insider.send("record", "control", insider.frames(Records((insider.own_record(),))))
                for _ in range(300):
                    message = insider.random_message()
                    frames = insider.frames(message, rng.choice([0, 1, 2, 2**62]))
                    await insider.send("message", lane_of(message), frames)
                await asyncio.sleep(0.5)

    target.ask(test(), 120)
    check_well(target, before, 50 * MIB)


def test_a_harvest_gets_past_a_liar(target: PeerGroup, tmp_path: Path) -> None:
    """A member that says it has what is the freshest by far, and under names that are none."""
    (peer,) = target.peers
    said: list[str] = []

    async def test() -> api.Harvest:
        async with Insider(target, tmp_path, random.Random(SEED)) as insider:
            deadline = time.monotonic() + 10
            while not (true := insider.node.observer.records.get(peer.id)) or not true.holdings:
                assert time.monotonic() < deadline, "no record of the peer"
                await asyncio.sleep(0.01)
            own = insider.node.identity
            lies = [
                dataclasses.replace(true.holdings[0], round=10**6, blob=blob, trainer=trainer, num_bytes=size)
                for blob, trainer, size in (
                    ("f" * 64, own.peer, 10**6),
                    ("../" * 21 + "x", own.peer, 10**6),
                    ("e" * 64, peer.id, 2**60),
                )
            ]
            record = dataclasses.replace(
                true, peer=own.peer, key=own.public, name="liar", version=2**60, addresses=(), holdings=tuple(lies)
            )
            await insider.send("record", "control", insider.frames(Records((insider.said.signed(record),))))
            here = Rumour(own.peer, "alive", 1, insider.said.presence(1, left=False))
            harvest = asyncio.ensure_future(api.harvest(target.group, network=target.network(), say=said.append))
            while not harvest.done():  # nobody is to think it dead
                await insider.send(
                    "ping",
                    "control",
                    insider.frames(Ping(0, (here,))),
                )
                await asyncio.sleep(0.05)
            return await harvest

    found = target.ask(test())
    assert len(said) > 1 and all("liar" in line or peer.name in line for line in said), said
    assert not found.missing and found.report[0].trainers == (peer.name,)


def test_what_was_recorded_is_not_heard_twice(target: PeerGroup, tmp_path: Path) -> None:
    (peer,) = target.peers
    before = Counter(target.status().refused[peer.id])

    async def test() -> None:
        async with Insider(target, tmp_path, random.Random(SEED)) as insider:
            frames = insider.frames(StatusRequest())
            for _ in range(500):
                await insider.send("replay", "control", frames)
            await asyncio.sleep(0.5)

    target.ask(test())
    after = Counter(target.status().refused[peer.id])
    assert after["replay"] - before["replay"] == 499
    assert not peer.lines("banned", time.time() - 5), "a replay is nobody's fault"


def test_one_that_sends_more_than_is_read(target: PeerGroup, tmp_path: Path) -> None:
    """16 MiB in one frame, oversized frames, and the longest lists that the wire allows."""
    (peer,) = target.peers
    sizes = [rss(peer)]
    biggest = {"control": codec.MAX_HEADER_BYTES, "bulk": codec.MAX_DATA_BYTES}

    async def test() -> None:
        for number in range(6):
            async with Insider(target, tmp_path / str(number), random.Random(SEED + number)) as insider:
                for lane in LANES:
                    for extra in (-1, 0, 1, 5000):
                        await insider.send("big", lane, [bytes(biggest[lane] + extra)])
                        await asyncio.sleep(0.05)
                header = {"v": 1, "k": "records", "s": bytes(8), "q": 1, "j": "", "e": 1, "b": [[]] * 60_000}
                for _ in range(20):
                    await insider.send("lists", "control", [msgpack.packb(header)])
                await asyncio.sleep(0.3)
            sizes.append(rss(peer))

    target.ask(test(), 100)
    print("RSS:", " ".join(f"{size / MIB:.0f}" for size in sizes), "MiB")
    assert sizes[-1] - sizes[2] < 20 * MIB, "it is not the number of senders that costs memory"
    check_well(target, sizes[0], 8 * codec.MAX_DATA_BYTES)


def test_messages_of_the_fuzzer_are_valid() -> None:
    rng = random.Random(SEED)
    for cls in CALM * 20:
        message = random_message(cls, rng)
        envelope, read = codec.decode(codec.encode(message), lane_of(message))
        assert read == message, envelope


def test_the_group_is_untouched(target: PeerGroup) -> None:
    """After all of the above: the same model, and one alive peer."""
    status = target.status()
    assert [record.peer for record in status.records if status.states.get(record.peer) == "alive"] == [
        target.peers[0].id
    ]
    assert isinstance(target.harvest(), api.Harvest)

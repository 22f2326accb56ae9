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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import psutil
import pytest

from p2ptrain import api
from p2ptrain.core.harvest import Harvest
from p2ptrain.errors import NotCoveredError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.net.transport import LANES
from p2ptrain.protocol.session.abuse import FORGIVEN, MAX_ERRORS
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Ping, Records, Rumour, StatusRequest, lane_of

sys.path += [str(Path(__file__).parents[1] / "processes"), str(Path(__file__).parents[2] / "scripts")]

from attackers import lies
from attackers.insider import Insider
from attackers.made_up import CALM, EPOCHS, random_message
from attackers.outsider import Held, knock_with_zmq
from attackers.raw import garbage, greeting
from group import SOON_S, PeerGroup, PeerProcess, make_job, peer_group

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("P2PTRAIN_SEED", "1"))
MIB = 2**20
NUM_BANNED, READ_S = 20, 5.0
"""Senders of nonsense; until so long a sender stays for what it sent to be read."""


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
                link.sendall(greeting(rng.choice([b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", rng.randbytes(20)])))
            link.sendall(garbage(rng))
            if number % 3:
                link.close()
            else:
                idle.append(link)
    knock_with_zmq([peer.port, peer.port + 1], Held(), rng)
    assert not peer.said("admitted", since) and not peer.said("joined", since) and not peer.said("banned", since)
    check_well(target, before, 20 * MIB)
    for link in idle:
        link.close()
    connections = len(psutil.Process(peer.pid).net_connections("tcp"))
    print(f"{connections} connections are left")


# --- holders of the code ----------------------------------------------------------------------------------------------


def insider(peers: PeerGroup, rng: random.Random) -> Insider:
    return Insider(peers.group, [peers.peers[0].address], rng)


async def knows_plan(liar: Insider) -> None:
    """It has been told the target's record, the job and the plan."""
    observer, deadline = liar.node.observer, time.monotonic() + SOON_S
    while not observer.records.get(liar.target) or observer.plan() is None:
        assert time.monotonic() < deadline, "it does not tell its record and its plan"
        await asyncio.sleep(0.02)


async def until_refused(peers: PeerGroup, enough: Callable[[Counter[str]], bool]) -> None:
    """The target has read, and counted, so much of what it was sent."""
    deadline = time.monotonic() + SOON_S
    while not enough(now := await refused_by(peers)):
        assert time.monotonic() < deadline, f"no more than {dict(now)} were refused"


async def members_of(peers: PeerGroup) -> set[PeerId]:
    """Who is alive, and has a record, in what the group tells anybody."""
    status = await api.status(peers.group, network=peers.network(), wait_s=SOON_S)
    return {record.peer for record in status.records if status.states.get(record.peer) == "alive"}


async def refused_by(peers: PeerGroup) -> Counter[str]:
    status = await api.status(peers.group, network=peers.network(), wait_s=SOON_S)
    return Counter(status.refused[peers.peers[0].id])


def test_nonsense_from_a_holder_of_the_code(target: PeerGroup) -> None:
    """Of each that is banned so many errors are counted, and no more: nothing that it sends later is even read."""
    (peer,) = target.peers
    rng, before, since = random.Random(SEED), rss(peer), time.time()
    refused = Counter(target.status().refused[peer.id])
    sent: Counter[str] = Counter()
    num_senders = 0

    async def test() -> None:
        nonlocal num_senders
        while len(peer.lines("banned", since)) < NUM_BANNED:
            num_senders += 1  # one whose connection was cut, by a frame that is too large, may not come so far
            assert num_senders <= 3 * NUM_BANNED
            async with insider(target, rng) as liar:
                for _ in range(250):
                    await liar.send(*liar.spoilt())
                sent.update(liar.num_sent)
                read_by = time.monotonic() + READ_S
                while not peer.said("banned", since, peer=liar.node.identity.peer) and time.monotonic() < read_by:
                    await asyncio.sleep(0.02)

    target.ask(test(), 280)
    after = check_well(target, before, 50 * MIB)
    after.subtract(refused)
    print(f"{sent.total()} sent by {num_senders}: {dict(sent)}\nrefused: {dict(+after)}")
    assert set(after) & codec.REASONS >= {"header", "schema", "lane", "frames"}
    errors = Counter({reason: count for reason, count in after.items() if reason not in FORGIVEN})
    assert errors.total() >= MAX_ERRORS * NUM_BANNED
    malformed = sum(errors[reason] for reason in codec.REASONS)
    assert malformed <= MAX_ERRORS * num_senders < sent.total()


def test_any_well_formed_message_from_a_member(target: PeerGroup) -> None:
    (peer,) = target.peers
    rng, before = random.Random(SEED + 1), rss(peer)

    async def test() -> None:
        for _ in range(6):
            async with insider(target, rng) as liar:
                await knows_plan(liar)
                await liar.send("record", "control", liar.frames(Records((liar.own_record(),))))
                for _ in range(300):
                    message = liar.random_message()
                    frames = liar.frames(message, rng.choice(EPOCHS))
                    await liar.send("message", lane_of(message), frames)
                await asyncio.sleep(0.5)

    target.ask(test())
    check_well(target, before, 50 * MIB)


COVERED = {"lies at the limits", "replays", "large frames", "nonsense", "endless messages"}
"""By tests of their own, here and in test_doorkeeper."""


def test_lies_with_a_purpose(target: PeerGroup) -> None:
    """Forged records, hearsay, plans, jobs, masses, replicas of 2^63-1 bytes, fetches never read: all for nothing."""
    (peer,) = target.peers
    rng, before, since, sent = random.Random(SEED + 2), rss(peer), time.time(), Counter[str]()

    async def test() -> None:
        for what, act in lies.ACTS.items():
            if what not in COVERED:
                async with insider(target, rng) as liar:
                    await knows_plan(liar)
                    await act(liar)
                    sent.update(liar.num_sent)

    target.ask(test(), 500)
    assert all(
        sent[what]
        for what in ("forged rumour", "made-up record", "plan told", "job told", "mass", "fetch", "copy passed off")
    )
    check_well(target, before, 60 * MIB)
    assert not peer.said("left", since) and not peer.said("plan-adopted", since)


def test_a_harvest_gets_past_a_liar(target: PeerGroup) -> None:
    """A member that says it has what is the freshest by far, and under names that are none."""
    (peer,) = target.peers
    said: list[str] = []

    async def test() -> api.Harvest:
        async with insider(target, random.Random(SEED)) as liar:
            deadline = time.monotonic() + SOON_S
            while not (true := liar.node.observer.records.get(peer.id)) or not true.holdings:
                assert time.monotonic() < deadline, "no record of the peer"
                await asyncio.sleep(0.01)
            await knows_plan(liar)
            own, job = liar.node.identity, liar.node.observer.job
            assert job is not None
            lies = [  # of the last round: what is of none that the job has is not even looked at
                liar.made(
                    dataclasses.replace(
                        true.holdings[0], round=job.training.rounds, step=10**6, blob=BlobId(blob), num_bytes=size
                    )
                )
                for blob, size in (("f" * 64, 10**6), ("../" * 21 + "x", 10**6), ("e" * 64, 2**60))
            ]
            for version, holdings in (
                (2**60, lies),
                (2**61, [dataclasses.replace(ref, trainer=peer.id) for ref in lies]),  # as if the peer had made them
            ):
                record = dataclasses.replace(
                    true, peer=own.peer, key=own.public, name="liar", version=version, addresses=(),
                    holdings=tuple(holdings),
                )  # fmt: skip
                await liar.send("record", "control", liar.frames(Records((liar.said.signed(record),))))
            here = Rumour(own.peer, "alive", 1, liar.said.presence(1, left=False))

            async def stay() -> None:
                while True:  # nobody is to think it dead
                    await liar.send("ping", "control", liar.frames(Ping(0, (here,))))
                    await asyncio.sleep(0.05)

            staying = asyncio.create_task(stay())
            try:
                deadline = time.monotonic() + SOON_S
                while own.peer not in await members_of(target):
                    assert time.monotonic() < deadline, "the peer does not tell of it"
                return await api.harvest(target.group, network=target.network(), say=said.append)
            finally:
                staying.cancel()

    found = target.ask(test())
    assert any("liar" in line for line in said), f"what it said in its own name was not heard: {said}"
    assert len(said) > 1 and all("liar" in line or peer.name in line for line in said), said
    assert not found.missing and found.report[0].trainers == (peer.name,)


def test_what_was_recorded_is_not_heard_twice(target: PeerGroup) -> None:
    (peer,) = target.peers
    before, since = Counter(target.status().refused[peer.id]), time.time()

    async def test() -> None:
        async with insider(target, random.Random(SEED)) as liar:
            frames = liar.frames(StatusRequest())
            for _ in range(500):
                await liar.send("replay", "control", frames)
            await until_refused(target, lambda now: now["replay"] - before["replay"] >= 499)

    target.ask(test())
    after = Counter(target.status().refused[peer.id])
    assert after["replay"] - before["replay"] == 499
    assert not peer.lines("banned", since), "a replay is nobody's fault"


def test_one_that_sends_more_than_is_read(target: PeerGroup) -> None:
    """16 MiB in one frame, oversized frames, and the longest lists that the wire allows."""
    (peer,) = target.peers
    sizes = [rss(peer)]
    biggest = {"control": codec.MAX_HEADER_BYTES, "bulk": codec.MAX_DATA_BYTES}

    async def test() -> None:
        for number in range(6):
            async with insider(target, random.Random(SEED + number)) as liar:
                for lane in LANES:
                    for extra in (-1, 0, 1, 5000):
                        await liar.send("big", lane, [bytes(biggest[lane] + extra)])
                        await asyncio.sleep(0.05)
                header = {"v": 1, "k": "records", "s": bytes(8), "q": 1, "j": "", "e": 1, "b": [[]] * 60_000}
                for _ in range(20):
                    await liar.send("lists", "control", [msgpack.packb(header)])
                await asyncio.sleep(0.3)
            sizes.append(rss(peer))

    target.ask(test())
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

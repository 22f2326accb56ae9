"""What an insider may say: well formed and at the limits of what the wire allows, or more than anybody can bear.

``ACTS`` are attacks on whom the insider talks to. Each sends a bounded amount. First come those that nobody is blamed
for; ``nonsense`` gets it banned.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from attackers import raw
from attackers.insider import Insider
from attackers.made_up import EPOCHS, LIMITS
from p2ptrain.config import ModelConfig
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.net.keys import Identity, new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.net.transport import LANES
from p2ptrain.protocol.signing import Statements
from p2ptrain.wire import codec
from p2ptrain.wire import messages as m
from p2ptrain.wire.messages import lane_of

MASSES = (1e15, 1e18, 1e12, 1.0)
MAX_FETCHED = 400
"""Chunks that one act asks for: 400 MiB, where there are as many."""
MAX_VICTIMS = 20
"""Of those that the insider has no session with: most do not exist."""
MIB = 1 << 20

Act = Callable[[Insider], Awaitable[None]]


async def say(insider: Insider, what: str, message: m.Message, epoch: int = 1) -> None:
    await insider.send(what, lane_of(message), insider.frames(message, epoch))


def own_record(insider: Insider, **said: object) -> m.Record:
    """Of a device like any other of this group, but for what is ``said``; not signed yet."""
    base = insider.node.observer.records.get(insider.target) or insider.own_record()
    identity = insider.node.identity
    own: dict[str, object] = {"peer": identity.peer, "key": identity.public, "name": "liar", "addresses": ()}
    return dataclasses.replace(base, **(own | {"holdings": (), "vote": ""} | said))  # type: ignore[arg-type]


async def lie_at_the_limits(insider: Insider) -> None:
    """Any message, any of its fields at a limit, of any epoch."""
    for _ in range(150):
        message = insider.random_message()
        await insider.send("message", lane_of(message), insider.frames(message, insider.rng.choice(EPOCHS)))


async def replay(insider: Insider) -> None:
    frames = insider.frames(m.StatusRequest())
    for _ in range(200):
        await insider.send("replay", "control", frames)


async def crowd(insider: Insider) -> None:
    """Records of peers that don't exist, each signed by a key of its own."""
    for _ in range(4):
        made = []
        for _ in range(24):
            identity = new_identity()
            record = own_record(insider, peer=identity.peer, key=identity.public, name="nobody")
            made.append(_statements(insider, identity).signed(record))
        await say(insider, "made-up record", m.Records(tuple(made)))


async def speak_for_others(insider: Insider) -> None:
    """Another one's record is of a version of 2^62, it has left, it is dead, it says so itself."""
    rng, observer = insider.rng, insider.node.observer
    honest = sorted(each for each in observer.records if observer.sessions.key_of(each))
    others = sorted(observer.records.keys() - set(honest))
    for victim in [*honest, *rng.sample(others, min(MAX_VICTIMS, len(others)))]:
        record, limit = observer.records[victim], rng.choice(LIMITS)
        forged = dataclasses.replace(record, version=limit, phase="failed", counts=())
        await say(insider, "forged version", m.RecordDigest((m.RecordVersion(victim, limit),), True))
        await say(insider, "forged record", m.Records((forged, insider.said.signed(forged))))
        for incarnation in (0, 1, limit):
            words = (b"", *(insider.said.presence(incarnation, left=left) for left in (True, False)))
            states: tuple[m.MemberState, ...] = ("left", "dead", "suspect", "alive")
            rumours = tuple(m.Rumour(victim, state, incarnation, word) for state in states for word in words)
            await say(insider, "forged rumour", m.Ping(rng.choice(LIMITS), rumours))


async def spread_hearsay(insider: Insider) -> None:
    """Of thousands of peers that nobody met."""
    for number in range(60):
        strangers = [new_identity().peer if number < 4 else _any_peer(insider) for _ in range(64)]
        told = tuple(m.Rumour(peer, "alive", insider.rng.choice(LIMITS)) for peer in strangers)
        await say(insider, "hearsay", m.Ping(number, told))
        versions = tuple(m.RecordVersion(peer, insider.rng.choice(LIMITS)) for peer in strangers)
        await say(insider, "digest of nobody", m.RecordDigest(versions, True))


async def name_plans(insider: Insider) -> None:
    """Of an absurd epoch and of nowhere: named in the own record, voted for, told unasked, or never to be had."""
    plan = insider.node.observer.plan()
    for number, epoch in enumerate((2**20, 2**40, 2**52, *LIMITS)):
        made = _made_up_plan(insider, plan, min(epoch, 2**52)) if plan is not None else None
        name = made.hash if made is not None else f"{number:064x}"
        record = insider.said.signed(own_record(insider, version=2 + number, epoch=epoch, plan=name))
        await say(insider, "plan named", m.Records((record,)), epoch)
        await say(insider, "vote", m.PlanVote(name, epoch, insider.rng.random() < 0.5), epoch)
        if made is not None and number % 4 == 0:
            await say(insider, "plan told", m.PlanReply(made.to_json().encode()), epoch)


async def push_jobs(insider: Insider) -> None:
    """Another job than the group's, one that names code to run among them."""
    job = insider.node.observer.job
    if job is None:
        return
    for name in ("os:system", "evil.module:run", "lenet"):
        other = dataclasses.replace(job, name="other", model=ModelConfig(name))
        await say(insider, "job told", m.JobReply(other.to_json().encode()))


async def push_masses(insider: Insider) -> None:
    """As if half of everything learnt was its own; the payload is nowhere, or no tensors."""
    for mass in MASSES:
        for epoch in EPOCHS[:4]:
            shards = (m.ShardMass("all", mass), m.ShardMass("trunk", mass))
            push = m.GossipPush(insider.rng.choice(LIMITS), epoch, shards, _any_blob(insider), 2**63 - 1, True)
            await say(insider, "mass", push, epoch)


async def offer_replicas(insider: Insider) -> None:
    """Of any size."""
    own = insider.node.identity.peer
    for limit in LIMITS:
        offer = m.SnapshotRef(insider.rng.randrange(8), own, limit, limit, limit, limit, _any_blob(insider), limit)
        await say(insider, "replica", m.ReplicaOffer(insider.made(offer)))


async def pass_off_copies(insider: Insider) -> None:
    """Copies by far fresher than all others, as if those had made them who train the part: in records, and as heads."""
    for record in list(insider.node.observer.alive()):
        for number, ref in enumerate(record.holdings[:4]):
            limit = insider.rng.choice(LIMITS)
            further = dataclasses.replace(ref, round=limit, step=limit, blob=_any_blob(insider))
            for forged in (further, dataclasses.replace(insider.made(further), trainer=ref.trainer)):
                said = own_record(insider, version=3 * 2**40 + number, holdings=(forged,))
                await say(insider, "copy passed off", m.Records((insider.said.signed(said),)))
                await say(insider, "head fit over a false copy", m.HeadFitCall(record.epoch, (forged,)), record.epoch)


async def fetch_and_not_read(insider: Insider) -> None:
    """All that they have, again and again, of which nothing is taken from here on."""
    insider.node.is_deaf = True
    num_asked = 0
    for record in insider.node.observer.alive():
        for holding in record.holdings:
            for offset in range(0, max(1, holding.num_bytes), MIB):
                for _ in range(8):
                    if num_asked < MAX_FETCHED:
                        await say(insider, "fetch", m.Fetch(holding.blob, offset, MIB))
                        num_asked += 1
    for _ in range(50):
        await say(insider, "fetch of nothing", m.Fetch(_any_blob(insider), insider.rng.choice(LIMITS), 1))
    await asyncio.sleep(1.0)


async def never_end_a_message(insider: Insider) -> None:
    """Parts of a message on the bulk lane, each of a size that is fine, the last of which never comes."""
    host_port = insider.node.observer.sessions.address_of(insider.target)
    if host_port is None:
        return
    port = int(host_port.rpartition(":")[2]) + 1
    insider.num_sent["endless parts"] += await asyncio.to_thread(_send_parts, port, insider.group.server_public)


def _send_parts(port: int, server_public: bytes, max_parts: int = 600) -> int:
    """How many were taken."""
    num_sent = 0
    try:
        client = raw.CurveClient(port, server_public, new_identity())
    except OSError:
        return 0
    try:
        client.socket.settimeout(2.0)
        for num_sent in range(max_parts):  # noqa: B007
            client.socket.sendall(client.message(bytes(MIB), more=True))
    except OSError:
        pass
    finally:
        client.close()
    return num_sent


async def send_large(insider: Insider) -> None:
    """Frames of the largest size and above, and the longest lists."""
    biggest = {"control": codec.MAX_HEADER_BYTES, "bulk": codec.MAX_DATA_BYTES}
    for lane in LANES:
        for extra in (-1, 0, 1):
            await insider.send("large", lane, [bytes(biggest[lane] + extra)])
            await asyncio.sleep(0.05)


async def talk_nonsense(insider: Insider) -> None:
    """Until it is banned, and on."""
    for _ in range(120):
        await insider.send(*insider.spoilt())


ACTS: dict[str, Act] = {
    "lies at the limits": lie_at_the_limits,
    "replays": replay,
    "made-up records": crowd,
    "claims about others": speak_for_others,
    "hearsay": spread_hearsay,
    "plans": name_plans,
    "jobs": push_jobs,
    "masses": push_masses,
    "replicas": offer_replicas,
    "copies passed off": pass_off_copies,
    "fetched and never read": fetch_and_not_read,
    "endless messages": never_end_a_message,
    "large frames": send_large,
    "nonsense": talk_nonsense,
}


def _statements(insider: Insider, identity: Identity) -> Statements:
    return Statements(signing_of(identity), insider.group.proof_key)


def _made_up_plan(insider: Insider, plan: Plan, epoch: int) -> Plan:
    return dataclasses.replace(plan, epoch=epoch, parent="f" * 64, proposer=insider.node.identity.peer)


def _any_blob(insider: Insider) -> BlobId:
    return BlobId(insider.rng.randbytes(32).hex())


def _any_peer(insider: Insider) -> PeerId:
    letters: Sequence[str] = "abcdefghijklmnopqrstuvwxyz234567"
    return PeerId("".join(insider.rng.choice(letters) for _ in range(16)))

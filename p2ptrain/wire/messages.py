"""Everything peers say to each other, one dataclass a message kind.

Invariant: a message class is its wire format. ``KINDS`` maps each kind to its class; a changed field is a changed
wire version, and the golden bytes under ``tests/golden`` say so. A field called ``data`` does not ride in the
header: it becomes the one raw frame behind it. Tensors travel in the safetensors format, in a ``data`` frame or in a
blob, so that one strict reader serves the wire, replicas and the disk.

Groups: handshake (read from anyone who holds the group key) and goodbye, membership, records, the end before the last
round, plan and job, blobs, gossip, replicas, head fit, pipeline, links.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from p2ptrain.ids import BlobId, JobId, PeerId
from p2ptrain.wire.schema import Bound
from p2ptrain.wire.schema import RawBytes as RawBytes

WIRE_VERSION = 10

Lane = Literal["control", "bulk"]
MemberState = Literal["alive", "suspect", "dead", "left"]
Phase = Literal["waiting", "training", "trained", "fitting", "done", "failed", "observing"]

Text = Annotated[str, Bound(0, 256)]
PeerName = Annotated[PeerId, Bound(16, 16)]
Blob = Annotated[BlobId, Bound(64, 64)]
Key = Annotated[bytes, Bound(40, 40)]
"""A CURVE public key, Z85."""
Nonce = Annotated[bytes, Bound(16, 16)]
FoundingNonce = Annotated[bytes, Bound(32, 32)]
"""Beside its founder's key, what a join code is a hash of."""
Mac = Annotated[bytes, Bound(32, 32)]
Signature = Annotated[bytes, Bound(0, 64)]
"""By the CURVE key of the peer that it is about; empty = nobody signed it."""
Address = Annotated[str, Bound(9, 128)]
"""A control endpoint, ``tcp://host:port``."""
Addresses = Annotated[tuple[Address, ...], Bound(0, 16)]
Port = Annotated[int, Bound(1, 65535)]
MAX_LINKS = 32
"""Of a peer, that it measures itself."""
NO_PART = -1
MAX_STAYING = 256
"""Members that a new code can travel to."""


# --- handshake ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on a new link. Its fields never change between wire versions, so that versions can be compared."""

    KIND: ClassVar[str] = "hello"
    nonce: Nonce
    addresses: Addresses
    bulk_port: Port
    software: Text


@dataclass(frozen=True, slots=True)
class Admission:
    """The founder's word that a device may be in a group that admits its devices one by one."""

    founder: Key
    nonce: FoundingNonce
    device: Key
    word: Signature
    """Of the founder, that ``device`` may be in."""
    visit: Signature = b""
    """Of the device, that whoever shows this visits for it; empty where the device itself does."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to ``Hello``, on the answerer's own link: proves that it holds the code and got this very hello."""

    KIND: ClassVar[str] = "welcome"
    nonce: Nonce
    echo: Nonce
    proof: Mac
    addresses: Addresses
    bulk_port: Port
    software: Text
    name: Text = ""
    """What people call the sender."""
    admission: Admission | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """Answer to ``Welcome``: the dialler's own proof. After it both sides are admitted."""

    KIND: ClassVar[str] = "proof"
    echo: Nonce
    proof: Mac
    name: Text = ""
    admission: Admission | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The founder has let the receiver in: what it may show from now on."""

    KIND: ClassVar[str] = "admitted"
    admission: Admission


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the other side will not talk: another wire version, say. Sent best-effort, once."""

    KIND: ClassVar[str] = "refused"
    reason: Text
    version: Annotated[int, Bound(0, 65535)]


@dataclass(frozen=True, slots=True)
class SealedCode:
    """What the founder tells one member of the new code, in a box that only that one can open."""

    peer: PeerName
    box: Annotated[bytes, Bound(1, 256)]


@dataclass(frozen=True, slots=True)
class NewCode:
    """The group has a new join code. Only its founder can say so, and anybody may pass it on, outside of a session too.

    ``founder`` and ``nonce`` are what the present code is a hash of.
    """

    KIND: ClassVar[str] = "new-code"
    founder: Key
    nonce: FoundingNonce
    codes: Annotated[tuple[SealedCode, ...], Bound(1, MAX_STAYING)]
    """One for each member that stays."""
    removed: Annotated[tuple[PeerName, ...], Bound(0, MAX_STAYING)]
    signature: Signature
    """Of the founder, over all the rest and the group that it is meant for."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last words of a visitor, inside its session; members that leave tell the membership."""

    KIND: ClassVar[str] = "goodbye"


# --- membership (SWIM) ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rumour:
    """``peer`` is in ``state`` as of its ``incarnation``.

    Anybody may call it suspect or dead. That it left, and that it ever had this incarnation, only its own word shows.
    """

    peer: PeerName
    state: MemberState
    incarnation: int
    word: Signature = b""
    """Of the peer itself: that it left, or (in the other states) that it was here as of this incarnation."""


Rumours = Annotated[tuple[Rumour, ...], Bound(0, 64)]


@dataclass(frozen=True, slots=True)
class Ping:
    KIND: ClassVar[str] = "ping"
    sequence: int
    rumours: Rumours


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Please ping ``target`` for me and pass its ack on."""

    KIND: ClassVar[str] = "ping-request"
    sequence: int
    target: PeerName
    rumours: Rumours


@dataclass(frozen=True, slots=True)
class Ack:
    KIND: ClassVar[str] = "ack"
    sequence: int
    rumours: Rumours


# --- records --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """Names a snapshot that a peer has: of which part, how fresh, and where its bytes are. Or the fitted head."""

    part: Annotated[int, Bound(0, 4095)]
    """0 for a head, which is of no part: ``kind`` tells it from one of part 0."""
    trainer: PeerName
    epoch: int
    round: int
    step: int
    samples: int
    blob: Blob
    num_bytes: int
    span: Annotated[int, Bound(1, 4096)] = 1
    """So many parts, from ``part`` on: the blocks of a pipeline's stage; 1 in the other modes. Of a head: so many parts
    that it was fitted over."""
    kind: Literal["part", "head", "update", "kept"] = "part"
    """An update is what a peer gives to the average of a round: of use in that round only. What is kept is a part as it
    was after a round that is over, for a look at the whole model as it was then."""
    key: Annotated[str, Bound(0, 40)] = field(default="", compare=False, repr=False)
    """Of the trainer, who may be long gone."""
    signature: Annotated[str, Bound(0, 80)] = field(default="", compare=False, repr=False)
    """Of the trainer, over the job and all the rest; base 85."""


@dataclass(frozen=True, slots=True)
class LinkFigure:
    """What was measured of the link from a peer to ``peer``."""

    peer: PeerName
    bytes_per_s: Annotated[float, Bound(0, 1e15)]
    latency_s: Annotated[float, Bound(0, 3600)]
    """One way: half of a round trip."""


@dataclass(frozen=True, slots=True)
class StreamRate:
    """What a peer sent to ``peer`` for its training, over a round."""

    peer: PeerName
    bytes_per_s: Annotated[float, Bound(0, 1e15)]


@dataclass(frozen=True, slots=True)
class Blame:
    """What ``peer`` sent for the plan of ``epoch``, in ``round``, is of no use."""

    peer: PeerName
    epoch: int
    round: int
    why: Text


MAX_LOOKS = 8


@dataclass(frozen=True, slots=True)
class LookFigure:
    """How good a peer found the whole model, as it was after a round, on its own validation samples: sums only."""

    state: Annotated[str, Bound(16, 16)]
    """Names the very copies that were put together."""
    round: int
    samples: int
    correct: int
    loss: Annotated[float, Bound(0, 1e18)]
    """Sum over the samples, nats."""


MAX_BLAMES = 16


@dataclass(frozen=True, slots=True)
class Record:
    """What a peer says of itself, and signs; everyone passes it on."""

    peer: PeerName
    version: int
    key: Key
    name: Text
    addresses: Addresses
    job: Annotated[JobId, Bound(0, 16)]
    counts: Annotated[tuple[int, ...], Bound(0, 4096)]
    """Training samples of each class of the job."""
    wishes: Annotated[tuple[int, ...], Bound(0, 4096)]
    flops_per_s: Annotated[float, Bound(0, 1e18)]
    memory_bytes: int
    epoch: int
    plan: Annotated[str, Bound(0, 64)]
    """Hash of the plan this peer follows ("" = none)."""
    part: Annotated[int, Bound(-1, 4096)]
    phase: Phase
    round: int
    step: int
    samples: int
    loss: float
    samples_per_s: Annotated[float, Bound(0, 1e12)]
    bytes_sent: int
    waiting_for: Text
    holdings: Annotated[tuple[SnapshotRef, ...], Bound(0, 256)]
    link_bytes_per_s: Annotated[float, Bound(0, 1e15)] = 0.0
    """What this peer can send and receive; 0 = not known."""
    slowdown: Annotated[float, Bound(0, 1e6)] = 1.0
    """Seconds that its blocks take in training / seconds that its profile gives them."""
    profile: Annotated[str, Bound(0, 64)] = ""
    """sha256 of what ``ProfileReply`` carries ("" = not measured)."""
    vote: Annotated[str, Bound(0, 64)] = ""
    """Hash of the plan that this peer wants to be the next ("" = none)."""
    links: Annotated[tuple[LinkFigure, ...], Bound(0, MAX_LINKS)] = ()
    """Those that this peer has measured: of a pair one does."""
    max_groups: Annotated[int, Bound(0, 4096)] = 0
    """Into so many class sub-models this peer's trainer can divide the job's model; 0 = not known."""
    accuracy: Annotated[float, Bound(-1, 1)] = -1.0
    """Of what this peer trains, on its own validation samples; -1 = not known."""
    model_samples: int = 0
    """Own validation samples on which ``accuracy`` is that of the whole group's finished model; 0 = it is not."""
    sent: Annotated[tuple[StreamRate, ...], Bound(0, MAX_LINKS)] = ()
    """Stage messages, in the last round that is over here; empty where rounds say nothing of them."""
    leaving: bool = False
    """It would go, and waits until the others have what it trains."""
    blames: Annotated[tuple[Blame, ...], Bound(0, MAX_BLAMES)] = ()
    """Of peers that it works with under its plan."""
    helper_s: Annotated[float, Bound(0, 1e9)] = 0.0
    """Seconds that a sample of the whole model takes who helps it by ``plan``, as it sees that; 0 = as planned."""
    work_flops: Annotated[float, Bound(0, 1e27)] = 0.0
    """What it computed for the job so far, all in all; 0 = not known."""
    central_flops: Annotated[float, Bound(0, 1e27)] = 0.0
    """What central training of the whole job comes to, at least; 0 = not known."""
    saves_every: Annotated[int, Bound(0, 2**20)] = 0
    """So many batches it would have from one snapshot to the next; 0 = not known."""
    ends_after: int = 0
    """The group was asked to stop, or its model got no better for as long as ``training.patience`` says: this peer's
    training ends after so many rounds; 0 = after the job's last one."""
    looks: Annotated[tuple[LookFigure, ...], Bound(0, MAX_LOOKS)] = ()
    """At the whole model while it is trained, the oldest first: the best one, and the last ones."""
    signature: Signature = b""
    """Of the owner, over all the rest."""


@dataclass(frozen=True, slots=True)
class RecordVersion:
    peer: PeerName
    version: int


@dataclass(frozen=True, slots=True)
class RecordDigest:
    """The versions I have; with ``want_reply`` send me your newer records and the digest of what you lack."""

    KIND: ClassVar[str] = "record-digest"
    versions: Annotated[tuple[RecordVersion, ...], Bound(0, 1024)]
    want_reply: bool
    whole: bool = True
    """Whom ``versions`` don't name I don't know; else so between the first and the last of them, on the ring of ids."""
    news: Annotated[bytes, Bound(0, 4096)] = b""
    """Besides, of what is new here or wanted: 4 bytes that stand for a peer, 4 for the version that I have."""


@dataclass(frozen=True, slots=True)
class Records:
    KIND: ClassVar[str] = "records"
    records: Annotated[tuple[Record, ...], Bound(0, 64)]


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record for whoever has it as of version ``since``, or later."""

    peer: PeerName
    since: int
    version: int
    fields: bytes
    """What is new (``wire.partial``)."""
    signature: Signature
    """Of the owner, over all of the record."""


@dataclass(frozen=True, slots=True)
class RecordChanges:
    KIND: ClassVar[str] = "record-changes"
    changes: Annotated[tuple[RecordChange, ...], Bound(0, 256)]


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """An observer asks who is alive, which records alone don't tell."""

    KIND: ClassVar[str] = "status-request"


@dataclass(frozen=True, slots=True)
class RefusedCount:
    reason: Text
    count: int


@dataclass(frozen=True, slots=True)
class SentBytes:
    """Of one kind of message, since the sender's start."""

    kind: Text
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What a device measures of itself: ``computes``, ``temperature_c``, ``battery``, ..."""

    name: Text
    value: Annotated[float, Bound(-1e18, 1e18)]


@dataclass(frozen=True, slots=True)
class StatusReply:
    """The sender's view of the members, itself included, how much it refused by reason, and figures of its device."""

    KIND: ClassVar[str] = "status-reply"
    members: Annotated[tuple[Rumour, ...], Bound(1, 512)]
    refused: Annotated[tuple[RefusedCount, ...], Bound(0, 64)]
    sent: Annotated[tuple[SentBytes, ...], Bound(0, 64)] = ()
    figures: Annotated[tuple[Figure, ...], Bound(0, 32)] = ()


# --- the end before the last round ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stop:
    """The whole group shall end, in good order. Whoever follows passes it on, once.

    After round ``after`` where all train the rounds together, else after the one that is under way.
    """

    KIND: ClassVar[str] = "stop"
    job: Annotated[JobId, Bound(0, 16)]
    after: int
    name: Text
    """What whoever asks for it calls itself; nobody can check that."""


StopAnswer = Literal["ends", "refuses", "other job"]


@dataclass(frozen=True, slots=True)
class StopReply:
    """What the receiver of a ``Stop`` does about it."""

    KIND: ClassVar[str] = "stop-reply"
    answer: StopAnswer


# --- plan and job ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobRequest:
    KIND: ClassVar[str] = "job-request"


@dataclass(frozen=True, slots=True)
class JobReply:
    """The job's canonical JSON, UTF-8."""

    KIND: ClassVar[str] = "job-reply"
    data: Annotated[bytes, Bound(2, 256 * 1024)]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    KIND: ClassVar[str] = "plan-request"
    plan: Annotated[str, Bound(64, 64)]


@dataclass(frozen=True, slots=True)
class PlanReply:
    """The plan's canonical JSON, UTF-8."""

    KIND: ClassVar[str] = "plan-reply"
    data: Annotated[bytes, Bound(2, 1024 * 1024)]


@dataclass(frozen=True, slots=True)
class PlanVote:
    """I want this plan to be the next one, and no other of its epoch; or (``adopted``) it is in force here."""

    KIND: ClassVar[str] = "plan-vote"
    plan: Annotated[str, Bound(64, 64)]
    epoch: int
    adopted: bool


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Send me what a record's ``profile`` names: its owner has it, and whoever asked the owner."""

    KIND: ClassVar[str] = "profile-request"
    profile: Annotated[str, Bound(64, 64)]


@dataclass(frozen=True, slots=True)
class ProfileReply:
    """How long a peer takes for each block of the job's model, as JSON, UTF-8."""

    KIND: ClassVar[str] = "profile-reply"
    data: Annotated[bytes, Bound(2, 256 * 1024)]


# --- blobs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send me these bytes of a blob. A receiver asks only for what it has room for: that is the credit."""

    KIND: ClassVar[str] = "fetch"
    blob: Blob
    offset: int
    length: Annotated[int, Bound(1, 1 << 20)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a blob, in one raw frame behind the header."""

    KIND: ClassVar[str] = "chunk"
    blob: Blob
    offset: int
    data: Annotated[RawBytes, Bound(1, 1 << 20)]


@dataclass(frozen=True, slots=True)
class FetchRefused:
    KIND: ClassVar[str] = "fetch-refused"
    blob: Blob


# --- gossip ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShardMass:
    """Push-sum mass that travels with one shard's parameters (samples)."""

    shard: Annotated[str, Bound(1, 64)]
    mass: Annotated[float, Bound(0, 1e18)]


@dataclass(frozen=True, slots=True)
class GossipPush:
    """Half of the sender's mass on the shards that both hold; the parameters are in the blob.

    Who is asked for a reply and has none says so: no mass, no bytes, and nothing to fetch.
    """

    KIND: ClassVar[str] = "gossip-push"
    exchange: int
    epoch: int
    masses: Annotated[tuple[ShardMass, ...], Bound(1, 64)]
    blob: Blob
    num_bytes: int
    want_reply: bool


# --- replicas -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaOffer:
    """Please keep this snapshot of my part."""

    KIND: ClassVar[str] = "replica-offer"
    holding: SnapshotRef


@dataclass(frozen=True, slots=True)
class ReplicaAck:
    """Kept: checked, and safe on disk."""

    KIND: ClassVar[str] = "replica-ack"
    blob: Blob


# --- head fit ----------------------------------------------------------------------------------------------------

SessionName = Annotated[str, Bound(16, 16)]
StateData = Annotated[bytes, Bound(0, 16 << 20)]
"""Named tensors in the safetensors format, as in every blob; empty = no tensors."""


@dataclass(frozen=True, slots=True)
class HeadFitCall:
    """The lead proposes to fit the head over exactly these frozen snapshots: of each part, one of each trainer."""

    KIND: ClassVar[str] = "head-fit-call"
    epoch: int
    holdings: Annotated[tuple[SnapshotRef, ...], Bound(1, 256)]


@dataclass(frozen=True, slots=True)
class HeadFitReady:
    """I have the features of my samples; ``session`` names the set of snapshots."""

    KIND: ClassVar[str] = "head-fit-ready"
    session: SessionName
    samples: int


@dataclass(frozen=True, slots=True)
class HeadFitGradient:
    """Contribution to ``step``: sums over ``samples`` own samples (moments at step 0, then gradients)."""

    KIND: ClassVar[str] = "head-fit-gradient"
    session: SessionName
    step: int
    samples: int
    data: StateData


@dataclass(frozen=True, slots=True)
class HeadFitState:
    """The fit's state after ``step`` averaged contributions: head, moments, optimizer. The next step starts from it."""

    KIND: ClassVar[str] = "head-fit-state"
    session: SessionName
    step: int
    data: StateData


# --- pipeline -------------------------------------------------------------------------------------------------------

StageWork = Literal["forward", "backward", "reduce", "gather", "norm"]
"""Activations to the next stage, their gradients to the one before, a stage's all-reduce, and the gradient's norm."""


@dataclass(frozen=True, slots=True)
class StreamData:
    """One stage message of the stream from a peer of a pipeline to another, in the safetensors format."""

    KIND: ClassVar[str] = "stage-data"
    epoch: int
    sequence: int
    """Of the stage message in its stream, from 0 on under each plan."""
    work: StageWork
    step: int
    unit: Annotated[int, Bound(0, 65535)]
    """Micro-batch, or shard of an all-reduce."""
    row: int
    """Of the first row in its micro-batch, or offset in its shard."""
    data: Annotated[bytes, Bound(1, 16 << 20)]
    plan: Annotated[str, Bound(0, 64)] = ""
    """Hash of the plan: rivals may have one epoch."""
    sending: int = 0
    """Counts what the stream sends; a stage message sent again has a new one, so that an ack says which of both
    came."""


@dataclass(frozen=True, slots=True)
class StreamAck:
    """The trainer has taken everything up to and without ``sequence``: a credit to send more."""

    KIND: ClassVar[str] = "stage-ack"
    epoch: int
    sequence: int
    plan: Annotated[str, Bound(0, 64)] = ""
    arrived: int = 0
    """Everything up to and without this one is here, taken or not: no need to send it again."""
    sending: int = 0
    """The highest ``sending`` that came."""


# --- links ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkProbe:
    """So many bytes, to see how long they take; ``LinkEcho`` answers."""

    KIND: ClassVar[str] = "link-probe"
    sequence: int
    data: Annotated[bytes, Bound(1, 1 << 20)]
    last: bool = False
    """Most likely, so that the next one may be measured."""


@dataclass(frozen=True, slots=True)
class LinkEcho:
    """The probe is here, all of it."""

    KIND: ClassVar[str] = "link-echo"
    sequence: int
    busy: bool = False
    """Another link of this peer is being measured: try again later."""


Message = (
    Hello
    | Welcome
    | Proof
    | Refused
    | Admitted
    | NewCode
    | Goodbye
    | Ping
    | PingRequest
    | Ack
    | RecordDigest
    | Records
    | RecordChanges
    | StatusRequest
    | StatusReply
    | Stop
    | StopReply
    | JobRequest
    | JobReply
    | PlanRequest
    | PlanReply
    | PlanVote
    | ProfileRequest
    | ProfileReply
    | Fetch
    | Chunk
    | FetchRefused
    | GossipPush
    | ReplicaOffer
    | ReplicaAck
    | HeadFitCall
    | HeadFitReady
    | HeadFitGradient
    | HeadFitState
    | StreamData
    | StreamAck
    | LinkProbe
    | LinkEcho
)

KINDS: dict[str, type[Message]] = {cls.KIND: cls for cls in Message.__args__}
BULK = (JobReply, PlanReply, ProfileReply, Chunk, HeadFitGradient, HeadFitState, StreamData, LinkProbe)
JOB_BOUND = (GossipPush, ReplicaOffer, StreamData, StreamAck)
"""Messages about a job: one about another than the receiver's is dropped and counted."""
EPOCH_BOUND = (GossipPush, StreamData)
"""Data messages: one of an older epoch than the receiver's plan is dropped and counted. Replication judges a snapshot
by the epoch that it was taken in; and who is ahead of others still needs their acks of what it sent them before."""


def lane_of(message: Message) -> Lane:
    """Control messages are small and never wait behind tensors."""
    return "bulk" if isinstance(message, BULK) else "control"

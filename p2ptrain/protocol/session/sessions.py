"""Admission of remote peers, and the frames that go to and come from them.

Invariant: a message is handed on only if its sender's key was authenticated by the transport, that key proved that it
holds the group's code, and the frame belongs to this session and is newer than every one before it on its lane. Until
then nothing but the handshake is read. All tables are bounded, whatever others send.

The transport only sends to addresses and only receives from keys; the handshake is what ties the two together::

    dialler D                                         answerer A
    Hello(nonce h)            -- to an address -->    knows D's key; which address of D's works?
    knows: the address        <-- Welcome -----       to every address in the Hello, each its own nonce w
    leads to A's key              (echo h, w, proof)
    ADMITS A                  -- Proof(echo w) -->    knows: the address it sent w to leads to D's key
                                                      ADMITS D

Each proof is a keyed hash (key: from the join code) of the role, both public keys and both nonces.

A nonce is 8 bytes drawn once per start (the *boot*) and 8 bytes of its own. A session is named by the keys and boots of
its two ends, so that however often and from whichever side two peers meet (both dialling at once, several interfaces, a
retry), it is one session; only a restart makes another. Sequences count up per lane over the whole life of a process,
so a session that is dropped and made again goes on where it was.

A key:  unknown --Hello--> guest --Proof--> admitted;  dialled: --Welcome--> admitted
        guest --Proof, but the door stays shut--> guest (Knocked)
        guest for too long --> unknown;  too many errors --> banned for a while
        admitted --Goodbye, or a visitor that has to go (``visitors``)--> unknown, and what it told of itself forgotten
        admitted, a member --nobody needs the link (``rest``)--> resting --a frame of it, or a Hello--> admitted
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.machine import MessageReceived, Note
from p2ptrain.protocol.session import refusals
from p2ptrain.protocol.session.abuse import BAN_S, MAX_ERRORS, AbuseTable
from p2ptrain.protocol.session.address_book import AddressBook, Source, Target, Unanswered
from p2ptrain.protocol.session.door import OPEN_DOOR, Door
from p2ptrain.protocol.session.effects import (
    Ban,
    Effect,
    IdentityTaken,
    Knocked,
    NoticeTold,
    PeerAdmitted,
    Received,
    SendFrames,
)
from p2ptrain.protocol.session.guests import Challenge, End, Guest, Guests
from p2ptrain.protocol.session.handshake import Handshake
from p2ptrain.protocol.session.links import ANSWERS, Endings, Idle, Links
from p2ptrain.protocol.session.own_addresses import OwnAddresses
from p2ptrain.protocol.session.proofs import BOOT_BYTES, new_boot
from p2ptrain.protocol.session.table import Session, SessionTable
from p2ptrain.protocol.session.twins import Twins
from p2ptrain.protocol.session.visitors import MAX_VISITORS, Visitors
from p2ptrain.wire import codec
from p2ptrain.wire.codec import Envelope, WireVersionError
from p2ptrain.wire.messages import (
    WIRE_VERSION,
    Admitted,
    Goodbye,
    Hello,
    Lane,
    Message,
    NewCode,
    Proof,
    Refused,
    Welcome,
)

MAX_PEERS = 512


class Sessions:
    """All remote peers of one node. Time is monotonic seconds; ``rng`` must be unpredictable outside of tests.

    ``is_member``: whether somebody else, the membership, finds out when this peer is gone. All others are visitors.
    ``started_s``: seconds since 1970, by which twins are told apart; 0 = not known. ``door``: who of all gets in.
    """

    def __init__(
        self,
        own_key: bytes,
        proof_key: bytes,
        addresses: Iterable[str],
        bulk_port: int,
        rng: random.Random,
        software: str = "",
        *,
        is_member: Callable[[PeerId], bool] = lambda peer: True,
        max_visitors: int = MAX_VISITORS,
        started_s: int = 0,
        door: Door = OPEN_DOOR,
    ) -> None:
        self.own_key = own_key
        self._handshake = Handshake(own_key, proof_key, bulk_port, software, door)
        self._door = door
        self._rng = rng
        self._boot = new_boot(started_s, rng)
        self._twins = Twins(self._boot)
        self._book = AddressBook(rng)
        self._guests = Guests(self._boot, rng)
        self._visitors = Visitors(is_member, max_visitors)
        self._table = SessionTable(own_key, self._boot)
        self._offences = AbuseTable()
        self._links = Links()
        self._endings = Endings(self._table, self._book, self._guests, self._visitors, self._links)
        self.when_idle: Callable[[PeerId, float], Idle] = lambda peer, now: "ends"
        """What becomes of a member's session that the member does not need any more."""
        self._own = OwnAddresses(addresses)

    # --- what the node asks -------------------------------------------------------------------------------------------

    @property
    def refused(self) -> Counter[str]:
        """Frames that were not let in, by reason."""
        return self._offences.refused

    def peers(self) -> list[PeerId]:
        """The admitted peers."""
        return self._table.peers()

    def key_of(self, peer: PeerId) -> bytes | None:
        return self._table.key_of(peer)

    def address_of(self, peer: PeerId) -> str | None:
        """The control address that reaches an admitted peer."""
        key = self._table.key_of(peer)
        return self._table[key].address if key else None

    def unanswered(self) -> list[Unanswered]:
        """Addresses being dialled that lead nowhere so far."""
        return [Unanswered(t.address, t.source, t.attempts, t.shut) for t in self._book.unanswered()]

    @property
    def told(self) -> tuple[str, ...]:
        """Our own addresses as others are told them."""
        return self._own.told

    def readdress(self, addresses: Iterable[str]) -> None:
        """Our own addresses, as of now, with their zones."""
        self._own = OwnAddresses(addresses)
        self._book.readdressed()

    def next_deadline(self) -> float:
        return min(each.next_deadline() for each in (self._book, self._guests, self._visitors, self._links))

    # --- what happens -------------------------------------------------------------------------------------------------

    def propose(self, address: str, now: float, *, source: Source = "peer", peer: PeerId | None = None) -> list[Effect]:
        """Dial what ``source`` named, for as long as its kind is worth it. Not if ``peer`` is admitted."""
        key = self._table.key_of(peer) if peer else None
        effects: list[Effect] = []
        for way in self._own.ways_to(address):
            target = self._book.propose(way, now, source=source, in_use=self._table.routes())
            if target and key:
                target.open(key)
            elif target:
                effects += self._dial(target, now)
        return self._with_hang_ups(effects, now)

    def send(self, peer: PeerId, message: Message, job: str, epoch: int, now: float) -> list[Effect]:
        """Nothing if ``peer`` is not admitted."""
        key = self._table.key_of(peer)
        return [self._table.frames(key, message, job, epoch)] if key else []

    def drop(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """The membership gave up on ``peer``: close its links; its addresses are dialled again."""
        key = self._table.key_of(peer)
        return self._with_hang_ups(self._endings.drop(key, reason, now), now) if key else []

    def rest(self, peer: PeerId, now: float) -> list[Effect]:
        """Nobody here needs the link to ``peer`` for now: say so, and let go of it."""
        key = self._table.key_of(peer)
        said = [self._table.frames(key, Goodbye(), "", 0)] if key else []
        return self._with_hang_ups([*said, *(self._endings.rest(key, now) if key else ())], now)

    def frames_received(
        self, lane: Lane, sender_key: bytes, frames: Sequence[codec.RawBytes], now: float
    ) -> tuple[Received | None, list[Effect]]:
        """What came over ``lane`` from the key that the transport authenticated."""
        if self._offences.is_banned(sender_key, now):
            self.refused["banned"] += 1
            return None, []
        try:
            envelope, message = codec.decode(frames, lane)
            if isinstance(message, Hello):
                effects = self._hello(sender_key, message, envelope.version, now)
            elif isinstance(message, Welcome):
                effects = self._welcome(sender_key, message, now)
            elif isinstance(message, Proof):
                effects = self._proof(sender_key, message, now)
            elif isinstance(message, Refused):
                return None, self._refused(sender_key, message, now)
            elif isinstance(message, (NewCode, Admitted)):
                self._offences.check_hello(sender_key, now)  # it takes as long to check as to answer one
                effects = [NoticeTold(sender_key, message)]
            else:
                effects = self._woken(lane, sender_key, envelope, message, now)
                self._table.check(lane, sender_key, envelope)
                self._visitors.heard(sender_key)
                if isinstance(message, Goodbye):
                    return None, self._with_hang_ups(self._goodbye(sender_key, now), now)
                return Received(MessageReceived(peer_id(sender_key), message), envelope), effects
        except RemoteError as error:
            effects = self._count(sender_key, error, now)
        return None, self._with_hang_ups(effects, now)

    def offended(self, key: bytes, error: RemoteError, now: float) -> list[Effect]:
        """An admitted peer sent a message that its machine refused; too many of them and the key is banned."""
        return self._with_hang_ups(self._count(key, error, now), now)

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for key, guest in self._guests.overdue(now):
            if guest.hellos and key not in self._table and self._offences.may_note("one-way", peer_id(key), now):
                effects.append(refusals.one_way(peer_id(key), guest.addresses))
        for key, guest in self._guests.due(now):
            effects += self._welcome_guest(key, guest, list(guest.hellos), now)
        for key, reason in self._visitors.to_go(now):
            effects += self._endings.part(key, reason, now)
        for target in self._book.due(now):
            effects += self._dial(target, now)
        return self._with_hang_ups(effects, now)

    # --- the dialler's side -------------------------------------------------------------------------------------------

    def _dial(self, target: Target, now: float) -> list[Effect]:
        """One more Hello, with the same nonce, so that answers to earlier ones still count. None to who is banned."""
        if self._offences.is_banned(target.last_key, now):
            target.due = self._offences.banned_until(target.last_key)
            return []
        if not target.nonce:
            target.nonce = self._boot + self._rng.randbytes(16 - BOOT_BYTES)
        self._book.dialled(target, now)
        hello = self._handshake.hello(target.nonce, self._own.told)
        return [*self._links.link(target.address), SendFrames(target.address, "control", hello)]

    def _welcome(self, key: bytes, welcome: Welcome, now: float) -> list[Effect]:
        target = self._book.dialled_with(welcome.echo)
        if key == self.own_key or target is None or target.key not in (b"", key):
            raise RemoteError("echo", "a welcome to no hello of ours")
        if not self._handshake.holds_code(key, welcome):
            raise RemoteError("proof", f"{target.address} does not hold the code of this group")
        proof = self._handshake.proof(key, welcome)
        if not self._opens(key, welcome, now):
            target.kept_apart("here" if self._door.own else "there")
            return [SendFrames(target.address, "control", proof), Knocked(key, welcome.name, target.address)]
        end = End(welcome.nonce, self._own.dialable(welcome.addresses), welcome.bulk_port, welcome.software)
        session, effects, admitted = self._admit(key, end, target.address, now)
        target.open(key)
        # Over the link that we keep, whichever was dialled: the echo says which of our addresses is meant.
        effects.append(SendFrames(session.address, "control", proof))
        return effects + admitted

    # --- the answerer's side ------------------------------------------------------------------------------------------

    def _hello(self, key: bytes, hello: Hello, version: int, now: float) -> list[Effect]:
        if key == self.own_key:
            return self._met_ourselves(hello, now)
        self._offences.check_hello(key, now)
        if (known := self._table.get(key)) and hello.addresses:
            self._twins.check(key, hello.nonce[:BOOT_BYTES], hello.addresses[0], (known.end.boot, known.address), now)
        end = End(hello.nonce, self._own.dialable(hello.addresses), hello.bulk_port, hello.software)
        if version != WIRE_VERSION:
            return self._refuse(key, end, version, now)
        if self._table.has_left(key, end.boot):
            self.refused["goodbye"] += 1  # said before it left, and late
            return []
        guest = self._guests.said_hello(key, end, now)
        return self._welcome_guest(key, guest, [hello.nonce], now)

    def _welcome_guest(self, key: bytes, guest: Guest, their_nonces: list[bytes], now: float) -> list[Effect]:
        """To every address they named; only to the one that works if they are admitted already."""
        self._guests.welcomed(guest, now)
        session = self._table.get(key)
        effects: list[Effect] = []
        for their_nonce in their_nonces:
            settled = session and session.end.boot == their_nonce[:BOOT_BYTES]
            for address in [session.address] if session and settled else guest.addresses:
                nonce = self._guests.challenge(Challenge(key, address, their_nonce))
                welcome = self._handshake.welcome(key, nonce, their_nonce, self._own.told)
                effects += [*self._links.link(address), SendFrames(address, "control", welcome)]
        return effects

    def _proof(self, key: bytes, proof: Proof, now: float) -> list[Effect]:
        challenge, end = self._guests.answered(key, proof.echo)
        if not self._handshake.holds_code(key, proof, challenge):
            raise RemoteError("proof", "does not hold the code of this group")
        if not self._opens(key, proof, now):
            return [Knocked(key, proof.name, challenge.address)]
        self._guests.proved(challenge)
        _, effects, admitted = self._admit(key, end, challenge.address, now)
        self._book.found(challenge.address, key, now, self._table.routes())
        return effects + admitted

    def _refuse(self, key: bytes, end: End, version: int, now: float) -> list[Effect]:
        """Tell a peer of another wire version, as well as we can: once, at the addresses it named."""
        note = self._count(key, WireVersionError(version), now)
        if not note:
            return []
        self._guests.turned_away(key, end, now)
        for address in end.addresses:
            note += [*self._links.link(address), SendFrames(address, "control", self._handshake.refused(version))]
        return note

    def _refused(self, key: bytes, refused: Refused, now: float) -> list[Effect]:
        if key != self.own_key:
            self.refused["version"] += 1
            if self._offences.may_note("refused-us", peer_id(key), now):
                return [refusals.refused_us(peer_id(key), refused)]
        return []

    def _met_ourselves(self, hello: Hello, now: float) -> list[Effect]:
        """An address that leads back to this node; or a copy of our key file runs somewhere."""
        self.refused["self"] += 1
        if (boot := hello.nonce[:BOOT_BYTES]) != self._boot:
            where = hello.addresses[0] if hello.addresses else "?"
            effects: list[Effect] = [IdentityTaken(where)] if self._twins.is_ours_taken(boot, now) else []
            for address in self._own.dialable(hello.addresses):  # so that it hears of us, too
                effects += self.propose(address, now)
            if self._offences.may_note("identity-used-twice", "", now):
                effects.append(Note("identity-used-twice", (("peer", peer_id(self.own_key)), ("address", where))))
            return effects
        self._book.found_ourselves(hello.nonce)
        return []

    def _opens(self, key: bytes, said: Welcome | Proof, now: float) -> bool:
        if self._door.is_guarded and key not in self._table:
            self._offences.check_hello(key, now)
        return self._door.opens(key, said.admission)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _admit(self, key: bytes, end: End, address: str, now: float) -> tuple[Session, list[Effect], list[Effect]]:
        """``key`` has proved itself and ``address`` leads there: what to do before the Proof is sent, and after it."""
        if (session := self._table.get(key)) and session.end.boot == end.boot:
            return session, [], []  # the same session; a spare address of it
        if session:
            self._twins.followed(key, session.end.boot, now)
        effects = self._endings.end(key, "restarted") if session else self._make_room(now)
        self._guests.forget_nonces(key, end.boot)
        self._book.moved(key, told_then=self._table.told_before(key), told_now={address, *end.addresses})
        session = self._table.open(key, end, address)
        self._visitors.admitted(key, now)
        admitted = PeerAdmitted(session.peer, key, address, end.software)
        return session, [*effects, *self._links.link(address, end.bulk_port)], [admitted]

    def _make_room(self, now: float) -> list[Effect]:
        """For one more session. Raises ``RemoteError`` if the members alone are as many as can be."""
        if len(self._table) < MAX_PEERS:
            return []
        visitor = self._visitors.longest_silent()
        if visitor is None:
            raise RemoteError("full", f"{MAX_PEERS} peers are here already")
        return self._endings.part(visitor, "too many visitors", now)

    def _goodbye(self, key: bytes, now: float) -> list[Effect]:
        """It goes, or needs no link for now. A member that goes should have told the membership: it is looked for."""
        if not self._visitors.is_visitor(key):
            return self._endings.idle(key, self.when_idle(peer_id(key), now), now)
        self._table[key].said_goodbye = True
        return self._endings.part(key, "goodbye", now, for_good=True)

    def _woken(self, lane: Lane, key: bytes, envelope: Envelope, message: Message, now: float) -> list[Effect]:
        """A session that rests here, and does not rest there, goes on."""
        if self._table.resting(key, lane, envelope) is None or isinstance(message, ANSWERS):
            return []
        effects, session = self._make_room(now), self._table.reopen(key)
        self._visitors.admitted(key, now)
        self._book.found(session.address, key, now, self._table.routes())
        admitted = PeerAdmitted(session.peer, key, session.address, session.end.software)
        return [*effects, *self._links.link(session.address, session.end.bulk_port), admitted]

    def _count(self, key: bytes, error: RemoteError, now: float) -> list[Effect]:
        """Count an error of ``key``'s, note it now and then, and ban the key after too many."""
        peer, reason = peer_id(key), error.reason
        banned = self._offences.count(key, reason, now)
        effects: list[Effect] = []
        if reason not in ("session", "replay", "echo") and self._offences.may_note(reason, peer, now):
            effects.append(refusals.frame_refused(peer, error))
        if banned:
            self._guests.forget(key)
            if key in self._table:
                gone = self._endings.part if self._visitors.is_visitor(key) else self._endings.drop
                effects += gone(key, "banned", now)
            effects += [Ban(key, BAN_S), refusals.banned(peer, MAX_ERRORS, error)]
        return effects

    # --- bounded tables -----------------------------------------------------------------------------------------------

    def _with_hang_ups(self, effects: list[Effect], now: float) -> list[Effect]:
        """Hang up what nobody needs any more: spare addresses, guests that left, addresses that were forgotten."""
        needed = {target.address for target in self._book.unanswered() if target.nonce} | self._table.routes()
        return [*effects, *self._links.hang_ups(needed | self._guests.addresses(), now)]

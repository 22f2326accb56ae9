"""Pairwise asynchronous averaging by push-sum (``push_sum.py``): who with whom, when, and how long to wait for it.

Invariant: at most one exchange that we started and ``max_incoming`` that others started are under way, every stage of
each has a deadline, and each ends in exactly one ``ExchangeEnded``. A mass that enters a merge is finite and in bounds.

A lost push takes m x and m away in the same proportion. That is no bias in expectation when all push alike; but who
pushes more loses more. So the runtime takes back what nobody fetched: when a published payload expires, or its
exchange ends, and it was never served whole, withdraw it and have the trainer add its masses to its own. What is left
to be lost is what was fetched by a peer that died before the merge.

    started here:  [round_finished] MakePayload -> payload -[payload_ready] Send push-> reply
                   -[GossipPush back] FetchAndMerge-> merge -[merged]-> done
    started there: [GossipPush] FetchAndMerge -> merge -[merged]-> done; and beside it, where a reply is wanted,
                   MakePayload -> payload -[payload_ready] Send push-> done
    any stage:     deadline -> timeout; partner not alive -> gone; new epoch -> superseded; ``failed`` -> failed

So two peers swap halves: neither waits for the other's merge, and of equal masses both then hold the mean of both.
Who is asked and can make no payload (it has no mass so far, say) answers that at once: a push of no mass and no bytes.
Where the answer depends on what came (``replies_after_merge``), its payload is made after the merge, in that exchange.
Otherwise two that start an exchange with each other at the same time have each other's answer in their pushes.

An exchange moves both sides, so it takes the place of one that its partner would start: at even paces each peer takes
part in about one a round.

A push that comes back after we stopped waiting is merged as if it were a push of its own: its mass is not wasted.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.pairing import partner_in
from p2ptrain.protocol.patience import Patience
from p2ptrain.wire.messages import GossipPush, ShardMass

Stage = Literal["payload", "reply", "merge"]
Outcome = Literal["done", "timeout", "gone", "superseded", "failed"]
MAX_SHARDS = 64
"""In one push; of more, a random choice goes."""
MAX_STAND_INS = 2
"""Exchanges of one partner that take the place of ours, until we have started one."""
MAX_AHEAD = 4
NOTHING = blob_id(b"")
"""Named by an answer that has no payload."""


@dataclass(frozen=True, slots=True)
class GossipConfig:
    max_incoming: int = 2
    """Exchanges of others under way: each may hold a payload in memory, and merges wait for the trainer."""
    floor_s: float = 0.5
    ceiling_s: float = 60.0
    """A stage's deadline is clamp((median + 6 * spread) * back-off, floor, ceiling), spread the larger of the scaled
    median absolute deviation and half the median; a third of the ceiling until three durations were seen. Back-off
    doubles with each timeout and halves with each success."""
    max_mass: float = 1e15
    max_bytes: int = 1 << 34
    replies_after_merge: bool = False


@dataclass(frozen=True, slots=True)
class MakePayload:
    """Have the trainer halve its mass on ``shards`` and publish its parameters as a blob; then ``payload_ready``."""

    exchange: int
    shards: tuple[str, ...]
    partner: PeerId


@dataclass(frozen=True, slots=True)
class FetchAndMerge:
    """Fetch the blob from ``sender``, have the trainer merge it with these masses; then ``merged`` or ``failed``.

    ``reply``: a ``MakePayload`` for the sender follows the merge, and depends on it.
    """

    sender: PeerId
    blob: BlobId
    num_bytes: int
    masses: tuple[ShardMass, ...]
    exchange: int
    reply: bool


@dataclass(frozen=True, slots=True)
class ExchangeEnded:
    """Whatever still runs for it may be dropped. Done: a payload published for it may yet be fetched for ``ceiling_s``.
    Otherwise withdraw the payload, and add its masses back to the trainer's if it was never served whole."""

    exchange: int
    partner: PeerId
    outcome: Outcome
    stage: Stage
    waited_s: float
    """How long it waited in its last stage."""


Effect = Send | Note | MakePayload | FetchAndMerge | ExchangeEnded


@dataclass(frozen=True, slots=True)
class Waiting:
    """For the status: what is waited for, from whom, since when, and when that ends."""

    stage: Stage
    partner: PeerId
    since: float
    deadline: float


@dataclass(slots=True)
class _Exchange:
    partner: PeerId
    number: int
    """By which both sides know it: the starter's own."""
    shards: tuple[str, ...]
    started_here: bool
    reply_wanted: bool
    stage: Stage
    since: float
    deadline: float
    answers: int | None = None
    """An exchange of the partner's, whose push has come while our own payload is being made: neither needs another."""


class Gossip:
    """The exchanges of one peer. ``exchange`` in effects and calls is a number of this machine alone."""

    def __init__(self, own_id: PeerId, rng: random.Random, config: GossipConfig = GossipConfig()) -> None:
        self.own_id = own_id
        self.config = config
        self._rng = rng
        self._epoch = -1
        self._own: frozenset[str] = frozenset()
        self._shards: dict[PeerId, frozenset[str]] = {}
        self._alive: frozenset[PeerId] = frozenset()
        self._last = rng.getrandbits(40)  # others may remember the numbers of an earlier life
        self._exchanges: dict[int, _Exchange] = {}
        self._seen: dict[PeerId, deque[tuple[int, bool]]] = {}
        """Lately received pushes: merging one twice would count its mass twice."""
        self._num_ahead = 0
        """Rounds after which we start nothing: exchanges of others took the place of ours."""
        self._stand_ins: Counter[PeerId] = Counter()
        """Whose exchanges those were, since we started one."""
        self._patience = {stage: Patience(config.floor_s, config.ceiling_s) for stage in ("payload", "reply", "merge")}

    # --- what others may ask --------------------------------------------------------------------------------------

    def waiting(self) -> tuple[Waiting, ...]:
        return tuple(Waiting(e.stage, e.partner, e.since, e.deadline) for e in self._exchanges.values())

    def partners(self) -> list[PeerId]:
        """Live peers that hold a shard that we hold."""
        return sorted(peer for peer in self._alive if not self._own.isdisjoint(self._shards.get(peer, ())))

    def next_deadline(self) -> float:
        return min((exchange.deadline for exchange in self._exchanges.values()), default=NEVER)

    # --- the group ------------------------------------------------------------------------------------------------

    def shards(
        self, by_peer: Mapping[PeerId, Iterable[str]], own: Iterable[str], epoch: int, now: float
    ) -> list[Effect]:
        """Who holds what from ``epoch`` on. A new epoch ends all exchanges of the old one."""
        if epoch < self._epoch:
            raise LocalError(f"epoch {epoch} after {self._epoch}")
        effects: list[Effect] = []
        if epoch > self._epoch:
            for handle in list(self._exchanges):
                self._end(handle, "superseded", now, effects)
            self._num_ahead = 0
        self._epoch = epoch
        self._own = frozenset(own)
        self._shards = {peer: frozenset(held) for peer, held in by_peer.items() if peer != self.own_id}
        self._seen = {peer: seen for peer, seen in self._seen.items() if peer in self._shards}
        return effects

    def peers_alive(self, peers: Iterable[PeerId], now: float) -> list[Effect]:
        """Who may be chosen. Nobody waits for a peer that is gone."""
        self._alive = frozenset(peers)
        effects: list[Effect] = []
        for handle, exchange in list(self._exchanges.items()):
            if exchange.partner not in self._alive:
                self._end(handle, "gone", now, effects)
        return effects

    # --- an exchange ----------------------------------------------------------------------------------------------

    def round_finished(self, number: int, now: float) -> list[Effect]:
        """After round ``number`` of the own training: start an exchange, unless one that we started is under way,
        nobody shares a shard with us, or an exchange of another's has taken its place.
        """
        if any(exchange.started_here for exchange in self._exchanges.values()):
            return []
        if self._num_ahead:
            self._num_ahead -= 1
            return []
        partner = self._partner(number)
        if partner is None:
            return []
        self._stand_ins.clear()
        shared = sorted(self._own & self._shards[partner])
        if len(shared) > MAX_SHARDS:
            shared = sorted(self._rng.sample(shared, MAX_SHARDS))
        handle = self._new_handle()
        self._exchanges[handle] = _Exchange(partner, handle, tuple(shared), True, False, "payload", now, NEVER)
        self._enter(handle, "payload", now)
        return [MakePayload(handle, tuple(shared), partner)]

    def _partner(self, number: int) -> PeerId | None:
        """Whose turn it is, where all share a shard with all; else, and for the one that has no turn, any that shares
        one with us."""
        partners = self.partners()
        if not partners:
            return None
        in_turn = None
        if self._own.intersection(*(self._shards[peer] for peer in partners)):
            in_turn = partner_in(number, self.own_id, partners)
        return in_turn or self._rng.choice(partners)

    def awaits_payload(self, exchange: int) -> bool:
        """Whether a payload that is made for it would still be sent: else its half must go back, or stay."""
        state = self._exchanges.get(exchange)
        return state is not None and state.stage == "payload"

    def payload_ready(
        self, exchange: int, blob: BlobId, num_bytes: int, masses: Iterable[ShardMass], now: float
    ) -> list[Effect]:
        """The trainer has halved its mass and published the payload. Nothing where it isn't awaited any more."""
        if not self.awaits_payload(exchange):
            return []
        state, masses = self._exchanges[exchange], tuple(masses)
        if not {mass.shard for mass in masses} <= set(state.shards) or not masses:
            raise LocalError("the payload is not of the shards that were asked for")
        if not all(0 <= mass.mass <= self.config.max_mass for mass in masses):
            raise LocalError("a mass of ours is out of range")
        push = GossipPush(state.number, self._epoch, masses, blob, num_bytes, state.started_here)
        effects: list[Effect] = [Send(state.partner, push)]
        if state.started_here and state.answers is None:
            self._enter(exchange, "reply", now)
        else:
            self._end(exchange, "done", now, effects)
        return effects

    def received(self, sender: PeerId, push: GossipPush, now: float) -> list[Effect]:
        """Raises ``RemoteError`` for what no honest peer sends; what merely comes at a bad time is noted."""
        self._check(push)
        if push.epoch != self._epoch:
            word = "gossip-old-epoch" if push.epoch < self._epoch else "gossip-new-epoch"
            return [Note(word, (("peer", sender), ("epoch", push.epoch), ("own", self._epoch)))]
        shards = tuple(mass.shard for mass in push.masses)
        if not self._own.issuperset(shards) or not self._shards.get(sender, frozenset()).issuperset(shards):
            raise RemoteError("gossip-shard", "a shard that its sender or receiver does not hold")
        seen = self._seen.setdefault(sender, deque(maxlen=16))
        if (push.exchange, push.want_reply) in seen:
            return []
        seen.append((push.exchange, push.want_reply))
        later = push.want_reply and self.config.replies_after_merge
        answers = self._answered_by(sender, push, shards)
        if not push.num_bytes:
            effects: list[Effect] = []
            if answers is not None:  # how soon it says that it has none tells nothing of how long a payload takes
                self._end(answers, "done", now, effects, learns=False)
            return effects
        if answers is None and self._num_incoming() >= self.config.max_incoming:
            return [Note("gossip-busy", (("peer", sender),))]
        if push.want_reply and answers is None:
            self._stood_in(sender)
        handle = answers
        if answers is not None and self._exchanges[answers].stage == "payload":
            self._exchanges[answers].answers = push.exchange
            handle = None
        if handle is None:
            handle = self._answer(sender, push.exchange, shards, "merge", now)
        self._enter(handle, "merge", now)
        self._exchanges[handle].reply_wanted = later
        effects = [FetchAndMerge(sender, push.blob, push.num_bytes, push.masses, handle, later)]
        if push.want_reply and answers is None and not later:
            reply = self._answer(sender, push.exchange, shards, "payload", now)
            self._enter(reply, "payload", now)
            effects.insert(0, MakePayload(reply, shards, sender))
        return effects

    def _answered_by(self, sender: PeerId, push: GossipPush, shards: tuple[str, ...]) -> int | None:
        """The exchange of ours that a push answers: as its reply, or because its sender started one with us too."""
        for handle, exchange in self._exchanges.items():
            if not exchange.started_here or exchange.partner != sender or exchange.answers is not None:
                continue
            is_same = set(exchange.shards) == set(shards) and not self.config.replies_after_merge
            if push.want_reply and is_same and exchange.stage in ("payload", "reply"):
                return handle
            if not push.want_reply and exchange.stage == "reply" and handle == push.exchange:
                return handle
        return None

    def _stood_in(self, partner: PeerId) -> None:
        """An exchange that ``partner`` started takes the place of one of ours; but nobody keeps us from the others."""
        self._stand_ins[partner] += 1
        if self._stand_ins[partner] <= MAX_STAND_INS or self.partners() == [partner]:
            self._num_ahead = min(MAX_AHEAD, self._num_ahead + 1)

    def merged(self, exchange: int, now: float) -> list[Effect]:
        """The trainer has merged what ``FetchAndMerge`` asked for."""
        state = self._exchanges.get(exchange)
        effects: list[Effect] = []
        if state is None or state.stage != "merge":
            return effects
        if state.reply_wanted:
            self._enter(exchange, "payload", now)
            effects.append(MakePayload(exchange, state.shards, state.partner))
        else:
            self._end(exchange, "done", now, effects)
        return effects

    def failed(self, exchange: int, now: float) -> list[Effect]:
        """The blob could not be fetched, or the trainer refused or could not make a payload."""
        effects: list[Effect] = []
        if (state := self._exchanges.get(exchange)) is not None:
            awaited_in = state.answers if state.started_here else state.number
            if state.stage == "payload" and awaited_in is not None:
                none = tuple(ShardMass(shard, 0.0) for shard in state.shards)
                effects.append(Send(state.partner, GossipPush(awaited_in, self._epoch, none, NOTHING, 0, False)))
            self._end(exchange, "failed", now, effects)
        return effects

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for handle, exchange in list(self._exchanges.items()):
            if exchange.deadline <= now:
                self._end(handle, "timeout", now, effects)
        return effects

    # --- inside ---------------------------------------------------------------------------------------------------

    def _check(self, push: GossipPush) -> None:
        if not 1 <= len(push.masses) <= MAX_SHARDS:
            raise RemoteError("gossip-shard", f"{len(push.masses)} shards in a push")
        if len({mass.shard for mass in push.masses}) != len(push.masses):
            raise RemoteError("gossip-shard", "a shard twice")
        for mass in push.masses:
            if not (math.isfinite(mass.mass) and 0 <= mass.mass <= self.config.max_mass):
                raise RemoteError("gossip-mass", f"{mass.mass:g} on {mass.shard}")
        is_empty = not push.want_reply and not any(mass.mass for mass in push.masses)
        if not (0 if is_empty else 1) <= push.num_bytes <= self.config.max_bytes:
            raise RemoteError("gossip-size", f"{push.num_bytes} bytes")

    def _num_incoming(self) -> int:
        """Exchanges that others started."""
        return len({(other.partner, other.number) for other in self._exchanges.values() if not other.started_here})

    def _answer(self, sender: PeerId, number: int, shards: tuple[str, ...], stage: Stage, now: float) -> int:
        """A part that we take in an exchange of another's."""
        handle = self._new_handle()
        self._exchanges[handle] = _Exchange(sender, number, shards, False, False, stage, now, NEVER)
        return handle

    def _new_handle(self) -> int:
        self._last += 1
        return self._last

    def _enter(self, handle: int, stage: Stage, now: float) -> None:
        """Move on; what the stage before took is learnt from."""
        exchange = self._exchanges[handle]
        if exchange.deadline != NEVER:
            self._patience[exchange.stage].add(now - exchange.since)
        exchange.stage, exchange.since = stage, now
        exchange.deadline = now + self._patience[stage].timeout_s()

    def _end(self, handle: int, outcome: Outcome, now: float, effects: list[Effect], *, learns: bool = True) -> None:
        exchange = self._exchanges.pop(handle)
        waited = now - exchange.since
        if outcome == "done" and learns:
            self._patience[exchange.stage].add(waited)
        elif outcome == "timeout":
            self._patience[exchange.stage].timed_out()
        effects.append(ExchangeEnded(handle, exchange.partner, outcome, exchange.stage, waited))
        if outcome != "done":
            fields = (("peer", exchange.partner), ("waited_for", exchange.stage), ("waited_s", round(waited, 3)))
            effects.append(Note(f"gossip-{outcome}", fields))

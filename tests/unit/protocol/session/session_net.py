"""Sessions with addresses and links that lose and reorder, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.session.address_book import Source
from p2ptrain.protocol.session.door import OPEN_DOOR, Door
from p2ptrain.protocol.session.effects import Dial, Effect, HangUp, PeerAdmitted, SendFrames
from p2ptrain.protocol.session.sessions import Sessions
from p2ptrain.wire import messages as m

CODE = b"c" * 32
PORT = 4700


def key_of(name: str) -> bytes:
    return name.encode().ljust(40, b".")


@dataclass
class Node:
    """A Sessions with its links, and what it was told."""

    name: str
    addresses: list[str]
    sessions: Sessions
    received: list[tuple[PeerId, m.Message]] = field(default_factory=list)
    news: list[Effect] = field(default_factory=list)
    linked: dict[str, str] = field(default_factory=dict)
    greet: Callable[[Node, PeerId], None] = lambda node, peer: None

    @property
    def key(self) -> bytes:
        return key_of(self.name)

    @property
    def peer(self) -> PeerId:
        return peer_id(self.key)

    def notes(self) -> list[str]:
        return [effect.kind for effect in self.news if isinstance(effect, Note)]

    def count(self, kind: type) -> int:
        return sum(isinstance(effect, kind) for effect in self.news)


class Net:
    """Delivers each SendFrames to who listens at the address, some later than others and some never."""

    def __init__(self, seed: int = 0, loss: float = 0.0, delay_s: tuple[float, float] = (0.001, 0.002)) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.delay_s = delay_s
        self.connect_s = 0.0
        """Until the first frame can go over a new link."""
        self._open_at: dict[tuple[str, str], float] = {}
        self.now = 100.0
        self.nodes: dict[str, Node] = {}
        self.blocked: Callable[[Node, str], bool] = lambda sender, address: False
        self.sent: Counter[str] = Counter()
        self.transit: list[tuple[float, int, str, m.Lane, bytes, list[bytes]]] = []

    def add(
        self,
        name: str,
        *addresses: str,
        code: bytes = CODE,
        key: bytes | None = None,
        is_member: Callable[[PeerId], bool] = lambda peer: True,
        started_s: int = 0,
        door: Door = OPEN_DOOR,
    ) -> Node:
        made = list(addresses) or [f"tcp://10.0.0.{len(self.nodes) + 1}:{PORT}"]
        rng = random.Random(self.rng.random())
        sessions = Sessions(
            key or key_of(name), code, made, PORT + 1, rng, "test", is_member=is_member, started_s=started_s, door=door
        )
        node = Node(name, made, sessions)
        self.nodes[name] = node
        return node

    def do(self, node: Node, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Dial):
                node.linked[effect.address] = effect.bulk_address
                self._open_at.setdefault((node.name, effect.address), self.now + self.connect_s)
            elif isinstance(effect, HangUp):
                del node.linked[effect.address]
                self._open_at.pop((node.name, effect.address), None)
            elif isinstance(effect, SendFrames):
                assert effect.address in node.linked, "sent over a link that was not dialled"
                assert effect.lane == "control" or node.linked[effect.address]
                self.send(node, effect.address, effect.lane, effect.frames)
            else:
                node.news.append(effect)
                if isinstance(effect, PeerAdmitted):
                    node.greet(node, effect.peer)

    def send(self, sender: Node, address: str, lane: m.Lane, frames: list[bytes]) -> None:
        self.sent[sender.name] += 1
        if self.rng.random() >= self.loss and not self.blocked(sender, address):
            at = max(self.now, self._open_at[sender.name, address]) + self.rng.uniform(*self.delay_s)
            item = (at, sum(self.sent.values()), address, lane, sender.sessions.own_key, frames)
            heapq.heappush(self.transit, item)

    def listener(self, address: str) -> Node | None:
        return next((node for node in self.nodes.values() if address in node.addresses), None)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            timer, node = min(
                ((node.sessions.next_deadline(), node) for node in self.nodes.values()), key=lambda each: each[0]
            )
            arrival = self.transit[0][0] if self.transit else NEVER
            if min(timer, arrival) > end:
                break
            self.now = max(self.now, min(timer, arrival))
            if arrival <= timer:
                _, _, address, lane, key, frames = heapq.heappop(self.transit)
                listener = self.listener(address)
                if listener:
                    received, effects = listener.sessions.frames_received(lane, key, frames, self.now)
                    self.do(listener, effects)
                    if received:
                        listener.received.append((received.event.sender, received.event.message))
            else:
                self.do(node, node.sessions.tick(self.now))
        self.now = end

    def propose(self, node: Node, *addresses: str, source: Source = "peer") -> None:
        for address in addresses:
            self.do(node, node.sessions.propose(address, self.now, source=source))

    def say(self, node: Node, to: Node, message: m.Message) -> list[Effect]:
        effects = node.sessions.send(to.peer, message, "job", 1, self.now)
        self.do(node, effects)
        return effects


def meet(net: Net, *nodes: Node) -> None:
    for node in nodes:
        net.propose(node, *(address for other in nodes if other is not node for address in other.addresses))
    net.run(5)


def know_each_other(*nodes: Node) -> bool:
    return all(set(node.sessions.peers()) == {other.peer for other in nodes if other is not node} for node in nodes)


def admitted(node: Node) -> list[PeerAdmitted]:
    return [effect for effect in node.news if isinstance(effect, PeerAdmitted)]


def captured(net: Net, sender: Node) -> list[tuple[str, list[bytes]]]:
    """Everything that ``sender`` sends from now on."""
    caught: list[tuple[str, list[bytes]]] = []
    send = net.send

    def spy(who: Node, address: str, lane: m.Lane, frames: list[bytes]) -> None:
        if who is sender:
            caught.append((address, frames))
        send(who, address, lane, frames)

    net.send = spy  # type: ignore[method-assign]
    return caught


def size_of(sessions: Sessions) -> int:
    """Entries in all tables of the machine and what it owns."""
    parts = (sessions, sessions._table, sessions._book, sessions._offences, sessions._guests, sessions._visitors)
    tables = [table for part in parts for table in vars(part).values()]
    return sum(len(table) for table in tables if isinstance(table, dict))

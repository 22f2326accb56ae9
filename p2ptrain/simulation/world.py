"""Hosts with addresses, and links between them that behave like TCP.

Invariant: frames of one lane from one host to another keep their order. They may be lost, as when a link breaks; the
receiver gets the sender's key, as ZAP would give it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.simulation.names import address, key
from p2ptrain.simulation.network import LAN, Conditions, SimulatedNetwork
from p2ptrain.wire.messages import Lane, Message
from p2ptrain.wire.schema import RawBytes


class FrameHost:
    """A host that frames come to, as over sockets. ``number`` gives it its key, id and address."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.key = key(number)
        self.id = peer_id(self.key)
        self.address = address(number)

    @property
    def is_on(self) -> bool:
        """Whether anything reaches it."""
        return True

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[RawBytes], now: float) -> list[object]:
        """They came; what the host wants done about them."""
        raise NotImplementedError

    def carry_out(self, effect: object, now: float) -> Iterable[object]:
        """What it wants done by itself; ``SendFrames`` is the world's."""
        return ()

    def tick(self, now: float) -> Iterable[object]:
        raise NotImplementedError

    def next_deadline(self) -> float:
        raise NotImplementedError

    def process_gone(self, peer: PeerId) -> None:
        """The process of another host has ended, as its device says."""

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        raise LocalError("what reaches this host comes in frames")


class World:
    """``bytes_per_s``: of each link, one way."""

    def __init__(self, seed: int, conditions: Conditions = LAN, *, bytes_per_s: float = math.inf) -> None:
        self.seed = seed
        self.conditions = conditions
        self.bytes_per_s = bytes_per_s
        self.rng = random.Random(f"{seed}/room")
        self.network = SimulatedNetwork(seed, on_effect=self._carry_out)
        self.hosts: dict[PeerId, FrameHost] = {}
        self.counts: Counter[str] = Counter()
        """Messages sent, by lane, and lost."""
        self._by_address: dict[str, FrameHost] = {}
        self._sides: dict[PeerId, int] = {}
        self._arrives: dict[tuple[PeerId, PeerId, Lane], float] = {}

    def place(self, host: FrameHost) -> None:
        """From now on frames to its address come to it; ``network.add`` gives it time."""
        self.hosts[host.id] = host
        self._by_address[host.address] = host

    def partition(self, *groups: Iterable[int]) -> None:
        """Only hosts of one group, by number, hear each other; hosts in none of them are a group of their own."""
        self._sides = {peer_id(key(n)): side for side, group in enumerate(groups, start=1) for n in group}

    def heal(self) -> None:
        self._sides = {}

    def run(self, seconds: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let so much time pass, or until ``stop()`` holds. True: it held."""
        return self.network.run(self.network.now + seconds, stop, every_s=0.05)

    def perform(self, host: FrameHost, effects: Iterable[object]) -> None:
        """Carry out what a host that was called from outside wants done."""
        self.network.perform(host.id, effects)

    def send(self, who: PeerId, effect: SendFrames) -> None:
        """Frames go to whoever is at the address."""
        to = self._by_address.get(effect.address)
        self.counts[effect.lane] += 1
        if to is None or self.rng.random() < self.conditions.loss:
            self.counts["lost"] += 1
            return
        wait = self.conditions.delay_s + self.conditions.jitter_s * self.rng.random()
        channel = (who, to.id, effect.lane)
        frames = [bytes(frame) for frame in effect.frames]
        through_s = sum(map(len, frames)) / self.bytes_per_s
        when = max(self.network.now + wait + through_s, self._arrives.get(channel, 0.0) + through_s)
        self._arrives[channel] = when
        self.network.at_host(to.id, when, lambda: self._deliver(who, to, effect.lane, frames))

    def connections_close(self, ended: PeerId) -> None:
        """A process has ended: hosts on its side of the network find out within milliseconds, if it is not back."""

        def tell(host: FrameHost) -> None:
            is_near = self._sides.get(ended, 0) == self._sides.get(host.id, 0)
            if host.is_on and is_near and not self.hosts[ended].is_on:
                host.process_gone(ended)

        for host in list(self.hosts.values()):
            if host.id != ended and host.is_on:
                wait_s = self.conditions.delay_s + self.conditions.jitter_s * self.rng.random()
                self.network.at_host(host.id, self.network.now + wait_s, lambda host=host: tell(host))  # type: ignore[misc]

    def _deliver(self, sender: PeerId, to: FrameHost, lane: Lane, frames: Sequence[RawBytes]) -> None:
        if to.is_on and self._sides.get(sender, 0) == self._sides.get(to.id, 0):
            self.perform(to, to.frames(lane, self.hosts[sender].key, frames, self.network.now))

    def _carry_out(self, who: PeerId, effect: object, now: float) -> Iterable[object]:
        if isinstance(effect, SendFrames):
            self.send(who, effect)
            return ()
        host = self.hosts[who]
        return host.carry_out(effect, now) if host.is_on else ()

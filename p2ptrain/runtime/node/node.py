"""The I/O shell: waits for frames, timers, discovery and disk, feeds the core, and carries out what it returns.

Invariant: nothing here decides anything. One thread runs the core; the disk has a thread of its own, and so has long
thought, whose answers come back as events, in the order in which they were asked for. Every wait ends by itself or with
the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random, SystemRandom
from types import MappingProxyType
from typing import Any

from p2ptrain.core.effects import Effects
from p2ptrain.ids import GroupTag, PeerId, peer_id
from p2ptrain.net.asking import Asking
from p2ptrain.net.discovery import Discovery
from p2ptrain.net.interfaces import listening_hosts, usable_addresses
from p2ptrain.net.keys import Group, Identity
from p2ptrain.net.limits import raise_open_files
from p2ptrain.net.transport import Transport
from p2ptrain.net.ways.endpoint import parse_endpoint, resolve
from p2ptrain.net.ways.knock import Knocking
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session.address_book import Source
from p2ptrain.protocol.session.effects import Ban, Dial, HangUp, SendFrames
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.path_watch import PathWatch
from p2ptrain.runtime.peer.core import Core
from p2ptrain.wire.addresses import make_address
from p2ptrain.wire.messages import Lane
from p2ptrain.wire.schema import RawBytes

ADDRESS_CHECK_S = 10.0
ASK_CHECK_S = 1.0
RESOLVE_S = 60.0
MAX_SLEEP_S = 1.0
Then = Callable[[Any, BaseException | None], None]  # the result, or what went wrong


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Where a node listens and how it finds others."""

    interfaces: tuple[str, ...] = ()
    """Names or addresses of interfaces to use; empty = all usable ones."""
    port: int = 0
    peers: tuple[str, ...] = ()
    """``HOST:PORT`` of peers to dial, whatever discovery finds."""
    discover: bool = True
    bulk_bytes_per_s: float | None = None


class Node:
    """Transport, discovery, clock and journal around a core. Subclasses carry out what is particular to theirs."""

    announces = True
    """By mDNS, so that others come by themselves."""
    former: Mapping[GroupTag, Callable[[str], None]] = MappingProxyType({})  # who is told where a former code is shown
    linger_s = 0.0
    """How long ``close`` lets go out what was said last."""
    _says_goodbye = False  # all is handed over, the last words are said: nothing hangs on what comes after

    def __init__(self, identity: Identity, group: Group, network: NetworkConfig, journal: Journal) -> None:
        self.identity = identity
        self.group = group
        self.network = network
        self.journal = journal
        self.core: Core | None = None
        self.discovery: Discovery | None = None
        self.failure: BaseException | None = None
        """Why it ended, if not by plan."""
        self.rng: Random = SystemRandom()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._memory = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")
        self._thought = ThreadPoolExecutor(max_workers=1, thread_name_prefix="thought")
        self._tasks: set[asyncio.Future[Any]] = set()
        self._paths = PathWatch(self.note)
        self._wake = asyncio.Event()
        self._wakes_at = 0.0
        """When the clock looks at the core by itself."""
        self._finished = asyncio.Event()
        self._is_closing = False
        self.transport = Transport(
            identity,
            group,
            self._frames,
            listening_hosts(network.interfaces),
            network.port,
            bulk_bytes_per_s=network.bulk_bytes_per_s,
            on_refused=self._socket_refused,
            on_gone=self._connection_gone,
        )
        self._knocking = Knocking()
        self._addresses: tuple[str, ...] = ()

    # --- life ---

    async def start(self) -> None:
        """Bind, then find others in the background. Raises ``UserError`` (a busy port, no such interface)."""
        endpoints = {text: parse_endpoint(text) for text in self.network.peers}
        raise_open_files()
        await self.transport.start()
        self._addresses = self.addresses()
        self.core = self.make_core()
        self.core.transfers.has_room = self._has_room
        self._tell_loopback(self._hosts_found())
        for text, endpoint in endpoints.items():
            self._spawn(self._dial_given(text, *endpoint))
        if self.network.discover:
            self.discovery = Discovery(
                self.group.tag,
                self.transport.port,
                self._hosts_found(),
                lambda address: self._proposed(address, "mdns"),
                announce=self.announces,
                on_status=self._discovery_says,
                former=self.former,
            )
            self.discovery.start()
            self._spawn(self._ask_again(self.discovery))
        self._spawn(self._run_clock())
        self._spawn(self._watch_addresses())

    def make_core(self) -> Core:
        raise NotImplementedError

    async def close(self) -> None:
        """Leave nothing behind. What still comes in is nobody's any more; what fails from here on is noted, no more."""
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.discovery is not None:
            await self.discovery.close()
        await self.transport.close(self.linger_s)
        await asyncio.to_thread(self._disk.shutdown)
        await asyncio.to_thread(self._memory.shutdown)
        self._thought.shutdown(wait=False, cancel_futures=True)
        self.journal.close()

    def finish(self) -> None:
        """Let ``wait_finished`` return."""
        self._finished.set()

    async def wait_finished(self) -> None:
        await self._finished.wait()

    # --- what subclasses use ---

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def note(self, note: Note) -> None:
        self.journal.note(time.time(), note)
        if (address := self._paths.heard(note)) is not None:
            self._spawn(self._paths.look(address))

    def addresses(self) -> tuple[str, ...]:
        """Every address at which others may reach this node."""
        return self._reached_at(self._hosts_found())

    def _reached_at(self, hosts: Sequence[str]) -> tuple[str, ...]:
        return tuple(make_address(host, self.transport.port) for host in hosts)

    def feed(self, event: Callable[[float], Effects]) -> None:
        """Something happened: tell the core, and do what it says."""
        if self._is_closing:
            return
        try:
            self.carry_out(event(self.now()))
        except Exception as error:  # a bug: end and say why, whoever called, rather than go on deaf
            self._failed(error)
            raise
        if self.core is not None and self.core.next_deadline() < self._wakes_at:
            self._wake.set()  # only then: waking the clock for each message cost an eighth of the loop's time

    def carry_out(self, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, SendFrames):
                self.transport.send(effect.address, effect.lane, effect.frames)
            elif isinstance(effect, Dial):
                self.transport.dial(effect.address, effect.bulk_address)
            elif isinstance(effect, HangUp):
                self.transport.hang_up(effect.address)
            elif isinstance(effect, Ban):
                self.transport.ban(effect.key, effect.seconds)
            elif isinstance(effect, Note):
                self.note(effect)
            else:
                self.carry_out_other(effect)

    def carry_out_other(self, effect: object) -> None:
        """Effects that need a store or a trainer."""
        raise NotImplementedError(f"no way to carry out {type(effect).__name__}")

    def on_disk(self, work: Callable[[], Any], then: Then, *, waits: bool = True) -> None:
        """Do ``work`` in the disk's thread, in order (not ``waits``: in another one, at once), then ``then`` here."""
        self._aside(self._disk if waits else None, work, then)

    def in_memory(self, work: Callable[[], Any], then: Then) -> None:
        """As ``on_disk``, in a thread of its own, in order: what stays in memory does not wait for a sync."""
        self._aside(self._memory, work, then)

    def in_thought(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Compute what takes long in a thread that nobody waits for, then call ``then(result)`` here. In order."""

        def done(result: Any, error: BaseException | None) -> None:
            if error is not None:
                self._failed(error)
            else:
                then(result)

        self._aside(self._thought, work, done)

    def _aside(self, thread: ThreadPoolExecutor | None, work: Callable[[], Any], then: Then) -> None:
        if self._is_closing:
            return
        future = asyncio.get_running_loop().run_in_executor(thread, work)

        def done(finished: asyncio.Future[Any]) -> None:
            self._tasks.discard(finished)
            if not finished.cancelled():
                error = finished.exception()
                then(None if error else finished.result(), error)

        self._tasks.add(future)
        future.add_done_callback(done)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Call ``work`` then, unless this node is closed before."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            work()

        self._spawn(wait())

    def answer_read(self, effect: ReadChunk, data: RawBytes | None) -> None:
        if (core := self.core) is not None:
            self.feed(lambda now: core.chunk_read(effect, data, now))

    def _has_room(self, peer: PeerId) -> bool:
        address = self.core.sessions.address_of(peer) if self.core is not None else None
        return address is None or self.transport.has_room(address)

    def put_off_read(self, effect: ReadChunk) -> None:
        """The blob is here, and can't be read for now."""
        if (core := self.core) is not None:
            self.feed(lambda now: core.chunk_unread(effect, now))

    def _spawn(self, coroutine: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        if self._is_closing:
            task.cancel()
        return task

    def _task_done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """A bug, or what can't be gone on with: end, and say why."""
        if self._is_closing or self._says_goodbye:
            self.note(Note("failed-while-closing", (("what", f"{type(error).__name__}: {error}"),)))
            return
        self.failure = self.failure or error
        self.finish()

    # --- events ---

    async def _frames(self, lane: Lane, sender_key: bytes, frames: Sequence[RawBytes]) -> None:
        core = self.core
        if core is not None:
            self.feed(lambda now: core.frames_received(lane, sender_key, frames, now))

    def _connection_gone(self, key: bytes) -> None:
        """A sender's connection has closed. Has its process ended?"""
        peer, core = peer_id(key), self.core
        if core is not None and (address := core.sessions.address_of(peer)) is not None:
            self._spawn(self._knocking.ask(peer, address, lambda: self._process_gone(peer, address)))

    def _process_gone(self, peer: PeerId, address: str) -> None:
        if (core := self.core) is not None and core.sessions.address_of(peer) == address:
            self.feed(lambda now: core.process_gone(peer, now))

    def _proposed(self, address: str, source: Source) -> None:
        core = self.core
        if core is not None:
            self.feed(lambda now: core.propose(address, now, source))

    def _discovery_says(self, status: str) -> None:
        """mDNS works, or does not any more."""
        failed, discovery = status.startswith("failed"), self.discovery
        self.tell_trouble("mDNS", status if failed else discovery.lacking if discovery is not None else "")
        if not failed:
            self.note(Note("discovery", (("status", status),)))

    async def _ask_again(self, discovery: Discovery) -> None:
        """One question at the start is not enough: networks come late, and go."""
        asking = Asking(self.now(), self.rng)
        while (core := self.core) is not None:
            await asyncio.sleep(ASK_CHECK_S)
            self.tell_trouble("mDNS from elsewhere", discovery.elsewhere() if core.num_missing() else "")
            if asking.is_due(core.num_missing(), self.now()):
                discovery.ask_again()

    async def _dial_given(self, text: str, host: str, port: int) -> None:
        """A name that the user gave may be unknown for now, or lead elsewhere later."""
        core = self.core
        while core is not None:
            found, why_none = await resolve(host, port)
            self.tell_trouble(f"--peer {text}", why_none)
            for address in found:
                self._proposed(address, "given")
            await asyncio.sleep(RESOLVE_S)

    async def _run_clock(self) -> None:
        core = self.core
        while core is not None:
            now = self.now()
            self._wakes_at = min(core.next_deadline(), now + MAX_SLEEP_S)
            if self._wakes_at > now:
                self._wake.clear()
                # Not wait_for: where both come at once it forgets that it was cancelled, and ``close`` waits for ever.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wakes_at - now):
                        await self._wake.wait()
            if core.next_deadline() <= self.now():
                self.carry_out(core.tick(self.now()))
                await asyncio.sleep(0)

    async def _watch_addresses(self) -> None:
        """Interfaces come and go: a laptop changes its network."""
        while True:
            await asyncio.sleep(ADDRESS_CHECK_S)
            try:
                hosts = await asyncio.to_thread(self._hosts_found)
            except OSError:
                continue  # no file left to ask the system with: those known are as good as any
            self._tell_loopback(hosts)
            if hosts and self.network.interfaces and (why := self.transport.listen_on(hosts)):
                self.tell_trouble("--interface", why)
            elif self.network.interfaces and not hosts:
                self.tell_trouble("--interface", f"{' '.join(self.network.interfaces)} has no address now")
            else:
                self.tell_trouble("--interface", "")
            addresses = self._reached_at(hosts)
            if addresses != self._addresses:
                self._addresses = addresses
                self.note(Note("addresses", (("addresses", " ".join(addresses)),)))
                self.addresses_changed(addresses)
                if self.discovery is not None:
                    self.discovery.readdress(hosts)

    def _socket_refused(self, address: str, why: str) -> None:
        self.note(Note("socket-refused", (("address", address), ("why", why))))

    def _tell_loopback(self, hosts: Sequence[str]) -> None:
        """Without a network nobody outside this device can be met, unless that is what was asked for."""
        outside = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
        alone = not outside and not self.network.interfaces
        self.tell_trouble("this device", "has no network: only peers on it can be met" if alone else "")

    def tell_trouble(self, source: str, why: str) -> None:
        """``why`` is "" when there is none any more."""
        core = self.core
        if core is None or core.troubles.get(source, "") == why:
            return
        core.troubles.pop(source, None)
        if why:
            core.troubles[source] = why
            self.note(Note("finding-trouble", (("source", source), ("why", why))))
        else:
            self.note(Note("finding-works", (("source", source),)))

    def addresses_changed(self, addresses: tuple[str, ...]) -> None:
        """Tell the core."""
        if self.core is not None:
            self.core.sessions.readdress(addresses)

    # --- interfaces ---

    def _hosts_found(self) -> tuple[str, ...]:
        return tuple(each.address for each in usable_addresses(self.network.interfaces, strict=False))

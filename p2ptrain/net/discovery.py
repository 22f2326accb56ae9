"""Finds addresses of the same group by mDNS, and shows our own there unless we only visit.

Invariant: discovery only proposes. Nothing here is waited for, nothing here raises; what does not work is said in
``status``, and what others announce is bounded, checked and otherwise not believed.

Each asking begins anew with fresh sockets: whatever became of an interface meanwhile, its multicast group is joined
again. What was shown once is proposed again each time, though mDNS itself may have forgotten it.

A discovery: made --start--> asking --> running, or failed: why --ask again, or other interfaces--> asking
             --close--> closed
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import random
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from zeroconf import Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2ptrain.ids import GroupTag
from p2ptrain.net.guard.shown import Allowance, near
from p2ptrain.net.interfaces import all_addresses
from p2ptrain.wire.addresses import canonical_address, make_address, split_address
from p2ptrain.wire.messages import WIRE_VERSION

SERVICE = "_p2ptrain._tcp.local."
LOOKUP_MS = 3_000
CLOSE_S = 2.0
MAX_LOOKUPS = 16
MAX_WAITING = 256
MAX_HEARD = 20_000
"""Names, of one asking. zeroconf remembers each for up to 75 minutes (some 2 kB), and asks for it again: after so many
everything is forgotten, and asked for anew."""
MAX_OTHERS = 64
MANY = 20
"""Addresses that Linux lets one socket listen on for multicast, unless it is told otherwise."""
_ALLOWS_MORE = "this system may allow more with `sysctl net.ipv4.igmp_max_memberships=1024`"
_FAILURES = (OSError, Error, TimeoutError, RuntimeError, ValueError)
"""What zeroconf raises where a network, or what others send in it, is not as it should be."""
MAX_SHOWN = 64
"""Announcements of the own group that are remembered, the last shown."""
MAX_ADDRESSES_OF_ONE = 16

OnProposed = Callable[[str], None]
"""Called in the loop with a ``tcp://IP:port`` of the same group."""
OnStatus = Callable[[str], None]
"""Called in the loop whenever ``status`` becomes that it runs, or that it failed, or ``lacking`` another."""

logging.getLogger("zeroconf").addHandler(logging.NullHandler())  # what fails is said in ``status``


class Discovery:
    """``interfaces``: the addresses of ours to send and listen on, which are also those advertised.

    Without ``announce`` it only looks for others. ``former``: by tag, who is told where a former code is shown.
    """

    def __init__(
        self,
        tag: GroupTag,
        port: int,
        interfaces: Sequence[str],
        on_proposed: OnProposed,
        *,
        announce: bool = True,
        on_status: OnStatus = lambda status: None,
        former: Mapping[GroupTag, OnProposed] = MappingProxyType({}),
    ) -> None:
        self.status = "not started"
        """For people: what it does, or why it does not."""
        self.lacking = ""
        """Where it does nothing though it runs, as a trouble; "" = nowhere."""
        self.others: OrderedDict[str, list[str]] = OrderedDict()
        """Groups seen that are not ours (or of another wire version), with their addresses."""
        self._tag = tag
        self._port = port
        self._interfaces = tuple(interfaces)
        self._on_proposed = on_proposed
        self._on_status = on_status
        self._announce = announce
        self._former = {str(each): on_shown for each, on_shown in former.items()}
        self._name = f"{secrets.token_hex(8)}.{SERVICE}"
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._running: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, None] = {}
        """Names that were announced while all look-ups were under way."""
        self._num_heard = 0
        """Names that were announced in this asking."""
        self._allowance = Allowance(time.monotonic())
        self._shown: OrderedDict[str, None] = OrderedDict()
        """The names of what was announced of our group."""
        self._elsewhere: OrderedDict[str, str] = OrderedDict()
        """The same of those that are on no network of ours, as where a router passes announcements on: one address."""

    @property
    def failed(self) -> bool:
        return self.status.startswith("failed")

    def elsewhere(self) -> str:
        """In words, who of our group is announced on networks that this device is not in; "" = nobody."""
        if not self._elsewhere:
            return ""
        endpoint = next(reversed(self._elsewhere.values())).removeprefix("tcp://")
        return f"shows {endpoint}, which is on no network of this device: --peer {endpoint} dials it all the same"

    def start(self) -> None:
        """Begin in the background."""
        if self._running is None:
            self.status = "starting"
            self._running = asyncio.create_task(self._run(), name="mdns")

    def ask_again(self) -> None:
        """Somebody is missing: ask and announce anew. All that are there answer, and are proposed again."""
        self._again.set()

    def readdress(self, interfaces: Sequence[str]) -> None:
        """Our addresses are others now."""
        self._interfaces = tuple(interfaces)
        self._elsewhere.clear()
        self.ask_again()

    async def close(self) -> None:
        """Say goodbye and stop, within ``CLOSE_S`` whatever happens."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        why = await self._shut()
        if why:
            self._says(f"closed, and zeroconf failed at it: {why}")
        self.status = "closed"

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._again.clear()
            try:
                working, lacking = await self._ask()
                self._says(f"running on {', '.join(working)}", lacking)
            except _FAILURES as error:
                on = ", ".join(self._interfaces) or "no interface"
                self._says(f"failed on {on}: {_why(error)}; use --peer HOST:PORT instead")
            await self._again.wait()
            await self._shut()

    def _says(self, status: str, lacking: str = "") -> None:
        if (status, lacking) != (self.status, self.lacking):
            self.status, self.lacking = status, lacking
            self._on_status(status)

    async def _ask(self) -> tuple[list[str], str]:
        """Open sockets, look for others, and announce: the addresses on which that works, and what is ``lacking``."""
        self._num_heard = 0
        self._zeroconf = await self._opened()
        on = {str(each.sock_name[0]).partition("%")[0] for each in self._zeroconf.zeroconf.engine.senders}
        working = [each for each in self._interfaces if each.partition("%")[0] in on]
        if not working:
            raise OSError("no address can send there")
        left = [each for each in self._interfaces if ":" not in each and each not in on]  # of IPv6 one speaks for all
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])
        if self._announce:
            # Its name is random, so that nobody needs to be asked whether it is taken.
            registered = self._zeroconf.async_register_service(self._own_service(), cooperating_responders=True)
            await (await registered)
        more = f"; {_ALLOWS_MORE}" if sum(":" not in each for each in working) >= MANY else ""
        return working, f"can't be used on {', '.join(left)} for now{more}" if left else ""

    async def _opened(self) -> AsyncZeroconf:
        v4 = [each for each in self._interfaces if ":" not in each]
        v6 = [each for each in self._interfaces if ":" in each]
        zoned = [each for each in v6 if "%" in each] or v6  # one an interface is enough to speak IPv6 there
        choices = [([*v4, *zoned], IPVersion.All if v4 else IPVersion.V6Only)] if v6 else []
        choices += [(v4, IPVersion.V4Only)] if v4 else []
        for left, (interfaces, version) in zip(reversed(range(len(choices))), choices, strict=True):
            zeroconf: AsyncZeroconf | None = None
            try:
                zeroconf = AsyncZeroconf(interfaces=list[str | int](interfaces), ip_version=version)
                await zeroconf.zeroconf.async_wait_for_start()
                return zeroconf
            except (OSError, Error, RuntimeError):
                if zeroconf is not None:
                    await zeroconf.async_close()
                if not left:  # else: some systems have IPv6 addresses and no multicast for them
                    raise
        raise OSError("there is no address to use")

    async def _shut(self) -> str:
        """What went wrong at it, which is for whoever reads the journal: it is over in any case. "" = nothing."""
        self._waiting.clear()
        tasks = list(self._lookups.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        zeroconf, browser, self._zeroconf, self._browser = self._zeroconf, self._browser, None, None
        if zeroconf is not None:
            stopping = asyncio.wait_for(_stop(zeroconf, browser), CLOSE_S)
            (failed,) = await asyncio.gather(stopping, return_exceptions=True)
            return _why(failed) if failed is not None else ""
        return ""

    def _own_service(self) -> AsyncServiceInfo:
        hosts = list(dict.fromkeys(each.partition("%")[0] for each in self._interfaces))
        packed = [socket.inet_pton(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in hosts]
        return AsyncServiceInfo(
            SERVICE,
            self._name,
            addresses=packed[:MAX_ADDRESSES_OF_ONE],
            port=self._port,
            properties={"g": self._tag, "v": str(WIRE_VERSION)},
            server=f"p2ptrain-{self._name.partition('.')[0]}.local.",
        )

    # --- what others announce -----------------------------------------------------------------------------------------

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called in the loop. Who left is none of our business: the membership finds out."""
        self._num_heard += state_change is ServiceStateChange.Added
        if self._num_heard > MAX_HEARD:
            self._again.set()
        if state_change is ServiceStateChange.Removed:
            self._elsewhere.pop(name, None)
            return
        if name in (self._name, *self._lookups):
            return
        if len(self._lookups) < MAX_LOOKUPS:
            self._begin_look_up(zeroconf, name)
            return
        if len(self._waiting) >= MAX_WAITING:  # who announces most has no more than its share
            del self._waiting[random.choice(list(self._waiting))]
        self._waiting[name] = None

    def _begin_look_up(self, zeroconf: Zeroconf, name: str) -> None:
        def done(_: asyncio.Task[None]) -> None:
            self._lookups.pop(name, None)
            if self._waiting and self._zeroconf is not None:
                after = random.choice(list(self._waiting))
                del self._waiting[after]
                self._begin_look_up(self._zeroconf.zeroconf, after)

        task = asyncio.get_running_loop().create_task(self._look_up(zeroconf, name), name="mdns lookup")
        self._lookups[name] = task
        task.add_done_callback(done)

    async def _look_up(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if await info.async_request(zeroconf, LOOKUP_MS):
                self._announced(info)
        except (OSError, Error, ValueError, AssertionError):
            return  # a record that is no record: nobody to propose

    def _announced(self, info: AsyncServiceInfo) -> None:
        group, version = (text_of(info.properties.get(key)) for key in (b"g", b"v"))
        hosts = info.parsed_addresses()[:MAX_ADDRESSES_OF_ONE]
        addresses = _addresses_of(near(hosts, self._interfaces, all_addresses()), info.port or 0)
        is_new = info.name not in self._shown
        if group == self._tag and is_new and addresses and not self._allowance.take(time.monotonic()):
            return  # it is announced again
        if group == self._tag:  # of another wire version, too: membership tells it, and us, that the versions differ
            self._shown[info.name] = None
            self._shown.move_to_end(info.name)
            if len(self._shown) > MAX_SHOWN:
                self._shown.popitem(last=False)
            for address in addresses:
                self._on_proposed(address)
            self._note_elsewhere(info.name, [] if addresses else _addresses_of(hosts, info.port or 0))
        elif group in self._former and self._allowance.take(time.monotonic()):
            for address in addresses:
                self._former[group](address)
        if group != self._tag or version != str(WIRE_VERSION):
            label = f"{group[:32]} (wire version {version[:8]})"
            known = [*self.others.get(label, []), *_addresses_of(hosts, info.port or 0)]
            self.others[label] = list(dict.fromkeys(known))[:MAX_ADDRESSES_OF_ONE]
            if len(self.others) > MAX_OTHERS:
                self.others.popitem(last=False)

    def _note_elsewhere(self, name: str, addresses: Sequence[str]) -> None:
        self._elsewhere.pop(name, None)
        far = [each for each in addresses if not _is_local(each)]
        if far:
            self._elsewhere[name] = far[0]
            if len(self._elsewhere) > MAX_SHOWN:
                self._elsewhere.popitem(last=False)


def _is_local(address: str) -> bool:
    """Whether it means something on its own device or cable only."""
    parts = split_address(address)
    host = ipaddress.ip_address(parts[0]) if parts else None
    return host is None or host.is_loopback or host.is_link_local


def _addresses_of(hosts: Sequence[str], port: int) -> list[str]:
    made = (canonical_address(make_address(host, port)) for host in hosts)
    return [each for each in made if each]


async def _stop(zeroconf: AsyncZeroconf, browser: AsyncServiceBrowser | None) -> None:
    if browser is not None:
        await browser.async_cancel()
    await zeroconf.async_close()


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "port 5353 is held by another program, which does not share it"
    return str(error) or type(error).__name__


def text_of(raw: bytes | None) -> str:
    """Printable text of a TXT value, which may be anything."""
    return "".join(char if char.isprintable() else "?" for char in (raw or b"").decode("utf-8", "replace"))

"""Finds addresses of the same group by mDNS, and shows our own there unless we only visit.

Invariant: discovery only proposes. Nothing here is waited for, nothing here raises; what does not work is said in
``status``, and what others announce is bounded, checked and otherwise not believed.

A discovery: made --start--> starting --> running, or failed: why --close--> closed
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence

from zeroconf import Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2ptrain.ids import GroupTag
from p2ptrain.wire.addresses import canonical_address, make_address
from p2ptrain.wire.messages import WIRE_VERSION

SERVICE = "_p2ptrain._tcp.local."
LOOKUP_MS = 3_000
CLOSE_S = 2.0
MAX_LOOKUPS = 16
MAX_OTHERS = 64
MAX_ADDRESSES_OF_ONE = 16

OnProposed = Callable[[str], None]
"""Called in the loop with a ``tcp://IP:port`` of the same group."""


class Discovery:
    """``interfaces``: the addresses of ours to send and listen on, which are also those advertised.

    Without ``announce`` it only looks for others.
    """

    def __init__(
        self, tag: GroupTag, port: int, interfaces: Sequence[str], on_proposed: OnProposed, *, announce: bool = True
    ) -> None:
        self.status = "not started"
        """For people: what it does, or why it does not."""
        self.others: OrderedDict[str, list[str]] = OrderedDict()
        """Groups seen that are not ours (or of another wire version), with their addresses."""
        self._tag = tag
        self._port = port
        self._interfaces = tuple(interfaces)
        self._on_proposed = on_proposed
        self._announce = announce
        self._name = f"{secrets.token_hex(8)}.{SERVICE}"
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._starting: asyncio.Task[None] | None = None
        self._lookups: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin in the background."""
        if self._starting is None:
            self.status = "starting"
            self._starting = asyncio.create_task(self._start(), name="mdns")

    async def close(self) -> None:
        """Say goodbye and stop, within ``CLOSE_S`` whatever happens."""
        tasks = [task for task in (self._starting, *self._lookups.values()) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._zeroconf:
            with contextlib.suppress(TimeoutError, OSError, Error):
                await asyncio.wait_for(self._stop(self._zeroconf), CLOSE_S)
            self._zeroconf = self._browser = None
        self.status = "closed"

    # --- starting and stopping ----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        try:
            self._zeroconf = AsyncZeroconf(interfaces=self._multicast_on(), ip_version=self._ip_version())
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])
            if self._announce:
                await (await self._zeroconf.async_register_service(self._own_service(), allow_name_change=True))
        except (OSError, Error, TimeoutError, RuntimeError, ValueError) as error:
            on = ", ".join(self._interfaces) or "no interface"
            self.status = f"failed on {on}: {str(error) or type(error).__name__}; use --peer HOST:PORT instead"
        else:
            self.status = f"running on {', '.join(self._interfaces)}"

    async def _stop(self, zeroconf: AsyncZeroconf) -> None:
        if self._browser:
            await self._browser.async_cancel()
        await zeroconf.async_close()

    def _multicast_on(self) -> list[str | int]:
        v4 = [each for each in self._interfaces if ":" not in each]
        if not self._interfaces:
            raise OSError("there is no address to use")
        return list(v4 or self._interfaces)

    def _ip_version(self) -> IPVersion:
        return IPVersion.V4Only if any(":" not in each for each in self._interfaces) else IPVersion.V6Only

    def _own_service(self) -> AsyncServiceInfo:
        packed = [
            socket.inet_pton(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in self._interfaces
        ]
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
        new = name not in (self._name, *self._lookups) and len(self._lookups) < MAX_LOOKUPS
        if new and state_change is not ServiceStateChange.Removed:
            task = asyncio.get_running_loop().create_task(self._look_up(zeroconf, name), name="mdns lookup")
            self._lookups[name] = task
            task.add_done_callback(lambda _: self._lookups.pop(name, None))

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
        made = [canonical_address(make_address(host, info.port or 0)) for host in hosts]
        addresses = [each for each in made if each and not is_link_local_v6(each)]
        if group == self._tag and version == str(WIRE_VERSION):
            for address in addresses:
                self._on_proposed(address)
            return
        label = f"{group[:32]} (wire version {version[:8]})"
        self.others[label] = list(dict.fromkeys([*self.others.get(label, []), *addresses]))[:MAX_ADDRESSES_OF_ONE]
        if len(self.others) > MAX_OTHERS:
            self.others.popitem(last=False)
        if group == self._tag:  # of our group: membership tells it, and us, that the versions differ
            for address in addresses:
                self._on_proposed(address)


def text_of(raw: bytes | None) -> str:
    """Printable text of a TXT value, which may be anything."""
    return "".join(char if char.isprintable() else "?" for char in (raw or b"").decode("utf-8", "replace"))


def is_link_local_v6(address: str) -> bool:
    """Such an address means nothing without the name of our interface."""
    return address.startswith("tcp://[") and ipaddress.ip_address(address[7:].partition("]")[0]).is_link_local


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of ``--peer HOST:PORT``; none if the name is unknown for now."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    made = (
        canonical_address(make_address(sockaddr[0], port)) for *_, sockaddr in found if isinstance(sockaddr[0], str)
    )
    return [address for address in dict.fromkeys(made) if address]

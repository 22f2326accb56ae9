"""Serves the page, its parts and a stream of what changes, to whoever has the link.

Invariant: nothing is changed by any request; without the token in its path no request gets more than 404, and what
strangers cost is bounded: so many connections, so long for a request, so many bytes of it. A page that does not take
what it is sent is sent nothing more, and then hung up on. While no page is open no look is taken for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from p2ptrain.errors import UserError
from p2ptrain.net.interfaces import usable_addresses
from p2ptrain.web.http import (
    MAX_HEAD_BYTES,
    BadRequest,
    Request,
    answer,
    event,
    is_own_host,
    parse,
    stream_head,
)
from p2ptrain.web.view import NOTHING, Cursor, View

LOOPBACK = "127.0.0.1"
FULL = answer(503, b"too many pages are open\n", head=False)
READ_AWAY_S = 0.5
EVENTS = "events"
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "page.js": "text/javascript; charset=utf-8",
    "make.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
    "graph.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "panels.js": "text/javascript; charset=utf-8",
}
"""The files of ``page/`` that are served, and nothing else."""


@dataclass(frozen=True, slots=True)
class Limits:
    pages: int = 32
    """Streams at once."""
    connections: int = 160
    """At once, streams among them."""
    turned_away: int = 32
    """Beyond these, who are told so."""
    per_address: int = 48
    """Of them from one other device."""
    request_s: float = 5.0
    """For a request to be whole, and for an answer to be taken."""
    backlog_bytes: int = 256 * 1024
    """That a page has not taken: then it is sent nothing more."""
    stuck_s: float = 20.0
    """So long without taking anything, and a page is hung up on."""
    interval_s: float = 1.0


@dataclass(slots=True, eq=False)
class _Page:
    writer: asyncio.StreamWriter
    cursor: Cursor
    taken_at: float


class PageServer:
    """Run with ``start`` and ``close``; ``links`` says where it is."""

    def __init__(
        self,
        view: View,
        *,
        limits: Limits | None = None,
        token: str | None = None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        """``on_failure``: hears of a bug, after which nothing is served any more."""
        self._view = view
        self._on_failure = on_failure
        self._limits = limits or Limits()
        self._token = token or secrets.token_urlsafe(24)
        self._names = {"localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self._server: asyncio.Server | None = None
        self._listen, self._port = LOOPBACK, 0
        self._open: set[asyncio.StreamWriter] = set()
        self._by_address: Counter[str] = Counter()
        self._turned_away = 0
        self._pages: set[_Page] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        """A page is open."""

    @property
    def num_pages(self) -> int:
        return len(self._pages)

    async def start(self, listen: str = LOOPBACK, port: int = 0) -> None:
        """Raises ``UserError`` where that can't be listened on."""
        try:
            self._server = await asyncio.start_server(self._connected, listen, port, limit=MAX_HEAD_BYTES, backlog=64)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"the page can't be served at {listen}, port {port or 'any'} ({why}): name another port, or an address "
                "of this device (127.0.0.1 is for this device alone, 0.0.0.0 for all in its networks)"
            ) from None
        self._listen, self._port = listen, self._server.sockets[0].getsockname()[1]
        self._tasks = {asyncio.ensure_future(self._glance()), asyncio.ensure_future(self._tell())}
        for task in self._tasks:
            task.add_done_callback(self._task_done)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hang_up()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 1.0)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._hang_up()
            self._on_failure(error)

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    def links(self) -> list[str]:
        """Where a browser finds the page: each has the token in it."""
        hosts = [self._listen]
        if self._listen in ("0.0.0.0", "::", ""):
            found = [each.address for each in usable_addresses((), strict=False)]
            hosts = [*(host for host in found if self._listen != "0.0.0.0" or ":" not in host), LOOPBACK]
        shown = [f"[{host}]" if ":" in host else host for host in hosts]
        return [f"http://{host}:{self._port}/{self._token}/" for host in dict.fromkeys(shown)]

    # --- requests ---

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("?",))[0])
        limits = self._limits
        if len(self._open) >= limits.connections or (
            address != LOOPBACK and self._by_address[address] >= limits.per_address
        ):
            await self._turn_away(reader, writer)
            return
        self._open.add(writer)
        self._by_address[address] += 1
        writer.transport.set_write_buffer_limits(high=limits.backlog_bytes)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # who went in the middle is gone
        finally:
            self._open.discard(writer)
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = False
        try:
            request = parse(await self._head(reader))
            head = request.method == "HEAD"
            name = self._name_of(request)
        except BadRequest as error:
            await self._write(writer, answer(error.status, f"{error}\n".encode(), head=head))
            await self._read_away(reader, writer)
            return
        if name != EVENTS:
            await self._write(writer, answer(200, _file(name), TYPES[name], head=head))
        elif head:
            await self._write(writer, stream_head())
        elif len(self._pages) >= self._limits.pages:
            await self._write(writer, FULL)
        else:
            await self._stream(reader, writer)

    async def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Some are told why; where there are many of them, they are hung up on."""
        if self._turned_away >= self._limits.turned_away:
            writer.transport.abort()
            return
        self._turned_away += 1
        try:
            await self._write(writer, FULL)
            await self._read_away(reader, writer)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self._turned_away -= 1
            writer.close()

    async def _read_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What is not read when a connection closes would take the answer away with it."""
        writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_AWAY_S):
                for _ in range(16):
                    if not await reader.read(MAX_HEAD_BYTES):
                        return

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._limits.request_s):
                return await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise BadRequest(431, "too long") from None
        except TimeoutError:
            raise BadRequest(408, "too slow") from None

    def _name_of(self, request: Request) -> str:
        """What is asked for. Raises ``BadRequest`` without the token: the same as for what there is not."""
        if not is_own_host(request.host, self._names):
            raise BadRequest(421, "this device has another name: use the link as it was printed")
        token, slash, name = request.path.removeprefix("/").partition("/")
        name = name or "index.html"
        if not hmac.compare_digest(token.encode(), self._token.encode()) or not slash:
            raise BadRequest(404, "not found")
        if name != EVENTS and name not in TYPES:
            raise BadRequest(404, "not found")
        return name

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        async with asyncio.timeout(self._limits.request_s):
            await writer.drain()
            while writer.transport.get_write_buffer_size():  # closing waits for nobody
                await asyncio.sleep(0.01)

    # --- streams ---

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the page goes. What it sends is read away, and too much of it ends the stream."""
        writer.write(stream_head())
        page = _Page(writer, NOTHING, time.monotonic())
        self._send(page, event("now", self._view.now()), {})
        self._pages.add(page)
        self._wanted.set()
        try:
            for _ in range(16):
                if not await reader.read(1024):
                    return
        finally:
            self._pages.discard(page)

    async def _glance(self) -> None:
        while True:
            self._view.glance()
            await asyncio.sleep(self._limits.interval_s)

    async def _tell(self) -> None:
        """All pages, once a second, with one look for all of them."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._limits.interval_s)
            if not self._pages:
                self._wanted.clear()
                continue
            now, news = event("now", self._view.now()), dict[Cursor, tuple[bytes, Cursor]]()
            for page in list(self._pages):
                self._send(page, now, news)

    def _send(self, page: _Page, now: bytes, news: dict[Cursor, tuple[bytes, Cursor]]) -> None:
        transport: Any = page.writer.transport
        waiting = transport.get_write_buffer_size()
        if not waiting:
            page.taken_at = time.monotonic()
        elif time.monotonic() - page.taken_at > self._limits.stuck_s:
            transport.abort()
            return
        if waiting > self._limits.backlog_bytes:
            return
        if page.cursor not in news:
            text, reached = self._view.news(page.cursor)
            news[page.cursor] = (event("news", text) if text else b"", reached)
        data, page.cursor = news[page.cursor]
        page.writer.write(data + now)


@functools.cache
def _file(name: str) -> bytes:
    return resources.files("p2ptrain.web").joinpath("page", name).read_bytes()

"""The page over real sockets on loopback: who gets it, what strangers get, and what they can cost."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import pytest
from groups import found_in

from p2ptrain import api
from p2ptrain.errors import UserError
from p2ptrain.web.server import TYPES, Limits, PageServer
from p2ptrain.web.view import View

PATIENCE_S = 60.0
TOKEN = "t" * 32
FAST = Limits(interval_s=0.01)


class Looks:
    """A group to look at, and how often it was told as a whole."""

    def __init__(self, found: api.Status | None) -> None:
        self.view = View(lambda: found)
        self.told, tell = 0, self.view.now

        def now() -> str:
            self.told += 1
            return tell()

        self.view.now = now  # type: ignore[method-assign]


@asynccontextmanager
async def served(limits: Limits = FAST, looks: Looks | None = None) -> AsyncIterator[PageServer]:
    server = PageServer((looks or Looks(found_in("tasks"))).view, limits=limits, token=TOKEN)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def port_of(server: PageServer) -> int:
    (link,) = server.links()
    match = re.fullmatch(rf"http://127\.0\.0\.1:(\d+)/{TOKEN}/", link)
    assert match
    return int(match[1])


async def ask(
    server: PageServer, target: str, *, host: str = "127.0.0.1", method: str = "GET"
) -> tuple[int, str, bytes]:
    """Status, head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


async def listen(server: PageServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A page's stream, after its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server), limit=1 << 22)
    writer.write(f"GET /{TOKEN}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def hear(reader: asyncio.StreamReader) -> tuple[str, Any]:
    name, _, data = (await reader.readuntil(b"\n\n")).decode().partition("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(bounded())


def test_whoever_has_the_link_gets_the_page_and_all_that_it_asks_for() -> None:
    async def test() -> None:
        async with served() as server:
            status, head, body = await ask(server, f"/{TOKEN}/")
            assert status == 200 and "text/html" in head and b"<main" in body
            asked = re.findall(rb'(?:src|href)="([^"#]+)"', body)
            assert {name.decode() for name in asked} <= TYPES.keys()
            for name in TYPES:
                status, head, body = await ask(server, f"/{TOKEN}/{name}?v=1")
                assert status == 200 and body and f"Content-Length: {len(body)}" in head
                assert "Content-Security-Policy: default-src 'none'" in head
            assert (await ask(server, f"/{TOKEN}/", method="HEAD"))[2] == b""

    run(test)


def test_nothing_that_is_served_names_another_host_or_reads_markup() -> None:
    folder = resources.files("p2ptrain.web").joinpath("page")
    assert {each.name for each in folder.iterdir()} == TYPES.keys()
    for name in TYPES:
        text = folder.joinpath(name).read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|srcdoc|new Function", text
        ), name
        assert name != "index.html" or not re.search(r"\son\w+=|style=|<script(?! type=\"module\" src)", text)


@pytest.mark.parametrize(
    "target",
    ["/", "/events", f"/{TOKEN}", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/", "//", "/wrong/events", f"/{TOKEN}/../{TOKEN}/",
     f"/{TOKEN}/nothing", f"/{TOKEN}/../server.py", f"/{TOKEN}/%2e%2e/server.py", f"/?{TOKEN}", f"/x/{TOKEN}/"],
)  # fmt: skip
def test_without_the_token_there_is_nothing(target: str) -> None:
    async def test() -> None:
        async with served() as server:
            status, head, body = await ask(server, target)
            assert (status, body) == (404, b"not found\n") and TOKEN not in head

    run(test)


@pytest.mark.parametrize(
    ("host", "status"), [("evil.example", 421), ("", 421), ("localhost:1", 200), ("[::1]:80", 200)]
)
def test_a_name_that_somebody_made_lead_here_gets_nothing(host: str, status: int) -> None:
    async def test() -> None:
        async with served() as server:
            assert (await ask(server, f"/{TOKEN}/", host=host))[0] == status

    run(test)


def test_nothing_can_be_changed() -> None:
    async def test() -> None:
        async with served() as server:
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "CONNECT"):
                assert (await ask(server, f"/{TOKEN}/", method=method))[0] == 405

    run(test)


def test_two_tokens_are_never_the_same() -> None:
    assert PageServer(View(lambda: None))._token != PageServer(View(lambda: None))._token
    assert len(PageServer(View(lambda: None))._token) >= 32


def test_a_page_hears_the_group_and_what_is_new() -> None:
    async def test() -> None:
        async with served() as server:
            reader, writer = await listen(server)
            name, news = await hear(reader)
            assert name == "news" and news["whole"] and [kind for _, kind, _ in news["events"]]
            name, now = await hear(reader)
            assert name == "now" and now["group"]["job"]["name"] == "job" and len(now["group"]["peers"]) == 3
            assert (await hear(reader))[0] == "now", "nothing new happened"
            writer.close()

    run(test)


def test_one_look_is_enough_for_all_pages_and_without_a_page_none_is_taken() -> None:
    async def test() -> None:
        looks = Looks(found_in("tasks"))
        async with served(Limits(interval_s=0.01), looks) as server:
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert looks.told == 0
            streams = [await listen(server) for _ in range(20)]
            await until(lambda: server.num_pages == 20)
            before = looks.told
            readers = [reader for reader, _ in streams]
            await until(lambda: looks.told > before + 3)
            heard = looks.told
            assert heard <= before + 10, "one look each time, for twenty pages"
            for reader in readers:
                assert (await hear(reader))[0] == "news"
            for _, writer in streams:
                writer.close()
            await until(lambda: server.num_pages == 0)

    run(test)


def test_too_many_are_told_so_and_those_who_are_there_stay() -> None:
    async def test() -> None:
        async with served(Limits(pages=2, connections=4, interval_s=0.01)) as server:
            first, second = await listen(server), await listen(server)
            await until(lambda: server.num_pages == 2)
            assert (await ask(server, f"/{TOKEN}/events"))[0] == 503
            silent = [await asyncio.open_connection("127.0.0.1", port_of(server)) for _ in range(2)]
            await until(lambda: len(server._open) == 4)
            assert (await ask(server, f"/{TOKEN}/"))[0] == 503
            silent[0][1].close()
            await until(lambda: len(server._open) == 3)
            assert (await ask(server, f"/{TOKEN}/"))[0] == 200
            assert (await hear(first[0]))[0] == "news" and (await hear(second[0]))[0] == "news"

    run(test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: local", 408),
        (b"", 408),
        (b"GET /" + b"a" * 20000, 431),
        (b"\xff" * 100 + b"\r\n\r\n", 400),
    ],
)
def test_a_request_that_never_ends_ends(sent: bytes, status: int) -> None:
    async def test() -> None:
        async with served(Limits(request_s=0.2, interval_s=0.01)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            writer.write(sent)
            assert (await reader.read(16)).split()[1] == str(status).encode()
            writer.close()
            await until(lambda: not server._open)

    run(test)


def test_who_goes_in_the_middle_leaves_nothing() -> None:
    async def test() -> None:
        async with served() as server:
            for sent in (b"", b"GET /", f"GET /{TOKEN}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()):
                _, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
                writer.write(sent)
                await writer.drain()
                writer.transport.abort()
            await until(lambda: not server._open and not server.num_pages and not server._by_address)
            assert (await ask(server, f"/{TOKEN}/"))[0] == 200

    run(test)


def test_a_page_that_takes_nothing_gets_nothing_more_and_is_hung_up_on() -> None:
    async def test() -> None:
        async with served(Limits(backlog_bytes=4096, stuck_s=0.3, interval_s=0.001)) as server:
            reader, _ = await listen(server)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: server.num_pages == 1)
            other, _ = await listen(server)
            most = 0

            def waiting() -> bool:
                nonlocal most
                for page in server._pages:
                    most = max(most, page.writer.transport.get_write_buffer_size())
                return server.num_pages < 2

            hears = asyncio.ensure_future(_drain(other))
            await until(waiting)
            assert server.num_pages == 1 and most < 200_000, "one more message than fits, at most"
            hears.cancel()

    async def _drain(reader: asyncio.StreamReader) -> None:
        while await reader.read(1 << 16):
            pass

    run(test)


def test_a_page_that_talks_is_hung_up_on() -> None:
    async def test() -> None:
        async with served() as server:
            reader, writer = await listen(server)
            for _ in range(64):
                writer.write(b"x" * 1024)
            await until(lambda: server.num_pages == 0)
            writer.close()
            del reader

    run(test)


def test_a_bug_is_told_and_ends_the_page_not_its_host() -> None:
    async def test() -> None:
        errors: list[BaseException] = []
        looks = iter([found_in("tasks")])
        server = PageServer(View(lambda: next(looks)), limits=FAST, token=TOKEN, on_failure=errors.append)
        await server.start()
        port = port_of(server)
        await until(lambda: bool(errors))
        assert isinstance(errors[0], RuntimeError | StopIteration)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        await server.close()

    run(test)


def test_where_it_cant_be_served_is_said_with_what_to_do() -> None:
    async def test() -> None:
        async with served() as server:
            with pytest.raises(UserError, match="name another port, or an address of this device"):
                await PageServer(View(lambda: None)).start("127.0.0.1", port_of(server))
            with pytest.raises(UserError, match=r"can't be served at 203\.0\.113\.7"):
                await PageServer(View(lambda: None)).start("203.0.113.7", 0)

    run(test)


def test_a_server_of_all_addresses_names_each_and_loopback_last() -> None:
    async def test() -> None:
        server = PageServer(View(lambda: None), token=TOKEN)
        await server.start("0.0.0.0")
        links = server.links()
        await server.close()
        assert links[-1].startswith("http://127.0.0.1:") and all(link.endswith(f"/{TOKEN}/") for link in links)
        assert len({link.split(":")[2] for link in links}) == 1

    run(test)

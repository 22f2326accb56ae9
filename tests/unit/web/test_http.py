"""As much HTTP as the page needs, and what is refused."""

from __future__ import annotations

import pytest

from p2ptrain.web.http import BadRequest, Request, answer, event, is_own_host, parse, stream_head

OWN = ("localhost", "desktop", "desktop.local")


def test_a_request_is_read() -> None:
    head = b"GET /token/page.js?a=1 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n\r\n"
    assert parse(head) == Request("GET", "/token/page.js", "127.0.0.1")
    assert parse(b"HEAD / HTTP/1.0\r\nhost: [::1]:80\r\n\r\n") == Request("HEAD", "/", "::1")
    assert parse(b"GET / HTTP/1.1\r\nHost: desktop\r\n\r\n").host == "desktop"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01 TLS\r\n\r\n", 400),
        ("GET /ä HTTP/1.1\r\n\r\n".encode(), 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", 431),
    ],
)
def test_what_is_no_request_for_the_page_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as error:
        parse(head)
    assert error.value.status == status


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "192.168.1.7", "::1", "fe80::1%eth0", "localhost", "DESKTOP.local", "desktop."]
)
def test_addresses_and_own_names_are_this_device(host: str) -> None:
    assert is_own_host(host, OWN)


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_a_name_that_somebody_made_lead_here_is_not(host: str) -> None:
    assert not is_own_host(host, OWN)


def test_every_answer_forbids_what_comes_from_elsewhere() -> None:
    for data in (answer(200, b"x", "text/html", head=False), answer(404, head=True), stream_head()):
        head = data.decode().partition("\r\n\r\n")[0]
        assert "Content-Security-Policy: default-src 'none'; script-src 'self'" in head
        assert "http:" not in head and "unsafe" not in head and "Access-Control" not in head
        assert "Referrer-Policy: no-referrer" in head and "Cache-Control: no-store" in head
    assert answer(200, b"body", head=True).endswith(b"\r\n\r\n")
    assert b"Allow: GET, HEAD\r\n" in answer(405, head=False)


def test_an_event_is_two_lines_and_an_empty_one() -> None:
    assert event("now", '{"a": "ü"}') == 'event: now\ndata: {"a": "ü"}\n\n'.encode()

"""What people give as HOST:PORT, as they type and paste it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from p2ptrain.errors import UserError
from p2ptrain.net.ways.endpoint import parse_endpoint, resolve


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.168.1.20:5710", "192.168.1.20", 5710),
        (" 192.168.1.20:05710\n", "192.168.1.20", 5710),
        ("tcp://[fe80::1%eth0]:5710", "fe80::1%eth0", 5710),
        ("[2001:db8::20]:1", "2001:db8::20", 1),
        ("[10.0.0.1]:65535", "10.0.0.1", 65535),
        ("my-laptop.local:5710", "my-laptop.local", 5710),
        ("küche.local:5710", "küche.local", 5710),
        ("100.64.1.2.nip.io:5710", "100.64.1.2.nip.io", 5710),
    ],
)
def test_what_is_an_endpoint(text: str, host: str, port: int) -> None:
    assert parse_endpoint(text) == (host, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.168.1.20", "HOST:PORT"),
        ("192.168.1.20:²", "HOST:PORT"),
        ("192.168.1.20:70000", "HOST:PORT"),
        ("192.168.1.20:0", "HOST:PORT"),
        ("192.168.1.20:5710/", "HOST:PORT"),
        ("http://192.168.1.20:5710", "HOST:PORT"),
        ("me@192.168.1.20:5710", "HOST:PORT"),
        ("10.0.0.1:1,10.0.0.2:2", "HOST:PORT"),
        ("my laptop:5710", "HOST:PORT"),
        (":5710", "HOST:PORT"),
        ("[]:5710", "HOST:PORT"),
        ("fe80::1:5710", "in brackets"),
        ("2001:db8::1", "in brackets"),
        ("[1:2]:5710", "is no IP address"),
        ("[desk.local]:5710", "is no IP address"),
        ("192.168.1:5710", "is no IP address"),
        ("192.168.001.020:5710", "is no IP address"),
        ("300.1.1.1:5710", "is no IP address"),
        ("0.0.0.0:5710", "of no device"),
        ("[::]:5710", "of no device"),
        ("224.0.0.251:5353", "of no device"),
    ],
)
def test_what_is_none_is_refused_as_it_is_given(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"--peer 192\.168\.1\.20:5710|in brackets") as refused:
        parse_endpoint(text)
    assert said in str(refused.value)


def found(host: str) -> tuple[list[str], str]:
    return asyncio.run(resolve(host, 5))


def test_where_a_name_leads() -> None:
    assert found("127.0.0.1") == (["tcp://127.0.0.1:5"], "")
    assert found("::1") == (["tcp://[::1]:5"], "")
    assert found("fe80::1%lo") == (["tcp://[fe80::1%lo]:5"], "")
    assert "tcp://127.0.0.1:5" in found("localhost")[0]


@pytest.mark.parametrize(
    ("host", "answer", "why"),
    [
        ("desk.local", socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "is a name that nobody knows"),
        ("desk.local", socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "can't be looked up now (Temporary"),
        ("fe80::1%eth9", socket.gaierror(socket.EAI_NONAME, "Name"), "names an interface that this device has not now"),
        ("desk.local", OSError(24, "Too many open files"), "can't be looked up now (Too many open files)"),
        ("a" * 70, UnicodeError("label too long"), "is no name"),
        ("ads.example", [(2, 1, 6, "", ("0.0.0.0", 5))], "leads to 0.0.0.0, which is the address of no device"),
    ],
)
def test_why_there_is_no_address(host: str, answer: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    addresses, told = found(host)
    assert not addresses and told.startswith(why)

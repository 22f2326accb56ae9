"""As much HTTP/1.1 as a page that is only read needs: one request a connection, GET and HEAD, no body.

Invariant: no I/O; what does not fit is ``BadRequest`` with the status to answer, and nothing of a request is guessed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass

MAX_HEAD_BYTES = 8192
MAX_HEADERS = 64
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
SAFE: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Of every answer: nothing from elsewhere, nothing to elsewhere, in no other page, and the link is told to nobody."""


class BadRequest(Exception):
    """A request that is answered with ``status`` and read no further."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """As it was sent, without what follows a question mark."""
    host: str
    """As the browser's address line has it, without the port."""


def parse(head: bytes) -> Request:
    """A request's head, up to and with its empty line. Raises ``BadRequest``."""
    try:
        first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    except UnicodeDecodeError:
        raise BadRequest(400, "not ASCII") from None
    words = first.split(" ")
    if len(words) != 3 or not words[1].startswith("/"):
        raise BadRequest(400, "no request line")
    method, target, version = words
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(505, "another version")
    if method not in ("GET", "HEAD"):
        raise BadRequest(405, "only looking is possible")
    headers = _headers(lines)
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequest(400, "a body")
    return Request(method, target.partition("?")[0], _host(headers.get("host", "")))


def _headers(lines: list[str]) -> dict[str, str]:
    if len(lines) > MAX_HEADERS:
        raise BadRequest(431, "too many headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or (name in headers and name in _ONCE):
            raise BadRequest(400, "no header")
        headers[name] = value.strip()
    return headers


_ONCE = ("host", "content-length", "transfer-encoding")


def _host(text: str) -> str:
    """Without the port, and an IPv6 address without its brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Whether a request is meant for this device: an address, or one of its own ``names``.

    A page of somebody else's whose name leads here (DNS rebinding) asks for that name.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
        return True
    except ValueError:
        return host.lower().rstrip(".") in names


def answer(status: int, body: bytes = b"", content_type: str = "text/plain; charset=utf-8", *, head: bool) -> bytes:
    """A whole answer; ``head``: without the body, which is only counted."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *_safe_lines(),
    ]
    if status == 405:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (b"" if head else body)


def stream_head() -> bytes:
    """What stands before a stream of events, which ends with its connection."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream; charset=utf-8", *_safe_lines()]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _safe_lines() -> list[str]:
    return [*(f"{name}: {value}" for name, value in SAFE.items()), "Connection: close"]


def event(name: str, data: str) -> bytes:
    """An event of a stream; ``data`` is one line."""
    return f"event: {name}\ndata: {data}\n\n".encode()

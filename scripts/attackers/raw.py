"""What goes over a plain TCP socket: ZMTP 3.1 (RFC 37) and CurveZMQ (RFC 26), by hand and as wrong as one likes.

Invariant: every call here ends within ``TIMEOUT_S``, whatever the other side does.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator

from nacl import bindings as sodium
from nacl.exceptions import CryptoError
from zmq.utils import z85

from p2ptrain.net.keys import Identity

TIMEOUT_S = 5.0
COMMAND, LONG_COMMAND = b"\x04", b"\x06"
LONG_FRAME = b"\x02"
_MORE = b"\x01"
METADATA = b"\x0bSocket-Type" + (6).to_bytes(4) + b"DEALER" + b"\x08Identity" + bytes(4)


def greeting(mechanism: bytes, as_server: bool = False) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def command(body: bytes) -> bytes:
    """In a frame of the size that it needs."""
    if len(body) < 256:
        return COMMAND + bytes([len(body)]) + body
    return LONG_COMMAND + len(body).to_bytes(8) + body


def garbage(rng: random.Random) -> bytes:
    """Of another protocol, of none, or torn out of a handshake."""
    start = rng.choice([b"", b"\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", greeting(b"CURVE")])
    frame = b"\x04" + rng.choice([b"\x05HELLO", b"\x08INITIATE", b"\x05READY", b""]) + rng.randbytes(194)
    size = rng.choice([0, 1, 7, 64, 5000, 200_000])
    return start + rng.choice([b"", frame[:1] + bytes([len(frame) % 256]) + frame[1:]]) + rng.randbytes(size)


@contextlib.contextmanager
def strangers(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing by themselves."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S))
        yield made
    finally:
        for each in made:
            each.close()


def push(connection: socket.socket, data: bytes) -> bool:
    """Send it all, however little the other side takes; whether it took it."""
    connection.settimeout(2)
    with contextlib.suppress(OSError):
        connection.sendall(data)
        return True
    return False


class CurveClient:
    """A client of a CURVE server whose public key (Z85) it knows: all the way through the handshake, and no further.

    Raises ``OSError`` where the server hangs up or says something else.
    """

    def __init__(self, port: int, server_public: bytes, identity: Identity) -> None:
        self._server = z85.decode(server_public)
        self._own = z85.decode(identity.public), z85.decode(identity.secret)
        self._short = sodium.crypto_box_keypair()
        self._nonce = 0
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        try:
            self._shake_hands()
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def message(self, payload: bytes, *, more: bool) -> bytes:
        """A frame as it goes over the wire."""
        flags = _MORE if more else b"\0"
        box = sodium.crypto_box(
            flags + payload, self._next_nonce(b"CurveZMQMESSAGEC"), self._cookie_key, self._short[1]
        )
        body = b"\x07MESSAGE" + self._nonce.to_bytes(8) + box
        return LONG_FRAME + len(body).to_bytes(8) + body

    # --- inside -------------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        self.socket.sendall(greeting(b"CURVE"))
        self._read(64)
        public, secret = self._short
        box = sodium.crypto_box(bytes(64), self._next_nonce(b"CurveZMQHELLO---"), self._server, secret)
        hello = b"\x05HELLO\x01\x00" + bytes(72) + public + self._nonce.to_bytes(8) + box
        self.socket.sendall(command(hello))
        welcome = self._command(b"\x07WELCOME")
        opened = self._open(welcome[16:], b"WELCOME-" + welcome[:16], self._server)
        self._cookie_key, cookie = opened[:32], opened[32:]
        vouch_nonce = os.urandom(16)
        vouch = sodium.crypto_box(public + self._server, b"VOUCH---" + vouch_nonce, self._cookie_key, self._own[1])
        box = sodium.crypto_box(
            self._own[0] + vouch_nonce + vouch + METADATA,
            self._next_nonce(b"CurveZMQINITIATE"),
            self._cookie_key,
            secret,
        )
        self.socket.sendall(command(b"\x08INITIATE" + cookie + self._nonce.to_bytes(8) + box))
        ready = self._command(b"\x05READY")
        self._open(ready[8:], b"CurveZMQREADY---" + ready[:8], self._cookie_key)

    def _next_nonce(self, label: bytes) -> bytes:
        self._nonce += 1
        return label + self._nonce.to_bytes(8)

    def _open(self, box: bytes, nonce: bytes, key: bytes) -> bytes:
        try:
            opened: bytes = sodium.crypto_box_open(box, nonce, key, self._short[1])
        except CryptoError as error:
            raise OSError(f"not the server's: {error}") from error
        return opened

    def _command(self, name: bytes) -> bytes:
        """The next frame, without its name."""
        flags = self._read(1)
        size = int.from_bytes(self._read(8 if flags[0] & 2 else 1))
        body = self._read(min(size, 1 << 16))
        if not body.startswith(name):
            raise OSError(f"{name!r} was to come, and {body[:20]!r} did")
        return body[len(name) :]

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise OSError("the server hung up")
            data += part
        return data

"""What a socket listens on, as ZeroMQ says it, and why it can't, as people read it.

Invariant: each error says what to do about it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import zmq

from p2ptrain.errors import UserError
from p2ptrain.net.interfaces import place
from p2ptrain.net.limits import ADVICE, NONE_LEFT


def endpoint(host: str, port: int) -> str:
    """``port`` 0: any that is free."""
    return f"tcp://{'[' + host + ']' if ':' in host else host}:{port or '*'}"


def reason(error: zmq.ZMQError) -> str:
    """In the system's own words."""
    return os.strerror(error.errno) if error.errno and error.errno < 1000 else str(error)


def bind_error(hosts: Sequence[str], error: zmq.ZMQError, port: int, what: str) -> UserError:
    """``what``: the port is for. ``port`` 0: any would have done."""
    where = ", ".join(map(place, hosts))
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} (for {what}) is in use on {where}: stop the peer that runs there, or choose another "
            "with --port (two ports are needed, this one and the next)"
        )
    if error.errno in NONE_LEFT:
        return UserError(f"can't listen on {where} ({error}): {ADVICE}")
    if error.errno == errno.EACCES:
        return UserError(f"port {port} on {where} needs rights that this user lacks: choose one above 1023")
    return UserError(f"can't listen on {where}, port {port or 'any'} ({reason(error)}): check --interface and --port")

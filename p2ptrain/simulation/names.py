"""Names of simulated peers: the key, the id and the address that a number stands for."""

from __future__ import annotations

from p2ptrain.ids import PeerId, peer_id


def key(number: int) -> bytes:
    """A public key, as far as its form goes."""
    return b"%040d" % number


def peer_ids(count: int) -> list[PeerId]:
    """Of the first ``count`` peers."""
    return [peer_id(key(number)) for number in range(count)]


def address(number: int) -> str:
    """Where a peer can be reached."""
    return f"tcp://10.0.{number // 250}.{number % 250 + 1}:5710"
